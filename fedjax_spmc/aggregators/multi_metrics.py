"""Multi-Metrics: score clients by three distances at once, whitened, and average those that stand out least.

Source: Huang, Li, Chen, Shi, Gao, "Multi-metrics adaptively identifies backdoors in Federated learning", ICCV 2023,
    section 3 and Algorithm 1. With g the global model and w_i client i's:
        x_i  = (|w_i - g|_1, |w_i - g|_2, cos(g, w_i))
        x'_i = sum over j of |x_i - x_j|, for each of the three
        d_i  = sqrt(x'_i^T S^-1 x'_i), S the covariance of the x'
    The `fraction` of the clients with the smallest d are averaged by number of examples.
Assumes: at least `fraction` of the clients are benign.
Cost: O(K D + K^2).
Deviations: S^-1 is the pseudo-inverse, from a singular value decomposition after scaling each metric to unit variance
    (the same d where S is regular); so few or equal uploads have a score too. Axes along which the clients spread less
    than a millionth of the longest count for nothing, as float32 cannot tell them from rounding: with one upload some
    10^4 times as long as the others that can be all in which these differ. Ties go to the lowest row. The authors' code
    measures cosine and Manhattan distance between pairs of clients instead; this is what the paper states.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators.spmc import spmc
from fedjax_spmc.options import TRACED, Range, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict

RANK = 1e-6
"""Singular values below this share of the largest are rounding of float32."""


@aggregators.register("multi_metrics")
def multi_metrics(
    variant: Literal["paper", "reference"] = "paper",
    fraction: Annotated[float, Range(0, 1, low_open=True), TRACED] = 0.3,
) -> Aggregator:
    """Averages, by number of examples, the `fraction` of the clients whose whitened distance to the others is least.

    Scores are the d_i under Source; whoever is not averaged is flagged.

    Reference:
        * The SPMC code runs its own rule `SPMD` under this name, line for line: the aggregator `spmc` without options.
          Nothing of the paper's rule takes part, and `fraction` is refused.

    Args:
        variant: "paper", or "reference" for what the SPMC code does.
        fraction: p, the share of the clients that is averaged, rounded down, at least one; the paper takes 0.3.

    Raises:
        ConfigError: `fraction` with the reference.
    """
    if variant == "reference":
        refuse_unused(multi_metrics, "variant = 'reference'", {"fraction": fraction})
        return spmc()

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        scores = whitened_scores(metrics(upload), present)
        # The small amount guards a product such as 0.3 * 10 that falls short of the whole number.
        count = jnp.maximum(jnp.floor(fraction * present.sum() + 1e-4), 1.0)
        order = jnp.argsort(jnp.where(present, scores, jnp.inf), stable=True)
        ranks = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
        kept = present & (ranks < count)
        weights = jnp.where(kept, upload.num_examples, 0.0)
        weights = weights / jnp.maximum(weights.sum(), 1e-30)
        verdict = Verdict(weights, scores, present & ~kept)
        return trees.weighted_mean(upload.client_params, weights), verdict, state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=True, consensus=True, permutation=True, robust=True, stateless=True),
    )


def metrics(upload: Upload) -> Array:
    """[K, 3]: Manhattan and Euclidean length of the update, and 1 - cosine between the global model and the client's.

    1 - cosine has the same differences as the cosine and keeps its digits where models lie close together.
    """
    updates = trees.subtract(upload.client_params, upload.global_params)
    sums = [jnp.abs(leaf).sum(axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(updates)]
    manhattan = jnp.sum(jnp.stack(sums), axis=0)
    models, start = upload.client_params, trees.broadcast(upload.global_params, 1)
    apart = jax.tree.map(
        jnp.subtract,
        trees.unit_rows(models, trees.client_norm(models)),
        trees.unit_rows(start, trees.client_norm(start)),
    )
    return jnp.stack([manhattan, trees.client_norm(updates), 0.5 * trees.client_dot(apart, apart)], axis=1)


def whitened_scores(features: Array, present: Array) -> Array:
    """[K]: sqrt(x'^T S^-1 x') with x' the summed differences of `features` [K, 3] to those of all others.

    0 for rows outside `present`, which count for nobody.
    """
    both = (present[:, None] & present[None, :])[:, :, None]
    gaps = jnp.abs(features[:, None, :] - features[None, :, :])
    sums = jnp.where(both, gaps, 0.0).sum(axis=1)
    count = present.sum()
    rows = present[:, None]
    mean = jnp.where(rows, sums, 0.0).sum(axis=0) / jnp.maximum(count, 1)
    centred = jnp.where(rows, sums - mean[None], 0.0)
    deviation = jnp.sqrt((centred**2).sum(axis=0) / jnp.maximum(count - 1, 1))
    # A metric in which the clients differ by rounding alone tells nobody apart.
    largest = jnp.where(rows, jnp.abs(features), 0.0).max(axis=0)
    varies = deviation > 1e-6 * count * largest
    scale = jnp.where(varies, 1 / jnp.where(varies, deviation, 1.0), 0.0)
    precision = jax.lax.Precision.HIGHEST
    # The singular values of the scaled differences, not the eigenvalues of their products, which are the squares: where
    # one upload is long, all that tells the others apart is in a small one.
    _, singular, axes = jnp.linalg.svd(centred * scale[None], full_matrices=False)
    large = singular > RANK * singular[0]
    inverse = jnp.where(large, jnp.sqrt(jnp.maximum(count - 1, 1)) / jnp.where(large, singular, 1.0), 0.0)
    along = jnp.matmul(sums * scale[None], axes.T, precision=precision) * inverse[None]
    return jnp.where(present, jnp.sqrt(jnp.sum(jnp.square(along), axis=1)), 0.0)
