"""Krum: take over the one upload that lies closest to its neighbours.

Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017, section 4.
Assumes: at most f of the n uploads are malicious, n >= 2 f + 3.
Cost: O(K^2 D): one Gram matrix, and one more for every group of uploads that lie much closer to each other than to the
    rest; memory O(K^2 + K D).
Deviations: ties go to the lowest row (the paper: the smallest identifier). The rule is applied to uploaded models in
    place of gradients; distances are the same.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators import _krum
from fedjax_spmc.aggregators._coordinates import MOMENTUM, Bound, add
from fedjax_spmc.options import Range, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict


@aggregators.register("krum")
def krum(
    variant: Literal["paper", "reference"] = "paper", attackers: Annotated[int, Range(0, 10**6)] | None = None
) -> Aggregator:
    """Selects the upload with the smallest sum of squared distances to its n - f - 2 nearest others.

    Weights are 1 for the selected client and 0 for the others, who are flagged; scores are the sums of distances.

    Reference:
        * Sums plain distances, not squared ones, and to all others: a medoid.
        * Server momentum 0.9 on the selected update.
        * The momentum moves a private model W that begins as a freshly drawn random network, unrelated to the
          global model: the first round replaces the global model by another random one plus a single update.
          Here the draw knows only shapes: every leaf is uniform in +-1/sqrt(fan_in), see `_krum.fresh_network`.

    Traits: the reference is not linear, not stateless and has no consensus, because the new model is the private model
        W moved by its momentum.

    Args:
        variant: the paper's rule or that of the SPMC code.
        attackers: f; None: the largest that the theory allows for n usable uploads, (n - 3) // 2 or 0.

    Raises:
        ConfigError: too many attackers for the uploads, or `attackers` with the reference.
    """
    if variant == "reference":
        refuse_unused(krum, "variant = 'reference'", {"attackers": attackers})
        return momentum_on_private_model(lambda scores, present: _krum.lowest(scores, present, 1), permutation=True)
    bound = Bound("krum", 2, 3, attackers)

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        assumed = bound.attackers_among(present.sum(), len(present))
        scores = _krum.krum_scores(_krum.squared_distances(upload), present, assumed)
        verdict = select(scores, present, 1)
        return trees.weighted_mean(upload.client_params, verdict.weights), verdict, state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=True, consensus=True, permutation=True, robust=True, stateless=True),
        min_clients=bound.needed(),
        chosen=bound.chosen,
    )


def select(scores: Array, present: Array, count: Array | int) -> Verdict:
    """The verdict that gives the `count` present clients of lowest score equal weight."""
    return verdict_of(_krum.lowest(scores, present, count), scores, present)


def verdict_of(selected: Array, scores: Array, present: Array) -> Verdict:
    """Equal weights for the selected clients; the others that take part are flagged."""
    weights = selected / jnp.maximum(selected.sum(), 1).astype(jnp.float32)
    return Verdict(weights, jnp.where(present, scores, 0.0), present & ~selected)


class PrivateModel(NamedTuple):
    """State of the reference's rules: the private model W, its velocity, and whether W has been drawn."""

    model: Params
    velocity: Params
    drawn: Array


def momentum_on_private_model(selection: Callable[[Array, Array], Array], permutation: bool) -> Aggregator:
    """The reference's Krum and Multi-Krum: v <- 0.9 v + mean of the selected updates, W <- W + v; W is the new model.

    Args:
        selection: (sums of distances [K] less a common number, present [K]) -> selected [K] bool.
        permutation: whether the selection does not depend on the places of the rows.
    """

    def init(global_params: Params, num_clients: int) -> State:
        del num_clients
        zeros = jax.tree.map(jnp.zeros_like, global_params)
        return PrivateModel(zeros, zeros, jnp.zeros((), bool))

    def aggregate(upload: Upload, state: PrivateModel, key: PRNGKey) -> tuple[Params, Verdict, State]:
        present = upload.participating
        gaps, from_middle = _krum.medoid_gaps(upload)
        scores = _krum.summed(gaps, present)
        common = jnp.where(present, from_middle, 0.0).sum()
        verdict = verdict_of(selection(scores, present), scores + common, present)
        updates = trees.subtract(upload.client_params, upload.global_params)
        velocity = add(state.velocity, trees.weighted_mean(updates, verdict.weights), MOMENTUM)
        private = trees.where(state.drawn, state.model, _krum.fresh_network(upload.global_params, key))
        model = add(private, velocity)
        return model, verdict, PrivateModel(model, velocity, jnp.ones((), bool))

    return Aggregator(
        init=init,
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=False, permutation=permutation, robust=permutation, stateless=False),
    )
