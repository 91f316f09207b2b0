"""Trimmed mean: every number of the model is a mean without the smallest and the largest values.

Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, Definition 2 and Algorithm 1, option II.
Assumes: at most f of the n uploads are malicious, n > 2 f.
Cost: O(K D).
Deviations: the trimmed mean of uploaded models in place of that of gradients.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators import _order
from fedjax_spmc.aggregators._coordinates import MOMENTUM, Bound, add, by_coordinate, by_distance
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import TRACED, Range, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict


@aggregators.register("trimmed_mean")
def trimmed_mean(
    variant: Literal["paper", "reference"] = "paper",
    attackers: Annotated[int, Range(0, 10**6)] | None = None,
    beta: Annotated[float, Range(0, 0.5, high_open=True), TRACED] | None = None,
) -> Aggregator:
    """Coordinate-wise mean without the f smallest and the f largest values.

    A client's weight is its mean share in a number, 1 / (n - 2 f) where its value is kept; where clients of equal value
    lie across the cut, they share what is kept of them. Scores are distances from the new model. Nobody is flagged:
    nobody is left out whole.

    Reference:
        * Keeps the n - k - 1 values nearest to the median, k = n - floor(n / 2) - 1 (5 of 10, 4 of 9), where the paper
          cuts the same number at each end; among equally near ones the lowest rows count.
        * Server momentum 0.9 on the aggregated update, where the paper has none.

    Traits: not linear, because every number comes from other clients than the next. The reference is not stateless and
        has no consensus, because its momentum goes on from the rounds before.

    Args:
        variant: the paper's rule or that of the SPMC code.
        attackers: f, how many values to cut at each end. None: by `beta` where that is given; else (n - 3) // 2 or 0
            of n usable uploads. That is the largest f at which more than the one or two middle values are left: one
            more, which the theory allows too, makes the rule the median.
        beta: f as a share of the uploads, the paper's parameter: floor(beta n) values are cut at each end.

    Raises:
        ConfigError: both `attackers` and `beta`, or one of them with the reference; too many attackers for the uploads.
    """
    if variant == "reference":
        refuse_unused(trimmed_mean, "variant = 'reference'", {"attackers": attackers, "beta": beta})
        return _reference()
    if attackers is not None and beta is not None:
        raise ConfigError(
            f"aggregator.options.attackers = {attackers} is not allowed together with beta: both say how many to cut."
        )
    bound = Bound("trimmed_mean", 2, 1 if attackers is not None else 3, attackers)

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        if beta is None:
            cut = bound.attackers_among(present.sum(), len(present))
        else:
            # Products such as 0.29 * 100 may fall short of a whole number by rounding.
            cut = jnp.floor(beta * present.sum() + 1e-4).astype(jnp.int32)
            cut = jnp.minimum(cut, (present.sum() - 1) // 2)
        model, weights = by_coordinate(
            lambda block: _order.trimmed_mean(block, present, cut), upload, upload.client_params
        )
        return model, by_distance(upload, model, weights), state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=True, permutation=True, robust=True, stateless=True),
        flags=False,
        min_clients=1 if attackers is None else bound.needed(),
        chosen=bound.chosen if beta is None else lambda num_clients: {},
    )


def _reference() -> Aggregator:
    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        kept = jnp.maximum(upload.participating.sum() // 2, 1)
        updates = trees.subtract(upload.client_params, upload.global_params)
        update, weights = nearest_to_median(upload, updates, upload.participating, kept)
        velocity = add(state, update, MOMENTUM)
        model = add(upload.global_params, velocity)
        return model, by_distance(upload, model, weights), velocity

    return Aggregator(
        init=lambda global_params, num_clients: jax.tree.map(jnp.zeros_like, global_params),
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=False, permutation=True, robust=True, stateless=False),
        flags=False,
        min_clients=2,
    )


def nearest_to_median(upload: Upload, stacked: Params, present: Array, count: Array) -> tuple[Params, Array]:
    """For every number the mean of the `count` values nearest to the median of the rows in `present`; and shares."""

    def of_block(block: Array) -> tuple[Array, Array]:
        return _order.nearest_mean(block, present, _order.median(block, present)[0], count)

    return by_coordinate(of_block, upload, stacked)
