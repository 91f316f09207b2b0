"""What the rules of Krum's family share: distances between uploads and selections by them."""

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators import _distances, _order
from fedjax_spmc.types import Array, Params, PRNGKey, Upload


def squared_distances(upload: Upload) -> Array:
    """[K, K] squared distances of the uploads; rows and columns of absent ones mean nothing."""
    return _distances.squared_distances(upload.client_params, upload.global_params, upload.participating)


def krum_scores(distances: Array, present: Array, attackers: Array) -> Array:
    """[K]: sum of the squared distances to the n - f - 2 nearest others; infinite for the absent.

    Args:
        distances: [K, K] squared.
        present: [K] bool, n of them.
        attackers: f.
    """
    others = present[:, None] & ~jnp.eye(len(present), dtype=bool)
    keys = jnp.where(others, _order.sort_keys(distances), _order.ABSENT)
    sums = _order.sum_of_smallest(distances, keys, num_neighbours(present.sum(), attackers))
    return jnp.where(present, sums, jnp.inf)


def num_neighbours(num_present: Array, attackers: Array) -> Array:
    """n - f - 2, but at least one where there is another upload at all."""
    return jnp.clip(num_present - attackers - 2, jnp.minimum(num_present - 1, 1), num_present - 1)


def medoid_gaps(upload: Upload) -> tuple[Array, Array]:
    """How much farther each upload lies from each other one than a row in the middle does.

    A sum of distances to all others is mostly that to the farthest, in whose last digit those in which near uploads
    differ are lost. The middle row r has the least distance from a mean of clipped updates; |a - j| - |r - j| of a row
    a near it is (|a - r|^2 - 2 <a - r, j - r>) / (|a - j| + |r - j|), which loses none.

    Returns:
        [K, K] the gaps, and [K] the distances of all rows from r: rows and columns of absent ones mean nothing.
    """
    present = upload.participating
    lengths = trees.client_norm(_distances.centred_rows(upload.client_params, upload.global_params, present))
    middle = jnp.argmin(jnp.where(present, lengths, jnp.inf))
    gram, distances = _distances.around_row(upload.client_params, middle, present)
    squares = jnp.diagonal(gram)
    distances = _distances.measured_again(distances, squares, upload.client_params, present)
    from_middle, distances = trees.root(squares), trees.root(distances)
    total = distances + from_middle[None, :]
    return (squares[:, None] - 2 * gram) / jnp.where(total > 0, total, 1.0), from_middle


def summed(gaps: Array, counted: Array) -> Array:
    """[K]: the sums of each row of [K, K] over the columns that count [K] bool."""
    return jnp.matmul(gaps, counted.astype(jnp.float32), precision=_distances.HIGHEST)


def lowest(scores: Array, present: Array, count: Array | int) -> Array:
    """[K] bool: the `count` present rows of lowest score; among equal ones the lowest rows."""
    keys = _order.present_keys(jnp.where(present, scores, 0.0)[:, None], present)
    return _order.smallest(keys, count)[:, 0] & present


def fresh_network(like: Params, key: PRNGKey) -> Params:
    """A network drawn at random, with no more to go by than the shapes of its leaves.

    Every leaf is uniform in +-1/sqrt(fan_in). A leaf of rank >= 2 has torch's layout, so that its fan-in is the product
    of all dimensions but the first; a leaf of lower rank is taken for the bias that belongs to the leaf before it and
    has the same fan-in (1 where it stands first).
    """
    leaves, structure = jax.tree.flatten(like)
    fan_in, drawn = 1, []
    for leaf, leaf_key in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
        fan_in = leaf.size // leaf.shape[0] if leaf.ndim >= 2 else fan_in
        bound = fan_in**-0.5
        drawn.append(jax.random.uniform(leaf_key, leaf.shape, jnp.float32, -bound, bound).astype(leaf.dtype))
    return jax.tree.unflatten(structure, drawn)
