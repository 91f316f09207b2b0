"""Attacks of a stranger: each composes with BadNets, resumes bit for bit, sweeps, and leaves benign clients alone."""

import functools
import importlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import evaluate, experiment, registry, sweep
from fedjax_spmc.experiment import build
from fedjax_spmc.one_round import aggregate, train
from fedjax_spmc.record.folder import RunFolder
from fedjax_spmc.report import gradcam, images, read
from fedjax_spmc.types import Attack
from tests import small
from tests.flags import AS_USUAL

pytestmark = [pytest.mark.usefixtures("small_cache")]

PLUGINS = ("scaled", "quiet_places", "slow_learner", "own_pictures", "learning_factor", "through_the_defence")
FIELDS: dict[str, Any] = {
    "local__rule": "sgd",
    "aggregator__name": "mean",
    "data__options__num_train": 120,
    "federation__eval_every": 1,
}


def config_of(*names: str, rounds: int = 2, **fields: Any) -> Any:
    """A small config under attack; a plug-in's module is imported as a user names it."""
    plugins = tuple(f"tests.plugins.{name}" for name in names if name in PLUGINS)
    return small.config(rounds, attack__name=names, plugins=plugins, **FIELDS | fields)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The plug-ins for the length of this file; other tests walk the registry."""
    registry.attacks.names()  # a registry fills itself at the first look-up
    before = dict(registry.attacks._factories)
    for name in PLUGINS:
        importlib.import_module(f"tests.plugins.{name}")
    yield
    registry.attacks._factories.clear()
    registry.attacks._factories.update(before)


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plug_in_is_a_short_file(name):
    assert len((small.Path(__file__).parent / "plugins" / f"{name}.py").read_text().splitlines()) <= 25


@functools.cache
def first_round(*names: str) -> Any:
    """Who is malicious, what all clients trained and what they sent under attacks, compiled as usual."""
    built = build(configs.resolve(config_of(*names)))
    rule, seen = built.federation.aggregator(None), []

    def spy(upload, state, key):
        seen.append(upload)
        return rule.aggregate(upload, state, key)

    federation = built.federation._replace(aggregator=lambda server: rule._replace(aggregate=spy))

    def play(state, key):
        trainings = train(federation, built.arrays, built.sizes, state, key)
        aggregate(federation, built.arrays, built.sizes, state, key, trainings)
        return trainings.trained.variables.params, seen[-1].client_params

    # As if a round had been played before, so that there is an update to look back at.
    previous = jax.tree.map(lambda x: 0.9 * x, built.state.variables)
    state = built.state._replace(previous=previous)
    return built.malicious, *jax.jit(play, compiler_options=AS_USUAL)(state, built.key)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_benign_clients_keep_their_bits(name):
    """Trained and sent: what the attackers do beside poisoning reaches nobody else."""
    _, alone_trained, alone_sent = first_round("badnets")
    malicious, trained, sent = first_round("badnets", name)
    for ours, expected in ((trained, alone_trained), (sent, alone_sent)):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(np.asarray(a)[~malicious], np.asarray(b)[~malicious])
    changed = [
        not np.array_equal(np.asarray(a)[malicious], np.asarray(b)[malicious])
        for a, b in zip(jax.tree.leaves(sent), jax.tree.leaves(alone_sent), strict=True)
    ]
    assert any(changed)


NOISE: dict[str, Any] = {"attack__options__around": "own", "attack__options__noise": {"scale": 0.01}}
SWEPT = {
    PLUGINS[:3]: ({}, {"attack.poison_fraction": [0.25, 0.5]}),
    (*PLUGINS[3:], "alie", "mimic", "noise"): (
        {"aggregator__pre": ("clip", "nnm"), **NOISE},
        {"attack.options.noise.scale": [0.05, 0.01], "aggregator.pre_options.clip.bound": [2.0]},
    ),
    ("constrain_and_scale", "neurotoxin"): ({}, {"attack.options.alpha": [0.2, 0.9]}),
    ("chameleon", "neurotoxin", "layerwise"): (
        {"attack__options__contrastive_epochs": 2, "attack__options__search_epochs": 2},
        {
            "attack.options.contrastive_rate": [0.1, 0.005],
            "attack.options.weight": [2.0],
            "attack.options.scale": [1.0],
            "attack.options.ratio": [0.95],
        },
    ),
}
"""Attacks behind BadNets -> further fields, and a grid of arrays whose last cell is the config itself."""


@pytest.mark.slow
@pytest.mark.parametrize("names", SWEPT, ids="+".join)
def test_a_run_resumes_and_sweeps(names, tmp_path):
    """Several at a time behind BadNets: each keeps a state and draws of its own; also behind pre-aggregators."""
    fields, grid = SWEPT[names]
    straight = tmp_path / "straight"
    result = experiment.run(config_of("badnets", *names, **fields), straight)
    broken = tmp_path / "broken"
    experiment.run(config_of("badnets", *names, rounds=1, **fields), broken)
    experiment.run(config_of("badnets", *names, **fields), broken)
    small.assert_same_run(straight, broken)
    swept = sweep.Sweep(config_of("badnets", *names, **fields), grid)
    assert len(sweep.groups_of(sweep.expand(swept))) == 1
    rows = sweep.run(swept, tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["finished"] * 2
    cell, other = (experiment.load(tmp_path / "sweep" / row["folder"]) for row in (rows[1], rows[0]))
    assert not np.allclose(*(jax.tree.leaves(one.variables)[0] for one in (cell, other)), atol=1e-5)
    for a, b in zip(jax.tree.leaves(cell.variables), jax.tree.leaves(result.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert evaluate.evaluate(str(straight))["ASR_all"] == result.history[-1]["ASR_all"]


def test_pictures_of_the_attackers_own_are_tested():
    result = experiment.run(config_of("own_pictures", rounds=1))
    line = result.history[-1]
    assert line["ASR"] is None, "every such picture has the attacker's label: none is of another class"
    assert line["ASR_all"] is not None
    assert line["A"] is not None


def test_a_list_that_begins_with_poison_poisons_the_same(tmp_path):
    own = [
        build(configs.resolve(config_of(*names))).state.attack["badnets"]
        for names in (("badnets",), ("badnets", "scaled"))
    ]
    np.testing.assert_array_equal(*[jax.random.key_data(one.key) for one in own])


# Attacks that guard nothing.


def careless_after_step() -> Attack:
    """Goes back to the broadcast model after every step, whoever asks."""
    return Attack(after_step=lambda ctx, own, params, client_id, step: ctx.variables.params)


def careless_mask() -> Attack:
    """Takes away everybody's gradients."""
    zero = lambda ctx, own, grads, params, client_id, step: jax.tree.map(jnp.zeros_like, grads)  # noqa: E731
    return Attack(mask_gradients=zero)


def careless_craft() -> Attack:
    """Uploads NaN in every row, and counts rounds of its own."""

    def craft(ctx, own, upload, key):
        nothing = jax.tree.map(lambda x: x * jnp.nan, upload.client_params)
        return upload._replace(client_params=nothing, num_examples=upload.num_examples * jnp.nan), own

    return Attack(init=lambda ctx, key: jnp.int32(0), begin_round=lambda ctx, own, key: own + 1, craft=craft)


@pytest.mark.slow
@pytest.mark.parametrize("careless", [careless_after_step, careless_mask])
def test_benign_clients_learn_beside_an_attack_that_guards_nothing(careless):
    with registry.attacks.temporary("careless", careless):
        built = build(configs.resolve(config_of("careless", local__weight_decay=0.0, attack__malicious_fraction=0.5)))
        trained = jax.jit(lambda state, key: train(built.federation, built.arrays, built.sizes, state, key).trained)(
            built.state, built.key
        )
    moved = [
        np.abs(np.asarray(a) - np.asarray(b)[None]).reshape(len(a), -1).max(axis=1)
        for a, b in zip(
            jax.tree.leaves(trained.variables.params), jax.tree.leaves(built.state.variables.params), strict=True
        )
    ]
    moved = np.max(moved, axis=0)
    assert (moved[~built.malicious] > 0).all()
    assert (moved[built.malicious] == 0).all()


@pytest.mark.slow
def test_an_attack_of_one_round_lasts_one_round(tmp_path):
    """Its own `begin_round` does not stop the clock: NaN comes in round 1 alone, from the three that attack."""
    with registry.attacks.temporary("careless", careless_craft):
        schedule = {"attack__schedule__first": 1, "attack__schedule__last": 1, "attack__malicious_fraction": 0.75}
        result = experiment.run(config_of("careless", rounds=3, **schedule), tmp_path)
        own = RunFolder(tmp_path, result.config, read_only=True).read_attack({"careless": jnp.int32(0)})
    assert int(own["careless"]) == 1
    assert [line["non_finite"] for line in result.history] == [0, 3, 0]
    assert [sum(line["attacking"]) for line in result.history] == [0, 3, 0]
    assert [sum(line["malicious"]) for line in result.history] == [3, 3, 3]
    assert [sum(line["flagged"]) for line in result.history] == [0, 3, 0]  # by the guard: the rule never flags
    losses = [line["train_loss"] for line in result.history]
    assert losses[2] < losses[0]


def moving_trigger() -> Attack:
    """A trigger that is another one after every round, as a learned one is."""

    def backdoor(ctx, own, batch):
        inputs = batch.inputs.at[:, :8, :8, :].set(own)
        return batch._replace(inputs=inputs, labels=jnp.full_like(batch.labels, 2))

    return Attack(
        init=lambda ctx, key: jnp.float32(-3.0), begin_round=lambda ctx, own, key: own + 3.0, backdoor=backdoor
    )


@pytest.mark.slow
def test_a_trigger_that_moves_is_evaluated_and_drawn_as_it_is_now(tmp_path, capsys, monkeypatch):
    seen, original = [], gradcam.grad_cam
    monkeypatch.setattr(gradcam, "grad_cam", lambda *given: seen.append(given[2]) or original(*given))
    with registry.attacks.temporary("moving", moving_trigger):
        result = experiment.run(config_of("moving", rounds=3), tmp_path)
        assert evaluate.main([str(tmp_path), "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        folder = RunFolder(tmp_path, result.config, read_only=True)
        assert float(folder.read_attack({"moving": jnp.float32(0)})["moving"]) == 6.0
        (run,) = read.read([tmp_path]).runs
        assert not isinstance(images.RunImages().test_images(run), str)
    _, triggered = seen
    assert (np.asarray(triggered)[:, :8, :8] == 6.0).all()
    assert printed == {name: result.history[-1][name] for name in printed}


# How attackers train.


@pytest.mark.slow
def test_attackers_train_as_the_config_says():
    """Two epochs, a tenth of the rate from the second on, by plain SGD where the others run SPMC."""
    fields = {"local__rule": "spmc", "attack__local__rule": "sgd", "attack__local__epochs": 2}
    fields |= {"attack__local__learning_rate": 0.02, "attack__local__milestones": (1,)}
    built = build(configs.resolve(config_of("badnets", attack__malicious_fraction=0.5, **fields)))
    plain = build(configs.resolve(config_of("badnets", attack__malicious_fraction=0.5, local__rule="spmc")))
    trained, usual = (
        jax.jit(lambda state, key, one=one: train(one.federation, one.arrays, one.sizes, state, key).trained)(
            one.state, one.key
        )
        for one in (built, plain)
    )
    bad = built.malicious
    np.testing.assert_array_equal(np.asarray(trained.steps)[bad], 2 * np.asarray(usual.steps)[bad])
    np.testing.assert_array_equal(np.asarray(trained.steps)[~bad], np.asarray(usual.steps)[~bad])
    for a, b in zip(jax.tree.leaves(trained.variables), jax.tree.leaves(usual.variables), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[~bad], np.asarray(b)[~bad])
        assert not np.array_equal(np.asarray(a)[bad], np.asarray(b)[bad])


def test_an_attackers_rule_must_send_what_the_aggregator_needs():
    config = small.config(1, "fdcr", attack__local__rule="sgd")
    with pytest.raises(ValueError, match=r"attack\.local\.rule = 'sgd' is not allowed with local\.rule = 'fdcr'"):
        build(configs.resolve(config))
