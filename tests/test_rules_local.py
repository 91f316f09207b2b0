"""FedProx and SCAFFOLD against plain NumPy statements of their algorithms, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import local_rules, models, trees
from fedjax_spmc.experiment import build
from fedjax_spmc.local_rules.scaffold import gradient_share
from fedjax_spmc.parity.kinds_local import fixed_batches
from fedjax_spmc.training import train_client
from fedjax_spmc.types import Context, RuleState, Upload, Variables, Verdict

MODEL = models.make("mlp", hidden=(), num_classes=3, image_shape=(1, 1, 2))
"""Softmax regression on two numbers: weight [3, 2] and bias [3]."""
BATCHES, SIZE = 3, 4


def batches(rng):
    images = rng.normal(size=(BATCHES, SIZE, 1, 1, 2)).astype(np.float32)
    return images, rng.integers(0, 3, (BATCHES, SIZE)).astype(np.int32)


def gradient(flat, images, labels):
    """Of the mean cross entropy of softmax regression, float64, flat like (weight, bias)."""
    weight, bias = flat[:6].reshape(3, 2), flat[6:]
    inputs = images.reshape(len(labels), 2).astype(np.float64)
    logits = inputs @ weight.T + bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = shares / shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(labels)), labels] -= 1
    return np.concatenate([(shares.T @ inputs).ravel(), shares.sum(axis=0)]) / len(labels)


def walk(start, data, hyper, epochs, change):
    """SGD as torch does it; `change(gradient, flat)` is what a rule makes of a gradient. Also the last gradient."""
    flat, velocity, last = start.copy(), np.zeros_like(start), None
    for step in range(epochs * BATCHES):
        last = change(gradient(flat, data[0][step % BATCHES], data[1][step % BATCHES]), flat)
        velocity = hyper["momentum"] * velocity + last + hyper["weight_decay"] * flat
        flat = flat - hyper["learning_rate"] * velocity
    return flat, last


def tree(flat):
    return models.from_torch(MODEL, np.asarray(flat, np.float32))


def flatten(params):
    return np.asarray(models.to_torch(params), np.float64)


def trainer(rule, epochs=2):
    """(broadcast, shared, client state, hyper, round, data) -> what a client's training leaves; compiled once."""

    @jax.jit
    def run(params, shared, client_state, hyper, round_index, images, labels):
        variables = Variables(params, {})
        ctx = Context(MODEL, variables, variables, hyper, epochs, round_index, shared=shared)
        return train_client(rule, ctx, client_state, fixed_batches(images, labels), jax.random.key(0))

    return lambda params, shared, client_state, hyper, data, round_index=5: run(
        params, shared, client_state, hyper, jnp.int32(round_index), *data
    )


def hyper_of(momentum=0.0, weight_decay=0.0, learning_rate=0.1):
    return {"learning_rate": learning_rate, "momentum": momentum, "weight_decay": weight_decay}


@pytest.mark.parametrize(("variant", "factor"), [("paper", 1.0), ("reference", 0.01)])
def test_fedprox_pulls_towards_the_broadcast_model(variant, factor):
    run = trainer(local_rules.make("fedprox", variant=variant, mu=0.7))
    for seed, momentum in ((0, 0.0), (1, 0.9), (2, 0.5)):
        rng = np.random.default_rng(seed)
        start, data, hyper = rng.normal(size=9), batches(rng), hyper_of(momentum, 1e-2)
        expected, _ = walk(start, data, hyper, 2, lambda d, w, start=start: d + factor * 0.7 * (w - start))
        ours = run(tree(start), (), (), hyper, data).variables.params
        np.testing.assert_allclose(flatten(ours), expected, atol=2e-6)


def test_fedprox_by_hand():
    """One sample x = (1, 0) of class 0 at w = 0: the gradient of the weights of class 0 is (1/3 - 1) x.

    The first step has no pull, as w = g; in the second mu (w - g) is added. With learning rate 1 and mu = 1 it undoes
    the first step, so that two steps end at minus the gradient where the first step led.
    """
    images = np.tile(np.array([1.0, 0.0], np.float32), (BATCHES, SIZE, 1)).reshape(BATCHES, SIZE, 1, 1, 2)
    data = images[:2], np.zeros((2, SIZE), np.int32)
    run = trainer(local_rules.make("fedprox", mu=1.0), epochs=1)
    ours = flatten(run(tree(np.zeros(9)), (), (), hyper_of(learning_rate=1.0), data).variables.params)
    # The first step leads to weights (2/3, -1/3, -1/3) and the same biases: logits 4/3 for class 0 and -2/3 for the
    # others, whose softmax is e^2 / (e^2 + 2) and 1 / (e^2 + 2).
    rest = 1 / (np.exp(2) + 2)
    expected = np.array([2 * rest, 0, -rest, 0, -rest, 0, 2 * rest, -rest, -rest])
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_fedprox_with_mu_0_is_sgd():
    rng = np.random.default_rng(3)
    start, data = tree(rng.normal(size=9)), batches(rng)
    ours = trainer(local_rules.make("fedprox", mu=0.0))(start, (), (), hyper_of(), data)
    plain = trainer(local_rules.make("sgd"))(start, (), (), hyper_of(), data)
    np.testing.assert_array_equal(flatten(ours.variables.params), flatten(plain.variables.params))


def after(rule, clients, shared):
    """What `after_round` makes of the clients' renewed control variates."""
    upload = Upload(shared, clients, jnp.ones(2), jnp.ones(2, bool), jnp.arange(2))
    verdict = Verdict(jnp.full(2, 0.5), jnp.zeros(2), jnp.zeros(2, bool))
    return rule.after_round(RuleState(shared, clients), upload, clients, Variables(shared, {}), verdict).server


@pytest.mark.parametrize("control", ["difference", "gradient"])
def test_scaffold_is_algorithm_1(control):
    """Five clients, two of them in each of three rounds; plain SGD as in the paper, the server's step size 1."""
    rule = local_rules.make("scaffold", control=control)
    run, renew = trainer(rule), jax.jit(lambda clients, shared: after(rule, clients, shared))
    hyper, num_clients, steps = hyper_of(), 5, 2 * BATCHES
    rng = np.random.default_rng(4)
    data = [batches(rng) for _ in range(num_clients)]
    x, c, own = rng.normal(size=9), np.zeros(9), np.zeros((num_clients, 9))
    params = tree(x)
    state = rule.init(Variables(params, {}), num_clients)
    for chosen in ((0, 3), (3, 1), (4, 0)):
        moves, changes, rows = [], [], []
        for i in chosen:
            y, _ = walk(x, data[i], hyper, 2, lambda d, w, i=i, c=c: d - own[i] + c)
            if control == "difference":
                renewed = own[i] - c + (x - y) / (steps * hyper["learning_rate"])
            else:
                renewed = np.mean([gradient(x, *batch) for batch in zip(*data[i], strict=True)], axis=0)
            moves.append(y - x)
            changes.append(renewed - own[i])
            trained = run(params, state.server, trees.take_rows(state.clients, i), hyper, data[i])
            np.testing.assert_allclose(flatten(trained.variables.params), y, atol=5e-6)
            np.testing.assert_allclose(flatten(trained.client_state), renewed, atol=5e-6)
            rows.append(trained.client_state)
        for i, change, row in zip(chosen, changes, rows, strict=True):
            own[i] += change
            state = state._replace(clients=trees.put_rows(state.clients, i, row))
        x, c = x + np.mean(moves, axis=0), c + len(chosen) / num_clients * np.mean(changes, axis=0)
        params, state = tree(x), state._replace(server=renew(state.clients, state.server))
        np.testing.assert_allclose(flatten(state.server), c, atol=5e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_with_momentum_the_control_variate_is_still_a_mean_of_gradients(momentum):
    """Constant gradients of 1 (no correction): the way that the model went, over the factors' sum, is 1 again."""
    learning_rate, velocity, way = 0.1, 0.0, 0.0
    for steps in range(1, 8):
        velocity = momentum * velocity + 1.0
        way += learning_rate * velocity
        share = float(gradient_share(jnp.int32(steps), momentum))
        assert way / (learning_rate * share) == pytest.approx(1.0, rel=1e-5)
        if momentum == 0:
            assert share == steps


def test_scaffold_by_hand():
    """One step from 0 with gradient d (learning rate 1): y = -(d - own + c), and the new variate is d itself."""
    images = np.tile(np.array([1.0, 0.0], np.float32), (1, SIZE, 1)).reshape(1, SIZE, 1, 1, 2)
    data = images, np.zeros((1, SIZE), np.int32)
    d = np.array([-2 / 3, 0, 1 / 3, 0, 1 / 3, 0, -2 / 3, 1 / 3, 1 / 3])
    run = trainer(local_rules.make("scaffold"), epochs=1)
    own, c = np.full(9, 0.25), np.full(9, 1.0)
    trained = run(tree(np.zeros(9)), tree(c), tree(own), hyper_of(learning_rate=1.0), data)
    np.testing.assert_allclose(flatten(trained.variables.params), -(d + 0.75), atol=1e-6)
    np.testing.assert_allclose(flatten(trained.client_state), d, atol=1e-6)


def test_scaffold_of_the_reference():
    """Rounds 0 and 1 are SGD; then the clipped correction, and the last corrected gradient enters the variate."""
    run = trainer(local_rules.make("scaffold", variant="reference"))
    rng = np.random.default_rng(6)
    start, data, hyper = rng.normal(size=9), batches(rng), hyper_of(0.9, 1e-3)
    own, zeros = 2 * rng.normal(size=9), tree(np.zeros(9))
    assert (np.abs(own) > 1).any()
    warm = run(tree(start), zeros, tree(own), hyper, data, round_index=1)
    plain, _ = walk(start, data, hyper, 2, lambda d, w: d)
    np.testing.assert_allclose(flatten(warm.variables.params), plain, atol=2e-6)
    np.testing.assert_allclose(flatten(warm.client_state), own, atol=1e-6)
    trained = run(tree(start), zeros, tree(own), hyper, data, round_index=2)
    expected, last = walk(start, data, hyper, 2, lambda d, w: d - np.clip(own, -1, 1))
    np.testing.assert_allclose(flatten(trained.variables.params), expected, atol=5e-6)
    renewed = own + last / (BATCHES * hyper["learning_rate"])
    np.testing.assert_allclose(flatten(trained.client_state), renewed, atol=2e-5)


@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_a_client_that_diverges_keeps_its_control_variate(variant):
    run = trainer(local_rules.make("scaffold", variant=variant))
    rng = np.random.default_rng(7)
    images, labels = batches(rng)
    own = tree(rng.normal(size=9))
    trained = run(tree(np.zeros(9)), tree(np.zeros(9)), own, hyper_of(), (images * np.nan, labels))
    np.testing.assert_array_equal(flatten(trained.client_state), flatten(own))


@pytest.mark.slow
def test_scaffold_in_a_federation_keeps_the_mean_of_the_clients_variates_on_the_server():
    from fedjax_spmc import config as configs
    from fedjax_spmc.rounds import make_round
    from tests import small

    fields = {"local__rule": "scaffold", "federation__clients_per_round": 2, "attack__name": "none"}
    config = configs.resolve(small.config(aggregator__name="mean", **fields))
    experiment = build(config)
    play = make_round(experiment.federation, experiment.arrays, experiment.sizes)
    state = experiment.state
    for _ in range(2):
        state, report = play(state, experiment.key)
    own = np.asarray(trees.ravel_clients(state.rule.clients))
    shared = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.rule.server)])
    np.testing.assert_allclose(shared, own.mean(axis=0), atol=1e-6)
    assert (np.abs(own).max(axis=1) > 0).sum() >= 2, report.client_ids
    assert np.abs(shared).max() > 0
