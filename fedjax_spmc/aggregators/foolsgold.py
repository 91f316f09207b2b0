"""FoolsGold: weigh down clients whose updates, summed over all rounds, point the same way as another client's.

Source: Fung, Yoon, Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", RAID 2020, Algorithm 1.
Assumes: malicious clients are more alike than benign ones, whose data differ.
Cost: O(K^2 D); the state holds a history of every client: O(N D).
Deviations:
    * The sum of re-weighted updates is divided by the sum of the weights: uploads here are models after many local
      steps, of which a plain sum of K would overshoot.
    * All coordinates are indicative features of equal importance.
    * Cosines below 0 count as 0 in a client's largest similarity, as they do where the diagonal is set to 0.
    * 1 - cosine below 1e-13 counts as 0: what is left there is rounding.
    * Where every client loses its weight, the global model and the histories are kept.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._distances import cosine_distances
from fedjax_spmc.options import POSITIVE, TRACED
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict


@aggregators.register("foolsgold")
def foolsgold(
    variant: Literal["paper", "reference"] = "paper",
    confidence: Annotated[float, POSITIVE, TRACED] = 1.0,
) -> Aggregator:
    """New model = g + sum_k v_k D_k / sum_k v_k, v_k the learning rate that FoolsGold gives to client k.

    Histories H_k = sum of all updates of client k; similarity of i and j the cosine of H_i and H_j; a client that is
    less suspicious than its partner is pardoned in proportion; v_k = 1 - largest similarity, divided by the largest,
    then kappa (ln(v / (1 - v)) + 0.5) clipped to [0, 1]. Scores are the largest similarities after pardoning; a client
    of weight 0 is flagged.

    Reference:
        * Histories belong to positions in the drawn order, not to clients.
        * Updates are divided by their norm + 0.1 before they are summed.
        * Only the first n coordinates of the model enter the cosine, n the number of uploads.
        * 1e-5 is added to the largest similarities before pardoning and to v / (1 - v); v = 1 becomes 0.99.
        * Where all updates are equal the model is NaN; here the global model is kept.

    Traits: no consensus, because identical uploads are what sybils send and lose all weight; not robust, because the
        cosine sees no length; not stateless, because of the histories. The reference is not permutation invariant,
        because histories belong to positions and later rounds mix up clients.

    Args:
        variant: the publication or the SPMC code.
        confidence: kappa; the code's value is 1.
    """
    paper = variant == "paper"

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        updates = trees.subtract(upload.client_params, upload.global_params)
        if not paper:
            length = trees.client_norm(updates) + 0.1
            updates = jax.tree.map(lambda x: x / trees.column(length, x), updates)
        updates = trees.zero_rows(present, updates)
        slots = upload.client_ids if paper else jnp.where(present, jnp.cumsum(present) - 1, 0)
        # Absent rows add zeros, so that it does not matter which history they would add to.
        state = jax.tree.map(lambda history, x: history.at[slots].add(x), state, updates)
        history = trees.ravel_clients(trees.take_rows(state, slots))
        if not paper:
            first = jnp.arange(min(history.shape[1], len(present))) < present.sum()
            history = jnp.where(first[None, :], history[:, : len(present)], 0.0)
        apart = dissimilarity(history, present)
        rates, least = (paper_rates if paper else reference_rates)(apart, present, confidence)
        weights = rates / jnp.where(rates.sum() > 0, rates.sum(), 1.0)
        verdict = Verdict(weights, jnp.where(present, 1.0 - least, 0.0), flagged=present & (weights == 0))
        return trees.weighted_mean(upload.client_params, weights), verdict, state

    return Aggregator(
        init=lambda global_params, num_clients: jax.tree.map(
            lambda x: jnp.zeros((num_clients, *x.shape), x.dtype), global_params
        ),
        aggregate=aggregate,
        traits=Traits(linear=True, consensus=False, permutation=paper, robust=False, stateless=False),
        rows=(lambda client_ids: client_ids) if paper else lambda client_ids: jnp.arange(len(client_ids)),
    )


def dissimilarity(rows: Array, present: Array) -> Array:
    """[K, K] 1 - cosine of the present rows; 1 on the diagonal, with absent rows and with rows of length 0.

    Of sybils this is little more than nothing: taken from the cosine it would be its rounding.
    """
    distances = cosine_distances(rows, jnp.zeros_like(rows[0]), present)
    there = present & (rows != 0).any(axis=1)
    pairs = there[:, None] & there[None, :] & ~jnp.eye(len(rows), dtype=bool)
    return jnp.where(pairs, distances, 1.0)


def pardoned(apart: Array, least: Array, margin: float = 0.0) -> Array:
    """1 - s of similarities s of i with j scaled by m_i / m_j where m_i < m_j: the less suspicious is believed.

    Args:
        apart: [K, K], 1 - s before.
        least: [K], 1 - m without the margin.
        margin: added to every m.
    """
    ours, theirs = least[:, None], least[None, :]
    less = ours > theirs
    # 1 - (1 - a) m_i / m_j = (m_j - m_i + a m_i) / m_j, in which no two numbers close to 1 are subtracted.
    scaled = (ours - theirs + apart * (1.0 - ours + margin)) / jnp.where(less, 1.0 - theirs + margin, 1.0)
    return jnp.where(less, scaled, apart)


def paper_rates(apart: Array, present: Array, confidence: float | Array) -> tuple[Array, Array]:
    """[K] learning rates in [0, 1] (Algorithm 1), and 1 - the largest similarities after pardoning."""
    apart = jnp.minimum(apart, 1.0)
    least = pardoned(apart, apart.min(axis=1)).min(axis=1)
    rates = jnp.where(present, least, 0.0)
    rates = rates / jnp.where(rates.max() > 0, rates.max(), 1.0)
    inner = (rates > 0) & (rates < 1)
    logit = confidence * (jnp.log(jnp.where(inner, rates / jnp.where(inner, 1.0 - rates, 1.0), 1.0)) + 0.5)
    return jnp.where(inner, jnp.clip(logit, 0.0, 1.0), rates), least


def reference_rates(apart: Array, present: Array, confidence: float | Array) -> tuple[Array, Array]:
    """The same with the constants of the SPMC code."""
    least = pardoned(apart, apart.min(axis=1), margin=1e-5).min(axis=1)
    rates = jnp.where(present, jnp.clip(least, 0.0, 1.0), 0.0)
    rates = rates / jnp.where(rates.max() > 0, rates.max(), 1.0)
    rates = jnp.where(rates == 1.0, 0.99, rates)
    logit = confidence * (jnp.log(rates / (1.0 - rates) + 1e-5) + 0.5)
    return jnp.where(present, jnp.clip(logit, 0.0, 1.0), 0.0), least
