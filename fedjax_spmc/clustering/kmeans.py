"""2-means of numbers, exact, on fixed shapes; jittable and vmappable."""

import jax.numpy as jnp

from fedjax_spmc.clustering._points import NOISE, usable_points
from fedjax_spmc.types import Array


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
    present = usable_points(points, present)
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
    return jnp.where(present, side ^ side[first], NOISE)
