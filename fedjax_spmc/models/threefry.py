"""Bernoulli draws of threefry keys, bit for bit those of `jax.random`, in one loop over the numbers.

On a CPU the library goes through the generator's twenty rounds in a loop of five turns, each over the whole array: in
the midst of a network's step that takes several times as long as the rounds written out.

Salmon and others, "Parallel random numbers: as easy as 1, 2, 3", SC 2011: Threefry-2x32 with 20 rounds.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_spmc.models.forms import largest_divisor
from fedjax_spmc.types import Array, PRNGKey

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
PARTS = 8
"""Turns of the loop in which a mask is drawn, at most."""
MOST = 2**32
"""Numbers of one draw, at most: beyond, the library counts them in two words."""


def bernoulli(key: PRNGKey, p: float, shape: tuple[int, ...]) -> Array:
    """`jax.random.bernoulli(key, p, shape)`: bool, True with probability p.

    A key of another generator, the library's older way to count (`jax_threefry_partitionable` off) and numbers of 64
    bits are left to it.
    """
    partitionable, wide = (getattr(jax.config, name) for name in ("jax_threefry_partitionable", "jax_enable_x64"))
    ours = jax.random.key_impl(key) == "threefry2x32" and partitionable and not wide
    if not ours or math.prod(shape) >= MOST:
        return jax.random.bernoulli(key, p, shape)
    return _kept(key, p, math.prod(shape)).reshape(shape)


def _kept(key: PRNGKey, p: float, count: int) -> Array:
    """Part by part in a loop, of which no consumer is compiled a part: else each would draw its own anew."""
    parts = largest_divisor(count, PARTS)
    each = count // parts

    def part(start: Array) -> Array:
        words = _bits(key, start + jnp.arange(each, dtype=jnp.uint32))
        # A float32 in [1, 2) of the 23 highest bits, less 1: as `jax.random.uniform` draws.
        return lax.bitcast_convert_type((words >> 9) | jnp.uint32(0x3F800000), jnp.float32) - 1.0 < p

    if parts == 1:
        return part(jnp.uint32(0))
    return lax.map(part, jnp.arange(parts, dtype=jnp.uint32) * jnp.uint32(each))


def _bits(key: PRNGKey, places: Array) -> Array:
    """The numbers at these places of `jax.random.bits`, uint32: the two words of the cipher of (0, place), combined."""
    first, second = jax.random.key_data(key)
    keys = (first, second, first ^ second ^ jnp.uint32(PARITY))
    x, y = jnp.full(places.shape, first), places + second
    for turn in range(5):
        for rotation in ROTATIONS[turn % 2]:
            x = x + y
            y = (y << rotation) | (y >> (32 - rotation))
            y = x ^ y
        x, y = x + keys[(turn + 1) % 3], y + keys[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return x ^ y
