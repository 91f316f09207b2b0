"""Algebra of stacked pytrees: every leaf has a leading client axis [K, ...]. All functions are pure and jittable."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_spmc.types import Array

Tree = Any
LARGEST_SQUARE = 1e36
OUTWEIGHS = 100
"""How many times its length one row may move the mean of the others before that is taken by itself."""


def column(weights: Array, leaf: Array) -> Array:
    """Reshapes [K] to [K, 1, ...] so that it multiplies the rows of `leaf` without rank promotion."""
    return weights.reshape(weights.shape + (1,) * (leaf.ndim - weights.ndim))


def float_kind(tree: Tree) -> Any:
    """The dtype in which a server computes weights: that of the leaves, but at least float32."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(tree))


def weighted_mean(stacked: Tree, weights: Array) -> Tree:
    """Sum over clients of weights[k] * row k; the mean where the weights sum to 1.

    Args:
        stacked: leaves [K, ...].
        weights: [K] float. A row of weight 0 must still be finite.

    Returns:
        Tree without the client axis, in the dtypes of `stacked`.
    """

    def mean(leaf: Array) -> Array:
        product = jnp.tensordot(weights.astype(leaf.dtype), leaf, axes=1, precision=jax.lax.Precision.HIGHEST)
        return product.astype(leaf.dtype)

    return jax.tree.map(mean, stacked)


def leave_one_out_mean(stacked: Tree, weights: Array | None = None) -> Tree:
    """For every client the weighted mean of all the others: sum_{j != k} w_j x_j / sum_{j != k} w_j.

    Every row comes from the one mean m of all rows: with W the sum of the weights it is m + w_k / (W - w_k) (m - x_k),
    which is (S - w_k x_k) / (W - w_k) written so that nearly equal rows do not cancel.

    Args:
        stacked: leaves [K, ...].
        weights: [K] float >= 0; None = equal. Rows of weight 0 count for nobody, and their own mean is that of all.

    Returns:
        Stacked like the input. Where nobody else has weight, the row itself (as the SPMC code does for one client).
    """
    leaves = jax.tree.leaves(stacked)
    if not leaves:
        return stacked
    kind = float_kind(stacked)
    weights = jnp.ones(leaves[0].shape[0], kind) if weights is None else weights.astype(kind)
    total = weights.sum()
    others = total - weights
    alone = (jnp.count_nonzero(weights) - (weights > 0)) == 0
    mean = weighted_mean(stacked, weights / jnp.where(total > 0, total, 1.0))
    factor = jnp.where(alone, 0.0, weights / jnp.where(alone, 1.0, others))

    def leave_out(leaf: Array, center: Array) -> Array:
        rows = center[None] + column(factor.astype(leaf.dtype), leaf) * (center[None] - leaf)
        return jnp.where(column(alone, leaf), leaf, rows)

    rows = jax.tree.map(leave_out, stacked, mean)
    # A row that outweighs all others together has carried the mean away with it, and what it leaves behind is the
    # difference of two large numbers: there the others are averaged by themselves.
    moved = factor * client_norm(subtract(stacked, mean))
    far = jnp.argmax(moved)
    left = take_rows(rows, far)
    outweighs = moved[far] > OUTWEIGHS * client_norm(broadcast(left, 1))[0]
    rest = jnp.where(jnp.arange(len(weights)) == far, 0.0, weights) / jnp.where(alone[far], 1.0, others[far])
    own = jax.lax.cond(outweighs, lambda: weighted_mean(stacked, rest), lambda: left)
    return put_rows(rows, far, own)


def client_dot(a: Tree, b: Tree) -> Array:
    """[K] inner products of the rows of two stacked trees."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y, axis=tuple(range(1, x.ndim))), a, b)
    return functools.reduce(jnp.add, jax.tree.leaves(products))


def root(squares: Array) -> Array:
    """Square roots whose gradient is 0, and not NaN, where the square is 0."""
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def client_norm(stacked: Tree) -> Array:
    """[K] Euclidean norms of the rows."""
    return root(client_dot(stacked, stacked))


def unit_differences(a: Tree, b: Tree) -> Tree:
    """Stacked a_k / |a_k| - b_k / |b_k|, of which half the squared norm is 1 - cosine; a row of length 0 stays.

    Dividing first would round both rows where they are nearly the same. With x = a_k - b_k, which is exact there, this
    is (x - b_k (|a_k| - |b_k|) / |b_k|) / |a_k|, and |a_k| - |b_k| = <x, a_k + b_k> / (|a_k| + |b_k|).
    """
    ours, theirs = client_norm(a), client_norm(b)
    gaps = jax.tree.map(jnp.subtract, a, b)
    longer = client_dot(gaps, jax.tree.map(jnp.add, a, b)) / jnp.where(ours + theirs > 0, ours + theirs, 1.0)
    near = (ours > 0.5 * theirs) & (theirs > 0.5 * ours)
    inverse, other_inverse = (jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1.0), 0.0) for x in (ours, theirs))

    def difference(gap: Array, x: Array, y: Array) -> Array:
        close = (gap - y * column(longer * other_inverse, y)) * column(inverse, gap)
        return jnp.where(column(near, x), close, x * column(inverse, x) - y * column(other_inverse, y))

    return jax.tree.map(difference, gaps, a, b)


def client_cosine(a: Tree, b: Tree, eps: float | Array = 0.0) -> Array:
    """[K] cosines between the rows of `a` and `b`: <a, b> / (|a| |b| + eps); 0 where the denominator is 0."""
    product = client_norm(a) * client_norm(b) + eps
    return jnp.where(product > 0, client_dot(a, b) / jnp.where(product > 0, product, 1.0), 0.0)


def ravel_clients(stacked: Tree) -> Array:
    """[K, D]: the leaves of every client, raveled row-major and joined in tree order."""
    leaves = jax.tree.leaves(stacked)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def finite_rows(stacked: Tree) -> Array:
    """[K] bool: rows whose entries are finite and whose squared norm is below 1e36; all True for a tree without leaves.

    Sums of a few such squares, as distances between rows are made of, then stay finite too.
    """
    leaves = [leaf for leaf in jax.tree.leaves(stacked) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not leaves:
        return jnp.ones((), bool)
    # An infinite or NaN entry makes the squared norm non-finite too, so that one test serves both.
    return client_dot(leaves, leaves) < LARGEST_SQUARE


def all_finite(tree: Tree) -> Array:
    """bool scalar: every float entry of the tree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])) if leaves else jnp.ones((), bool)


def where(condition: Array, a: Tree, b: Tree) -> Tree:
    """`a` where the bool scalar holds, else `b`, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def where_rows(mask: Array, a: Tree, b: Tree) -> Tree:
    """Stacked tree with row k of `a` where mask[k], else row k of `b`."""
    return jax.tree.map(lambda x, y: jnp.where(column(mask, x), x, y), a, b)


def zero_rows(mask: Array, stacked: Tree) -> Tree:
    """Stacked tree with the rows outside `mask` set to 0 (also where they were NaN)."""
    return jax.tree.map(lambda x: jnp.where(column(mask, x), x, jnp.zeros((), x.dtype)), stacked)


def broadcast(tree: Tree, num_clients: int) -> Tree:
    """Stacks `num_clients` copies of a tree."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_clients, *x.shape)), tree)


def take_rows(stacked: Tree, ids: Array) -> Tree:
    """Rows `ids` of a stacked tree."""
    return jax.tree.map(lambda x: x[ids], stacked)


def put_rows(stacked: Tree, ids: Array, rows: Tree) -> Tree:
    """Stacked tree with `rows` written at `ids` (distinct)."""
    return jax.tree.map(lambda x, r: x.at[ids].set(r), stacked, rows)


def subtract(stacked: Tree, tree: Tree) -> Tree:
    """Row k minus `tree`, for every client: updates from models."""
    return jax.tree.map(lambda x, y: x - y[None], stacked, tree)


def leaf_names(tree: Tree) -> list[str]:
    """The path of every leaf joined by dots, in order: "conv1.weight"; positions of tuples as numbers."""
    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in keys]
