"""How the server's clean data reach an aggregator, and which model of a rule is evaluated and saved."""

import jax
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import experiment, metrics, models
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.federation import evaluated_model
from fedjax_spmc.one_round import play_round
from fedjax_spmc.record.checkpoint import Checkpoints
from fedjax_spmc.record.lines import NONE_UNREPORTED
from fedjax_spmc.record.resume import Snapshot
from fedjax_spmc.rounds import make_round
from tests import small


def made(name: str, options=(), **fields):
    named = {f"aggregator__options__{key}": value for key, value in dict(options).items()}
    config = configs.resolve(small.config(rounds=2, aggregator__name=name, local__rule="sgd", **named, **fields))
    return experiment.build(config)


@pytest.fixture(scope="module")
def tuned():
    """A rule with two models: the mean, which is sent, and the fine-tuned one, which is evaluated."""
    return made("finetuning", {"variant": "reference", "learning_rate": 0.5})


def vector(built, variables) -> np.ndarray:
    return np.asarray(models.to_torch(variables.params))


def test_the_server_holds_the_validation_split_and_only_where_a_rule_asks_for_it(tuned):
    held = tuned.federation.server
    np.testing.assert_array_equal(held.inputs, tuned.dataset.val_inputs)
    np.testing.assert_array_equal(held.labels, tuned.dataset.val_labels)
    assert held.inputs.dtype == np.uint8
    assert made("mean").federation.server is None


def test_its_images_are_arguments_of_the_compiled_round_and_no_constants(tuned):
    federation, arrays = tuned.federation, tuned.arrays

    def play(state, key, arrays, server):
        return play_round(federation._replace(server=server), arrays, arrays[1].sizes, state, key)[0]

    jaxpr = jax.make_jaxpr(play)(tuned.state, tuned.key, arrays, federation.server)
    largest = max((np.size(const) for const in jaxpr.consts), default=0)
    assert largest < federation.server.labels.size
    outer = jax.make_jaxpr(make_round(federation, arrays, tuned.sizes))(tuned.state, tuned.key)
    calls = [equation for equation in outer.eqns if "jaxpr" in equation.params]
    consts = [const for call in calls for const in call.params["jaxpr"].consts]
    assert max(map(np.size, consts), default=0) < federation.server.labels.size
    taken = [var.aval.shape == federation.server.inputs.shape for call in calls for var in call.invars]
    assert sum(taken) == 1, "the server's part alone takes its images"


def test_other_images_on_the_server_make_another_evaluated_model_and_the_same_mean(tuned):
    @jax.jit
    def play(server):
        federation = tuned.federation._replace(server=server)
        return play_round(federation, tuned.arrays, tuned.sizes, tuned.state, tuned.key)[0]

    server = tuned.federation.server
    state, again = play(server), play(server._replace(labels=(server.labels + 1) % 10))
    np.testing.assert_array_equal(vector(tuned, state.variables), vector(tuned, again.variables))
    ours, theirs = (vector(tuned, evaluated_model(tuned.federation, one)) for one in (state, again))
    assert np.abs(ours - theirs).max() > 1e-3
    assert np.abs(ours - vector(tuned, state.variables)).max() > 1e-3


@pytest.mark.slow
def test_the_evaluated_model_is_the_one_that_is_saved_reported_and_loaded(tuned, small_cache, tmp_path):
    options = {"aggregator__options__variant": "reference", "aggregator__options__learning_rate": 0.5}
    config = small.config(rounds=2, aggregator__name="finetuning", local__rule="sgd", **options)
    result = experiment.run(config, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    state = checkpoints.restore(2, Snapshot(tuned.state, NONE_UNREPORTED)).state
    checkpoints.close()
    expected = vector(tuned, evaluated_model(tuned.federation, state))
    assert np.abs(expected - vector(tuned, state.variables)).max() > 1e-3
    np.testing.assert_array_equal(vector(tuned, result.variables), expected)
    np.testing.assert_array_equal(vector(tuned, experiment.load(tmp_path).variables), expected)
    counts = tuned.evaluate(result.variables, tuned.test, state.roster, state.attack)
    values = metrics.percentages(counts, backdoor=tuned.federation.attack.backdoor is not None)
    assert {name: result.history[-1][name] for name in values} == values
    broadcast = tuned.evaluate(state.variables, tuned.test, state.roster, state.attack)
    assert any(
        not np.array_equal(*pair) for pair in zip(jax.tree.leaves(broadcast), jax.tree.leaves(counts), strict=True)
    )
    # A run that is over is read back, and its model written once more.
    (tmp_path / "model.npz").unlink()
    assert experiment.run(config, tmp_path).history == result.history
    np.testing.assert_array_equal(vector(tuned, experiment.load(tmp_path).variables), expected)


@pytest.mark.parametrize("name", ["fltrust", "sageflow", "finetuning", "ft_sam"])
def test_a_validation_split_below_one_batch_is_refused(name):
    with pytest.raises(ConfigError, match=r"^data\.val_fraction = 0\.04 .* one batch of 8 validation images, not 7\.$"):
        made(name, data__val_fraction=0.04)
    assert made(name, data__val_fraction=0.05).federation.server.labels.size == 8
