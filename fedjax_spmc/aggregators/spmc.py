"""SPMC, server half: weigh each client by how well it agrees with the coalition of all the others.

Source: "SPMC: Self-Purifying Federated Backdoor Defense via Margin Contribution", ICML 2025; the rule `SPMD` of its
    code.
Assumes: benign clients are a majority whose models lie close together. Needs no data and no number of attackers.
Cost: O(K D); all coalition models come from one sum.
Deviations: the cosine is that of the absolute weights, as in the code, not a difference of utilities as the paper's
    margin contribution reads. At temperature 1 the ratio of two weights is at most e^2, so nobody is ever excluded.
"""

from typing import Annotated

import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.options import NON_NEGATIVE, POSITIVE, TRACED
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict


@aggregators.register("spmc")
def spmc(
    temperature: Annotated[float, POSITIVE, TRACED] = 1.0, eps: Annotated[float, NON_NEGATIVE, TRACED] = 1e-5
) -> Aggregator:
    """alpha = softmax over clients of cos(w_k, mean of the others) / temperature; new model = sum of alpha_k w_k.

    Args:
        temperature: divides the cosines before the softmax; the code's value is 1.
        eps: added to the product of norms in the cosine; the code's value is 1e-5.
    """

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        coalitions = trees.leave_one_out_mean(upload.client_params, present.astype(jnp.float32))
        cosines = trees.client_cosine(upload.client_params, coalitions, eps)
        weights = masked_softmax(cosines / temperature, present)
        verdict = Verdict(weights, -cosines, flagged=jnp.zeros_like(present))
        return trees.weighted_mean(upload.client_params, weights), verdict, state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=True, consensus=True, permutation=True, robust=True, stateless=True),
    )


def masked_softmax(logits: Array, mask: Array) -> Array:
    """Softmax of [K] over the entries in `mask`; 0 elsewhere, and everywhere if the mask is empty."""
    shifted = jnp.where(mask, logits, -jnp.inf)
    top = jnp.max(shifted)
    exponentials = jnp.where(mask, jnp.exp(shifted - jnp.where(jnp.isfinite(top), top, 0.0)), 0.0)
    return exponentials / jnp.maximum(exponentials.sum(), 1e-30)
