"""DeepSight: judge clusters of uploads by how uniform the data behind their output layers look.

Source: Rieger, Nguyen, Miettinen, Sadeghi, "DeepSight: Mitigating Backdoor Attacks in Federated Learning Through Deep
    Model Inspection", NDSS 2022: division differences (DDifs), normalised update energies (NEUPs), threshold
    exceedings, Algorithm 1 (classification), Algorithm 2 (clustering), and clipping.
Assumes: less than half of the uploads are malicious, and malicious data have fewer classes than benign ones. The
    network's last two parameters are the output layer's weight and bias; of one that takes tokens the first is the
    embedding, a row for each, and where the output layer has a bias alone its weight is the embedding's.
Cost: O(K D + K^2) and, for DDifs, `seeds` x `samples` forward passes of every upload.
Deviations:
    * The paper names no distribution of the random inputs (here uniform in [0, 1]) and no sizes for HDBSCAN (here
      clusters from two uploads on, min_samples = 1, and all uploads may form one cluster).
    * An upload that a clustering calls noise is a cluster of its own, there and in the verdict; the paper is silent.
    * In networks with batch statistics every upload is run on its own and the broadcast model on the mean of theirs,
      because the server does not receive its own back.
    * A ratio of predictions counts as e^40 at most, so that its square stays finite.
"""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._clipping import median_clipped_mean, median_of
from fedjax_spmc.aggregators._server_training import common_stats, model_stats
from fedjax_spmc.clustering.hdbscan import euclidean_distances, hdbscan
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.keys import root_key
from fedjax_spmc.options import FRACTION, TRACED, Range, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Model, Params, PRNGKey, State, Traits, Upload, Verdict

LARGEST_LOG_RATIO = 40.0
INPUTS_AT_ONCE = 2**23
"""Numbers in the random inputs, or in the logits, of all the forward passes that run together, over all clients."""


@aggregators.register("deepsight")
def deepsight(
    tau: Annotated[float, FRACTION, TRACED] = 1 / 3,
    ddifs: bool = True,
    seeds: Annotated[int, Range(1, 100)] = 3,
    samples: Annotated[int, Range(1, 10**7)] = 20000,
    min_cluster_size: Annotated[int, Range(2, 10**6)] = 2,
    min_samples: Annotated[int, Range(1, 10**6)] = 1,
    network: Model | None = None,
) -> Aggregator:
    """New model = g + mean over the accepted of min(1, S / |D_k|) D_k, S the median of all |D_k|, D_k = w_k - g.

    An upload is suspicious whose number of threshold exceedings is at most half the median. Uploads are clustered by
    HDBSCAN on the mean of three matrices that say who shares no cluster: by cosines of the output bias's update, by
    NEUPs, and by DDifs (these averaged over the seeds). A cluster is accepted if its share of suspicious uploads is
    below tau. The verdict's weights are min(1, S / |D_k|) of the accepted, normalised; scores are the shares.

    Traits: not linear, because what is clipped off is not given to others.

    Args:
        tau: the share of suspicious uploads from which on a cluster is rejected.
        ddifs: whether predictions on random inputs are compared too; this needs the network.
        seeds: number of sets of random inputs.
        samples: random inputs in each set.
        min_cluster_size: fewest uploads of a cluster in HDBSCAN.
        min_samples: how many uploads, itself included, must lie near one for it to join others, in HDBSCAN. From 3 on
            distances tie, which scikit-learn breaks in an arbitrary order; here they merge all at once.
        network: the clients' network, which the simulator fills in; needed for `ddifs`.

    Raises:
        ConfigError: `seeds` or `samples` without `ddifs`, or `ddifs` without a network.
    """
    if not ddifs:
        refuse_unused(deepsight, "ddifs = False", {"seeds": seeds, "samples": samples})

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        present = upload.participating
        updates = trees.subtract(upload.client_params, upload.global_params)
        weight, bias = output_layer(updates)
        energies = normalised_energies(weight, bias)
        suspicious = _suspicious(threshold_exceedings(energies), present)
        # First the two kinds of distances that need no network, then one for each set of random inputs.
        distances = jnp.stack([euclidean_distances(_unit(bias)) ** 2 / 2, euclidean_distances(energies)])
        if ddifs:
            if network is None:
                raise ConfigError(
                    "aggregator deepsight compares predictions and needs the network: make it with network=model, or "
                    "with aggregator.options.ddifs = False."
                )
            features = random_input_differences(network, upload, jax.random.split(key, seeds), samples)
            distances = jnp.concatenate([distances, jax.lax.map(euclidean_distances, features)])

        def labels_of(distances: Array) -> Array:
            return hdbscan(distances, present, min_cluster_size, min_samples, allow_single_cluster=True)

        apart = jax.lax.map(lambda matrix: ~same_cluster(labels_of(matrix)), distances)
        parts = [apart[:1], apart[1:2], *([apart[2:].mean(axis=0)[None]] if ddifs else [])]
        together = same_cluster(labels_of(jnp.concatenate(parts).mean(axis=0)))
        share = (together & suspicious[None, :]).sum(axis=1) / jnp.maximum(together.sum(axis=1), 1)
        accepted = present & (share < tau)
        model, weights, _ = median_clipped_mean(upload, updates, accepted)
        scores = jnp.where(present, share, 0.0)
        return model, Verdict(weights, scores, flagged=present & ~accepted), state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=True, permutation=True, robust=True, stateless=True),
        min_clients=2,
    )


def output_layer(updates: Params) -> tuple[Array, Array]:
    """Of a stacked tree: weight [K, classes, features] and bias [K, classes] of the last layer.

    They are the last two leaves; where a decoder is tied to the embedding, the first leaf and the last.

    Raises:
        ConfigError: they are no such pair.
    """
    leaves = jax.tree.leaves(updates)
    bias = leaves[-1]
    for weight in (*leaves[-2:-1], *leaves[:-1][:1]):
        if weight.ndim == 3 and bias.ndim == 2 and weight.shape[1] == bias.shape[1]:
            return weight, bias
    shapes = [leaf.shape[1:] for leaf in leaves[-2:]]
    raise ConfigError(
        "aggregator deepsight needs a network that ends in a linear layer with a bias, (classes, features) and "
        f"(classes,); the last parameters have the shapes {', '.join(str(shape) for shape in shapes)}."
    )


def normalised_energies(weight: Array, bias: Array) -> Array:
    """NEUPs [K, classes]: squared sums of absolute updates of each output neuron, as shares of their sum."""
    energies = jnp.abs(bias) + jnp.abs(weight).sum(axis=2)
    # Dividing by the largest first keeps squares of tiny updates from vanishing.
    largest = energies.max(axis=1, keepdims=True)
    squares = jnp.square(energies / jnp.where(largest > 0, largest, 1.0))
    total = squares.sum(axis=1, keepdims=True)
    return squares / jnp.where(total > 0, total, 1.0)


def threshold_exceedings(energies: Array) -> Array:
    """[K]: how many NEUPs lie above max(0.01, 1 / classes) of the largest."""
    factor = max(0.01, 1 / energies.shape[1])
    return (energies > factor * energies.max(axis=1, keepdims=True)).sum(axis=1)


def _suspicious(exceedings: Array, present: Array) -> Array:
    """[K] bool: at most half the median."""
    return present & (exceedings <= median_of(exceedings.astype(jnp.float32), present) / 2)


def _unit(rows: Array) -> Array:
    """Rows of length 1; of two such rows half the squared distance is the cosine distance. Zeros stay."""
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(norms > 0, norms, 1.0)


def same_cluster(labels: Array) -> Array:
    """[K, K] bool: who shares a cluster with whom; noise only with itself."""
    equal = (labels[:, None] == labels[None, :]) & (labels >= 0)[:, None]
    return equal | jnp.eye(len(labels), dtype=bool)


def random_inputs(key: PRNGKey, positions: Array, model: Model, vocabulary: int) -> Array:
    """Uniform numbers in [0, 1], or uniform tokens, each a function of its position alone: [len(positions), ...]."""
    shape = model.input.shape

    def one(position: Array) -> Array:
        own = jax.random.fold_in(key, position)
        if jnp.issubdtype(model.input.dtype, jnp.integer):
            return jax.random.randint(own, shape, 0, vocabulary, model.input.dtype)
        return jax.random.uniform(own, shape)

    return jax.vmap(one)(positions)


def random_input_differences(model: Model, upload: Upload, keys: Array, samples: int) -> Array:
    """DDifs [seeds, K, classes] on `samples` random inputs for each key."""
    vocabulary = len(jax.tree.leaves(upload.global_params)[0])  # of tokens: the embedding stands first
    largest = max(math.prod(model.input.shape), math.prod(_logits(model).shape))
    chunk = min(samples, max(1, INPUTS_AT_ONCE // (len(upload.participating) * largest)))

    def one_seed(key: PRNGKey) -> Array:
        def add(total: Array, start: Array) -> tuple[Array, None]:
            positions = start + jnp.arange(chunk)
            inputs = random_inputs(key, positions, model, vocabulary)
            ratios = division_differences(model, upload, inputs)
            return total + jnp.where((positions < samples)[None, :, None], ratios, 0.0).sum(axis=1), None

        start = jnp.zeros((len(upload.participating), model.num_classes), jnp.float32)
        return jax.lax.scan(add, start, jnp.arange(0, samples, chunk))[0] / samples

    return jax.lax.map(one_seed, keys)


def _logits(model: Model) -> jax.ShapeDtypeStruct:
    """Of one example: [1, classes], or [1, T, vocabulary] where every place is asked."""

    def run(key: PRNGKey) -> Array:
        variables, inputs = model.init(key), jnp.zeros((1, *model.input.shape), model.input.dtype)
        return model.apply(variables.params, variables.stats, inputs, False, key)[0]

    return jax.eval_shape(run, root_key(0))


def division_differences(model: Model, upload: Upload, inputs: Array) -> Array:
    """[K, n, classes]: predicted probabilities of every upload, divided by those of the broadcast model.

    Of sequences it is the mean over their places.
    """
    structure = jax.tree.structure(jax.eval_shape(model.init, root_key(0)).params)

    def log_probabilities(params: Params, stats: Any) -> Array:
        in_order = jax.tree.unflatten(structure, jax.tree.leaves(params))
        logits, _ = model.apply(in_order, stats, inputs, False, root_key(0))
        return jax.nn.log_softmax(logits)

    ours = jax.vmap(log_probabilities)(upload.client_params, model_stats(upload.client_stats))
    logs = ours - log_probabilities(upload.global_params, common_stats(upload))[None]
    ratios = jnp.exp(jnp.minimum(logs, LARGEST_LOG_RATIO))
    return ratios.mean(axis=tuple(range(2, ratios.ndim - 1)))
