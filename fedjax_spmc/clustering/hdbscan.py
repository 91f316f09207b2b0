"""HDBSCAN on fixed shapes: density-based clusters from a matrix of distances, jittable and vmappable.

Source: Campello, Moulavi, Sander, "Density-Based Clustering Based on Hierarchical Density Estimates", PAKDD 2013, with
    the condensed tree of McInnes, Healy, "Accelerated Hierarchical Density Based Clustering", ICDMW 2017, and excess of
    mass as the choice of clusters. Labels are those of `sklearn.cluster.HDBSCAN(metric="precomputed")` up to numbering.
Cost: O(K^2) time and memory; K sequential steps (Prim's tree), the rest in parallel.
Ties: points that merge at exactly equal distances merge all at once, so that labels never depend on the order of the
    rows. (scikit-learn merges two at a time in an arbitrary order.) From min_samples = 3 on there always are ties, as a
    point's distance to its second nearest is then the least at which it joins the nearest too: of a hundred random sets
    of twelve points two or three get other labels than scikit-learn gives, whose own change there with the order of the
    rows. A distance of 0 counts as 1e-12 of the longest edge
    of the spanning tree, where 1 / 0 would make stabilities infinite.

The tree is never built node by node. Prim's algorithm lines the points up so that the clusters at any threshold are the
runs between edges above it. A node of the hierarchy is then a longest run without an edge above its own highest one; it
is stored at the first such edge, and every question about it is one about edges left and right of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc.types import Array

SHORTEST_EDGE = 1e-12
"""Distance 0, as a share of the longest edge."""


class Hierarchy(NamedTuple):
    """Single-linkage tree over positions 0..K-1 in Prim's order; edge e joins positions e-1 and e, edge 0 none.

    Attributes:
        is_node: [K] bool, whether a node is stored at this edge.
        is_root: [K] bool, whether that node is the root.
        parent: [K] int32, edge at which the node's parent is stored.
        size: [K] int32, number of points below the node.
        density: [K] float32, 1 / (weight of the edge / weight of the longest edge); 0 where there is no node.
        leaf_parent: [K] int32, edge of the node that the point at this position hangs on.
    """

    is_node: Array
    is_root: Array
    parent: Array
    size: Array
    density: Array
    leaf_parent: Array


def hdbscan(
    distances: Array,
    present: Array,
    min_cluster_size: int | Array,
    min_samples: int = 1,
    allow_single_cluster: bool = False,
) -> Array:
    """Labels of the rows: clusters numbered by their lowest row, -1 for noise and for absent rows.

    Args:
        distances: [K, K] float, symmetric, >= 0, finite where both rows are present.
        present: [K] bool; the result for these rows is that without the others.
        min_cluster_size: fewest points of a cluster, at least 2; may be traced.
        min_samples: the distance to the `min_samples`-th nearest row, itself included, is the least distance at which
            a row joins others; with fewer rows, the farthest.
        allow_single_cluster: whether all rows together may be one cluster; then those that leave it before it splits
            or dissolves are noise, and a row that is alone is a cluster.

    Returns:
        [K] int32.
    """
    num_rows = len(present)
    order, weights = spanning_order(distances, present, min_samples)
    tree = hierarchy(weights)
    least = jnp.maximum(min_cluster_size, 2)
    owner = _owners(tree, least, allow_single_cluster)
    if allow_single_cluster:
        owner = jnp.where(present.sum() == 1, 0, owner)
    by_row = jnp.full(num_rows, -1).at[order].set(owner, mode="drop")
    return _numbered(by_row)


def spanning_order(distances: Array, present: Array, min_samples: int) -> tuple[Array, Array]:
    """Prim's minimum spanning tree of the mutual reachability distances, from the first present row on.

    Returns:
        [K] int32 rows in the order in which they join the tree, K where nobody is left, and [K] float32 the distance at
        which each joins; infinite for the first and where nobody is left.
    """
    num_rows = len(present)
    both = present[:, None] & present[None, :] & ~jnp.eye(num_rows, dtype=bool)
    reach = jnp.where(both, distances.astype(jnp.float32), jnp.inf)
    if min_samples > 1:
        # The row itself is its own nearest, at distance 0.
        nearest = -jax.lax.top_k(-reach, min(min_samples - 1, num_rows))[0]
        core = jnp.max(jnp.where(jnp.isfinite(nearest), nearest, 0.0), axis=1)
        reach = jnp.maximum(reach, jnp.maximum(core[:, None], core[None, :]))

    def join(position: Array, carry: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, ...]:
        current, waiting, closest, order, weights = carry
        waiting = waiting & (jnp.arange(num_rows) != current)
        closest = jnp.minimum(closest, reach[current])
        candidates = jnp.where(waiting, closest, jnp.inf)
        current = jnp.argmin(candidates).astype(jnp.int32)
        order = order.at[position].set(jnp.where(waiting.any(), current, num_rows))
        return current, waiting, closest, order, weights.at[position].set(candidates[current])

    first = jnp.argmax(present).astype(jnp.int32)
    nothing = jnp.full(num_rows, jnp.inf, jnp.float32)
    order = jnp.full(num_rows, num_rows, jnp.int32).at[0].set(jnp.where(present.any(), first, num_rows))
    carry = jax.lax.fori_loop(1, num_rows, join, (first, present, nothing, order, nothing))
    return carry[3], carry[4]


def hierarchy(weights: Array) -> Hierarchy:
    """The single-linkage tree of points in Prim's order, given the weights [K] at which they joined."""
    num_points = len(weights)
    edges = jnp.arange(num_points)
    here, there = edges[:, None], edges[None, :]
    higher = weights[None, :] > weights[:, None]
    left = jnp.max(jnp.where(higher & (there < here), there, 0), axis=1)
    right = jnp.min(jnp.where(higher & (there > here), there, num_points), axis=1)
    finite = jnp.isfinite(weights)
    stored = jnp.argmax((weights[None, :] == weights[:, None]) & (left[None, :] == left[:, None]), axis=1)
    beyond = jnp.append(weights, jnp.inf)

    def lower(before: Array, after: Array) -> Array:
        """The edge at which the smallest node that contains the run between these two edges is stored."""
        return stored[jnp.where(beyond[before] <= beyond[after], before, jnp.minimum(after, num_points - 1))]

    is_node = finite & (stored == edges)
    longest = jnp.max(jnp.where(finite, weights, 0.0))
    relative = weights / jnp.where(longest > 0, longest, 1.0)
    return Hierarchy(
        is_node=is_node,
        is_root=is_node & ~jnp.isfinite(beyond[left]) & ~jnp.isfinite(beyond[right]),
        parent=lower(left, right),
        size=right - left,
        density=jnp.where(is_node, 1 / jnp.maximum(relative, SHORTEST_EDGE), 0.0),
        leaf_parent=lower(edges, edges + 1),
    )


def _owners(tree: Hierarchy, least: Array, allow_single_cluster: bool) -> Array:
    """[K] int32 per position: the node at the top of the cluster that the point belongs to, -1 for noise."""
    nodes = jnp.arange(len(tree.is_node))
    # A node too small for a cluster is the end of its points; one large child carries its parent's cluster on, two or
    # more begin clusters of their own.
    alive = tree.is_node & (tree.is_root | (tree.size >= least))
    large = alive & ~tree.is_root
    num_large = _sum_into(tree.parent, large, 1)
    leaving = tree.size - jnp.where(num_large == 1, _sum_into(tree.parent, large, tree.size), 0)
    top = alive & (tree.is_root | (num_large[tree.parent] > 1))
    last = _follow(jnp.where(alive | ~tree.is_node, nodes, tree.parent))
    cluster = _follow(jnp.where(top | ~tree.is_node, nodes, tree.parent))
    birth = jnp.where(tree.is_root, 0.0, tree.density[tree.parent])
    stability = _sum_into(cluster, alive, (tree.density - birth[cluster]) * leaving)
    above = jnp.where(top & ~tree.is_root, cluster[tree.parent], nodes)
    below = _excess_of_mass(stability, above, top & ~tree.is_root)
    chosen = top & (below <= stability)
    if not allow_single_cluster:
        chosen = chosen & ~tree.is_root
    highest = _highest_chosen(chosen, above)
    end = last[tree.leaf_parent]
    owner = jnp.where(tree.is_node[end], highest[cluster[end]], -1)
    # Of the cluster of all points only those count that stay until it splits or dissolves.
    peak = jnp.max(jnp.where(alive & tree.is_root[cluster], tree.density, 0.0))
    return jnp.where(tree.is_root[owner] & (tree.density[end] < peak), -1, owner)


def _sum_into(target: Array, counted: Array, values: Array | int) -> Array:
    """[K]: for each node the sum of `values` over the counted nodes that point at it."""
    values = jnp.where(counted, values, 0)
    return jnp.zeros(len(target), values.dtype).at[target].add(values)


def _follow(pointers: Array) -> Array:
    """Where each chain of pointers ends (a node that points at itself)."""
    for _ in range(len(pointers).bit_length()):
        pointers = pointers[pointers]
    return pointers


def _excess_of_mass(stability: Array, above: Array, child: Array) -> Array:
    """[K]: for each cluster the largest total stability that clusters below it can reach together."""

    def improve(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        below, _ = carry
        new = _sum_into(above, child, jnp.maximum(stability, below))
        return new, jnp.any(new != below)

    # One pass for each level of the tree of clusters; the pass in which nothing changes ends the loop.
    start = (jnp.zeros_like(stability), jnp.ones((), bool))
    return jax.lax.while_loop(lambda carry: carry[1], improve, start)[0]


def _highest_chosen(chosen: Array, above: Array) -> Array:
    """[K] int32: the highest chosen cluster at or above each one, -1 if there is none."""
    found = jnp.where(chosen, jnp.arange(len(chosen)), -1)
    for _ in range(len(chosen).bit_length()):
        found = jnp.where(found[above] >= 0, found[above], found)
        above = above[above]
    return found


def _numbered(owner: Array) -> Array:
    """Labels 0, 1, ... in the order of each owner's first row; -1 stays."""
    rows = jnp.arange(len(owner))
    first = jnp.full(len(owner), len(owner)).at[owner].min(jnp.where(owner >= 0, rows, len(owner)))
    number = jnp.cumsum((owner >= 0) & (first[owner] == rows)) - 1
    return jnp.where(owner >= 0, number[jnp.clip(first[owner], 0, len(owner) - 1)], -1).astype(jnp.int32)


def euclidean_distances(points: Array) -> Array:
    """[K, K] distances of the rows of [K, d], row by row: exactly 0 between equal rows, O(K d) memory beside it."""
    return jax.lax.map(lambda row: jnp.sqrt(jnp.square(points - row[None]).sum(axis=1)), points)
