"""Distances between uploads that keep their digits, however far or near the uploads lie.

A Gram matrix costs a fraction of the time of K^2 differences, but |a|^2 + |b|^2 - 2 <a, b> loses the digits in which
two rows agree: of two uploads a thousandth of their length apart float32 keeps none. So the rows are first moved to
where most of them are short; then every pair that still lies closer than its rows are long is measured again from a row
next to it, a group at a time.
"""

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators import _order
from fedjax_spmc.types import Array, Params

HIGHEST = jax.lax.Precision.HIGHEST
RESOLVED = 1e-2
"""Squared distances of at least this share of what they are a difference of have kept enough digits: about five."""
UNRESOLVED = 1e-13
"""Cosine distances below this are rounding of float32 rows: they count as 0."""


def centred_rows(stacked: Params, origin: Params, present: Array) -> Array:
    """[K, D] float32: the rows around a mean of their clipped differences to `origin`; 0 for absent rows.

    Around a plain mean, or none, a single far upload, or a model that is large against the differences, would cost the
    digits in which the others differ.
    """
    updates = trees.ravel_clients(trees.subtract(stacked, origin)).astype(jnp.float32)
    updates = jnp.where(present[:, None], updates, 0.0)
    norms = trees.client_norm(updates)
    bound = _order.median(norms[:, None], present)[0]
    clip = jnp.where(norms > bound, bound / jnp.where(norms > 0, norms, 1.0), 1.0)
    share = clip * present / jnp.maximum(present.sum(), 1)
    center = jnp.matmul(share, updates, precision=HIGHEST)
    return jnp.where(present[:, None], updates - center[None], 0.0)


def squared_distances(stacked: Params, origin: Params, present: Array) -> Array:
    """[K, K] squared distances of the rows; rows and columns of absent ones mean nothing.

    Cost: one Gram matrix, and one more for every group of rows that lie much closer to each other than to the rest:
        none among uploads of ordinary rounds.

    Args:
        stacked: leaves [K, ...], the points.
        origin: one point near most of them, such as the broadcast model.
        present: [K] bool.
    """
    gram = _gram(centred_rows(stacked, origin, present))
    return measured_again(_from_gram(gram), jnp.diagonal(gram), stacked, present)


def around_row(stacked: Params, row: Array, counted: Array) -> tuple[Array, Array]:
    """[K, K] Gram matrix of the differences to a row, and the squared distances from it; 0 for rows that do not count.

    The difference of two nearly equal floats is exact, so that these keep the digits of the rows next to it.
    """
    near = jax.tree.map(lambda leaf: leaf - leaf[row][None], stacked)
    gram = _gram(jnp.where(counted[:, None], trees.ravel_clients(near).astype(jnp.float32), 0.0))
    return gram, _from_gram(gram)


def _gram(rows: Array) -> Array:
    gram = jnp.matmul(rows, rows.T, precision=HIGHEST)
    return (gram + gram.T) / 2  # so that two rows are exactly as far from each other either way


def _from_gram(gram: Array) -> Array:
    squares = jnp.diagonal(gram)
    distances = jnp.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
    return jnp.where(jnp.eye(len(gram), dtype=bool), 0.0, distances)


@jax.custom_jvp
def measured_again(distances: Array, squares: Array, stacked: Params, present: Array) -> Array:
    """The squared distances, those that have lost their digits measured again; their gradient is that of `distances`.

    Args:
        distances: [K, K], from the Gram matrix of rows of these squared lengths.
        squares: [K].
        stacked: the points.
        present: [K] bool.
    """
    pairs = present[:, None] & present[None, :] & ~jnp.eye(len(present), dtype=bool)

    def lost(distances: Array, squares: Array) -> Array:
        return distances < RESOLVED * (squares[:, None] + squares[None, :])

    def measure_group(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        distances, open_pairs = carry
        pivot = jnp.argmax(open_pairs.sum(axis=1))
        is_pivot = jnp.arange(len(present)) == pivot
        group = open_pairs[pivot] | is_pivot
        gram, around_pivot = around_row(stacked, pivot, group)
        measured = open_pairs & group[:, None] & group[None, :]
        distances = jnp.where(measured, around_pivot, distances)
        # From the pivot itself nothing is lost, so that every pass settles a row at least.
        settled = ~lost(distances, jnp.diagonal(gram)) | is_pivot[:, None] | is_pivot[None, :]
        return distances, open_pairs & ~(measured & settled)

    start = distances, pairs & lost(distances, squares)
    return jax.lax.while_loop(lambda carry: carry[1].any(), measure_group, start)[0]


@measured_again.defjvp
def measured_again_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    return measured_again(*primals), tangents[0]


def cosine_distances(points: Array, origin: Array, present: Array) -> Array:
    """[K, K] cosine distances of the rows of [K, D]; 0 for absent rows, on the diagonal, and below `UNRESOLVED`.

    1 - cos = |a - b|^2 / 2 for unit rows keeps the digits that 1 - <a, b> loses where rows are nearly parallel. A row
    of zeros is at distance 1 from all others and at 0 from other zeros.

    Args:
        points: [K, D] float32.
        origin: [D], a point whose direction is near those of most rows, or zeros.
        present: [K] bool.
    """
    zero = jnp.linalg.norm(points, axis=1) == 0
    # Zeros and absent rows stay out of the centre, which they would draw away from the others.
    squares = squared_distances(_unit(points), _unit(origin[None])[0], present & ~zero)
    distances = jnp.where(zero[:, None] | zero[None, :], 1.0, squares / 2)
    distances = jnp.where(zero[:, None] & zero[None, :], 0.0, distances)
    known = present[:, None] & present[None, :] & (distances > UNRESOLVED)
    return jnp.where(known, distances, 0.0)


def _unit(rows: Array) -> Array:
    """Rows of length 1; zeros stay."""
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(norms > 0, norms, 1.0)
