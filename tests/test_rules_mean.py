"""Server optimisers of `mean` against Algorithm 2 of "Adaptive Federated Optimization" in NumPy, and by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators
from fedjax_spmc.aggregators.mean import TAKES
from fedjax_spmc.types import Upload
from tests.uploads import flat, random_upload

OPTIMIZERS = ("sgd", "momentum", "adam", "adagrad", "yogi")


def taken(optimizer, **options):
    """Those of the options that the optimizer has a use for; it refuses the others."""
    return {name: value for name, value in options.items() if name in TAKES[optimizer]}


def algorithm_2(models, shares, optimizer, rate, beta1, beta2, tau):
    """The models x_0, x_1, ... that the server holds; `models(t, x)` are the uploads of round t, [K, D]."""
    x = models(0, None)
    m, v, seen = np.zeros_like(x), np.full_like(x, tau**2), []
    for t in range(3):
        delta = shares[t] @ models(t + 1, x) - x
        if optimizer == "sgd":
            x = x + rate * delta
        elif optimizer == "momentum":
            m = beta1 * m + delta
            x = x + rate * m
        else:
            m = beta1 * m + (1 - beta1) * delta
            if optimizer == "adagrad":
                v = v + delta**2
            elif optimizer == "adam":
                v = beta2 * v + (1 - beta2) * delta**2
            else:
                v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
            x = x + rate * m / (np.sqrt(v) + tau)
        seen.append(x)
    return seen


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_three_rounds_are_algorithm_2(optimizer):
    options = taken(optimizer, server_learning_rate=0.3, beta1=0.8, beta2=0.9, tau=0.05)
    rule = aggregators.make("mean", optimizer=optimizer, **options)
    aggregate = jax.jit(rule.aggregate)
    for seed in range(3):
        uploads = [random_upload(7, absent=[seed + t], seed=10 * seed + t) for t in range(3)]
        start = uploads[0].global_params
        sizes = [np.asarray(u.num_examples * u.participating, np.float64) for u in uploads]
        shares = [size / size.sum() for size in sizes]

        def rows(t, x, uploads=uploads, start=start):
            """Round t's uploads are round t's fixed updates away from the model that was broadcast."""
            if x is None:
                return flat(start).astype(np.float64)
            upload = uploads[t - 1]
            updates = jax.tree.map(lambda w, g: w - g[None], upload.client_params, upload.global_params)
            return x + np.concatenate([np.asarray(u).reshape(7, -1) for u in jax.tree.leaves(updates)], axis=1)

        expected = algorithm_2(rows, shares, optimizer, 0.3, 0.8, 0.9, 0.05)
        model, state = start, rule.init(start, 7)
        for upload, want in zip(uploads, expected, strict=True):
            moved = jax.tree.map(
                lambda w, g, x: w - g[None] + x[None], upload.client_params, upload.global_params, model
            )
            upload = upload._replace(global_params=model, client_params=moved)
            model, verdict, state = aggregate(upload, state, jax.random.key(0))
            np.testing.assert_allclose(flat(model), want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(verdict.weights, shares[2], atol=1e-6)


def one_number(*clients):
    count = len(clients)
    params = {"x": jnp.array(clients, jnp.float32)}
    return Upload({"x": jnp.float32(1.0)}, params, jnp.ones(count), jnp.ones(count, bool))


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
    """From 1 with uploads 3 and 5, whose mean is 4: delta = 3, delta^2 = 9; m = 0.5 * 3, v_{-1} = 1; learning rate 0.5.

    The first step of momentum is that of SGD.
    """
    options = taken(optimizer, server_learning_rate=0.5, beta1=0.5, beta2=0.5, tau=1.0)
    rule = aggregators.make("mean", optimizer=optimizer, **options)
    upload = one_number(3.0, 5.0)
    model, _, _ = rule.aggregate(upload, rule.init(upload.global_params, 2), jax.random.key(0))
    assert float(model["x"]) == pytest.approx(expected, rel=1e-6)


def test_sgd_at_rate_1_installs_the_mean():
    upload = random_upload(5, seed=1)
    models = [
        aggregate(upload, init(upload.global_params, 5), jax.random.key(0))[0]
        for init, aggregate, *_ in (aggregators.make("mean", optimizer=name) for name in ("none", "sgd"))
    ]
    chex.assert_trees_all_close(*models, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_traits_follow_the_optimizer_and_a_lost_round_changes_nothing(optimizer):
    rule = aggregators.make("mean", optimizer=optimizer)
    rate = rule.chosen(5)["server_learning_rate"]
    assert rate == (1.0 if optimizer in ("sgd", "momentum") else 0.01)
    assert aggregators.make("mean", optimizer=optimizer, server_learning_rate=0.1).chosen(5) == {}
    assert (rule.traits.linear, rule.traits.consensus, rule.traits.robust) == (False, False, False)
    upload = random_upload(5, seed=2)
    state = rule.init(upload.global_params, 5)
    _, _, after = rule.aggregate(upload, state, jax.random.key(0))
    same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True))
    assert same == rule.traits.stateless
    model, _, kept = rule.aggregate(upload._replace(participating=jnp.zeros(5, bool)), after, jax.random.key(0))
    chex.assert_trees_all_equal((model, kept), (upload.global_params, after))


def test_a_sweep_may_vmap_over_the_server_learning_rate():
    upload = one_number(3.0, 5.0)

    def model(rate):
        rule = aggregators.make("mean", optimizer="adam", server_learning_rate=rate)
        return rule.aggregate(upload, rule.init(upload.global_params, 2), jax.random.key(0))[0]["x"]

    rates = jnp.array([0.1, 0.2])
    steps = jax.vmap(model)(rates) - 1.0
    assert float(steps[1] / steps[0]) == pytest.approx(2.0, rel=1e-4)
