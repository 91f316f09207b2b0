"""FedCPA: trust clients that hold the same parameters to be the most and the least important as others do.

Source: Han, Park, Wu, Kim, Zhu, Xie, Cha, "Towards Attack-Tolerant Federated Learning via Critical Parameter Analysis",
    ICCV 2023, section 3. With g the global model, w_i client i's and u_i = w_i - g:
        importance    I_i = |u_i * w_i|, entry by entry, over the weights of linear and convolution layers; that of the
                      global model is |(g - g') * g|, with g' the one a round earlier
        sets          T_i, B_i: the k entries of largest and of smallest importance
        similarity    s_ij = 1/2 sum over T and B of [|X_i and X_j| / |X_i or X_j| + (rho + 1) / 2], rho the Spearman
                      correlation of I_i and I_j over the entries that both sets have
        normality     n_i = 1/n sum over j != i of s_ij, plus s of client i and the global model
        multiplier    v_i: n scaled to [0, 1] (0 and 1 become 0.01 and 0.99), then ln(v / (1 - v)) + 1/2, cut to [0, 1]
        new model     mean over the clients with v_i > 0 of g + v_i u_i
Assumes: a majority of benign clients.
Cost: O(K^2 k) after one selection of the k extreme entries of each row; O(K^2 D) in the reference.
Deviations: scaling, logit and mean are those of the authors' code. In the first round there is no g', and so no
    similarity to the global model. The authors' code takes the Pearson correlation of the importances where the paper
    takes Spearman's; here it is the paper's (Pearson's in the reference). Equal importances rank by position; rho is 0
    where the sets share fewer than two entries. A set has at least ten entries. Where all normalities are equal every
    multiplier is 1. A model without linear and convolution layers is taken whole.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.options import Range, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict

PRECISION = jax.lax.Precision.HIGHEST
SMALLEST = 10
"""Fewest entries of a set."""


@aggregators.register("fedcpa")
def fedcpa(
    variant: Literal["paper", "reference"] = "paper",
    fraction: Annotated[float, Range(0, 1, low_open=True)] | None = None,
    install: bool = False,
) -> Aggregator:
    """The mean of g + v_i u_i over the clients with a positive multiplier v_i, see the equations under Source.

    The verdict's weights are the multipliers, scaled to sum 1; scores are the negative normalities; clients with
    multiplier 0 are flagged.

    Reference:
        * The result is thrown away: the global model never changes (`install` puts it in place). The verdict is that of
          the result; batch statistics are averaged by it.
        * Importance is |(w_i - m) * w_i| with m the plain mean of the clients' models, and |(m - g) * m| for the
          reference point that stands for the global model.
        * Each set holds half of the entries, so that every entry is in one of them.
        * The correlation is Pearson's, of the importances themselves.
        * Of importances that equal the k-th all are in the set, where the code's selection takes as many as fit, and
          which ones is torch's affair. Such an entry moves a score of a model of 92,626 numbers by up to 4e-5, and so
          does the rounding of the models' mean, which is the code's; without ties scores agree with its to 3e-7.
        * A client's similarity to itself, 2, takes part in the mean over clients.
        * Absent clients' models of earlier rounds take part; here they are unknown.
        * Equal normalities make every multiplier NaN; here every multiplier is 1.

    Traits: not linear, because multipliers are no shares of a whole, and in the reference because the global model
        stays as it is; in the reference without `install` no consensus for that reason, and it is not differentiable.
        The paper's rule is not
        stateless, because the state holds the global model of the round before; nor is it robust, and neither is the
        reference with `install`, because an update of another length can have the same order of importances.

    Args:
        variant: "paper", or "reference" for what the SPMC code does.
        fraction: k as a share of the entries; None = 0.01 in the paper, 0.5 in the reference.
        install: in the reference, whether the result becomes the global model; the paper variant always does so and
            takes no such option.

    Raises:
        ConfigError: `install` with the paper's rule.
    """
    paper = variant == "paper"
    if paper:
        refuse_unused(fedcpa, "variant = 'paper'", {"install": install})
    share = (0.01 if paper else 0.5) if fraction is None else fraction

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        if paper:
            similarity = rank_similarity(importance(upload, state["previous"]), share)
            to_global = jnp.where(state["seen"], similarity[:-1, -1], 0.0)
            state = {"previous": upload.global_params, "seen": jnp.ones((), bool)}
        else:
            similarity = value_similarity(reference_importance(upload), share)
            to_global = similarity[:-1, -1]
        scores = normality(similarity[:-1, :-1], to_global, present, itself=0.0 if paper else 2.0)
        factors = multipliers(scores, present)
        model = trees.where(jnp.array(paper or install), scaled_mean(upload, factors), upload.global_params)
        weights = factors / jnp.maximum(factors.sum(), 1e-30)
        verdict = Verdict(weights, jnp.where(present, -scores, 0.0), present & (factors == 0))
        return model, verdict, state

    return Aggregator(
        init=lambda global_params, num_clients: (
            {"previous": global_params, "seen": jnp.zeros((), bool)} if paper else ()
        ),
        aggregate=aggregate,
        traits=Traits(
            linear=False,
            consensus=paper or install,
            permutation=True,
            robust=not (paper or install),
            stateless=not paper,
            differentiable=paper or install,
        ),
    )


def layer_weights(stacked: Params) -> Array:
    """[K, D']: the entries of all leaves of rank 2 or 4 without the client axis; of all leaves where there is none."""
    leaves = jax.tree.leaves(stacked)
    chosen = [leaf for leaf in leaves if leaf.ndim - 1 in (2, 4)]
    return trees.ravel_clients(chosen or leaves)


def importance(upload: Upload, previous: Params) -> Array:
    """[K + 1, D']: the paper's importance of every client's entries and, in the last row, of the global model's."""
    models, start = layer_weights(upload.client_params), layer_weights(trees.broadcast(upload.global_params, 1))
    before = layer_weights(trees.broadcast(previous, 1))
    return jnp.concatenate([jnp.abs((models - start) * models), jnp.abs((start - before) * start)])


def reference_importance(upload: Upload) -> Array:
    """[K + 1, D']: the same as the SPMC code has it, around the mean of the clients' models.

    Where models lie close together w - m is little more than the rounding of m, so that its order of summation matters:
    one client after the other by number, each divided first.
    """
    models, start = layer_weights(upload.client_params), layer_weights(trees.broadcast(upload.global_params, 1))
    count = jnp.maximum(upload.participating.sum(), 1).astype(jnp.float32)
    in_order = jnp.argsort(upload.client_ids)
    mean = jax.lax.fori_loop(
        0, len(models), lambda i, total: total + models[in_order[i]] / count, jnp.zeros_like(models[0])
    )[None]
    return jnp.concatenate([jnp.abs((models - mean) * models), jnp.abs((mean - start) * mean)])


def set_size(num_entries: int, fraction: float) -> int:
    """k: a fraction of the entries, rounded down, but at least `SMALLEST` where there are so many."""
    return max(min(SMALLEST, num_entries), int(fraction * num_entries))


def rank_similarity(values: Array, fraction: float) -> Array:
    """[R, R]: mean over the k largest and the k smallest entries of each row of Jaccard index + (Spearman + 1) / 2."""
    count = set_size(values.shape[1], fraction)
    largest, smallest = (jax.lax.top_k(signed, count)[1] for signed in (values, -values))
    return 0.5 * (_ranked_overlap(largest, values.shape[1]) + _ranked_overlap(smallest, values.shape[1]))


def _ranked_overlap(ids: Array, num_entries: int) -> Array:
    """[R, R] from ordered lists of entries [R, k]: Jaccard index of the lists + (Spearman of their order + 1) / 2."""
    rows, count = ids.shape
    absent = jnp.full((rows, num_entries), count, jnp.int32)
    # places[i, e]: where entry e stands in list i; count if it does not.
    places = absent.at[jnp.arange(rows)[:, None], ids].set(jnp.arange(count, dtype=jnp.int32)[None, :])

    def row(i: Array) -> Array:
        mine_in_theirs, theirs_in_mine = places[:, ids[i]], places[i][ids]
        common = mine_in_theirs < count
        total = common.sum(axis=1)
        # Ranks among the common entries alone, in either order.
        mine = jnp.cumsum(common, axis=1)
        theirs = jnp.cumsum(theirs_in_mine < count, axis=1)
        theirs = jnp.take_along_axis(theirs, jnp.minimum(mine_in_theirs, count - 1), axis=1)
        size = jnp.maximum(total, 2).astype(jnp.float32)
        gaps = jnp.where(common, mine - theirs, 0) / size[:, None]
        spearman = 1 - 6 * jnp.sum(gaps**2, axis=1) * size / (size**2 - 1)
        spearman = jnp.where(total < 2, 0.0, spearman)
        return total / (2 * count - total) + (spearman + 1) / 2

    return jax.lax.map(row, jnp.arange(rows))


def value_similarity(values: Array, fraction: float) -> Array:
    """[R, R]: mean over the k largest and the k smallest entries of each row of Jaccard index + (Pearson + 1) / 2."""
    count = set_size(values.shape[1], fraction)
    ordered = jnp.sort(values, axis=1)
    largest, smallest = values >= ordered[:, -count][:, None], values <= ordered[:, count - 1][:, None]
    return 0.5 * (_valued_overlap(values, largest) + _valued_overlap(values, smallest))


def _valued_overlap(values: Array, chosen: Array) -> Array:
    """[R, R] from values and masks [R, D']: Jaccard index of the masks + (Pearson over the common entries + 1) / 2."""

    def products(a: Array, b: Array) -> Array:
        return jnp.matmul(a, b.T, precision=PRECISION)

    mask = chosen.astype(jnp.float32)
    sizes = mask.sum(axis=1)
    # Correlation does not change with place and scale; near 0 and 1 the sums below keep their digits.
    centred = (values - ((values * mask).sum(axis=1) / sizes)[:, None]) * mask
    spread = jnp.sqrt((centred**2).sum(axis=1) / sizes)
    standard = centred / jnp.where(spread > 0, spread, 1.0)[:, None]
    common = products(mask, mask)
    total = jnp.maximum(common, 1.0)
    means, squares = products(standard, mask) / total, products(standard**2, mask) / total
    variances = jnp.maximum(squares - means**2, 0.0)
    covariances = products(standard, standard) / total - means * means.T
    scale = jnp.sqrt(variances * variances.T)
    pearson = jnp.where(scale > 0, covariances / jnp.where(scale > 0, scale, 1.0), 0.0)
    return common / (sizes[:, None] + sizes[None, :] - common) + (pearson + 1) / 2


def normality(pairs: Array, to_global: Array, present: Array, itself: float) -> Array:
    """[K]: mean over the clients of the similarity to each, plus that to the global model; `itself` is to oneself."""
    others = present[:, None] & present[None, :] & ~jnp.eye(len(present), dtype=bool)
    count = jnp.maximum(present.sum(), 1)
    return (jnp.where(others, pairs, 0.0).sum(axis=1) + itself) / count + to_global


def multipliers(scores: Array, present: Array) -> Array:
    """[K] in [0, 1]: normalities scaled to [0, 1], then through a logit; 0 for rows outside `present`."""
    low, high = jnp.min(jnp.where(present, scores, jnp.inf)), jnp.max(jnp.where(present, scores, -jnp.inf))
    # What lies within rounding of one another is equal.
    alike = ~(high - low > 1e-6 * jnp.maximum(jnp.abs(high), 1.0))
    scaled = (scores - low) / jnp.where(alike, 1.0, high - low)
    scaled = jnp.where(scaled >= 1, 0.99, jnp.where(scaled <= 0, 0.01, scaled))
    factors = jnp.clip(jnp.log(scaled / (1 - scaled)) + 0.5, 0.0, 1.0)
    return jnp.where(present, jnp.where(alike, 1.0, factors), 0.0)


def scaled_mean(upload: Upload, factors: Array) -> Params:
    """Mean over the clients with a positive factor of g + factor * update."""
    updates = trees.zero_rows(upload.participating, trees.subtract(upload.client_params, upload.global_params))
    step = trees.weighted_mean(updates, factors / jnp.maximum((factors > 0).sum(), 1))
    return jax.tree.map(jnp.add, upload.global_params, step)
