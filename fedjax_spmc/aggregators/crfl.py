"""CRFL: clip the norm of the aggregated model and add Gaussian noise to it.

Source: Xie, Chen, Chen, Li, "CRFL: Certifiably Robust Federated Learning against Backdoor Attacks", ICML 2021,
    Algorithm 1, server side.
Assumes: nothing about the clients. Its certificate speaks of the smoothed model.
Cost: O(K D).
Deviations: the smoothing at test time (a vote of many noisy copies of the final model) is no part of the server's
    step and is not done: the plain model is evaluated. The paper's bounds (0.1 t + 2, 0.025 t + 2, 0.25 t + 4) belong
    to its own small models; the defaults here, in both variants, are those of the SPMC code and fit models whose norm
    starts between 10 and 60.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._clipping import standard_noise
from fedjax_spmc.options import NON_NEGATIVE, POSITIVE, TRACED
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict

Draw = Callable[[PRNGKey, Params], Params]
"""(key, params) -> noise of standard deviation 1, shaped like the params."""


@aggregators.register("crfl")
def crfl(
    variant: Literal["paper", "reference"] = "paper",
    norm_start: Annotated[float, POSITIVE, TRACED] = 30.0,
    norm_slope: Annotated[float, NON_NEGATIVE, TRACED] = 5.0,
    norm_cap: Annotated[float, POSITIVE, TRACED] = 100.0,
    noise: Annotated[float, NON_NEGATIVE, TRACED] | None = None,
    scale: Annotated[float, POSITIVE, TRACED] = 1.0,
    rounds: int | None = None,
) -> Aggregator:
    """New model = m / max(1, |m| / rho_t) + sigma N(0, 1), m the weighted mean, rho_t = min(a t + b, cap).

    Reference:
        * sigma is 1e-4 (the paper: 0.01).
        * The clipped model is m rho_t / (|m| + 1e-6).

    Traits: not linear and no consensus, because of the noise and the clip; not robust, because an outlier counts in
        full as long as the model stays within the bound.

    Args:
        variant: the publication or the SPMC code.
        norm_start: b, the bound of round 0.
        norm_slope: a, by how much the bound grows each round.
        norm_cap: the largest bound.
        noise: sigma; None is 0.01, in the reference 1e-4.
        scale: m = g + scale * mean of updates; 1 in the paper.
        rounds: number of rounds of the run, which the simulator fills in: the last one gets no noise. None: every round
            gets it.
    """
    return with_draw(standard_noise, variant, norm_start, norm_slope, norm_cap, noise, scale, rounds)


def with_draw(
    draw: Draw,
    variant: Literal["paper", "reference"] = "paper",
    norm_start: float | Array = 30.0,
    norm_slope: float | Array = 5.0,
    norm_cap: float | Array = 100.0,
    noise: float | Array | None = None,
    scale: float | Array = 1.0,
    rounds: int | None = None,
) -> Aggregator:
    """The rule `crfl` with the draw of its noise given from outside; the other arguments are those of `crfl`."""
    margin = 0.0 if variant == "paper" else 1e-6
    missing: dict[str, Any] = {"noise": 0.01 if variant == "paper" else 1e-4} if noise is None else {}
    sigma = missing.get("noise", noise)

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        present = upload.participating
        weights = upload.num_examples / jnp.maximum(upload.num_examples.sum(), 1e-30)
        mean = trees.weighted_mean(upload.client_params, weights)
        mean = jax.tree.map(lambda m, g: g + scale * (m - g), mean, upload.global_params)
        bound = jnp.minimum(norm_slope * upload.round + norm_start, norm_cap)
        level = jnp.asarray(sigma, jnp.float32)
        if rounds is not None:
            level = jnp.where(upload.round == rounds - 1, 0.0, level)
        model = jax.tree.map(lambda m, z: m + level * z, clip_norm(mean, bound, margin), draw(key, mean))
        return model, Verdict(weights, jnp.zeros_like(weights), jnp.zeros_like(present)), state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=False, permutation=True, robust=False, stateless=True),
        flags=False,
        chosen=lambda num_clients: dict(missing),
    )


def clip_norm(tree: Params, bound: Array, margin: float = 0.0) -> Params:
    """The tree scaled by bound / (norm + margin) where its norm exceeds the bound."""
    norm = jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)))
    factor = jnp.where(norm > bound, bound / jnp.where(norm > bound, norm + margin, 1.0), 1.0)
    return jax.tree.map(lambda leaf: factor * leaf, tree)
