"""Mean: federated averaging.

Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, Algorithm 1 (weights n_k / n).
Assumes: nothing; it withstands no attack.
Cost: O(K D).
Deviations: none; `oracle_weights` is no published rule but what a server that knew the attackers would make.
"""

from typing import Literal

import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._extras import truth_of
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import TRUTH, Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict


@aggregators.register("mean")
def mean(weights: Literal["size", "uniform"] = "size", oracle_weights: bool = False) -> Aggregator:
    """Averages the uploads.

    Traits: not robust, because the mean is what an outlier is measured against.

    Args:
        weights: "size" weights a client by its number of examples (Algorithm 1; `Weight` in the SPMC code), "uniform"
            gives every participant the same (`Equal` in the SPMC code).
        oracle_weights: malicious clients weigh nothing: what a server that knew them would make, beside which rules
            that weight or remove clients stand. Behind nnm a benign row is a mean of neighbours, whoever they are.

    Raises:
        ConfigError: true weights without the ground truth.
    """

    def coefficients(num_examples: Array, usable: Array) -> Array:
        share = usable.astype(num_examples.dtype)
        return share * num_examples if weights == "size" else share

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        counted = upload.participating
        if oracle_weights:
            counted &= ~truth_of(upload, "mean", "oracle_weights")
        share = coefficients(upload.num_examples, counted)
        share = share / jnp.maximum(share.sum(), 1e-30)
        none = jnp.zeros_like(share)
        return trees.weighted_mean(upload.client_params, share), Verdict(share, none, none > 0), state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=True, consensus=True, permutation=True, robust=False, stateless=True),
        flags=False,
        coefficients=None if oracle_weights else coefficients,
        needs=(TRUTH,) if oracle_weights else (),
        light=True,
    )
