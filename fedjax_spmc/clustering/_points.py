"""Shared by the clusterings: points as rows of coordinates, which of them count, and the label of those that do not."""

import jax.numpy as jnp

from fedjax_spmc.types import Array

NOISE = -1
"""Label of a point that is in no cluster, or absent."""


def columns(points: Array) -> Array:
    """[n, d] points; numbers [n] become [n, 1]."""
    return points[:, None] if points.ndim == 1 else points


def usable_points(points: Array, present: Array | None) -> Array:
    """[n] bool: which points there are and are finite."""
    finite = jnp.isfinite(columns(points)).all(axis=1)
    return finite if present is None else present & finite
