"""Corners beyond the contract: an upload at the edge of float32, equal uploads, ties, a state that breaks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators
from fedjax_spmc.aggregators.guard import guarded
from fedjax_spmc.experiment import build
from fedjax_spmc.types import Aggregator, Traits, Verdict
from tests.uploads import flat, permute, random_upload

KEY = jax.random.key(0)


@functools.cache
def compiled(name, **options):
    rule = aggregators.make(name, **options)
    return rule._replace(aggregate=jax.jit(rule.aggregate))


def run(name, upload, **options):
    rule = compiled(name, **options)
    state = rule.init(upload.global_params, len(upload.participating))
    return rule.aggregate(upload, state, KEY)


@pytest.mark.parametrize("name", ["dnc", "krum", "multi_krum", "bulyan", "median", "flame", "signguard"])
def test_one_upload_at_the_edge_of_what_the_guard_lets_through(name):
    upload = random_upload(10, seed=1)
    for value in (1e16, 9e17):
        far = {key: leaf.at[0].set(leaf[0]) for key, leaf in upload.client_params.items()}
        far["bias"] = far["bias"].at[0, 1].set(value)
        model, verdict, _ = run(name, upload._replace(client_params=far))
        chex.assert_tree_all_finite((model, verdict))
        # The median may take the other coordinates of that row. (RFA's three steps cannot come back from so far.)
        assert verdict.weights[0] < (1e-4 if name != "median" else 0.2)
        assert np.abs(flat(model)).max() < 100


@pytest.mark.parametrize("num_clients", [5, 20])
def test_signguard_on_equal_uploads(num_clients):
    for seed in range(6):
        upload = random_upload(num_clients, seed=seed, spread=0.0)
        model, verdict, _ = run("signguard", upload, coordinates=1.0)
        np.testing.assert_allclose(verdict.weights, 1 / num_clients, rtol=1e-5)
        np.testing.assert_allclose(flat(model), flat({k: x[0] for k, x in upload.client_params.items()}), atol=1e-6)


@pytest.mark.parametrize(("name", "num_clients"), [("bulyan", 7), ("bulyan", 10), ("krum", 10), ("multi_krum", 10)])
def test_ties_of_nearest_pairs_do_not_depend_on_the_order(name, num_clients):
    aggregate = compiled(name).aggregate
    for seed in range(5):
        upload = random_upload(num_clients, seed=seed)
        order = np.random.default_rng(seed).permutation(num_clients)
        model, verdict, _ = aggregate(upload, (), KEY)
        permuted, permuted_verdict, _ = aggregate(permute(upload, order), (), KEY)
        np.testing.assert_allclose(flat(permuted), flat(model), atol=1e-5)
        np.testing.assert_allclose(permuted_verdict.weights, np.asarray(verdict.weights)[order], atol=1e-5)


def test_a_state_that_is_not_finite_is_not_installed():
    def aggregate(upload, state, key):
        weights = upload.participating / upload.participating.sum()
        none = jnp.zeros_like(weights)
        return upload.global_params, Verdict(weights, none, none > 0), state + jnp.nan

    rule = guarded(Aggregator(lambda params, n: jnp.zeros(()), aggregate, Traits(True, True, True, True, True)))
    _, verdict, state = rule.aggregate(random_upload(4), jnp.ones(()), KEY)
    assert state == 1
    assert verdict.weights.sum() == 0


@pytest.mark.slow
def test_crfl_is_told_the_length_of_the_run():
    from fedjax_spmc import config as configs
    from tests import small

    config = configs.resolve(small.config(rounds=2, presets="crfl"))
    experiment = build(config)
    clients = jax.tree.map(lambda x: jnp.stack([x, x]), experiment.state.variables.params)
    upload = random_upload(2)._replace(global_params=experiment.state.variables.params, client_params=clients)
    aggregate = jax.jit(experiment.federation.aggregator(None).aggregate)
    for round_index, noisy in ((0, True), (1, False)):
        model, _, _ = aggregate(upload._replace(round=jnp.int32(round_index)), (), KEY)
        moved = max(
            float(jnp.abs(a - b).max())
            for a, b in zip(*map(jax.tree.leaves, (model, upload.global_params)), strict=True)
        )
        assert (moved > 1e-3) == noisy
