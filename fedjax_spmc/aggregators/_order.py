"""Order statistics along the client axis: exact, with absent rows, and linear in the number of clients.

A library sort moves every column of a [K, D] matrix through a comparison sort; on a CPU that costs many times the
arithmetic of a rule. Here a rank is found by bisection instead: floats become integer keys of the same order, and each
pass over the rows settles one bit of the wanted key by counting how many rows lie below a candidate. Keys are searched
in two halves of 16 bits, because counting is faster on narrower numbers, and in blocks of columns that stay in the
cache.

Every function takes a block [K, B] and treats its columns alone. K may be at most 32,767. Ranks and counts may be
traced.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_spmc.types import Array

ABSENT = 0x7FFFFFFF
"""Key of a row that is not there: above that of every number, so that absent rows are sorted last."""


def sort_keys(values: Array) -> Array:
    """int32 keys in the order of float32 `values` (no NaN); -0 and 0 have the same key."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    bits = jnp.where(bits == jnp.iinfo(jnp.int32).min, 0, bits)
    return _flip_negative(bits)


def values_of(keys: Array) -> Array:
    """The float32 numbers of `sort_keys`."""
    return jax.lax.bitcast_convert_type(_flip_negative(keys), jnp.float32)


def _flip_negative(bits: Array) -> Array:
    # Floats are stored as sign and magnitude: the magnitude of negative ones counts backwards.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jax.custom_jvp
def picked(value: Array, block: Array, shares: Array) -> Array:
    """`value` [B], which was picked out of `block` [K, B]; its gradient is that of the rows that hold it, by `shares`.

    Finding a number goes by its bits, which have no gradient of their own.
    """
    del block, shares
    return value


@picked.defjvp
def _picked_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    value, _, shares = primals
    return value, (shares * tangents[1]).sum(axis=0)


def equal_shares(keys: Array, key: Array) -> Array:
    """[K, B]: shares of sum 1 of the rows whose key is `key` [B]."""
    equal = keys == key[None]
    return equal / jnp.maximum(equal.sum(axis=0), 1).astype(jnp.float32)[None]


def present_keys(block: Array, present: Array) -> Array:
    """`sort_keys` of the rows in `present` [K] and `ABSENT` elsewhere."""
    return jnp.where(present[:, None], sort_keys(block), ABSENT)


def kth_smallest(keys: Array, rank: Array | int) -> Array:
    """[B]: in every column the key with exactly `rank` keys before it in sorted order (rank 0 = the smallest).

    Args:
        keys: [K, B] int32.
        rank: scalar or [B], in 0..K-1.
    """
    rank = jnp.asarray(rank, jnp.int16)
    upper = (keys >> 16).astype(jnp.int16)
    found = _bisect(upper, rank)
    # Among rows that share the upper half the lower one decides; the others stay before or behind all of these.
    lower = ((keys & 0xFFFF) - 0x8000).astype(jnp.int16)
    beside = jnp.where(upper < found[None], jnp.int16(-0x8000), jnp.int16(0x7FFF))
    lowest = _bisect(jnp.where(upper == found[None], lower, beside), rank)
    return (found.astype(jnp.int32) << 16) | (lowest.astype(jnp.int32) + 0x8000)


def kth_smallest_index(indices: Array, rank: Array | int, bits: int) -> Array:
    """`kth_smallest` of small whole numbers: [K, B] int16 in 0..2^bits - 1, one pass for each of `bits` < 16."""
    return _bisect(indices, jnp.asarray(rank, jnp.int16), bits)


def _bisect(numbers: Array, rank: Array, bits: int = 16) -> Array:
    """The number of the given rank in each column of [K, B] int16: signed where `bits` is 16, else non-negative."""

    def settle_bit(step: Array, found: Array) -> Array:
        candidate = found ^ (jnp.int16(1) << jnp.asarray(bits - 1 - step, jnp.int16))
        before = (numbers < candidate[None]).sum(axis=0, dtype=jnp.int16)
        return jnp.where(before <= rank, candidate, found)

    start = jnp.full(numbers.shape[1:], -0x8000 if bits == 16 else 0, jnp.int16)
    return jax.lax.fori_loop(0, bits, settle_bit, start)


def smallest(keys: Array, count: Array | int) -> Array:
    """[K, B] bool: the `count` smallest keys of every column; among equal ones the lowest rows, as in a stable sort.

    Args:
        keys: [K, B] int32.
        count: whole number >= 1.
    """
    edge = kth_smallest(keys, jnp.asarray(count) - 1)
    below, equal = keys < edge[None], keys == edge[None]
    room = count - below.sum(axis=0)

    def lowest_rows() -> Array:
        bits = len(keys).bit_length()
        rows = jnp.arange(len(keys), dtype=jnp.int16)[:, None]
        last = kth_smallest_index(jnp.where(equal, rows, jnp.int16(2**bits - 1)), room - 1, bits)
        return equal & (rows <= last[None])

    # More equal rows than there is room for are rare among real numbers.
    return below | jax.lax.cond((equal.sum(axis=0) > room).any(), lowest_rows, lambda: equal)


def sum_of_smallest(values: Array, keys: Array, count: Array | int) -> Array:
    """[B]: the sum of the `count` smallest of every column; `keys` are those of `values`. 0 where the count is 0."""
    edge = kth_smallest(keys, jnp.asarray(count) - 1)
    below = keys < edge[None]
    inside = jnp.where(below, values, 0.0).sum(axis=0)
    missing = count - below.sum(axis=0)
    at_edge = picked(values_of(edge), values, equal_shares(keys, edge))
    return jnp.where(jnp.asarray(count) > 0, inside + missing * at_edge, 0.0)


def median(block: Array, present: Array) -> tuple[Array, Array]:
    """Median of the present rows; of an even number the mean of the two in the middle.

    Returns:
        [B] medians and [K, B] shares of sum 1: which rows hold the middle; rows of equal value share alike.
    """
    num_present = jnp.maximum(present.sum(), 1)
    keys = present_keys(block, present)
    low = kth_smallest(keys, (num_present - 1) // 2)
    next_above = jnp.where(keys > low[None], keys, ABSENT).min(axis=0)
    high = jnp.where((keys <= low[None]).sum(axis=0) > num_present // 2, low, next_above)
    value = 0.5 * values_of(low) + 0.5 * values_of(high)

    def held_by(key: Array) -> Array:
        equal = keys == key[None]
        return equal * (0.5 / equal.sum(axis=0))[None]

    shares = held_by(low) + held_by(high)
    return picked(value, block, shares), shares


def trimmed_mean(block: Array, present: Array, cut: Array | int) -> tuple[Array, Array]:
    """Mean of the present rows but for the `cut` smallest and the `cut` largest; fewer than half are cut at each end.

    Returns:
        [B] means and [K, B] shares of sum 1: 1 / number kept; where rows of equal value lie across the cut, these share
        what is kept of them, so that no row is favoured by its place.
    """
    num_present = present.sum()
    keys = present_keys(block, present)
    low, high = kth_smallest(keys, cut), kth_smallest(keys, num_present - 1 - cut)
    at_low, at_high = keys == low[None], keys == high[None]
    inside = (keys > low[None]) & (keys < high[None])
    num_low, num_high = at_low.sum(axis=0), at_high.sum(axis=0)
    kept = num_present - 2 * cut
    below = (keys < low[None]).sum(axis=0)
    kept_low = jnp.minimum(below + num_low - cut, kept)
    kept_high = jnp.where(high > low, kept - kept_low - inside.sum(axis=0), 0)
    shares = inside + at_low * (kept_low / num_low)[None] + at_high * (kept_high / num_high)[None]
    shares = shares / jnp.maximum(kept, 1)
    return _mean_around(jax.lax.stop_gradient(values_of(low)), block, shares), shares


def nearest_mean(block: Array, present: Array, center: Array, count: Array | int) -> tuple[Array, Array]:
    """Mean of the `count` present rows nearest to `center` [B]; among equally near ones the lowest rows count.

    Returns:
        [B] means and [K, B] shares, 1 / count for the rows that count.
    """
    keys = present_keys(jnp.abs(block - center[None]), present)
    shares = smallest(keys, count) / jnp.asarray(count, jnp.float32)
    return _mean_around(center, block, shares), shares


def _mean_around(center: Array, block: Array, shares: Array) -> Array:
    # Summing differences is exact where the rows agree.
    return center + (shares * (block - center[None])).sum(axis=0)


def by_columns(function: Callable[[Array], tuple[Array, Array]], matrix: Array) -> tuple[Array, Array]:
    """Applies a function of a block to all columns of a matrix, block by block.

    Args:
        function: [K, B] -> ([B] values, [K, B] shares), treating every column alone.
        matrix: [K, D] float32.

    Returns:
        [D] values and [K] shares, averaged over all columns.
    """
    num_rows, num_columns = matrix.shape
    width = _block_width(num_rows)
    if num_columns <= width:
        values, shares = function(matrix)
        return values, shares.mean(axis=1)

    def one_block(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        values, shares = carry
        # The last block begins early enough to be whole; columns that it repeats count once.
        start = jnp.minimum(index * width, num_columns - width)
        new_values, new_shares = function(jax.lax.dynamic_slice(matrix, (0, start), (num_rows, width)))
        fresh = (start + jnp.arange(width) >= index * width).astype(jnp.float32)
        shares = shares + jnp.matmul(new_shares, fresh, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.dynamic_update_slice(values, new_values, (start,)), shares

    start = jnp.zeros(num_columns, jnp.float32), jnp.zeros(num_rows, jnp.float32)
    values, shares = jax.lax.fori_loop(0, -(-num_columns // width), one_block, start)
    return values, shares / num_columns


def _block_width(num_rows: int) -> int:
    """Columns of a block: on a CPU as many as stay in the cache of one core, elsewhere as many as there are."""
    if jax.default_backend() != "cpu":
        return 2**31 - 1
    return 1 << min(max(17 - num_rows.bit_length(), 8), 12)
