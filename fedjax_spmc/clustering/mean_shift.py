"""Clusters of points on fixed shapes, jittable and vmappable: mean shift with a flat kernel, and two means.

Source: Comaniciu, Meer, "Mean Shift: A Robust Approach toward Feature Space Analysis", IEEE TPAMI 2002, in the form of
    `sklearn.cluster.MeanShift(bandwidth, cluster_all=False)`: the same labels but where rounding decides.
Cost: O(K^2 d) for each step; O(K^2 + K d) memory.
Ties: centers with equally many points rank by their coordinates, the lexicographically largest first, so that labels do
    not depend on the order of the rows.
"""

import functools

import jax
import jax.numpy as jnp

from fedjax_spmc.types import Array

MAX_STEPS = 300
STARTS = 16
"""Of 2-means."""
ROUNDING_MARGIN = 1 + 1e-6
"""A distance within rounding of the bandwidth counts as within it; see `_radius`."""


def _radius(points: Array, bandwidth: Array) -> Array:
    """The bandwidth with a margin for rounding: the mean of equal points may differ from them in the last digit."""
    return bandwidth * ROUNDING_MARGIN + 1e-6 * jnp.max(jnp.abs(points))


def bandwidth_of(points: Array, present: Array, quantile: float | Array) -> Array:
    """Mean distance of the n present rows to their `quantile` n-th nearest, the row itself included and not alone.

    Args:
        points: [K, d] float32.
        present: [K] bool.
        quantile: in [0, 1].
    """
    number = present.sum()
    gaps = jnp.sort(jnp.where(present[None, :], _distances(points, points), jnp.inf), axis=1)
    nearest = jnp.minimum(jnp.maximum(jnp.floor(number * quantile).astype(jnp.int32), 2), number)
    return jnp.where(present, gaps[:, jnp.maximum(nearest - 1, 0)], 0.0).sum() / jnp.maximum(number, 1)


def mean_shift(points: Array, present: Array, bandwidth: Array) -> Array:
    """Labels of the rows: every point moves to the mean of the points within `bandwidth` until it no longer moves.

    Centers within a bandwidth of one with more points are dropped; a row belongs to the nearest center left.

    Args:
        points: [K, d] float32.
        present: [K] bool; the result for these rows is that without the others.
        bandwidth: >= 0, scalar.

    Returns:
        [K] int32, numbered by falling number of points around the center; -1 for rows farther than a bandwidth from
        every center and for absent rows.
    """
    num_points = len(points)
    radius = _radius(points, bandwidth)
    centers, counts = _shift_to_modes(points, present, bandwidth)
    by_rank = jnp.lexsort((*centers.T[::-1], counts))[::-1]
    centers = centers[by_rank]
    near = _distances(centers, centers) <= radius

    def keep(rank: Array, kept: Array) -> Array:
        later = jnp.arange(num_points) > rank
        return kept & ~(kept[rank] & near[rank] & later)

    kept = jax.lax.fori_loop(0, num_points, keep, present[by_rank])
    gaps = jnp.where(kept[None, :], _distances(points, centers), jnp.inf)
    labels = (jnp.cumsum(kept) - 1)[jnp.argmin(gaps, axis=1)]
    return jnp.where(present & (gaps.min(axis=1) <= radius), labels, -1).astype(jnp.int32)


def _shift_to_modes(points: Array, present: Array, bandwidth: Array) -> tuple[Array, Array]:
    """Each point's mode, [K, d], and the number of points within the bandwidth before its last step, [K]; absent: 0."""

    radius = _radius(points, bandwidth)

    def step(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        means, counts, moving, steps = carry
        within = (_distances(means, points) <= radius) & present[None, :]
        number = within.sum(axis=1)
        sums = jnp.matmul(within.astype(points.dtype), points, precision=jax.lax.Precision.HIGHEST)
        moved = jnp.where((moving & (number > 0))[:, None], sums / jnp.maximum(number, 1)[:, None], means)
        counts = jnp.where(moving, number, counts)
        far = jnp.sqrt(jnp.square(moved - means).sum(axis=1)) > 1e-3 * radius
        return moved, counts, moving & far, steps + 1

    def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
        return carry[2].any() & (carry[3] <= MAX_STEPS)

    start = (points, jnp.zeros(len(points), jnp.int32), present, jnp.zeros((), jnp.int32))
    means, counts, _, _ = jax.lax.while_loop(unfinished, step, start)
    return means, counts


def two_means(points: Array, present: Array) -> Array:
    """Labels 0 and 1 of k-means with k = 2; -1 for absent rows.

    Lloyd's steps end in the nearest optimum, which may be a poor one. They begin here at the best cut across each of
    `STARTS` directions in the plane of the two principal axes, and the end with the least sum of squared distances to
    the centres counts. No start is drawn: the labels are a function of the points, whatever the order of the rows.

    Args:
        points: [K, d] float32.
        present: [K] bool; the result for these rows is that without the others.
    """
    centred = _around_mean(points, present)
    axes = jnp.linalg.svd(centred, full_matrices=False)[2]
    axes = axes * jnp.where(axes.sum(axis=1) < 0, -1.0, 1.0)[:, None]  # whose signs depend on the order of the rows
    angles = jnp.pi * jnp.arange(STARTS) / STARTS
    directions = jnp.cos(angles)[:, None] * axes[0][None] + jnp.sin(angles)[:, None] * axes[min(1, len(axes) - 1)][None]
    starts = jax.vmap(lambda direction: _best_cut(centred, present, direction))(directions)

    def assign(centers: Array) -> tuple[Array, Array]:
        gaps = _distances(centred, centers)
        return jnp.where(present, jnp.argmin(gaps, axis=1), -1), gaps.min(axis=1)

    def centers_of(labels: Array) -> tuple[Array, Array]:
        member = (labels[None, :] == jnp.arange(2)[:, None]).astype(points.dtype)
        number = member.sum(axis=1, keepdims=True)
        return jnp.matmul(member / jnp.maximum(number, 1.0), centred, precision=jax.lax.Precision.HIGHEST), number

    def climb(labels: Array) -> tuple[Array, Array]:
        def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            labels, _, steps = carry
            new = assign(centers_of(labels)[0])[0]
            return new, (new != labels).any(), steps + 1

        start = (labels, jnp.ones((), bool), jnp.zeros((), jnp.int32))
        labels = jax.lax.while_loop(lambda carry: carry[1] & (carry[2] < MAX_STEPS), step, start)[0]
        gaps = assign(centers_of(labels)[0])[1]
        return labels, jnp.where(present, jnp.square(gaps), 0.0).sum()

    ends, inertia = jax.vmap(climb)(starts)
    labels = ends[jnp.argmax(inertia <= inertia.min() * ROUNDING_MARGIN)]
    # The first cluster wins a tie of sizes: which one is first must not depend on the order of the rows.
    centers, number = centers_of(labels)
    turned = (jnp.lexsort(tuple(centers.T[::-1]))[1] == 1) & (number > 0).all()
    return jnp.where(present & turned, 1 - labels, labels)


def _around_mean(points: Array, present: Array) -> Array:
    share = present / jnp.maximum(present.sum(), 1)
    center = jnp.matmul(share, points, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(present[:, None], points - center[None], 0.0)


def _best_cut(centred: Array, present: Array, direction: Array) -> Array:
    """[K]: 0 on one side of a cut across a direction, 1 on the other: the one that parts the centred points best."""
    places = jnp.where(present, jnp.matmul(centred, direction, precision=jax.lax.Precision.HIGHEST), jnp.inf)
    order = jnp.argsort(places, stable=True)
    sizes = jnp.arange(1, len(places) + 1)
    left = jnp.square(jnp.cumsum(centred[order], axis=0)).sum(axis=1)
    # The sums on both sides are the same but for the sign; the last row has nobody on the other side.
    between = left / sizes + left / jnp.maximum(present.sum() - sizes, 1)
    ranked = jnp.append(places[order], jnp.inf)
    allowed = (sizes < present.sum()) & (ranked[1:] > ranked[:-1])
    cut = jnp.argmax(jnp.where(allowed, between, -jnp.inf)) + 1
    side = jnp.zeros(len(places), jnp.int32).at[order].set((sizes > cut).astype(jnp.int32))
    return jnp.where(present, side, -1)


def largest_cluster(labels: Array) -> Array:
    """[K] bool: the rows of the label >= 0 that most rows have; the lowest such label on a tie."""
    sizes = jnp.zeros(len(labels), jnp.int32).at[jnp.maximum(labels, 0)].add(labels >= 0)
    return (labels >= 0) & (labels == jnp.argmax(sizes))


def _distances(a: Array, b: Array) -> Array:
    """[K, L] distances between the rows of [K, d] and [L, d]; d is small."""
    squares = [jnp.square(x[:, None] - y[None, :]) for x, y in zip(a.T, b.T, strict=True)]
    return jnp.sqrt(functools.reduce(jnp.add, squares))
