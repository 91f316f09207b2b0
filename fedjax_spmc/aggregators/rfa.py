"""RFA: the geometric median of the uploads, by a few steps of the smoothed Weiszfeld algorithm.

Source: Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions on Signal
    Processing 70, 2022, Algorithms 2 and 3.
Assumes: less than half of the examples belong to malicious clients.
Cost: O(R K D) for R steps.
Deviations: the paper leaves the starting point open, its published code starts from the weighted mean: `start`.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._coordinates import by_distance
from fedjax_spmc.options import POSITIVE, TRACED, Range, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict

REFERENCE_STEPS = 3
REFERENCE_NU = 1e-5
REFERENCE_TOLERANCE = 1e-6


@aggregators.register("rfa")
def rfa(
    variant: Literal["paper", "reference"] = "paper",
    iterations: Annotated[int, Range(1, 1000)] = 3,
    start: Literal["mean", "broadcast"] = "mean",
    nu: Annotated[float, POSITIVE, TRACED] = 1e-6,
) -> Aggregator:
    """The point with the smallest sum of distances to the uploads, each counted by its share of examples.

    Every step weighs client k by alpha_k / max(nu, distance from the current point), alpha_k = n_k / n. The weights are
    those of the last step, of sum 1; scores are distances from the new model. Nobody is flagged.

    Reference:
        * One geometric median for each tensor, not for the model as a whole; the weights are averaged over tensors by
          size.
        * nu is 1e-5; at most 3 steps, fewer where the weighted sum of distances changes by less than a millionth
          (`iterations`, `start` and `nu` have no effect and are refused).

    Traits: the reference is not linear, because every tensor has weights of its own.

    Args:
        variant: the paper's rule or that of the SPMC code.
        iterations: number of Weiszfeld steps; the paper's experiments take 3.
        start: where the steps begin: at the weighted mean, as the paper's code, or at the broadcast model. The mean is
            where long uploads drag it, and few steps may not come back: with four of ten clients colluding at 100 times
            the length of an update three steps end 16 lengths from the geometric median, from the broadcast model 0.02
            to 0.14, as the others lie close together or not.
        nu: smallest distance that a weight is divided by.

    Raises:
        ConfigError: `iterations`, `start` or `nu` with the reference.
    """
    if variant == "reference":
        refuse_unused(rfa, "variant = 'reference'", {"iterations": iterations, "start": start, "nu": nu})

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        examples = jnp.where(upload.participating, upload.num_examples, 0.0)
        alpha = examples / jnp.maximum(examples.sum(), 1e-30)
        updates = trees.subtract(upload.client_params, upload.global_params)
        if variant == "reference":
            median, weights = _by_tensor(updates, alpha)
            model = jax.tree.map(jnp.add, upload.global_params, median)
        else:
            # Distances of updates are those of models, with less rounding: models are large against what parts them.
            first = _distances(updates, alpha) if start == "mean" else trees.client_norm(updates)
            weights = jax.lax.fori_loop(
                1,
                iterations,
                lambda _, current: _weigh(alpha, _distances(updates, current), nu),
                _weigh(alpha, first, nu),
            )
            model = trees.weighted_mean(upload.client_params, weights)
        return model, by_distance(upload, model, weights), state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=variant == "paper", consensus=True, permutation=True, robust=True, stateless=True),
        flags=False,
    )


def _distances(stacked: Params, weights: Array) -> Array:
    """[K] distances of the rows from their weighted mean."""
    return trees.client_norm(trees.subtract(stacked, trees.weighted_mean(stacked, weights)))


def _weigh(alpha: Array, distances: Array, nu: Array | float) -> Array:
    """Weiszfeld's weights, of sum 1: alpha over distance."""
    raw = alpha / jnp.maximum(distances, nu)
    return raw / jnp.maximum(raw.sum(), 1e-30)


def _by_tensor(updates: Params, alpha: Array) -> tuple[Params, Array]:
    """A geometric median for each leaf, and the weights averaged over leaves by size."""
    leaves, structure = jax.tree.flatten(updates)
    weights = [_stopping_early(leaf, alpha) for leaf in leaves]
    sizes = [leaf[0].size for leaf in leaves]
    medians = [trees.weighted_mean(leaf, own) for leaf, own in zip(leaves, weights, strict=True)]
    share = sum(size * own for size, own in zip(sizes, weights, strict=True)) / sum(sizes)
    return jax.tree.unflatten(structure, medians), jnp.asarray(share)


def _stopping_early(leaf: Array, alpha: Array) -> Array:
    """Weights of the rows of one tensor after at most three steps; the objective is the weighted sum of distances."""

    def step(_, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weights, distances, stopped = carry
        new_weights = _weigh(alpha, distances, REFERENCE_NU)
        new_distances = _distances(leaf, new_weights)
        old, new = alpha @ distances, alpha @ new_distances
        weights = jnp.where(stopped, weights, new_weights)
        return (
            weights,
            jnp.where(stopped, distances, new_distances),
            stopped | (abs(old - new) < REFERENCE_TOLERANCE * new),
        )

    start = alpha, _distances(leaf, alpha), jnp.zeros((), bool)
    return jax.lax.fori_loop(0, REFERENCE_STEPS, step, start)[0]
