"""FDCR: weigh updates by the clients' Fisher information, cluster their discrepancies, remove the farthest cluster.

Source: Huang, Ye, Shi, Wan, Li, Du, "Parameter Disparities Dissection for Backdoor Defense in Heterogeneous Federated
    Learning", NeurIPS 2024, Eqs. 6 to 12 and Algorithm 1; its released server and a public reproduction's variants.
Assumes: malicious clients are the cluster of largest mean discrepancy. There is no threshold: where the clustering
    finds two clusters or more, one is always removed, also in rounds without an attack.
Cost: O(K D) time and memory, and O(K^2) for the clustering of K numbers.
Deviations:
    * The paper's discrepancy is the mean square (Eq. 9b, `score="mse"`); its code takes the Euclidean distance with
      1e-6 added to every coordinate, and the values of the paper's Figure 2 are of that size: `score="l2"`, the
      default. FINCH can tell the two apart, because squaring changes who is whose nearest neighbour.
    * The paper's update is (w_k - w) / eta (Eq. 7) and its step back subtracts it (Eq. 12), which leads away from the
      client; as in the code the step leads towards it.
    * The released server replaces the Fisher of the clients that it knows to be malicious by noise. That is the ground
      truth leaking into the defence: `oracle_fisher_noise`, off by default.
    * The code fails where a client's Fisher is constant; here all its parameters then matter alike (I = 1). A client
      whose Fisher is not finite is flagged, gets weight 0 and takes no part in the means and the clustering.
"""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import clustering, trees
from fedjax_spmc.aggregators._clipping import standard_noise
from fedjax_spmc.aggregators._extras import extra, truth_of
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import NON_NEGATIVE, POSITIVE, TRACED, Range, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import TRUTH, Aggregator, Array, Params, Picture, PRNGKey, State, Traits, Upload, Verdict

OFFSET = 1e-6
"""What torch's pairwise distance adds to every coordinate of a difference."""
TINY = 1e-12
"""Added to norms in the scores that divide by them, as in the reproduction."""
PICTURED = 100
"""Up to so many clients the similarity of all pairs is recorded."""
EDGES = tuple(10.0**power for power in (-6, -5, -4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5))
"""What parts the classes of the histogram of importances."""

Score = Literal["l2", "mse", "cosine", "nmse", "unit"]
Cluster = Literal["finch", "kmeans", "dbscan"]
Rescale = Literal["minmax", "raw", "off"]


@aggregators.register("fdcr")
def fdcr(
    score: Score = "l2",
    score_slice: tuple[str, ...] = (),
    weights: Literal["size", "uniform"] = "size",
    cluster: Cluster = "finch",
    no_partition: Literal["mean", "rescale"] = "mean",
    rescale: Rescale = "minmax",
    discrepancy: bool = True,
    importance: bool = True,
    minmax_eps: Annotated[float, NON_NEGATIVE, TRACED] = 0.0,
    dbscan_eps: Annotated[float, POSITIVE, TRACED] = 0.5,
    dbscan_min_samples: Annotated[int, Range(1, 10**6)] = 5,
    oracle_fisher_noise: bool = False,
) -> Aggregator:
    """New model = w + sum over the kept of alpha_k s_k (w_k - w), s_k = 2 sigmoid(I_k) entry by entry.

    I_k is the Fisher scaled to [0, 1] over all its entries (Eq. 6). V_k is how far I_k (w - w_k) / eta lies from the
    weighted mean of these over all clients (Eqs. 8, 9). The cluster of V with the largest mean is removed, the weights
    of the others are renormalised (Eqs. 10, 11). Scores are V. The Fisher is extras["fisher"], stacked like the models.

    Traits: not linear, because kept updates are rescaled (it is with rescale="off"); no consensus, because a client is
        removed for its Fisher too; with discrepancy=False not robust, because nobody is removed. An outlier is removed
        where FINCH finds a partition, which it never does among three clients and fails to do for half of the draws
        among four or five.

    Args:
        score: V_k: "l2" (the code), "mse" (Eq. 9b), "cosine" 1 - cos, "nmse" the mean square over the squared length of
            the client's vector, "unit" the mean square between unit vectors (the reproduction's variants).
        score_slice: names of parameters ("cls.weight") or modules ("cls") that V is taken over; empty = all.
        weights: alpha before the removal: the shares of the examples, or alike.
        cluster: "finch" (the paper), "kmeans" with two clusters, "dbscan" (its Table 1), where noise is one group.
        no_partition: where there is one cluster only: the plain weighted mean (the code), or rescaled updates.
        rescale: s (Fisher Parameter Rescale Aggregation): of the importance (the code), of the "raw" Fisher (a later
            copy of the code), or "off": s = 1.
        discrepancy: False removes nobody (Table 3 without FCDC).
        importance: False sets I = 1 everywhere and needs no Fisher (Table 2, there with rescale="off").
        minmax_eps: added to max - min of the Fisher.
        dbscan_eps: largest distance of neighbours; the paper gives none, this is scikit-learn's.
        dbscan_min_samples: neighbours of a core point, itself among them; likewise.
        oracle_fisher_noise: the leak of the released server: replaces the Fisher of malicious clients by N(0, 1) noise.

    Raises:
        ConfigError: the leak without importances or without the ground truth; an upload without Fisher; a name that no
            parameter has.
    """
    if oracle_fisher_noise and not importance:
        raise ConfigError(
            "aggregator.options.oracle_fisher_noise = True is not allowed with importance = False, which looks at no "
            "Fisher: it must be False."
        )
    if not discrepancy:
        refuse_unused(fdcr, "discrepancy = False", {"cluster": cluster, "no_partition": no_partition})
    if rescale == "off":
        refuse_unused(fdcr, "rescale = 'off'", {"no_partition": no_partition})
    if not importance:
        refuse_unused(fdcr, "importance = False", {"minmax_eps": minmax_eps})
    if cluster != "dbscan":
        unused = {"dbscan_eps": dbscan_eps, "dbscan_min_samples": dbscan_min_samples}
        refuse_unused(fdcr, f"cluster = {cluster!r}", unused)
    needed = importance or rescale == "raw"
    needs = (("fisher",) if needed else ()) + ((TRUTH,) if oracle_fisher_noise else ())

    def init(global_params: Params, num_clients: int) -> State:
        del num_clients
        in_slice(global_params, score_slice)  # refuses unknown names before anything runs
        return ()

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        took_part = upload.participating
        fisher = fisher_of(upload) if needed else ()
        if oracle_fisher_noise:
            fisher = leak(fisher, truth_of(upload, "fdcr", "oracle_fisher_noise"), standard_noise(key, fisher))
        present = took_part & trees.finite_rows(fisher)
        fisher = trees.zero_rows(present, fisher)
        degrees = min_max(fisher, minmax_eps) if importance else jax.tree.map(jnp.ones_like, upload.client_params)

        alpha = shares(upload._replace(participating=present), weights)
        weighted = importance_weighted(upload, degrees)
        scores = discrepancies(score, weighted, alpha, in_slice(upload.global_params, score_slice))
        if cluster == "finch":
            labels = clustering.finch(scores, present)
        elif cluster == "kmeans":
            labels = clustering.kmeans(scores, present)
        else:  # noise is -1 and becomes a group of its own
            labels = clustering.dbscan(scores, dbscan_eps, dbscan_min_samples, present) + 1
        removed = farthest(labels, scores, present) if discrepancy else jnp.zeros_like(present)

        kept = jnp.where(removed, 0.0, alpha)
        kept = kept / jnp.where(kept.sum() > 0, kept.sum(), 1.0)
        updates = trees.subtract(upload.client_params, upload.global_params)
        if rescale != "off":
            as_mean = discrepancy & ~removed.any() & (no_partition == "mean")
            raised = rescaled(updates, fisher if rescale == "raw" else degrees)
            updates = trees.where(as_mean, updates, raised)
        model = jax.tree.map(jnp.add, upload.global_params, trees.weighted_mean(updates, kept))
        broken = took_part & ~present
        scores = jnp.where(broken, jnp.max(jnp.where(present, scores, 0.0)) + 1.0, scores)
        return model, Verdict(kept, scores, flagged=removed | broken), state

    return Aggregator(
        init=init,
        aggregate=aggregate,
        traits=Traits(linear=rescale == "off", consensus=False, permutation=True, robust=discrepancy, stateless=True),
        flags=discrepancy,
        needs=needs,
        details=(lambda upload: pictured(fisher_of(upload), upload.participating)) if needed else lambda upload: {},
        pictures=PICTURES if needed else (),
    )


def fisher_of(upload: Upload) -> Params:
    """The stacked Fisher of an upload; raises as `extra`."""
    return extra(upload, "fdcr", "fisher", "sent by the clients, as local rule 'fdcr' does")


def leak(fisher: Params, malicious: Array, noise: Params) -> Params:
    """What the released server does with the ground truth: the rows of malicious clients become noise; stacked."""
    return trees.where_rows(malicious, noise, fisher)


def min_max(fisher: Params, eps: float | Array = 0.0) -> Params:
    """Eq. 6: every client's Fisher scaled by the smallest and largest of all its entries; stacked like the input.

    Args:
        fisher: stacked, finite.
        eps: added to max - min.

    Returns:
        Degrees of importance in [0, 1]; all 1 for a client whose denominator is 0.
    """

    def over_all(reduce: Any, leaves: list[Array]) -> Array:
        return reduce(jnp.stack([reduce(x, axis=tuple(range(1, x.ndim))) for x in leaves]), axis=0)

    leaves = jax.tree.leaves(fisher)
    low = over_all(jnp.min, leaves)
    span = over_all(jnp.max, leaves) - low + eps
    constant = span <= 0

    def scale(leaf: Array) -> Array:
        scaled = (leaf - trees.column(low, leaf)) / trees.column(jnp.where(constant, 1.0, span), leaf)
        return jnp.where(trees.column(constant, leaf), 1.0, scaled).astype(leaf.dtype)

    return jax.tree.map(scale, fisher)


def shares(upload: Upload, weights: str) -> Array:
    """[K] weights of sum 1 over the clients that take part, by number of examples ("size") or alike ("uniform")."""
    alpha = jnp.where(upload.participating, upload.num_examples if weights == "size" else 1.0, 0.0)
    return alpha / jnp.maximum(alpha.sum(), TINY)


def importance_weighted(upload: Upload, degrees: Params) -> Params:
    """Eq. 8 in the code's sign: I_k (w - w_k) / eta, stacked."""
    return jax.tree.map(
        lambda g, w, i: (g[None] - w) / upload.learning_rate * i, upload.global_params, upload.client_params, degrees
    )


def discrepancies(score: str, weighted: Params, alpha: Array, chosen: list[bool]) -> Array:
    """[K] V_k between the importance-weighted gradients and their mean with weights `alpha`; see `fdcr`.

    Args:
        score: "l2", "mse", "cosine", "nmse" or "unit".
        weighted: stacked.
        alpha: [K], sum 1.
        chosen: for every leaf whether it counts.
    """
    rows = [x for x, keep in zip(jax.tree.leaves(weighted), chosen, strict=True) if keep]
    center = [x[None] for x in trees.weighted_mean(rows, alpha)]
    size = sum(x[0].size for x in rows)

    def gap(rows: list[Array], center: list[Array], offset: float = 0.0) -> Array:
        gaps = [x - c + offset for x, c in zip(rows, center, strict=True)]
        return trees.client_dot(gaps, gaps)

    if score == "l2":
        return jnp.sqrt(gap(rows, center, OFFSET))
    if score == "mse":
        return gap(rows, center) / size
    length, mean_length = trees.client_norm(rows), trees.client_norm(center)
    if score == "nmse":
        return gap(rows, center) / size / (length**2 + TINY)
    if score == "cosine":
        return 1 - sum(trees.client_dot([x], [c]) for x, c in zip(rows, center, strict=True)) / (
            length * mean_length + TINY
        )
    unit = [x / trees.column(length + TINY, x) for x in rows]
    return gap(unit, [c / trees.column(mean_length + TINY, c) for c in center]) / size


def in_slice(params: Params, names: tuple[str, ...]) -> list[bool]:
    """For every leaf whether one of `names` is its dotted name or a module above it; all leaves for no names.

    Raises:
        ConfigError: a name that no leaf has.
    """
    known = trees.leaf_names(params)
    for name in names:
        if not any(_within(leaf, name) for leaf in known):
            raise ConfigError(
                f"aggregator.options.score_slice: {name!r} is unknown: it must be a parameter or module of the model, "
                f"which has {', '.join(known)}."
            )
    return [not names or any(_within(leaf, name) for name in names) for leaf in known]


def _within(leaf: str, name: str) -> bool:
    return leaf == name or leaf.startswith(f"{name}.")


def farthest(labels: Array, scores: Array, present: Array) -> Array:
    """[K] bool: the cluster of largest mean score (Eq. 10), of equal ones the first; nobody where there is only one."""
    groups = len(labels) + 1
    labels = jnp.where(present, labels, groups)  # out of range: counted nowhere
    counts = jax.ops.segment_sum(present.astype(scores.dtype), labels, groups)
    sums = jax.ops.segment_sum(jnp.where(present, scores, 0.0), labels, groups)
    means = jnp.where(counts > 0, sums / jnp.maximum(counts, 1), -jnp.inf)
    return present & (labels == jnp.argmax(means)) & ((counts > 0).sum() > 1)


def rescaled(updates: Params, degrees: Params) -> Params:
    """Eq. 12: updates times 2 sigmoid(I), entry by entry; stacked."""
    return jax.tree.map(lambda x, i: 2 * jax.nn.sigmoid(i) * x, updates, degrees)


PICTURES = (
    Picture(
        "importance.png",
        "importance_similarity",
        "cosine between importances",
        "cosine between the clients' parameter importances in the last round",
    ),
    Picture(
        "importance.png",
        "importance_shares",
        "distribution of importances",
        "distribution of the clients' parameter importances in the last round",
        "share of the parameters",
        "importance_edges",
    ),
)
"""The paper's Figure 1."""


def pictured(fisher: Params, present: Array) -> dict[str, Array]:
    """What `PICTURES` show.

    Returns:
        "importance_shares": [K, classes], shares of the importances in the classes that "importance_edges" part; up to
        `PICTURED` clients also "importance_similarity": [K, K], cosines. Absent and non-finite rows are 0.
    """
    sound = present & trees.finite_rows(fisher)
    degrees = trees.ravel_clients(min_max(trees.zero_rows(sound, fisher)))
    below = [(degrees < edge).mean(axis=1) for edge in EDGES]
    cumulated = jnp.stack([jnp.zeros_like(below[0]), *below, jnp.ones_like(below[0])], axis=1)
    counted = jnp.where(sound[:, None], jnp.diff(cumulated, axis=1), 0.0)
    shown = {"importance_shares": counted, "importance_edges": jnp.array(EDGES, jnp.float32)}
    if len(present) <= PICTURED:
        unit = degrees / jnp.maximum(jnp.linalg.norm(degrees, axis=1, keepdims=True), TINY)
        similarity = jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST)
        shown["importance_similarity"] = jnp.where(sound[:, None] & sound[None, :], similarity, 0.0)
    return shown
