"""Clusterings of few points on fixed shapes: FINCH, 2-means on a line, DBSCAN. All can be jitted and vmapped.

Absent points, and points that are not finite, belong to no cluster: their label is -1.
"""

import jax
import jax.numpy as jnp

from fedjax_spmc.types import Array

NOBODY = -1
"""Label of a point that is in no cluster."""


def finch(points: Array, present: Array | None = None) -> Array:
    """FINCH, first partition: two points are one cluster if one is the other's nearest neighbour or both have the same.

    Source: Sarfraz, Sharma, Stiefelhagen, "Efficient Parameter-free Clustering Using First Neighbor Relations", CVPR
        2019, Eq. 1, with Euclidean distances; as FDCR (NeurIPS 2024) uses it on n numbers.
    Ties: of points at the same distance the one with the lowest index is the nearest. Distances of numbers ([n] or
        [n, 1]) are compared exactly, beyond what float32 holds; those of vectors as float32 sums of squares.
    Cost: O(n^2 d) time, O(n^2) memory.

    Args:
        points: [n] or [n, d] float.
        present: [n] bool, which points there are; None = all.

    Returns:
        [n] int32, numbered by first occurrence; all 0 where there is one cluster, as the published code stores no
        partition of one cluster.
    """
    present = _usable(points, present)
    nearest = _nearest(jnp.where(present[:, None], _columns(points), 0), present)
    # Every point has one arrow, to its nearest; arrows end in a pair that point at each other (ties go to the lowest
    # index), so that following them long enough finds the cluster.
    end = nearest
    for _ in range(max(1, len(nearest) - 1).bit_length()):
        end = end[end]
    return _number(jnp.minimum(end, nearest[end]), present)


def kmeans(points: Array, present: Array | None = None) -> Array:
    """2-means of numbers, exact: of all cuts of the sorted points the one with the least sum of squared distances.

    Source: the global minimum of the objective of Lloyd's algorithm, which has no random start here; Fisher, "On
        Grouping for Maximum Homogeneity", JASA 1958. The first of equal cuts is taken.

    Args:
        points: [n] float.
        present: [n] bool; None = all.

    Returns:
        [n] int32 in {0, 1}, numbered by first occurrence; all 0 where fewer than two different numbers are present.
    """
    present = _usable(points, present)
    count = present.sum()
    center = jnp.sum(jnp.where(present, points, 0)) / jnp.maximum(count, 1)
    # Centred first: sums of squares of far numbers cancel.
    centred = jnp.where(present, points - center, jnp.inf)
    order = jnp.argsort(centred, stable=True)
    ranked = centred[order]
    left_size = jnp.arange(1, len(points), dtype=ranked.dtype)
    left = jnp.cumsum(jnp.where(jnp.isfinite(ranked), ranked, 0))[:-1]
    right_size = count - left_size
    total = jnp.sum(jnp.where(jnp.isfinite(ranked), ranked, 0))
    between = left**2 / left_size + (total - left) ** 2 / jnp.maximum(right_size, 1)
    allowed = (right_size > 0) & (ranked[1:] > ranked[:-1])
    between = jnp.where(allowed, between, -jnp.inf)
    cut = jnp.argmax(between) + 1 if len(points) > 1 else 1
    cut = jnp.where(allowed.any(), cut, len(points))
    side = jnp.zeros(len(points), jnp.int32).at[order].set((jnp.arange(len(points)) >= cut).astype(jnp.int32))
    first = jnp.argmax(present)
    return jnp.where(present, side ^ side[first], NOBODY)


def dbscan(points: Array, eps: float | Array, min_samples: int | Array, present: Array | None = None) -> Array:
    """DBSCAN: clusters of core points, which have `min_samples` points within `eps`, and what lies near them.

    Source: Ester, Kriegel, Sander, Xu, "A Density-Based Algorithm for Discovering Clusters in Large Spatial Databases
        with Noise", KDD 1996. A point is its own neighbour; a border point of several clusters joins the one that
        comes first, as in scikit-learn.
    Cost: O(n^2 d) time, O(n^2) memory, and n rounds of spreading at worst.

    Args:
        points: [n] or [n, d] float.
        eps: largest distance of neighbours.
        min_samples: neighbours, the point itself among them, that make it a core point.
        present: [n] bool; None = all.

    Returns:
        [n] int32: clusters numbered by their first core point, noise (and what is absent) -1.
    """
    present = _usable(points, present)
    spots = jnp.where(present[:, None], _columns(points), 0)
    gaps = spots[:, None] - spots[None, :]
    # Squares of tiny numbers vanish: on a line none are taken.
    distances = jnp.abs(gaps[:, :, 0]) if gaps.shape[2] == 1 else jnp.linalg.norm(gaps, axis=2)
    close = (distances <= eps) & present[:, None] & present[None, :]
    core = present & (close.sum(axis=1) >= min_samples)
    linked = close & core[:, None] & core[None, :]
    indices = jnp.arange(len(spots), dtype=jnp.int32)
    start = jnp.where(core, indices, len(spots))

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        lowest, _ = state
        spread_out = jnp.minimum(lowest, jnp.min(jnp.where(linked, lowest[None, :], len(spots)), axis=1))
        return spread_out, (spread_out != lowest).any()

    lowest, _ = jax.lax.while_loop(lambda state: state[1], spread, (start, jnp.ones((), bool)))
    reached = jnp.min(jnp.where(close & core[None, :], lowest[None, :], len(spots)), axis=1)
    leaders = jnp.cumsum((core & (lowest == indices)).astype(jnp.int32)) - 1
    return jnp.where(reached < len(spots), leaders[jnp.minimum(reached, len(spots) - 1)], NOBODY)


def _columns(points: Array) -> Array:
    return points[:, None] if points.ndim == 1 else points


def _usable(points: Array, present: Array | None) -> Array:
    finite = jnp.isfinite(_columns(points)).all(axis=1)
    return finite if present is None else present & finite


def _nearest(points: Array, present: Array) -> Array:
    """[n] int32: each point's nearest other present one; itself where there is none."""
    indices = jnp.arange(len(points), dtype=jnp.int32)
    others = present[:, None] & present[None, :] & (indices[:, None] != indices[None, :])
    if points.shape[1] == 1:
        distances, rest = _exact_gaps(points[:, 0])
    else:
        distances = jnp.sum((points[:, None] - points[None, :]) ** 2, axis=2)
        rest = jnp.zeros_like(distances)
    distances = jnp.where(others, distances, jnp.inf)
    least = distances.min(axis=1, keepdims=True)
    rest = jnp.where(others & (distances == least), rest, jnp.inf)
    found = others & (distances == least) & (rest == rest.min(axis=1, keepdims=True))
    return jnp.where(others.any(axis=1), jnp.argmax(found, axis=1).astype(jnp.int32), indices)


def _exact_gaps(numbers: Array) -> tuple[Array, Array]:
    """[n, n] |a - b| as the nearest float and what is missing to the exact value, in the order of the exact values.

    Source: Knuth's two-sum (The Art of Computer Programming 2, 4.2.2).
    """
    a, b = jnp.broadcast_arrays(numbers[:, None], -numbers[None, :])
    total = a + b
    seen = total - a
    missing = (a - (total - seen)) + (b - seen)
    sign = jnp.where(total < 0, -1.0, 1.0).astype(numbers.dtype)
    return sign * total, sign * missing


def _number(roots: Array, present: Array) -> Array:
    """Labels from each point's representative, numbered by first occurrence."""
    indices = jnp.arange(len(roots), dtype=jnp.int32)
    first = jnp.full(len(roots), len(roots), jnp.int32).at[roots].min(jnp.where(present, indices, len(roots)))
    mine = first[roots]
    rank = jnp.cumsum((present & (mine == indices)).astype(jnp.int32)) - 1
    return jnp.where(present, rank[jnp.minimum(mine, len(roots) - 1)], NOBODY)
