"""Mistakes that people make at the command line and in Python: one sentence each, which names the way out."""

from pathlib import Path

import pytest

from fedjax_spmc import experiment, sweep
from fedjax_spmc.__main__ import main
from fedjax_spmc.config import make_config
from fedjax_spmc.errors import UserError
from fedjax_spmc.sweep import Sweep
from tests import small

pytestmark = pytest.mark.usefixtures("small_cache")

RUN = "run --config=digits"
FILES = {
    "no_config.py": "from pathlib import Path\nPath('executed').touch()\n",
    "half.py": "def get_config(\n",
    "half_rules.py": "import jax\n\n\ndef rule(:\n",
    "mine.py": "from fedjax_spmc.config import make_config\n\n\ndef get_config(arg=''):\n    return make_config(arg)\n",
}
"""Of a user's own, in the folder in which the commands are given."""

MISTAKES: list[tuple[str, str]] = [
    # Flags.
    ("rum --config=digits", "did you mean run?"),
    ("run --epochs=3", "did you mean --config.local.epochs=3?"),
    (f"{RUN} --rounds 3", "did you mean --config.federation.rounds?"),
    (f"{RUN} --seed=1", "did you mean --config.seed=1?"),
    (f"{RUN} --seeds=0,1,2", "several seeds are a sweep"),
    (f"{RUN} --workdr=x", "did you mean --workdir?"),
    (f"{RUN} --dry-run", "it is a flag of python -m fedjax_spmc sweep"),
    (f"{RUN} --method=krum", "--config=CONFIG:krum"),
    (f"{RUN} fedavg", "--config=CONFIG:fedavg"),
    ("run digits:fedavg", "did you mean --config=digits:fedavg?"),
    ("run config=digits", "did you mean --config=digits?"),
    ("run", "--config is missing: --config=digits:fedavg"),
    ("run --list=attack", "did you mean attacks?"),
    ("data prepare cifar", "did you mean cifar10 or cifar100?"),
    # Configs.
    ("run --config=digts", "did you mean digits?"),
    ("run --config=digits.py", "no such file; the config of that name that comes with the package is --config=digits."),
    ("run --config=configs/digts.py", "no such file: did you mean --config=digits?"),
    ("run --config=mine", "did you mean mine.py?"),
    ("run --config=no_config.py", "it has no get_config, and was not executed; it must define get_config(arg='')"),
    ("run --config=half.py", "SyntaxError, line 1"),
    ("run --config=sweeps/digits", "`fedjax-spmc sweep --config=sweeps/digits`"),
    ("sweep --config=digits", "`fedjax-spmc run --config=digits`"),
    ("run --config=digits:fedavgg", "did you mean fedavg?"),
    ("run --config=digits:fedavg,krum", "several methods are a sweep"),
    # Fields.
    (f"{RUN} --config.epochs=3", "did you mean local.epochs?"),
    (f"{RUN} --config.local.lr=0.1", "did you mean local.learning_rate?"),
    (f"{RUN} --config.attack.fraction=0.3", "did you mean attack.malicious_fraction?"),
    (f"{RUN} --config.data=digits", "did you mean data.name?"),
    (f"{RUN}:krum --config.aggregator.attackers=2", "an option (did you mean aggregator.options.attackers?)."),
    (f"{RUN}:krum --config.aggregator.options.attacker=2", "did you mean attackers?"),
    (f"{RUN}:fedavg --config.aggregator.options.attackers=2", "It is an option of bulyan, dnc, krum, multi_krum or"),
    (f"{RUN} --config.attack.options.target_label=3", "it is a field of its own, attack.target_label."),
    # Names of parts.
    (f"{RUN} --config.aggregator.name=krumm", "`fedjax-spmc list aggregators` names (did you mean krum?)."),
    (f"{RUN} --config.aggregator.name=fedavg", "fedavg is a preset, the aggregator is mean"),
    (f"{RUN} --config.local.rule=fedavg", "fedavg is a preset, the local rule is sgd"),
    (f"{RUN} --config.aggregator.name=nnm", "it must be aggregator.pre=nnm."),
    (f"{RUN} --config.attack.name=krum", "it must be aggregator.name=krum."),
    (f"{RUN} --config.data.name=CIFAR-10", "did you mean cifar10?"),
    (f"{RUN} --config.model.name=resnet", "did you mean resnet9, resnet10 or resnet18?"),
    # Values.
    (f"{RUN} --config.seed=0,1,2", "several seeds are a sweep (`fedjax-spmc sweep`, Sweep(base, seeds=(0, 1, 2)))"),
    (f"{RUN} --config.aggregator.name=krum,median", "grid={'aggregator.name': ['krum', 'median']}"),
    (f"{RUN} --config.local.learning_rate=0,01", "did you mean 0.01?"),
    (f"{RUN} --config.federation.rounds=1e2", "did you mean 100?"),
    (f"{RUN} --config.attack.malicious_fraction=30", "did you mean 0.3, which is 30 %?"),
    (f"{RUN} --config.data.augment=yes", "did you mean True?"),
    # Plug-ins.
    (f"{RUN} --config.plugins=half_rules", "half_rules.py, line 4 is no Python"),
    (f"{RUN} --config.plugins=half_rules.py", "did you mean half_rules?"),
    (f"{RUN} --config.plugins=no_rules", "there is no module no_rules on the Python path; its folder must be the one"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_sentence_that_names_the_way_out(line, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith(".\n")
    assert words in err
    assert len(err) < 450
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == set(FILES)  # nothing was executed or begun


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: experiment.run({"data": "digits"}), "did you mean data.name?"),
        (lambda: experiment.run("digits"), "read_config('digits:fedavg')[0]"),
        (lambda: experiment.run(make_config("fedavg", dataset="digits")), "did you mean data.name?"),
        (lambda: experiment.run(make_config("fedavg", model__name="resnet_18")), "did you mean resnet18?"),
        (lambda: sweep.run(make_config(), "nowhere"), "a sweep around it is Sweep(base=...,"),
        (lambda: sweep.run(Sweep(make_config(), seeds=3), "nowhere"), "(did you mean range(3)?)"),  # pyright: ignore
        (lambda: sweep.run(Sweep(make_config(), {"local.lr": [0.1]}), "nowhere"), "did you mean local.learning_rate?"),
        (lambda: sweep.run(Sweep(make_config(), {"method": ["krumm"]}), "nowhere"), "did you mean krum?"),
    ],
)
def test_in_python_too(call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_sweep_folder_given_for_a_run(tmp_path, capsys):
    (tmp_path / "results.jsonl").write_text("")
    assert main(["evaluate", str(tmp_path)]) == 2
    assert f"its runs are in {tmp_path / 'cells'}." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["JAX_TRANSFER_GUARD", "JAX_TRANSFER_GUARD_DEVICE_TO_HOST"])
def test_a_guard_of_jax_that_forbids_what_a_run_does(name, monkeypatch, capsys):
    monkeypatch.setenv(name, "disallow")
    assert main(["list", "configs"]) == 2
    assert f"error: {name} = 'disallow' is not allowed: " in capsys.readouterr().err
    monkeypatch.setenv(name, "log")
    assert main(["list", "configs"]) == 0


def test_a_plug_in_that_fails_is_told_with_its_line(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    path = Path(tmp_path / "failing_rules.py")
    path.write_text("import jax\n\nraise RuntimeError('no licence')\n")
    small.refused(
        capsys, [f"--config={small.CONFIG}", "--config.plugins=failing_rules"], "no licence", f"{path}, line 3"
    )


def test_there_are_41_of_them():
    assert len(MISTAKES) >= 41
    assert len({line for line, _ in MISTAKES}) == len(MISTAKES)
