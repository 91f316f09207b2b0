"""One purpose per draw: no key serves two, and none is both split and folded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import models, training
from fedjax_spmc.aggregators import _server_training as on_server
from fedjax_spmc.experiment import build
from fedjax_spmc.keys import PURPOSES, name_key, purpose_key
from fedjax_spmc.rounds import make_round
from fedjax_spmc.types import Batch, ClientData, Context, LocalRule, ServerData, Variables
from tests import kept_numbers

KEY = jax.random.key(3)


def data(key):
    return np.asarray(jax.random.key_data(key))


def test_purposes_are_told_apart():
    keys = [tuple(data(purpose_key(KEY, purpose))) for purpose in PURPOSES]
    assert len(set(keys)) == len(PURPOSES)
    assert tuple(data(name_key(KEY, "badnets"))) != tuple(data(name_key(KEY, "dba")))


def test_poison_and_rule_draw_from_keys_of_their_own():
    """The batch carries the key that poisoned it; the rule compares it with its own, and with what it may split off."""

    def gather(step, key):
        return Batch(jnp.zeros((2, 1)), jnp.zeros(2, jnp.int32), jax.random.key_data(key), jnp.ones(2, bool))

    def gradients(ctx, params, stats, batch, client_state, key):
        own = jax.random.key_data(jnp.concatenate([key[None], jax.random.split(key, 4)]))
        same = (own == batch.sample_ids[None]).all(axis=1).any()
        return jax.tree.map(jnp.zeros_like, params), stats, {"same": same.astype(jnp.float32), "loss": jnp.float32(0)}

    variables = Variables({"w": jnp.zeros(1)}, {})
    hyper = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    ctx = Context(models.make("mlp"), variables, variables, hyper, 5, jnp.int32(0))
    batches = ClientData(gather, jnp.int32(2), jnp.int32(0))
    trained = training.train_client(LocalRule(gradients), ctx, (), batches, KEY)
    assert int(trained.steps) == 10
    assert float(trained.metrics["same"]) == 0


def test_server_training_draws_dropout_anew_in_every_round():
    model = models.make("cnn_dropout", num_classes=3, image_shape=(8, 8, 3))
    variables = model.init(KEY)
    images = jax.random.normal(KEY, (4, 8, 8, 3))
    server = ServerData(model, images, jnp.array([0, 1, 2, 0]), 4, shuffle=False)
    order = jnp.arange(4, dtype=jnp.int32)[None]
    hyper = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0}

    @jax.jit
    def trained(key):
        return jax.tree.leaves(on_server.train(server, variables.params, {}, order, hyper, key))[-1]

    one, same, other = trained(KEY), trained(KEY), trained(jax.random.key(4))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.usefixtures("small_cache")
def test_the_old_poison_draws_give_the_old_numbers():
    """Draws became those of a part's name; with the key that they came from before, a run's first round is the one of
    before."""
    if kept_numbers.machine() != kept_numbers.kept("numbers_old_draws.json")["made_on"]:
        pytest.skip("the numbers were kept on another machine")
    config = kept_numbers.config_of("digits", "fedavg")
    config.local.epochs = 10  # as when they were kept
    built = build(configs.resolve(config))
    assert set(built.state.attack) == {"badnets"}
    old = built.state.attack["badnets"]._replace(key=purpose_key(built.key, "attack"))
    state, play = built.state._replace(attack={"badnets": old}), make_round(built.federation, built.arrays, built.sizes)
    line = kept_numbers.kept("numbers_old_draws.json")["runs"]["digits"]["fedavg"][0]
    state, report = play(state, built.key)
    assert float(report.metrics["loss"]) == line["train_loss"]
    assert np.asarray(report.verdict.weights).tolist() == line["weights"]
    counts = built.evaluate(state.variables, built.test, state.roster, state.attack)
    assert 100.0 * float(counts.correct.sum()) / float(counts.asked.sum()) == line["A"]
    assert 100.0 * float(counts.hits) / float(counts.triggered) == line["ASR_all"]
