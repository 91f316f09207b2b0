"""What attackers work out of a server that gets the updates they know and f copies of a crafted one.

Krum's selection is worked out on distances alone, trimmed mean and median on updates that are sorted once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc.types import Array


class Crowd(NamedTuple):
    """Known updates and copies of a crafted one, as a server sees them.

    Attributes:
        distances: [n, n] squared.
        present: [n] bool, which rows are there.
        copies: [n] bool, which of them are the crafted one.
    """

    distances: Array
    present: Array
    copies: Array


def crowd(distances: Array, mask: Array, to_crafted: Array, copies: Array | int, spare: int) -> Crowd:
    """Known rows and so many copies, which stand in the rows that are not known and in `spare` more.

    Args:
        distances: [K, K] squared, of the rows in `mask`.
        mask: [K] bool.
        to_crafted: [K] squared distances to the crafted update.
        copies: f.
        spare: rows that are added.
    """
    distances, to_crafted = jnp.pad(distances, (0, spare)), jnp.pad(to_crafted, (0, spare))
    mask = jnp.pad(mask, (0, spare))
    are_copies = ~mask & (jnp.cumsum(~mask) <= copies)
    one_is, other_is = are_copies[:, None], are_copies[None, :]
    distances = jnp.where(one_is, to_crafted[None, :], jnp.where(other_is, to_crafted[:, None], distances))
    return Crowd(jnp.where(one_is & other_is, 0.0, distances), mask | are_copies, are_copies)


def krum_scores(distances: Array, present: Array, attackers: Array | int) -> Array:
    """[n]: sums of the n - 2 - f smallest squared distances, a row's own 0 among them; infinite for the absent."""
    ordered = jnp.sort(jnp.where(present[None, :], distances, jnp.inf), axis=1)
    count = present.sum() - 2 - attackers
    sums = jnp.where(jnp.arange(len(present))[None, :] < count, ordered, 0.0).sum(axis=1)
    return jnp.where(present, sums, jnp.inf)


def krum_choice(seen: Crowd, present: Array, attackers: Array | int) -> Array:
    """The row of lowest score among `present`; of equal ones a copy."""
    scores = krum_scores(seen.distances, present, attackers)
    return jnp.argmin(jnp.where(scores == scores.min(), ~seen.copies, 2))


def krum_takes_a_copy(seen: Crowd, attackers: Array | int) -> Array:
    """Whether Krum chooses one of the copies."""
    return seen.copies[krum_choice(seen, seen.present, attackers)]


def multi_krum_leaves(seen: Crowd, attackers: Array | int) -> Array:
    """[n] bool: what Multi-Krum does not take: it takes Krum's choices one after another, while more than 2 f + 2 rows
    are left."""

    def take(_: Array, left: Array) -> Array:
        row = krum_choice(seen, left, attackers)
        return left.at[row].set(left[row] & (left.sum() <= 2 * attackers + 2))

    return jax.lax.fori_loop(0, len(seen.present), take, seen.present)


def multi_krum_takes_all_copies(seen: Crowd, attackers: Array | int) -> Array:
    """Whether all copies are among those that Multi-Krum takes."""
    return ~(multi_krum_leaves(seen, attackers) & seen.copies).any()


def multi_krum_takes_a_copy(seen: Crowd, attackers: Array | int) -> Array:
    """Whether one of the copies is among those that Multi-Krum takes."""
    return (~multi_krum_leaves(seen, attackers) & seen.copies).any()


class Sorted(NamedTuple):
    """Known updates, sorted number by number.

    Attributes:
        values: [K, D], those that are not known last.
        number: int32 scalar b.
    """

    values: Array
    number: Array


def sorted_updates(updates: Array, mask: Array) -> Sorted:
    """The rows in `mask`, sorted number by number."""
    return Sorted(jnp.sort(jnp.where(mask[:, None], updates, jnp.inf), axis=0), mask.sum(dtype=jnp.int32))


def trimmed_mean_with(known: Sorted, crafted: Array, copies: Array | int) -> Array:
    """[D]: mean of the known values and of f copies without the f smallest and the f largest of each number.

    With f copies behind the r known values below them, the i-th known value has place i or, from r on, i + f. At least
    one value is kept, or two of an even number.
    """
    total = known.number + copies
    cut = jnp.minimum(copies, (total - 1) // 2)
    below = (known.values < crafted[None]).sum(axis=0)
    row = jnp.arange(len(known.values))[:, None]
    place = jnp.where(row < below[None], row, row + copies)
    kept = (row < known.number) & (place >= cut) & (place < total - cut)
    kept_copies = jnp.maximum(jnp.minimum(below + copies, total - cut) - jnp.maximum(below, cut), 0)
    inside = jnp.where(kept, known.values, 0.0).sum(axis=0)
    return (inside + kept_copies.astype(crafted.dtype) * crafted) / (total - 2 * cut).astype(crafted.dtype)


def median_with(known: Sorted, crafted: Array, copies: Array | int) -> Array:
    """[D]: median of the known values and of f copies, the lower one of two in the middle."""
    middle, last = (known.number + copies - 1) // 2, len(known.values) - 1
    low = jnp.where(middle >= copies, known.values[jnp.clip(middle - copies, 0, last)], -jnp.inf)
    high = jnp.where(middle < known.number, known.values[jnp.clip(middle, 0, last)], jnp.inf)
    return jnp.clip(crafted, low, high)
