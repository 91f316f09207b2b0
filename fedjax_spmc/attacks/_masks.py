"""Which coordinates of a model an attacker leaves itself: those that are smallest in magnitude, exactly so many."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.types import Array, Params

Scope = Literal["global", "per_tensor"]
MILLION = 10**6


def allowed(size: int, ratio: float | Array) -> int | Array:
    """int(size * ratio) as Python has it, whose product is one of floats: 56, and not 57, of 100 for 0.57.

    Args:
        size: how many coordinates there are.
        ratio: in [0, 1]. An array (float32, in a sweep) stands for the decimal of six digits next to it; the result is
            then an int32 scalar, and the same number.
    """
    if not isinstance(ratio, jax.Array):
        return int(size * ratio)
    millionths = jnp.round(ratio * MILLION).astype(jnp.int32)
    # size * millionths // 10^6 in numbers that stay below 2^31.
    whole, rest = divmod(size, MILLION)
    thousands, units = millionths // 1000, millionths % 1000
    exact = whole * millionths + (rest * thousands + rest * units // 1000) // 1000
    short = _short_products(size)
    return exact - jnp.isin(millionths, jnp.asarray(short, jnp.int32)).astype(jnp.int32) if len(short) else exact


def _short_products(size: int) -> np.ndarray:
    """The ratios, in millionths, whose product with `size` is whole and comes out below itself in floats."""
    whole = np.arange(0, MILLION + 1, MILLION // math.gcd(size, MILLION), dtype=np.int64)
    return whole[(size * (whole / MILLION)).astype(np.int64) < size * whole // MILLION]


def smallest(values: Array, count: int | Array) -> Array:
    """[n] bool: the `count` numbers of `values` that are smallest in magnitude.

    A bisection settles the bit pattern of the last magnitude that counts, one bit with each pass: magnitudes are in the
    order of their patterns. Among equal ones the first in order count; NaN is larger than everything.

    Args:
        values: [n] floating.
        count: 0 to n; may be traced.
    """
    bits = 8 * values.dtype.itemsize
    patterns = jax.lax.bitcast_convert_type(jnp.abs(values), {16: jnp.int16, 32: jnp.int32, 64: jnp.int64}[bits])
    last = _last_with_fewer(patterns, jnp.ones(values.shape, bool), count, bits - 1)
    below, equal = patterns < last, patterns == last
    room = count - below.sum(dtype=jnp.int32)

    def first_in_order() -> Array:
        places = jnp.arange(len(values), dtype=jnp.int32)
        edge = _last_with_fewer(places, equal, room, len(values).bit_length())
        return equal & (places <= edge) & (room > 0)

    # More equal ones than there is room for are rare, but for zeros.
    return below | jax.lax.cond(equal.sum(dtype=jnp.int32) > room, first_in_order, lambda: equal)


def _last_with_fewer(numbers: Array, counted: Array, count: int | Array, bits: int) -> Array:
    """The largest number of so many bits below which fewer than `count` of the counted `numbers` (>= 0) lie."""

    def settle_bit(step: Array, found: Array) -> Array:
        candidate = found | (jnp.ones((), numbers.dtype) << (bits - 1 - step).astype(numbers.dtype))
        before = ((numbers < candidate) & counted).sum(dtype=jnp.int32)
        return jnp.where(before < count, candidate, found)

    return jax.lax.fori_loop(0, bits, settle_bit, jnp.zeros((), numbers.dtype))


def masks(gradient: Params, ratio: float | Array, scope: Scope) -> Any:
    """The coordinates that may change: bool, shaped like `gradient`, True for the smallest share in magnitude.

    Args:
        gradient: pytree of n numbers in all.
        ratio: share of the coordinates that may change, see `allowed`.
        scope: "global" ranks all coordinates at once, in the order of the leaves; "per_tensor" each leaf by itself, of
            which one with a single number then gets none for any ratio below 1.
    """
    leaves, structure = jax.tree.flatten(gradient)
    if scope == "per_tensor":
        return structure.unflatten([smallest(x.ravel(), allowed(x.size, ratio)).reshape(x.shape) for x in leaves])
    flat = jnp.concatenate([x.ravel() for x in leaves])
    chosen = jnp.split(smallest(flat, allowed(len(flat), ratio)), np.cumsum([x.size for x in leaves])[:-1])
    return structure.unflatten([one.reshape(x.shape) for one, x in zip(chosen, leaves, strict=True)])
