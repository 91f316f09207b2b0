"""FINCH: clusters of first neighbours, on fixed shapes; jittable and vmappable.

Absent points, and points that are not finite, belong to no cluster: their label is -1.
"""

import jax.numpy as jnp

from fedjax_spmc.clustering._points import NOISE, columns, usable_points
from fedjax_spmc.types import Array


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
    present = usable_points(points, present)
    nearest = _nearest(jnp.where(present[:, None], columns(points), 0), present)
    # Every point has one arrow, to its nearest; arrows end in a pair that point at each other (ties go to the lowest
    # index), so that following them long enough finds the cluster.
    end = nearest
    for _ in range(max(1, len(nearest) - 1).bit_length()):
        end = end[end]
    return _number_clusters(jnp.minimum(end, nearest[end]), present)


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
    """[n, n] |a - b| as the nearest float and the remainder to the exact value, in the order of the exact values.

    Source: Knuth's two-sum (The Art of Computer Programming 2, 4.2.2).
    """
    a, b = jnp.broadcast_arrays(numbers[:, None], -numbers[None, :])
    total = a + b
    seen = total - a
    missing = (a - (total - seen)) + (b - seen)
    sign = jnp.where(total < 0, -1.0, 1.0).astype(numbers.dtype)
    return sign * total, sign * missing


def _number_clusters(roots: Array, present: Array) -> Array:
    """Labels from each point's representative, numbered by first occurrence."""
    indices = jnp.arange(len(roots), dtype=jnp.int32)
    first = jnp.full(len(roots), len(roots), jnp.int32).at[roots].min(jnp.where(present, indices, len(roots)))
    own_first = first[roots]
    rank = jnp.cumsum((present & (own_first == indices)).astype(jnp.int32)) - 1
    return jnp.where(present, rank[jnp.minimum(own_first, len(roots) - 1)], NOISE)
