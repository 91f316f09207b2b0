"""SPMC, server half: weigh each client by how well it agrees with the coalition of all the others.

Source: "SPMC: Self-Purifying Federated Backdoor Defense via Margin Contribution", ICML 2025; the rules `SPMD`
    (default), `SPMD_euc`, `SPMD_was` and `SPED` of its code.
Assumes: benign clients are a majority whose models lie close together.
Cost: O(K D), O(K D log D) with the Wasserstein score; all coalition models come from one sum.
Deviations: where paper and code can be read in two ways, both are options, whose defaults are the code's.
    * The paper's contribution phi_k = Gamma(N without k) - Gamma(k) reads as a difference of utilities; the code takes
      the similarity of absolute weights between a client and the plain mean of the others (`partner="coalition"`). The
      authors' slides can also be read as comparing with the global model (`partner="global"`).
    * The paper weighs by sigma(-phi_k) without saying what sigma is; the code takes exp (`mapping="softmax"`).
    * At temperature 1 two cosine weights differ by a factor of at most e^2, so nobody is ever excluded, as the paper's
      text would have it.
    * `mapping="relu_softmax"`, with `space="updates"`, `temperature=0.5`, `eps=0` and the pre-aggregator `clip`, is the
      form of a third party (DGM-Bench); the authors have no such mapping. Where no similarity is positive it takes the
      plain mean, and nobody is flagged.
    * The code's `SPMD_euc` and `SPED` also score batch statistics and integer counters; here scores see trainable
      weights alone.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import NON_NEGATIVE, POSITIVE, TRACED, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict

Score = Literal["cosine", "euclidean", "wasserstein", "chebyshev"]
Mapping = Literal["softmax", "sigmoid", "minmax", "relu_softmax"]
SOFTMAX = ("softmax", "relu_softmax")
LOW_TEMPERATURE = 0.01
"""Below it a cosine's rounding, 1e-7, is more than a hundred-thousandth of a weight."""


@aggregators.register("spmc")
def spmc(
    score: Score = "cosine",
    space: Literal["weights", "updates"] = "weights",
    partner: Literal["coalition", "global"] = "coalition",
    coalition_weights: Literal["uniform", "size", "previous"] = "uniform",
    mapping: Mapping = "softmax",
    temperature: Annotated[float, POSITIVE, TRACED] = 1.0,
    eps: Annotated[float, NON_NEGATIVE, TRACED] = 1e-5,
) -> Aggregator:
    """alpha = mapping of each client's similarity to the coalition of the others; new model = sum of alpha_k w_k.

    Traits: with coalition_weights="previous" the rule is not stateless, because it remembers the last weights; with the
        cosine of updates it is not robust, because a direction does not show the length of an outlier.

    Args:
        score: the similarity: cosine, or the negative of a distance: Euclidean; 1-D Wasserstein between the two
            multisets of parameter values (mean of |sorted - sorted|); Chebyshev (largest difference).
        space: what is compared, the weights (the code) or the updates from the broadcast model.
        partner: with what: the mean of all the others (the code) or the broadcast global model.
        coalition_weights: how the others are averaged: alike (the code), by number of examples, or by the weights of
            the round before.
        mapping: softmax (the code's exp); sigmoid, 1 / (1 + exp(-s)); minmax, scaled to [0, 1], ties uniform;
            relu_softmax, the softmax over those of positive cosine alone, the others flagged. All are normalised to sum
            1.
        temperature: divides the similarities before the mapping; the code's value is 1.
        eps: added to the product of norms in the cosine; the code's value is 1e-5.

    Raises:
        ConfigError: updates compared with the global model, whose update is zero; `eps` without the cosine, or
            `coalition_weights` with partner="global", where they have no effect; mapping="relu_softmax" without the
            cosine, because no negative distance is positive.
    """
    rectified = mapping == "relu_softmax"
    if rectified and score != "cosine":
        raise ConfigError(
            f"aggregator.options.mapping = 'relu_softmax' is not allowed with score = {score!r}, which is never "
            "positive: score must be 'cosine'."
        )
    if score != "cosine":
        refuse_unused(spmc, f"score = {score!r}", {"eps": eps})
    if partner == "global":
        refuse_unused(spmc, "partner = 'global'", {"coalition_weights": coalition_weights})
    if space == "updates" and partner == "global":
        raise ConfigError(
            "aggregator.options.partner = 'global' is not allowed with space = 'updates', in which the global model is "
            "zero: it must be 'coalition'."
        )

    def init(global_params: Params, num_clients: int) -> State:
        del global_params
        return jnp.full(num_clients, 1 / num_clients, jnp.float32) if coalition_weights == "previous" else ()

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        shares = present.astype(jnp.float32)
        if coalition_weights == "size":
            shares = shares * upload.num_examples
        elif coalition_weights == "previous":
            remembered = shares * state[upload.client_ids]
            shares = jnp.where(remembered.sum() > 0, remembered, shares)
        points = (
            trees.subtract(upload.client_params, upload.global_params) if space == "updates" else upload.client_params
        )
        if partner == "coalition":
            partners = trees.leave_one_out_mean(points, shares)
        else:
            partners = trees.broadcast(upload.global_params, len(present))
        similarities = similarity(score, points, partners, eps)
        compared = similarities
        # At ordinary temperatures the rounding of a cosine does not show in the weights.
        plain = score == "cosine" and isinstance(temperature, (int, float)) and temperature >= LOW_TEMPERATURE
        if mapping == "minmax" or (mapping in SOFTMAX and not plain):
            compared = differences(score, similarities, points, partners, eps, present)
            if mapping in SOFTMAX and score == "cosine":
                compared = jnp.where(temperature < LOW_TEMPERATURE, compared, similarities)
        chosen = present
        if rectified:
            positive = present & (similarities > 0)
            chosen = jnp.where(positive.any(), positive, present)
            compared = jnp.where(positive.any(), compared, 0.0)
        weights = map_to_weights("softmax" if rectified else mapping, compared / temperature, chosen)
        verdict = Verdict(weights, -similarities, flagged=present & ~chosen)
        if coalition_weights == "previous":
            state = state.at[upload.client_ids].set(jnp.where(present, weights, state[upload.client_ids]))
        return trees.weighted_mean(upload.client_params, weights), verdict, state

    return Aggregator(
        init=init,
        aggregate=aggregate,
        traits=Traits(
            linear=True,
            consensus=True,
            permutation=True,
            robust=not (score == "cosine" and space == "updates"),
            stateless=coalition_weights != "previous",
        ),
        flags=rectified,
        rows=(lambda client_ids: client_ids) if coalition_weights == "previous" else None,
    )


def similarity(score: str, points: Params, partners: Params, eps: float | Array) -> Array:
    """[K]: how alike the rows of two stacked trees are; larger = more alike, see the options of `spmc`."""
    if score == "cosine":
        return trees.client_cosine(points, partners, eps)
    if score == "wasserstein":
        # Values of all tensors go into one multiset, so the trees are raveled first.
        ours, theirs = jnp.sort(trees.ravel_clients(points), axis=1), jnp.sort(trees.ravel_clients(partners), axis=1)
        return -jnp.abs(ours - theirs).mean(axis=1)
    gaps = jax.tree.map(jnp.subtract, points, partners)
    if score == "euclidean":
        return -trees.client_norm(gaps)
    return -jnp.stack([jnp.abs(x).max(axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(gaps)]).max(axis=0)


def differences(
    score: str, similarities: Array, points: Params, partners: Params, eps: float | Array, present: Array
) -> Array:
    """[K]: the similarities less a common number, without the rounding that hides what parts them.

    Cosines of models trained from one start differ in their last digits, and so do distances where one upload is far
    from all others and has drawn their partners along: a mapping that magnifies differences would weigh rounding.
    """
    if score == "cosine":
        apart = trees.unit_differences(points, partners)
        product = trees.client_norm(points) * trees.client_norm(partners)
        # 1 - <a, b> / (p + eps), with p = |a| |b|, as 1 - <a, b> / p is half the square of a / |a| - b / |b|.
        total = 0.5 * product * trees.client_dot(apart, apart) + eps
        distances = jnp.where(product > 0, total / jnp.where(product > 0, product + eps, 1.0), 1.0)
        # Near a right angle it is the cosine that is small.
        return jnp.where(jnp.max(jnp.where(present, similarities, -1.0)) > 0.5, -distances, similarities)
    if score == "euclidean":
        nearest = jnp.argmax(jnp.where(present, similarities, -jnp.inf))
        gaps = jax.tree.map(jnp.subtract, points, partners)
        shortest = trees.take_rows(gaps, nearest)
        # |a| - |b| = <a - b, a + b> / (|a| + |b|)
        product = trees.client_dot(
            trees.subtract(gaps, shortest), jax.tree.map(lambda x, y: x + y[None], gaps, shortest)
        )
        total = similarities + similarities[nearest]
        return product / jnp.where(total < 0, total, 1.0)
    return similarities


def map_to_weights(mapping: str, similarities: Array, present: Array) -> Array:
    """Weights [K] of sum 1 over the clients in `present`; 0 elsewhere, and everywhere if nobody is there."""
    top = jnp.max(jnp.where(present, similarities, -jnp.inf))
    bottom = jnp.min(jnp.where(present, similarities, jnp.inf))
    anybody = present.any()
    if mapping == "softmax":
        mapped = jnp.exp(similarities - jnp.where(anybody, top, 0.0))
    elif mapping == "sigmoid":
        mapped = jax.nn.sigmoid(similarities)
    else:
        spread = jnp.where(anybody, top - bottom, 0.0)
        scaled = (similarities - bottom) / jnp.where(spread > 0, spread, 1.0)
        mapped = jnp.where(spread > 0, scaled, 1.0)
    mapped = jnp.where(present, mapped, 0.0)
    # A sigmoid of far distances can vanish for all: then nobody is told apart.
    mapped = jnp.where(mapped.sum() > 0, mapped, present.astype(mapped.dtype))
    return mapped / jnp.maximum(mapped.sum(), 1e-30)
