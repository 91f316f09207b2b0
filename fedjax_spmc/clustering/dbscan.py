"""DBSCAN on fixed shapes; jittable and vmappable."""

import jax
import jax.numpy as jnp

from fedjax_spmc.clustering._points import NOISE, columns, usable_points
from fedjax_spmc.types import Array


def dbscan(points: Array, eps: float | Array, min_samples: int | Array, present: Array | None = None) -> Array:
    """DBSCAN: clusters of core points, which have `min_samples` points within `eps`, and the points near them.

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
    present = usable_points(points, present)
    spots = jnp.where(present[:, None], columns(points), 0)
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
    return jnp.where(reached < len(spots), leaders[jnp.minimum(reached, len(spots) - 1)], NOISE)
