"""Clip: cut every update to a given length before any rule sees it.

Source: the library byzfl 0.0.11 (static clipping); Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated
    Learning?", 2019, norm thresholding.
Assumes: a bound that benign updates seldom exceed.
Cost: O(K D).
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._clipping import clip_factors
from fedjax_spmc.options import POSITIVE, TRACED
from fedjax_spmc.registry import preaggregators
from fedjax_spmc.types import PreAggregator, PRNGKey, Upload, Verdict


@preaggregators.register("clip")
def clip(bound: Annotated[float, POSITIVE, TRACED] = 2.0) -> PreAggregator:
    """Update D_k becomes D_k min(1, c / |D_k|).

    A client's weight is what the rule gives its cut update times the factor of the cut, normalised; score and flag are
    those of the cut update. Batch statistics stay as they are.

    Args:
        bound: c, the greatest length of an update that is left alone.
    """

    def mix(upload: Upload, key: PRNGKey) -> tuple[Upload, Callable[[Verdict], Verdict]]:
        del key
        present = upload.participating
        updates = trees.subtract(upload.client_params, upload.global_params)
        factors = jnp.where(present, clip_factors(trees.client_norm(updates), bound), 0.0)
        cut = jax.tree.map(
            lambda g, u: (g[None] + trees.column(factors.astype(u.dtype), u) * u).astype(u.dtype),
            upload.global_params,
            updates,
        )

        def back(verdict: Verdict) -> Verdict:
            shares = factors.astype(verdict.weights.dtype) * verdict.weights
            total = shares.sum()
            shares = shares / jnp.where(total > 0, total, 1.0)
            return verdict._replace(weights=shares * verdict.weights.sum())

        return upload._replace(client_params=trees.zero_rows(present, cut)), back

    return PreAggregator(mix=mix, linear=False, consensus=False)
