"""What every registered local rule must do."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import local_rules, models, trees
from fedjax_spmc.parity.kinds_local import fixed_batches
from fedjax_spmc.training import train_client
from fedjax_spmc.types import Context, Upload, Verdict
from tests.uploads import labels_of

NAMES = local_rules.names()
LABELS = [label for name in NAMES for label in labels_of(local_rules.describe(name), name)]
HYPER = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-5}
MODEL = models.make("mlp")


@pytest.fixture(params=LABELS, scope="module")
def rule(request):
    name, _, variant = request.param.partition("-")
    return local_rules.make(name, **({"variant": variant} if variant else {}))


@functools.cache
def start():
    return MODEL.init(jax.random.key(0))


@functools.cache
def batches(seed=0):
    key = jax.random.key(seed)
    return jax.random.normal(key, (3, 8, 32, 32, 3)), jax.random.randint(key, (3, 8), 0, 10, jnp.int32)


@functools.cache
def trainer(rule):
    """What training leaves of its data, epochs and state; compiled once for a rule."""

    @jax.jit
    def run(variables, shared, images, labels, client, client_state, epochs):
        ctx = Context(MODEL, variables, variables, HYPER, epochs, jnp.int32(0), shared=shared)
        return train_client(rule, ctx, client_state, fixed_batches(images, labels, client), jax.random.key(3))

    return run


def trained(rule, data=None, client=1, epochs=2):
    variables = start()
    state = rule.init(variables, 4)
    images, labels = batches() if data is None else data
    own = trees.take_rows(state.clients, client)
    return trainer(rule)(variables, state.server, images, labels, jnp.int32(client), own, jnp.int32(epochs))


def test_training_moves_the_model_and_counts_its_steps(rule):
    out = trained(rule)
    assert int(out.steps) == 6
    chex.assert_trees_all_equal_shapes_and_dtypes(out.variables, start())
    chex.assert_tree_all_finite(out.variables)
    assert not np.allclose(models.to_torch(out.variables.params), models.to_torch(start().params))
    assert np.isfinite(out.metrics["loss"])


def test_training_lowers_the_loss(rule):
    first, last = trained(rule, epochs=1), trained(rule, epochs=12)
    assert float(last.metrics["loss"]) / 36 < float(first.metrics["loss"]) / 3


def test_a_clients_state_keeps_its_shape_through_a_round(rule):
    variables = start()
    state = rule.init(variables, 4)
    out = trained(rule)
    params = trees.broadcast(out.variables.params, 2)
    upload = Upload(
        variables.params,
        params,
        jnp.ones(2),
        jnp.ones(2, bool),
        jnp.array([3, 1]),
        jnp.ones(2, jnp.int32),
        client_stats={},
    )
    verdict = Verdict(jnp.array([0.5, 0.5]), jnp.zeros(2), jnp.zeros(2, bool))
    after = rule.after_round(state, upload, params, variables, verdict)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_tree_all_finite(after)


def test_the_first_round_does_not_depend_on_the_client(rule):
    chex.assert_trees_all_equal(trained(rule, client=0).variables, trained(rule, client=3).variables)


def test_every_option_is_documented():
    from fedjax_spmc import registry

    for name in NAMES:
        doc = registry.local_rules.factory(name).__doc__ or ""
        assert all(option in doc for option in local_rules.describe(name)), name
        assert len(labels_of(local_rules.describe(name), name)) == 1 or "Reference:" in doc, name
