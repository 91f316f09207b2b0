"""Bulyan: select uploads by repeated Krum, then average, number by number, those nearest to the median.

Source: El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018,
    section 4, with Krum as the rule that selects.
Assumes: at most f of the n uploads are malicious, n >= 4 f + 3.
Cost: O(K^2 D) for one Gram matrix, and one more for every group of uploads that lie much closer to each other than to
    the rest, and O(K^3) for the selection; memory O(K^2 + K D).
Deviations: in the last selections n - f - 2 of the remaining uploads is less than one; there the nearest one counts.
    Two uploads that are nearest to each other then tie: ties of scores go to the lowest client id (in the reference to
    the lowest row). Of values equally near to the median those of clients selected earlier count.
    The rule is applied to uploaded models in place of gradients.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators import _krum, _order
from fedjax_spmc.aggregators._coordinates import MOMENTUM, Bound, add, by_distance
from fedjax_spmc.aggregators.trimmed_mean import nearest_to_median
from fedjax_spmc.options import Range, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict


@aggregators.register("bulyan")
def bulyan(
    variant: Literal["paper", "reference"] = "paper", attackers: Annotated[int, Range(0, 10**6)] | None = None
) -> Aggregator:
    """Selects theta = n - 2 f uploads, then averages for every number the theta - 2 f values nearest to their median.

    Each selection takes the upload with the best Krum score among those that are left. A client's weight is its mean
    share in a number; scores are distances from the new model; who is not selected is flagged.

    Reference:
        * f is 1 for an even number of uploads and 0 for an odd one, whatever the attack: n - 2 f are selected.
        * Selects by the smallest sum of plain distances to all that are left (medoids).
        * Averages one value fewer, n - 4 f - 1 (5 of 10, 8 of 9).
        * Server momentum 0.9 on the aggregated update.
        * The result is added to the model that client 0 has just trained and not to the global model; here to the
          global model where client 0 does not take part.

    Traits: not linear, because every number comes from other clients than the next. The reference has no consensus and
        is not robust, because client 0's own update is counted on top of the result; not stateless, because of its
        momentum.

    Args:
        variant: the paper's rule or that of the SPMC code.
        attackers: f; None: the largest that the theory allows for n usable uploads, (n - 3) // 4 or 0.

    Raises:
        ConfigError: too many attackers for the uploads, or `attackers` with the reference.
    """
    if variant == "reference":
        refuse_unused(bulyan, "variant = 'reference'", {"attackers": attackers})
        return _reference()
    bound = Bound("bulyan", 4, 3, attackers)

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        assumed = bound.attackers_among(present.sum(), len(present))
        theta = present.sum() - 2 * assumed
        places = selection_by_krum(_krum.squared_distances(upload), present, assumed, theta, upload.client_ids)
        kept = jnp.maximum(theta - 2 * assumed, 1)
        model, weights = mean_of_selected(upload, upload.client_params, places, theta, kept)
        return model, by_distance(upload, model, weights, present & (places >= theta)), state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=True, permutation=True, robust=True, stateless=True),
        min_clients=bound.needed(),
        chosen=bound.chosen,
    )


def selection_by_krum(
    distances: Array, present: Array, attackers: Array, count: Array, client_ids: Array | None = None
) -> Array:
    """[K]: the place of each row in the order of selection; K for those that are not among the first `count`.

    Each selection takes the row of lowest Krum score among those not yet selected.

    Args:
        distances: [K, K] squared.
        present: [K] bool.
        attackers: f.
        count: how many to select.
        client_ids: [K], which decide ties; None: the rows do.
    """
    num_clients = len(present)
    own = jnp.eye(num_clients, dtype=bool)
    # Which neighbours are nearest never changes: they are ranked once, and only the ranks of those left are searched.
    ranks = jnp.argsort(jnp.argsort(jnp.where(own, jnp.inf, distances), axis=0), axis=0).astype(jnp.int16)
    bits = num_clients.bit_length()

    def scores(left: Array) -> Array:
        neighbours = _krum.num_neighbours(left.sum(), attackers)
        counted = left[:, None] & ~own
        edge = _order.kth_smallest_index(jnp.where(counted, ranks, jnp.int16(2**bits - 1)), neighbours - 1, bits)
        return jnp.where(counted & (ranks <= edge[None]), distances, 0.0).sum(axis=0)

    return _select_repeatedly(scores, present, count, client_ids)


def _select_repeatedly(
    scores: Callable[[Array], Array], present: Array, count: Array, client_ids: Array | None = None
) -> Array:
    """[K] places in the order of selection, K for the others: `count` times the lowest of `scores(rows left)`."""
    order_of_ties = jnp.arange(len(present)) if client_ids is None else client_ids

    def select_one(step: Array, places: Array) -> Array:
        left = present & (places == len(present))
        open_scores = jnp.where(left, scores(left), jnp.inf)
        best = left & (open_scores == open_scores.min())
        return places.at[jnp.argmin(jnp.where(best, order_of_ties, jnp.iinfo(jnp.int32).max))].set(step)

    return jax.lax.fori_loop(0, count, select_one, jnp.full(len(present), len(present), jnp.int32))


def mean_of_selected(upload: Upload, stacked: Params, places: Array, count: Array, kept: Array) -> tuple[Params, Array]:
    """For every number the mean of the `kept` values nearest to the median of the selected rows; and shares [K].

    The rows are put in the order of selection first: it decides between values that are equally near.
    """
    in_order = jnp.argsort(places)
    model, shares = nearest_to_median(upload, trees.take_rows(stacked, in_order), jnp.arange(len(places)) < count, kept)
    return model, jnp.zeros_like(shares).at[in_order].set(shares)


def _reference() -> Aggregator:
    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        usable = present.sum()
        assumed = 1 - usable % 2
        gaps, _ = _krum.medoid_gaps(upload)
        theta = jnp.maximum(usable - 2 * assumed, 1)
        places = _select_repeatedly(lambda left: _krum.summed(gaps, left), present, theta)
        updates = trees.subtract(upload.client_params, upload.global_params)
        kept = jnp.maximum(usable - 4 * assumed - 1, 1)
        update, weights = mean_of_selected(upload, updates, places, theta, kept)
        velocity = add(state, update, MOMENTUM)
        model = add(_model_of_client_zero(upload), velocity)
        return model, by_distance(upload, model, weights, present & (places >= theta)), velocity

    return Aggregator(
        init=lambda global_params, num_clients: jax.tree.map(jnp.zeros_like, global_params),
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=False, permutation=True, robust=False, stateless=False),
        flags=False,
        # Of two or four uploads the reference keeps fewer than one value.
        min_clients=5,
    )


def _model_of_client_zero(upload: Upload) -> Params:
    mine = upload.participating & (upload.client_ids == 0)
    picked = trees.weighted_mean(upload.client_params, mine.astype(jnp.float32))
    return trees.where(mine.any(), picked, upload.global_params)
