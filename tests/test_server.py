"""The server's optimisers against Algorithm 2 of "Adaptive Federated Optimization" in NumPy, by hand, and in rounds."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, server
from fedjax_spmc import config as configs
from fedjax_spmc.aggregators.guard import guarded
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.experiment import build
from fedjax_spmc.one_round import play_round
from fedjax_spmc.types import Variables
from tests import small
from tests.uploads import flat, random_tree, random_upload

OPTIMIZERS = tuple(name for name in server.TAKES if name != "none")


def taken(optimizer, **settings):
    """Those of the settings that the optimizer has a use for."""
    return {name: value for name, value in settings.items() if name in server.TAKES[optimizer]}


def algorithm_2(x, aggregated, optimizer, learning_rate, beta1, beta2, tau):
    """The models x_1, x_2, ... of the server; `aggregated(t, x)` is what the aggregator makes in round t, [D]."""
    m, v, seen = np.zeros_like(x), np.full_like(x, tau**2), []
    for t in range(3):
        delta = aggregated(t, x) - x
        if optimizer == "sgd":
            x = x + learning_rate * delta
        elif optimizer == "momentum":
            m = beta1 * m + delta
            x = x + learning_rate * m
        else:
            m = beta1 * m + (1 - beta1) * delta
            if optimizer == "adagrad":
                v = v + delta**2
            elif optimizer == "adam":
                v = beta2 * v + (1 - beta2) * delta**2
            else:
                v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
            x = x + learning_rate * m / (np.sqrt(v) + tau)
        seen.append(x)
    return seen


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_three_steps_are_algorithm_2(optimizer):
    numbers = {"learning_rate": 0.3, "beta1": 0.8, "beta2": 0.9, "tau": 0.05}
    made = server.make(optimizer, **taken(optimizer, **numbers))
    rng = np.random.default_rng(0)
    start, moves = random_tree(rng), [random_tree(rng, scale=scale) for scale in (1.0, 0.1, 3.0)]
    expected = algorithm_2(flat(start).astype(np.float64), lambda t, x: x + flat(moves[t]), optimizer, **numbers)
    model, state = Variables(start, {}), made.init(start)
    for move, want in zip(moves, expected, strict=True):
        aggregated = Variables(jax.tree.map(jnp.add, model.params, move), {})
        model, state, finite = jax.jit(made.step)(model, aggregated, state)
        np.testing.assert_allclose(flat(model.params), want, rtol=1e-5, atol=1e-5)
        assert bool(finite)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("sgd", 1 + 0.5 * 3),
        ("momentum", 1 + 0.5 * 3),
        ("adam", 1 + 0.5 * 1.5 / (np.sqrt(0.5 * 1 + 0.5 * 9) + 1)),
        ("adagrad", 1 + 0.5 * 1.5 / (np.sqrt(1 + 9) + 1)),
        ("yogi", 1 + 0.5 * 1.5 / (np.sqrt(1 + 0.5 * 9) + 1)),
    ],
)
def test_one_step_by_hand(optimizer, expected):
    """From 1 towards 4: delta = 3, delta^2 = 9; m = 0.5 * 3, v_{-1} = 1; learning rate 0.5. Statistics: from 2 to 6.

    The first step of momentum is that of SGD.
    """
    made = server.make(optimizer, **taken(optimizer, learning_rate=0.5, beta1=0.5, beta2=0.5, tau=1.0))
    old, new = (Variables({"x": jnp.float32(x)}, {"mean": jnp.float32(s)}) for x, s in ((1.0, 2.0), (4.0, 6.0)))
    model, _, _ = made.step(old, new, made.init(old.params))
    assert float(model.params["x"]) == pytest.approx(expected, rel=1e-6)
    assert float(model.stats["mean"]) == 4.0


def test_sgd_at_rate_1_installs_what_the_aggregator_made():
    upload, krum = random_upload(5, seed=1), aggregators.make("krum")
    params, _, _ = krum.aggregate(upload, krum.init(upload.global_params, 5), jax.random.key(0))
    made = server.make("sgd")
    model, _, _ = made.step(Variables(upload.global_params, {}), Variables(params, {}), made.init(params))
    chex.assert_trees_all_close(model.params, params, atol=1e-6)


def test_defaults_are_those_of_the_fields():
    assert server.make("none") is None
    assert [server.make(name).learning_rate for name in OPTIMIZERS] == [1.0, 1.0, 0.01, 0.01, 0.01]
    for name, default in server.SETTINGS.items():
        assert configs.FIELDS[f"server.{name}"].default == default
    recorded = configs.with_chosen_options(configs.resolve(small.config(presets="krum", server__optimizer="yogi")))
    assert recorded.server.learning_rate == 0.01
    assert configs.resolve(small.config()).server.learning_rate is None


def test_a_sweep_may_vmap_over_the_learning_rate():
    old, new = (Variables({"x": jnp.float32(x)}, {}) for x in (1.0, 4.0))

    def move(rate):
        made = server.make("adam", learning_rate=rate)
        return made.step(old, new, made.init(old.params))[0].params["x"] - 1.0

    steps = jax.vmap(move)(jnp.array([0.1, 0.2]))
    assert float(steps[1] / steps[0]) == pytest.approx(2.0, rel=1e-4)


# Rounds.


@functools.cache
def built(optimizer="none"):
    settings = taken(optimizer, learning_rate=0.5, beta1=0.8, beta2=0.9, tau=0.05)
    fields = {f"server__{name}": value for name, value in settings.items()}
    return build(configs.resolve(small.config(presets="krum", server__optimizer=optimizer, **fields)))


def played(experiment, state, **parts):
    federation = experiment.federation._replace(**parts)

    @jax.jit
    def play(arrays, sizes, state, key):
        return play_round(federation, arrays, sizes, state, key)

    return play(experiment.arrays, experiment.sizes, state, experiment.key)


def test_a_round_steps_from_the_broadcast_model_towards_what_krum_chose():
    experiment = built("adam")
    state, seen, chosen = experiment.state, [], []
    for _ in range(3):
        chosen.append(flat(played(experiment, state, server_optimizer=None)[0].variables.params).astype(np.float64))
        state, report = played(experiment, state)
        seen.append(flat(state.variables.params))
        assert np.asarray(report.verdict.weights).max() == 1.0
        assert not report.failed
    start = flat(experiment.state.variables.params).astype(np.float64)
    expected = algorithm_2(start, lambda t, x: chosen[t], "adam", 0.5, 0.8, 0.9, 0.05)
    np.testing.assert_allclose(seen[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(seen, expected, atol=1e-4)


def test_a_failed_round_changes_neither_model_nor_statistics_nor_the_optimizer():
    experiment = built("momentum")
    after, _ = played(experiment, experiment.state)
    assert not np.allclose(jax.tree.leaves(after.server_optimizer)[0], 0)
    rule = experiment.federation.aggregator(None)._replace(min_clients=99)
    lost, report = played(experiment, after, aggregator=lambda examples: guarded(rule))
    assert int(report.failed) == 1
    assert float(report.verdict.weights.sum()) == 0
    chex.assert_trees_all_equal(lost.variables, after.variables)
    chex.assert_trees_all_equal(lost.server_optimizer, after.server_optimizer)


def test_a_step_that_is_not_finite_is_a_failed_round():
    experiment = built("sgd")
    lost, report = played(experiment, experiment.state, server_optimizer=server.make("sgd", learning_rate=1e38))
    lost, report = played(experiment, lost, server_optimizer=server.make("sgd", learning_rate=jnp.float32(jnp.inf)))
    assert int(report.failed) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(lost.variables))


def test_without_an_optimizer_there_is_no_state():
    assert built().federation.server_optimizer is None
    assert built().state.server_optimizer == ()
    assert configs.server_settings(configs.resolve(small.config())) == ()


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("spmc", "local.options.teacher_weights = 'verdict' is not allowed with server.optimizer = 'sgd'"),
        ("finetuning,reference", "server.optimizer = 'sgd' is not allowed with aggregator.name = 'finetuning'"),
        ("ft_sam,reference", "server.optimizer = 'sgd' is not allowed with aggregator.name = 'ft_sam'"),
    ],
)
def test_what_an_optimizer_cannot_go_with_is_refused(preset, words):
    with pytest.raises(ConfigError, match=f"^{words}, .*: it must be 'uniform'|^{words}, .*: it must be 'none'"):
        configs.resolve(small.config(presets=preset, server__optimizer="sgd", data__val_fraction=0.1))


def test_spmc_goes_with_an_optimizer_where_its_teachers_are_plain_means():
    config = small.config(server__optimizer="sgd", local__options__teacher_weights="uniform")
    assert configs.resolve(config).server.optimizer == "sgd"
