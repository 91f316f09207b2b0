"""FLIP's trigger inversion: against a plain loop in float64, and what it does where there is nothing to find."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import flip
from fedjax_spmc.flip.inversion import COST, Search, begin, make_step

SHAPE, CLASSES, STEPS = (3, 4, 2), 3, 30
STRETCH = 2 - 1e-7


def network(rng):
    return rng.normal(size=(int(np.prod(SHAPE)), CLASSES)), rng.normal(size=CLASSES)


def predictor(weight, bias):
    return lambda inputs: inputs.reshape(len(inputs), -1) @ weight + bias[None]


def opened(x):
    return np.tanh(x) / STRETCH + 0.5


def closed(v):
    return np.arctanh((np.clip(v, 0, 1) - 0.5) * STRETCH)


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def plain_loop(weight, bias, inputs, wanted, mask, pattern, jitter, cost, threshold, mean):
    """One trigger, in NumPy, with the gradient by hand."""
    live, moments = [closed(mask), closed(pattern)], [[0.0, 0.0], [0.0, 0.0]]
    best, smallest, up, down = (np.zeros_like(mask), np.zeros_like(pattern)), np.inf, 0, 0
    kept = 0
    for step in range(STEPS):
        m, p = opened(live[0]), opened(live[1])
        x = (1 - m[None, :, :, None]) * inputs + m[None, :, :, None] * p[None]
        logits = x.reshape(len(x), -1) @ weight + bias
        hit = (logits.argmax(axis=1) == wanted).mean()
        wrong = softmax(logits) - np.eye(CLASSES)[wanted]
        by_x = (wrong @ weight.T).reshape(x.shape) / (len(x) if mean else 1)
        by_m = (by_x * (p[None] - inputs)).sum(axis=(0, 3)) + cost * np.sign(m)
        by_p = (by_x * m[None, :, :, None]).sum(axis=0)
        size = np.abs(m).sum()
        for i, by in enumerate((by_m, by_p)):
            grad = by * (1 - np.tanh(live[i]) ** 2) / STRETCH
            first, second = 0.5 * moments[i][0] + 0.5 * grad, 0.9 * moments[i][1] + 0.1 * grad**2
            moments[i] = [first, second]
            first, second = first / (1 - 0.5 ** (step + 1)), second / (1 - 0.9 ** (step + 1))
            live[i] = live[i] - 0.1 * first / (np.sqrt(second) + 1e-8)
        if hit >= threshold and size < smallest - 1e-6:
            best, smallest, kept = (m, p), size, kept + 1
            live = [closed(m + jitter.masks[step]), closed(p + jitter.patterns[step])]
        up, down = (up + 1, 0) if hit >= threshold else (0, down + 1)
        if up >= 10:
            up, cost = 0, cost * 1.5
        elif down >= 10:
            down, cost = 0, cost / 1.5**1.5
    return *best, kept


@pytest.mark.parametrize("mean", [True, False])
def test_a_plain_loop_in_float64_finds_the_same_triggers(mean):
    rng = np.random.default_rng(3)
    weight, bias = network(rng)
    inputs, wanted = rng.random((12, *SHAPE)), rng.integers(0, CLASSES, 12)
    owner = np.arange(12) % 3
    start = flip.Triggers(rng.random((3, *SHAPE[:2])), rng.random((3, *SHAPE)))
    jitter = flip.Triggers(*(rng.uniform(-0.01, 0.01, (STEPS, *x.shape)) for x in start))
    for one in range(3):  # one class for each trigger
        wanted[owner == one] = one
    with jax.enable_x64(True):
        samples = flip.Samples(
            jnp.asarray(inputs), jnp.asarray(wanted, jnp.int32), jnp.asarray(owner[:, None] == np.arange(3), float)
        )
        found = jax.jit(
            lambda start: flip.invert(
                predictor(jnp.asarray(weight), jnp.asarray(bias)),
                samples,
                start,
                lambda step, kept: jax.tree.map(lambda x: jnp.asarray(x)[step], jitter),
                STEPS,
                0.05,
                mean=mean,
            )
        )(jax.tree.map(jnp.asarray, start))
        assert found.masks.dtype == jnp.float64
    times = []
    for one in range(3):
        mine = owner == one
        of_one = flip.Triggers(*(x[:, one] for x in jitter))
        mask, pattern, kept = plain_loop(
            weight, bias, inputs[mine], wanted[mine], start.masks[one], start.patterns[one], of_one, 0.05, 0.9, mean
        )
        np.testing.assert_allclose(found.masks[one], mask, atol=1e-12)
        np.testing.assert_allclose(found.patterns[one], pattern, atol=1e-12)
        times.append(kept)
    assert max(times) > 3


def case(rng, count, triggers, shape=SHAPE, classes=CLASSES):
    inputs = jnp.asarray(rng.random((count, *shape)), jnp.float32)
    start = flip.Triggers(
        jnp.asarray(rng.random((triggers, *shape[:2])), jnp.float32),
        jnp.asarray(rng.random((triggers, *shape)), jnp.float32),
    )
    owner = jnp.arange(count) % triggers
    share = (owner[:, None] == jnp.arange(triggers)[None]).astype(jnp.float32)
    return flip.Samples(inputs, (owner % classes).astype(jnp.int32), share), start


def searched(weight, bias, samples, start, key, steps=STEPS, **options):
    return flip.invert(predictor(weight, bias), samples, start, flip.draws_of(key, start), steps, **options)


@pytest.mark.parametrize(("shape", "classes"), [((3, 4, 1), 2), ((3, 4, 3), 4)])
def test_a_trigger_that_is_found_turns_its_examples_and_is_cut_to_its_range(shape, classes):
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(int(np.prod(shape)), classes)) * 2, jnp.float32)
    bias = jnp.zeros(classes)
    samples, start = case(rng, 12, 3, shape, classes)
    found = jax.jit(searched)(weight, bias, samples, start, jax.random.key(1))
    chex.assert_tree_all_finite(found)
    assert found.masks.shape == start.masks.shape
    worked = np.asarray(found.sizes()) > 0
    assert worked.any()
    assert float(found.masks.max()) <= 1 + 1e-6
    owner = np.asarray(samples.share).argmax(axis=1)
    shown = flip.stamped(samples.inputs, jax.tree.map(lambda x: x[owner], found))
    hit = np.asarray(jnp.argmax(predictor(weight, bias)(shown), axis=1) == samples.wanted)
    assert all(hit[owner == one].mean() >= 0.9 for one in np.flatnonzero(worked))


def test_without_examples_or_without_success_there_is_no_trigger():
    rng = np.random.default_rng(0)
    samples, start = case(rng, 6, 3)
    nothing = samples._replace(share=samples.share.at[:, 1].set(0))
    weight, bias = jnp.zeros((int(np.prod(SHAPE)), CLASSES)), jnp.asarray([1.0, 0.0, 0.0])  # always class 0
    found = jax.jit(searched)(weight, bias, nothing, start, jax.random.key(0))
    chex.assert_tree_all_finite(found)
    assert np.asarray(found.sizes() > 0).tolist() == [True, False, False]
    assert not np.asarray(found.patterns[1:]).any()


def test_a_search_stops_after_its_own_steps_and_does_not_see_the_others():
    rng = np.random.default_rng(5)
    weight, bias = (jnp.asarray(x, jnp.float32) for x in network(rng))
    samples, start = case(rng, 12, 3)
    key = jax.random.key(2)
    run = jax.jit(searched)
    both = run(weight, bias, samples, start, key, jnp.asarray([STEPS, 7, 0]))
    short = run(weight, bias, samples, start, key, jnp.asarray([0, 7, 0]))
    chex.assert_trees_all_equal(*(jax.tree.map(lambda x: x[1], one) for one in (both, short)))
    assert float(both.sizes()[2]) == 0
    others = samples._replace(inputs=samples.inputs.at[0::3].set(0.5))  # those of trigger 0
    seen = run(weight, bias, others, start, key, jnp.asarray([STEPS, 7, 0]))
    chex.assert_trees_all_close(*(jax.tree.map(lambda x: x[1], one) for one in (both, seen)), atol=1e-6)


def test_clients_side_by_side_find_what_each_finds_alone():
    rng = np.random.default_rng(7)
    weights = jnp.asarray(rng.normal(size=(4, int(np.prod(SHAPE)), CLASSES)), jnp.float32)
    cases = [case(rng, 6, 2) for _ in range(4)]
    samples, start = jax.tree.map(lambda *rows: jnp.stack(rows), *cases)
    keys, steps = jax.random.split(jax.random.key(0), 4), jnp.asarray([30, 11, 0, 20])

    def one(weight, samples, start, key, steps):
        return searched(weight, jnp.zeros(CLASSES), samples, start, key, steps)

    together = jax.jit(jax.vmap(one))(weights, samples, start, keys, steps)
    apart = jax.lax.map(lambda row: one(*row), (weights, samples, start, keys, steps))
    chex.assert_trees_all_close(together, apart, atol=2e-4)
    assert (np.asarray(together.sizes()) > 0).any()


def test_without_jitter_an_equal_mask_is_no_better_one():
    """The step behind a trigger that is kept sees the same mask again, up to round-off."""
    rng = np.random.default_rng(1)
    samples, start = case(rng, 4, 1)
    weight, bias = jnp.zeros((int(np.prod(SHAPE)), CLASSES)), jnp.asarray([1.0, 0.0, 0.0])

    def none(step, kept):
        return jax.tree.map(jnp.zeros_like, start)

    search = Search()
    progress = begin(start, COST, search)
    step_once = make_step(predictor(weight, bias), samples, none, search)
    play = jax.jit(lambda progress, step: step_once(progress, step, jnp.ones(1, bool), None)[0])
    kept = []
    for step in range(4):
        progress = play(progress, jnp.int32(step))
        kept.append(int(progress.kept))
    assert kept == [1, 1, 2, 2]
