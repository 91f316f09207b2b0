"""FLAME: admit the densest majority of the models, clip what it sends to the median length, add a little noise.

Source: Nguyen, Rieger, Chen, Yalame, Moellering, Fereidooni, Marchal, Miettinen, Mirhoseini, Zeitouni, Koushanfar,
    Sadeghi, Schneider, "FLAME: Taming Backdoors in Federated Learning", USENIX Security 2022, Algorithm 1.
Assumes: fewer than half of the uploads are malicious.
Cost: O(K^2 D): one Gram matrix of centred unit rows, and one more for every group of uploads that lie much closer to
    each other than to the rest; O(K^2 + K D) memory.
Deviations:
    * Algorithm 1 takes cosine distances between the local models W_i, its text speaks of their updates:
      `space="weights"` (default) or "updates".
    * The paper gives HDBSCAN's smallest cluster, n / 2 + 1 models. That all models may form one cluster, which is then
      the only one possible, and min_samples = 1 are as in public implementations.
    * The noise is the paper's sigma = lambda S with lambda given as a number: it states
      lambda = sqrt(2 ln(1.25 / delta)) / epsilon and uses 0.001 for images (see `noise_factor`).
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._clipping import is_noisy, median_clipped_mean, standard_noise
from fedjax_spmc.aggregators._distances import cosine_distances
from fedjax_spmc.clustering.hdbscan import hdbscan
from fedjax_spmc.options import NON_NEGATIVE, TRACED
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Params, PRNGKey, State, Traits, Upload, Verdict


@aggregators.register("flame")
def flame(
    space: Literal["weights", "updates"] = "weights",
    noise_factor: Annotated[float, NON_NEGATIVE, TRACED] = 0.001,
) -> Aggregator:
    """New model = g + mean over the admitted of min(1, S / e_l) (w_l - g) + lambda S N(0, 1).

    Admitted is the cluster that HDBSCAN finds with at least n / 2 + 1 of the n uploads, by cosine distance; S is the
    median of the distances e_i = |w_i - g| of all of them. The verdict's weights are min(1, S / e_l) of the admitted,
    normalised; scores are mean cosine distances to the admitted.

    Traits: not linear, because what is clipped off is not given to others, and because of the noise; no consensus for
        the same reason, unless noise_factor=0.

    Args:
        space: what the cosines are taken of, the models (Algorithm 1) or their updates from the broadcast model.
        noise_factor: lambda; 0 adds no noise.
    """
    noisy = is_noisy(noise_factor)

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        present = upload.participating
        updates = trees.subtract(upload.client_params, upload.global_params)
        points = trees.ravel_clients(updates if space == "updates" else upload.client_params)
        start = trees.ravel_clients(trees.broadcast(upload.global_params, 1))[0]
        distances = cosine_distances(points, jnp.zeros_like(start) if space == "updates" else start, present)
        labels = hdbscan(distances, present, present.sum() // 2 + 1, allow_single_cluster=True)
        admitted = present & (labels >= 0)
        model, weights, bound = median_clipped_mean(upload, updates, admitted)
        if noisy:
            model = jax.tree.map(lambda x, z: x + noise_factor * bound * z, model, standard_noise(key, model))
        scores = jnp.matmul(distances, admitted / jnp.maximum(admitted.sum(), 1), precision=jax.lax.Precision.HIGHEST)
        return model, Verdict(weights, scores, flagged=present & ~admitted), state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=not noisy, permutation=True, robust=True, stateless=True),
        min_clients=2,
    )
