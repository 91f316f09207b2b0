"""`docs/extend.md`: its five files run as they stand there; and what is said where a plug-in is wrong or missing."""

import re
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fedjax_spmc import aggregators, compare, evaluate, experiment, registry, run
from fedjax_spmc.config import make_config
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import Aggregator, Traits, Verdict
from tests import small
from tests.uploads import random_upload

PAGE = (Path(__file__).parent.parent / "docs" / "extend.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
NAMES = [name.removesuffix(".py") for name in FILES]
REGISTRIES = {
    registry.attacks: "negative",
    registry.aggregators: "shorter_half",
    registry.local_rules: "sign_sgd",
    registry.datasets: "rows",
    registry.models: "my_net",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache_folder):
    """A folder with the five files, in which a run was played that takes all of them."""
    place = tmp_path_factory.mktemp("mine")
    for name, content in FILES.items():
        (place / name).write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDJAX_SPMC_CACHE", str(cache_folder))
        small.share_compiled(cache_folder)
        patch.syspath_prepend(str(place))
        fields = {
            "plugins": tuple(NAMES), "data.name": "rows", "model.name": "my_net", "local.rule": "sign_sgd",
            "aggregator.name": "shorter_half", "attack.name": "negative", "attack.target_label": 1,
            "federation.rounds": 1, "federation.num_clients": 4, "federation.clients_per_round": 4,
            "federation.devices": 1, "local.epochs": 2, "local.batch_size": 8, "partition.name": "iid",
        }  # fmt: skip
        made = make_config()
        from fedjax_spmc import config as configs

        for path, value in fields.items():
            configs.set_field(made, path, value)
        configs.set_field(made, "aggregator.options", {})
        configs.set_field(made, "local.options", {})
        experiment.run(made, place / "run")
        yield place
        for kind, name in REGISTRIES.items():
            kind._factories.pop(name, None)
        for name in NAMES:
            sys.modules.pop(name, None)


def test_there_are_five_files_of_twenty_lines():
    assert len(FILES) == 5
    for name, content in FILES.items():
        lines = [line for line in content.splitlines() if line.strip()]
        assert len(lines) <= 20, name


def test_the_files_run_together(folder):
    result = experiment.load(folder / "run")
    (line,) = result.history
    assert line["A"] > 40  # of three classes
    assert line["ASR"] is not None
    assert line["rule_flags"]
    assert sum(line["flagged"]) == 2


def test_they_are_listed(folder, capsys):
    assert run.main(["--list", f"--config.plugins={','.join(NAMES)}"]) == 0
    out = capsys.readouterr().out
    for name in REGISTRIES.values():
        assert re.search(rf"^  {name} ", out, re.MULTILINE), name
    assert re.search(r"^      scale = 0.1   \(.*, array\)", out, re.MULTILINE)


def test_a_run_goes_on_from_its_folder_alone(folder, tmp_path, capsys):
    copy = shutil.copytree(folder / "run", tmp_path / "copy")
    assert run.main([f"--workdir={copy}", "--config.federation.rounds=2"]) == 0
    assert f"goes on after round 1 of 2 in {copy}" in capsys.readouterr().err
    assert len(experiment.load(copy).history) == 2
    assert run.main([f"--workdir={copy}"]) == 0
    assert "finished after 2 rounds" in capsys.readouterr().out
    assert run.main([f"--workdir={tmp_path / 'nothing'}"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_missing_plugin_is_said(folder, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(folder / "run", tmp_path / "copy")
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"my_model"', '"not_here"'))
    assert evaluate.main([str(copy)]) == 2
    assert "there is no module not_here on the Python path" in capsys.readouterr().err
    # As a notebook leaves it, which has registered by hand.
    config = text.replace("shorter_half", "of_a_notebook")
    (copy / "config.json").write_text(re.sub(r'"plugins": \[[^]]*\]', '"plugins": []', config))
    for main in (evaluate.main, compare.main):
        assert main([str(copy)]) == 2
        err = capsys.readouterr().err
        assert "there is no aggregator 'of_a_notebook', so that a plug-in is missing" in err
        assert "--plugins=MODULE" in err
    (tmp_path / "by_hand.py").write_text(FILES["my_aggregator.py"].replace("shorter_half", "of_a_notebook"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert compare.main([str(copy), "--plugins=by_hand"]) == 0
    registry.aggregators._factories.pop("of_a_notebook")


def returning(change):
    """A rule that returns what it should not."""

    def make() -> Aggregator:
        def aggregate(upload, state, key):
            ones = jnp.ones(len(upload.participating))
            return change(
                jax.tree.map(lambda x: x.mean(axis=0), upload.client_params), Verdict(ones, ones, ones > 2), state
            )

        return Aggregator(lambda params, num_clients: (), aggregate, Traits(True, True, True, True, True))

    return make


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p, v, s: (jax.tree.map(lambda x: x[None], p), v, s),
         "the new model with bias of shape (1, 4): it must be (4,)."),
        (lambda p, v, s: ({"w": p}, v, s), "the new model as another tree: it must be a tree like"),
        (lambda p, v, s: (p, v._replace(scores=v.scores[:3]), s), "scores of shape (3,): it must be (5,), one number"),
        (lambda p, v, s: (p, v, (v.weights,)), "the state as another tree: it must be a tree like the"),
        (lambda p, v, s: (p, v), "it must be (params, Verdict(weights, scores, flagged), state)."),
        (lambda p, v, s: p, "returns dict: it must be"),
    ],
)  # fmt: skip
def test_an_aggregator_of_a_wrong_shape_is_named(change, words):
    with registry.aggregators.temporary("mine", returning(change)):
        rule = aggregators.make("mine")
    upload = random_upload(5)
    with pytest.raises(ConfigError) as error:
        jax.eval_shape(rule.aggregate, upload, rule.init(upload.global_params, 5), jax.random.key(0))
    assert str(error.value).startswith("aggregator 'mine' returns ")
    assert words in str(error.value)
