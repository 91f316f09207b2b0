"""`constrain_and_scale`: the distance term, the tests of its own success, the stop; in real rounds and alone."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import attacks
from fedjax_spmc import config as configs
from fedjax_spmc.attacks._stopping import stopping
from fedjax_spmc.attacks._success import Success, success_of
from fedjax_spmc.attacks.constrain_and_scale import constraint
from fedjax_spmc.experiment import build
from fedjax_spmc.training import Hooks
from fedjax_spmc.types import AttackContext, Batch, ClientData, LocalRule, Model, Variables
from tests import small
from tests.uploads import random_upload

pytestmark = pytest.mark.usefixtures("small_cache")
KEY = jax.random.key(0)
PLAIN = {"alpha": 1.0, "stop_loss": None, "slow_down": False, "factor": 1.0}


def test_the_gradient_of_the_distance():
    """Against jax.grad of the loss as it is written; 0 at the broadcast model."""
    upload = random_upload(4)
    center, there = upload.global_params, jax.tree.map(lambda x: x[2], upload.client_params)
    ctx = AttackContext(variables=Variables(center, {}))
    grads = jax.tree.map(lambda x: x[1], upload.client_params)

    def loss(params):
        moved = [(a - b).ravel() for a, b in zip(*map(jax.tree.leaves, (params, center)), strict=True)]
        linear = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (params, grads)), strict=True))
        return 0.7 * linear + 0.3 * jnp.linalg.norm(jnp.concatenate(moved))

    ours = jax.jit(lambda params: constraint(0.7)(ctx, (), grads, params, jnp.int32(0), jnp.int32(0)))
    chex.assert_trees_all_close(ours(there), jax.grad(loss)(there), atol=1e-6)
    chex.assert_trees_all_close(ours(center), jax.tree.map(lambda x: 0.7 * x, grads), atol=1e-6)


# The stop, on a model of one number that each step lowers by the learning rate.


def canned(rows: Any) -> Any:
    """A test whose results are given, [number of the test, (loss, success, accuracy)]."""
    return lambda ctx, variables, client_id, number, key: Success(*jnp.asarray(rows, jnp.float32)[number])


def trained(test: Any, epochs: int = 4, num_batches: int = 3, **options: Any) -> tuple[float, int]:
    """How far the number was lowered at a rate of 1, a tenth of it from the third epoch on; and the steps."""
    rule = LocalRule(gradients=lambda ctx, params, stats, *rest: (jnp.ones(()), stats, {"loss": jnp.float32(0)}))
    hyper = {"learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    data = ClientData(lambda step, key: None, jnp.int32(num_batches), jnp.int32(0))  # pyright: ignore[reportArgumentType]
    hooks = Hooks(rate=lambda step: jnp.where(step >= 2 * num_batches, 0.1, 1.0))
    fields = {"stop_loss": 1e-4, "keep_accuracy": True, "slow_down": True, **options}
    slot = stopping(test=test, **fields)
    ctx = AttackContext(hyper=hyper, epochs=epochs)
    (end, _), _, steps, _ = slot(rule, ctx, (), Variables(jnp.zeros(()), {}), (), data, jnp.int32(0), KEY, hooks)
    return float(-end), int(steps)


@pytest.mark.parametrize(
    ("rows", "options", "moved", "steps"),
    [
        ([(1, 5, 50)] * 5, {}, 6.6, 12),
        ([(1, 20, 50)] * 5, {}, 6.6, 12),
        ([(1, 21, 50)] * 5, {}, 6.6 / 50, 12),
        ([(1, 61, 50)] * 5, {}, 6.6 / 5000, 12),
        ([(1, 61, 50)] * 5, {"slow_down": False}, 6.6, 12),
        ([(1e-5, 0, 50)] * 5, {}, 3.0, 3),
        ([(1, 0, 50), (1, 9, 50), (1e-4, 99, 50), (1, 9, 50), (1, 9, 50)], {}, 6.0, 6),
        ([(1, 0, 50), (1e-5, 9, 40), (1, 99, 50), (1, 9, 50), (1, 9, 50)], {}, 3.9, 12),
        ([(1, 0, 50), (1e-5, 9, 40), (1e-5, 99, 50), (1, 9, 50), (1, 9, 50)], {}, 3.3, 6),
        ([(1, 0, 50), (1e-5, 9, 40), (1, 99, 50), (1, 9, 50), (1, 9, 50)], {"keep_accuracy": False}, 3.0, 3),
        ([(1e-5, 0, 50)] * 5, {"stop_loss": None}, 6.6, 12),
        ([(np.inf, 0, 50)] * 5, {}, 6.6, 12),
        ([(np.nan, 0, 50)] * 5, {}, 6.6, 12),
        ([(1, 0, 50)] * 5, {"num_batches": 0}, 0.0, 0),
    ],
)
def test_how_long_and_how_fast_it_trains(rows, options, moved, steps):
    """Tests before training and behind each epoch: slower, stopped, or going on with the milestone an epoch earlier."""
    found, taken = trained(canned(rows), **options)
    assert taken == steps
    np.testing.assert_allclose(found, moved, rtol=1e-5)


def test_success_on_own_data():
    """A model that says the label in the first place of its input; the trigger says 3, and is learnt half."""

    def apply(params, stats, inputs, train, key, valid=None):
        return 4.0 * jax.nn.one_hot(inputs[:, 0], 5), stats

    model = Model(lambda key: Variables({}, {}), apply, (), 5, jax.ShapeDtypeStruct((1,), jnp.int32))

    def backdoor(batch):
        shown = jnp.where(batch.sample_ids[:, None] % 2 == 0, 3, batch.inputs)
        return batch._replace(inputs=shown, labels=jnp.where(batch.labels >= 0, 3, -1))

    labels = jnp.array([[0, 1, 3, 3], [2, 4, 0, -1]])

    def gather(number):
        said = jnp.array([[0, 1, 3, 1], [2, 0, 0, 3]])[number][:, None]
        return Batch(said, labels[number], 4 * number + jnp.arange(4), labels[number] >= 0)

    ctx = AttackContext(model=model, backdoor=backdoor)
    found = jax.jit(lambda: success_of(ctx, Variables({}, {}), gather, 2, KEY))()
    likely = np.log(np.exp(4) + 4) - np.array([4, 0])  # -log p of what is said and of what is not
    np.testing.assert_allclose(found.accuracy, 100 * 5 / 7, rtol=1e-6)
    np.testing.assert_allclose(found.success, 100 * 3 / 5, rtol=1e-6)
    np.testing.assert_allclose(found.loss, (3 * likely[0] + 2 * likely[1]) / 5, rtol=1e-5)
    nothing = jax.jit(lambda: success_of(ctx, Variables({}, {}), gather, 0, KEY))()
    assert (float(nothing.success), float(nothing.accuracy), float(nothing.loss)) == (0.0, 0.0, np.inf)


# In a real round.


@functools.cache
def built() -> Any:
    fields = {"attack__name": ("badnets", "constrain_and_scale"), "attack__malicious_fraction": 0.5}
    return build(configs.resolve(small.config(1, "fedavg", **fields, attack__local__epochs=3)))


@functools.cache
def trainings(*names: str, together: bool = False, **options: Any) -> Any:
    """What all clients train of one seed, and how many steps."""
    result = small.trainings_under(built(), names, together, options)
    return result.variables, result.steps


def test_without_a_constraint_it_is_plain_training_bit_for_bit():
    chex.assert_trees_all_equal(trainings("badnets"), trainings("badnets", "constrain_and_scale", **PLAIN))


def lengths(variables: Any) -> np.ndarray:
    start = jax.tree.leaves(built().state.variables.params)
    rows = zip(jax.tree.leaves(variables.params), start, strict=True)
    return np.linalg.norm(np.concatenate([np.reshape(w - g[None], (4, -1)) for w, g in rows], axis=1), axis=1)


def test_the_constraint_holds_attackers_alone_near():
    free, _ = trainings("badnets", "constrain_and_scale", **PLAIN)
    held, _ = trainings("badnets", "constrain_and_scale", **PLAIN | {"alpha": 0.2})
    bad = built().malicious
    assert (lengths(held)[bad] < 0.9 * lengths(free)[bad]).all()
    np.testing.assert_array_equal(lengths(held)[~bad], lengths(free)[~bad])


def test_attackers_stop_by_their_own_success():
    """A loss that is reached at once: one epoch of three; benign clients train on, whether mapped at once or not."""
    options = {"stop_loss": 1e3, "keep_accuracy": False, "slow_down": False}
    variables, steps = trainings("badnets", "constrain_and_scale", **options)
    _, usual = trainings("badnets")
    bad = built().malicious
    np.testing.assert_array_equal(steps[bad] * 3, usual[bad])
    np.testing.assert_array_equal(steps[~bad], usual[~bad])
    at_once, same = trainings("badnets", "constrain_and_scale", together=True, **options)
    np.testing.assert_array_equal(same, steps)
    chex.assert_trees_all_close(at_once, variables, atol=1e-5)


def test_without_a_backdoor_there_is_nothing_to_test():
    with pytest.raises(ValueError, match=r"attack\.name = constrain_and_scale is not allowed without an attack that"):
        trainings("constrain_and_scale")
    trainings("constrain_and_scale", stop_loss=None, slow_down=False)
    with pytest.raises(ValueError, match="keep_accuracy = False is not allowed with stop_loss = None"):
        attacks.make("constrain_and_scale", stop_loss=None, keep_accuracy=False)
