"""SignGuard: trust the uploads of usual length whose signs look like those of most others.

Source: Xu, Huang, Song, Lan, "Byzantine-robust Federated Learning through Collaborative Malicious Gradient Filtering",
    ICDCS 2022 (arXiv 2109.05872), the plain SignGuard algorithm, with its bounds and share of coordinates.
Assumes: most uploads are benign.
Cost: O(K D + K^2 + D log D); mean shift takes O(K^2) for each of at most 300 steps.
Deviations:
    * The authors' code takes one run of neighbouring coordinates and divides each sign statistic by its largest value;
      here the coordinates are drawn one by one and the statistics are plain fractions, as the paper states them.
    * The paper leaves mean shift's bandwidth open: it is the mean distance to the `quantile` n-th nearest point, the
      point itself included, as in the authors' code (quantile 0.5), but never to the point itself alone.
    * The paper does not say where k-means begins: here at sixteen starts that the statistics themselves give, of which
      the best end counts (see `clustering.two_means`).
    * Where no upload passes both filters the global model is kept; the paper is silent.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._clipping import median_clipped_mean, median_of
from fedjax_spmc.clustering.mean_shift import bandwidth_of, largest_cluster, mean_shift, two_means
from fedjax_spmc.options import FRACTION, NON_NEGATIVE, POSITIVE, TRACED, Range, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict


@aggregators.register("signguard")
def signguard(
    cluster: Literal["meanshift", "kmeans"] = "meanshift",
    lower: Annotated[float, NON_NEGATIVE, TRACED] = 0.1,
    upper: Annotated[float, POSITIVE, TRACED] = 3.0,
    coordinates: Annotated[float, Range(0, 1, low_open=True)] = 0.1,
    quantile: Annotated[float, FRACTION, TRACED] = 0.5,
) -> Aggregator:
    """New model = g + mean over the trusted of min(1, M / |D_k|) D_k, M the median of all |D_k|, D_k = w_k - g.

    Trusted are the uploads with lower <= |D_k| / M <= upper that lie in the largest cluster of sign statistics: the
    fractions of positive, zero and negative entries among randomly drawn coordinates. The verdict's weights are
    min(1, M / |D_k|) of the trusted, normalised; scores are distances from the trusted in sign statistics, plus 2 for
    each filter that an upload fails (two statistics are less than 2 apart).

    Traits: not linear, because what is clipped off is not given to others.

    Args:
        cluster: how sign statistics are clustered: mean shift with a flat kernel (the paper's choice) or k-means with
            two clusters (the paper's alternative).
        lower: L, the least length of a trusted update, as a multiple of the median.
        upper: R, the largest.
        coordinates: the share of coordinates whose signs count, drawn anew each round.
        quantile: how far mean shift looks, see Deviations; k-means refuses it.

    Raises:
        ConfigError: `quantile` with k-means.
    """
    if cluster == "kmeans":
        refuse_unused(signguard, "cluster = 'kmeans'", {"quantile": quantile})

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        present = upload.participating
        updates = trees.subtract(upload.client_params, upload.global_params)
        norms = trees.client_norm(updates)
        middle = median_of(norms, present)
        usual = (norms >= lower * middle) & (norms <= upper * middle)
        points = trees.ravel_clients(updates)
        statistics = sign_statistics(points[:, draw_coordinates(key, points.shape[1], coordinates)])
        alike = _largest(statistics, present, cluster, quantile)
        trusted = present & usual & alike
        model, weights, _ = median_clipped_mean(upload, updates, trusted)
        center = trees.weighted_mean(statistics, trusted / jnp.maximum(trusted.sum(), 1))
        gaps = jnp.sqrt(jnp.square(statistics - center[None]).sum(axis=1))
        scores = jnp.where(present, gaps + 2.0 * ~usual + 2.0 * ~alike, 0.0)
        return model, Verdict(weights, scores, flagged=present & ~trusted), state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=True, permutation=True, robust=True, stateless=True),
        min_clients=2,
    )


def draw_coordinates(key: PRNGKey, size: int, share: float) -> Array:
    """Different positions among `size`, drawn at random: `share` of them, at least one."""
    count = max(1, round(share * size))
    return jnp.argsort(jax.random.bits(key, (size,)))[:count]


def sign_statistics(values: Array) -> Array:
    """[K, 3]: the fractions of positive, zero and negative entries in each row of [K, d]."""
    return jnp.stack([(values > 0).mean(axis=1), (values == 0).mean(axis=1), (values < 0).mean(axis=1)], axis=1)


def _largest(statistics: Array, present: Array, cluster: str, quantile: float | Array) -> Array:
    """[K] bool: the rows in the largest cluster."""
    if cluster == "kmeans":
        return largest_cluster(two_means(statistics, present))
    return largest_cluster(mean_shift(statistics, present, bandwidth_of(statistics, present, quantile)))
