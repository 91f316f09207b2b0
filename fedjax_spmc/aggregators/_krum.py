"""What the rules of Krum's family share: distances between uploads and selections by them."""

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators import _order
from fedjax_spmc.types import Array, Params, PRNGKey, Upload


def squared_distances(upload: Upload) -> Array:
    """[K, K] squared distances of the uploads, from one Gram matrix; rows and columns of absent ones mean nothing.

    The Gram matrix is taken around a mean of clipped updates: around a plain mean, or none, a single far upload, or
    a model that is large against the differences, would cost the digits in which the others differ.
    """
    present = upload.participating
    updates = trees.ravel_clients(trees.subtract(upload.client_params, upload.global_params)).astype(jnp.float32)
    updates = jnp.where(present[:, None], updates, 0.0)
    norms = trees.client_norm(updates)
    bound = _order.median(norms[:, None], present)[0]
    clip = jnp.where(norms > bound, bound / jnp.where(norms > 0, norms, 1.0), 1.0)
    share = clip * present / jnp.maximum(present.sum(), 1)
    center = jnp.matmul(share, updates, precision=jax.lax.Precision.HIGHEST)
    centered = jnp.where(present[:, None], updates - center[None], 0.0)
    gram = jnp.matmul(centered, centered.T, precision=jax.lax.Precision.HIGHEST)
    gram = (gram + gram.T) / 2  # so that two rows are exactly as far from each other either way
    squares = jnp.diagonal(gram)
    distances = jnp.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
    return jnp.where(jnp.eye(len(present), dtype=bool), 0.0, distances)


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


def medoid_scores(distances: Array, present: Array) -> Array:
    """[K]: sum of the unsquared distances to all others present; infinite for the absent."""
    sums = jnp.matmul(jnp.sqrt(distances), present.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return jnp.where(present, sums, jnp.inf)


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
