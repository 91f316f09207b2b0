"""NNM, nearest neighbour mixing: put the mean of the uploads nearest to it in the place of each upload.

Source: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine ML
    under Heterogeneity", AISTATS 2023; the library byzfl 0.0.11 agrees.
Assumes: at most f of the n uploads are malicious, n >= 2 f + 1.
Cost: O(K^2 D): one Gram matrix and one product; memory O(K^2 + K D).
Deviations: among equally near uploads the lowest rows count.
"""

from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp

from fedjax_spmc.aggregators import _krum, _order
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import Range
from fedjax_spmc.preaggregators._mixing import averaged, weights_before
from fedjax_spmc.registry import preaggregators
from fedjax_spmc.types import Array, PreAggregator, PRNGKey, Upload, Verdict


@preaggregators.register("nnm")
def nnm(attackers: Annotated[int, Range(0, 10**6)] | None = None) -> PreAggregator:
    """Upload k becomes the mean of the n - f uploads nearest to it, itself among them.

    A client's weight is what its upload has in all the means that the rule takes; its score, and whether it is flagged,
    is that of the mean around it. Batch statistics are mixed alike; what clients send beside is not.

    Args:
        attackers: f; None: the largest that the theory allows for n usable uploads, (n - 1) // 2.

    Raises:
        ConfigError: too many attackers for the uploads.
    """

    def mix(upload: Upload, key: PRNGKey) -> tuple[Upload, Callable[[Verdict], Verdict]]:
        del key
        present = upload.participating
        if attackers is not None and len(present) < 2 * attackers + 1:
            raise ConfigError(
                f"aggregator.pre_options.nnm.attackers = {attackers} is not allowed with {len(present)} uploads a "
                f"round: nnm needs 2 f + 1 = {2 * attackers + 1}."
            )
        usable = present.sum()
        assumed = (usable - 1) // 2 if attackers is None else attackers
        shares = nearest_shares(_krum.squared_distances(upload), present, jnp.maximum(usable - assumed, 1))

        def back(verdict: Verdict) -> Verdict:
            return verdict._replace(weights=weights_before(verdict.weights, shares))

        return averaged(upload, shares), back

    return PreAggregator(
        mix=mix,
        fewest=lambda needed: max(needed, 2 * (attackers or 0) + 1),
        chosen=lambda num_clients: {"attackers": max((num_clients - 1) // 2, 0)} if attackers is None else {},
    )


def nearest_shares(distances: Array, present: Array, count: Array | int) -> Array:
    """[K, K]: row k has 1 / count for the `count` rows nearest to k; zeros for a row that is absent.

    Args:
        distances: [K, K] squared.
        present: [K] bool, at least `count` of them.
        count: how many, a row itself among them.
    """
    keys = _order.present_keys(distances, present)
    nearest = _order.smallest(keys, count).T & present[:, None] & present[None, :]
    return nearest / jnp.maximum(jnp.asarray(count), 1).astype(jnp.float32)
