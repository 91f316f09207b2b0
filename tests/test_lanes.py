"""The loop over lanes of unequal length: the results of every lane alone, under one `vmap` and under two."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import lanes
from fedjax_spmc.data import partition

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments" / "bench"))

from count_waste import computed_steps

STEPS = jnp.array([3, 0, 7, 2, 5, 5, 1, 9, 4, 6], jnp.int32)
KEYS = jax.random.split(jax.random.key(0), 10)
STARTS = jax.random.normal(jax.random.key(1), (10, 3))
SHIFTS = jax.random.normal(jax.random.key(2), (10, 3))
MIXING = jax.random.normal(jax.random.key(3), (3, 3))


def walk(steps, start, shift, key, packed=True):
    """A loop that closes over traced floats, keys and a constant, and counts its steps."""

    def body(step, carry):
        place, count = carry
        noise = jax.random.normal(jax.random.fold_in(key, step), (3,))
        return jnp.tanh(place @ MIXING + shift) + 0.1 * noise, count + 1

    return lanes.loop(steps, body, (start, jnp.int32(0)), packed)


plain = functools.partial(walk, packed=False)


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("axes", [(0, 0, 0, 0), (0, 0, None, 0), (0, None, None, None), (None, 0, 0, 0)])
def test_one_vmap_whatever_is_shared(axes):
    arguments = [x if axis == 0 else x[2] for x, axis in zip((STEPS, STARTS, SHIFTS, KEYS), axes, strict=True)]
    results = [jax.jit(jax.vmap(f, axes))(*arguments) for f in (walk, plain)]
    assert_same(*results)
    assert results[0][1].tolist() == (STEPS.tolist() if axes[0] == 0 else [7] * 10)


def test_two_vmaps_are_packed():
    steps, keys = jnp.stack([STEPS, STEPS[::-1], STEPS // 2]), KEYS[:3]

    def both(f):
        inner = jax.vmap(f, (0, 0, 0, None))
        own_steps = jax.jit(jax.vmap(lambda steps, key: inner(steps, STARTS, SHIFTS, key)))(steps, keys)
        own_keys = jax.jit(jax.vmap(lambda key: inner(STEPS, STARTS, SHIFTS, key)))(keys)
        return own_steps, own_keys

    for ours, theirs in zip(both(walk), both(plain), strict=True):
        assert_same(ours, theirs)
    text = str(
        jax.make_jaxpr(jax.vmap(lambda s, k: jax.vmap(walk, (0, 0, 0, None))(s, STARTS, SHIFTS, k)))(steps, keys)
    )
    assert "f32[30,3]" in text  # thirty lanes in one loop
    assert "f32[6,3]" in text  # and six in the last


def test_alone_it_is_the_plain_loop_bit_for_bit():
    ours, theirs = (jax.jit(f)(STEPS[2], STARTS[2], SHIFTS[2], KEYS[2]) for f in (walk, plain))
    np.testing.assert_array_equal(ours[0], theirs[0])


def test_the_loops_shrink_and_what_they_compute_is_counted():
    assert lanes.segment_sizes(10) == [10, 8, 5, 2]
    assert lanes.segment_sizes(1) == [1]
    assert computed_steps(np.array([4, 4, 4])) == 12
    # ten lanes until the ninth ends (1), eight until the sixth (4), five until the third (6), two until the first (9)
    assert computed_steps(np.asarray(STEPS)) == 10 * 1 + 8 * 3 + 5 * 2 + 2 * 3


@pytest.mark.parametrize("together", [1, 4, 16])
def test_at_most_15_percent_of_the_computed_steps_are_wasted(together):
    """Dirichlet 0.5, ten clients of 45,000 images, batch 64, sixteen seeds; so many experiments side by side."""
    labels = np.repeat(np.arange(10), 4500)
    parts = [partition.dirichlet(labels, 10, 0.5, np.random.RandomState(seed)) for seed in range(16)]
    steps = np.array([[len(part) // 64 for part in one] for one in parts])
    computed = sum(computed_steps(steps[i : i + together]) for i in range(0, 16, together))
    assert 1 - steps.sum() / computed <= 0.15
    lockstep = sum(10 * together * steps[i : i + together].max() for i in range(0, 16, together))
    assert 1 - steps.sum() / lockstep > 0.25
