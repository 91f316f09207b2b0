"""What pre-aggregators that average uploads share: rows of an upload as weighted means of others."""

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.types import Array, Upload


def averaged(upload: Upload, shares: Array) -> Upload:
    """The upload whose models and batch statistics are means of the given ones.

    Models are averaged as updates, around the broadcast model, so that small differences keep their digits.

    Args:
        upload: rows that do not take part are zeros.
        shares: [R, K]; the sum of each row is 1, or 0 for a row that does not take part and becomes zeros.
    """
    present = shares.sum(axis=1) > 0

    def mean(rows: Array, center: Array | None = None) -> Array:
        rows = rows if center is None else rows - center[None]
        mixed = jnp.tensordot(shares.astype(rows.dtype), rows, axes=1, precision=jax.lax.Precision.HIGHEST)
        return (mixed if center is None else mixed + center[None]).astype(rows.dtype)

    return upload._replace(
        client_params=trees.zero_rows(present, jax.tree.map(mean, upload.client_params, upload.global_params)),
        client_stats=trees.zero_rows(present, jax.tree.map(mean, upload.client_stats)),
    )


def weights_before(weights: Array, shares: Array) -> Array:
    """[K]: what each upload has in a sum of mixed ones with these weights [R]."""
    return jnp.matmul(weights, shares.astype(weights.dtype), precision=jax.lax.Precision.HIGHEST)
