"""Centred clipping: move a centre by the clipped differences of the updates to it, a few times.

Source: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, the centred
    clipping iteration of section 4 (AggregatorCC), started from the aggregate of the round before.
Assumes: fewer malicious uploads than a small constant fraction (the theory asks for about a tenth) and a fair first
    centre.
Cost: O(L K D) for L iterations.
Deviations: what is clipped are the updates of a round, not the workers' momenta; the first centre is 0, the broadcast
    model. The paper's radius is a number; by default it is here, in every iteration, the median of the distances to
    the centre, which follows the scale of the updates.
"""

from typing import Annotated

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._clipping import clip_factors, median_of
from fedjax_spmc.options import POSITIVE, TRACED, Range
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict


@aggregators.register("centered_clip")
def centered_clip(
    radius: Annotated[float, POSITIVE, TRACED] | None = None,
    iterations: Annotated[int, Range(1, 1000)] = 3,
) -> Aggregator:
    """L times v <- v + 1/n sum_k (D_k - v) min(1, tau / |D_k - v|); new model = g + v, and v is the next first centre.

    The verdict's weights are the shares of the updates in v, normalised; scores are the distances to the last centre.

    Traits: not linear, because the old centre keeps a share; not stateless, because the centre is carried over. With a
        given radius there is no consensus, because all may lie farther from the centre, and no robustness, because it
        may exceed all distances.

    Args:
        radius: tau; None is the median of the distances of the usable uploads to the centre, anew in each iteration.
        iterations: L.
    """

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        count = jnp.maximum(present.sum(), 1)
        updates = trees.zero_rows(present, trees.subtract(upload.client_params, upload.global_params))

        def distances(center: Params) -> Array:
            return jnp.where(present, trees.client_norm(trees.subtract(updates, center)), 0.0)

        def iterate(_: int, carry: tuple[Params, Array]) -> tuple[Params, Array]:
            center, share = carry
            gaps = distances(center)
            bound = median_of(gaps, present) if radius is None else radius
            factors = jnp.where(present, clip_factors(gaps, bound), 0.0) / count
            # What the updates do not take, the centre keeps.
            left = 1.0 - factors.sum()
            moved = jax.tree.map(lambda v, x: left * v + x, center, trees.weighted_mean(updates, factors))
            return moved, left * share + factors

        center, share = jax.lax.fori_loop(0, iterations, iterate, (state, jnp.zeros(len(present), jnp.float32)))
        model = jax.tree.map(jnp.add, upload.global_params, center)
        weights = share / jnp.maximum(share.sum(), 1e-30)
        return model, Verdict(weights, distances(center), flagged=jnp.zeros_like(present)), center

    return Aggregator(
        init=lambda global_params, num_clients: jax.tree.map(jnp.zeros_like, global_params),
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=radius is None, permutation=True, robust=radius is None, stateless=False),
        flags=False,
    )
