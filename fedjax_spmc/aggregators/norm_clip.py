"""Norm clipping: cut every update to a common length before averaging, optionally with weak noise.

Source: Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019 (arXiv 1911.07963),
    the section on defences: norm thresholding of updates and weak differential privacy.
Assumes: a backdoor needs longer updates than honest training.
Cost: O(K D).
Deviations: the paper's threshold is a number chosen by hand; by default it is here the median of the uploads' norms.
    The paper adds noise of 0.025 where it is used; by default there is none.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._clipping import clip_factors, is_noisy, median_of, standard_noise
from fedjax_spmc.options import NON_NEGATIVE, POSITIVE, TRACED
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Params, PRNGKey, State, Traits, Upload, Verdict


@aggregators.register("norm_clip")
def norm_clip(
    threshold: Annotated[float, POSITIVE, TRACED] | None = None,
    noise: Annotated[float, NON_NEGATIVE, TRACED] = 0.0,
    weights: Literal["uniform", "size"] = "uniform",
) -> Aggregator:
    """New model = g + sum_k p_k D_k / max(1, |D_k| / M) + sigma N(0, 1), D_k the update of client k.

    The verdict's weights are p_k / max(1, |D_k| / M), normalised; scores are the norms.

    Traits: not linear, because what is cut off is not given to others: the model is drawn to the broadcast one. With a
        given threshold there is no consensus, because long updates are cut even if all agree, and no robustness,
        because it may exceed all norms. With noise there is no consensus.

    Args:
        threshold: M; None is the median of the norms of the usable uploads.
        noise: sigma, the weak noise; 0 is none.
        weights: "uniform" gives every participant p_k = 1 / n (as the paper prints it), "size" weights by examples.
    """

    noisy, adaptive = is_noisy(noise), threshold is None

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        present = upload.participating
        updates = trees.subtract(upload.client_params, upload.global_params)
        norms = jnp.where(present, trees.client_norm(updates), 0.0)
        bound = median_of(norms, present) if threshold is None else threshold
        share = present.astype(jnp.float32) if weights == "uniform" else upload.num_examples
        share = share / jnp.maximum(share.sum(), 1e-30) * clip_factors(norms, bound)
        step = trees.weighted_mean(trees.zero_rows(present, updates), share)
        model = jax.tree.map(jnp.add, upload.global_params, step)
        if noisy:
            model = jax.tree.map(lambda x, z: x + noise * z, model, standard_noise(key, model))
        share = share / jnp.maximum(share.sum(), 1e-30)
        return model, Verdict(share, norms, flagged=jnp.zeros_like(present)), state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(
            linear=False, consensus=adaptive and not noisy, permutation=True, robust=adaptive, stateless=True
        ),
        flags=False,
    )
