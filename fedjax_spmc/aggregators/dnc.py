"""DnC (divide and conquer): drop the uploads that stand out along the direction in which all of them vary most.

Source: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
    Federated Learning", NDSS 2021, Algorithm 2.
Assumes: at most f of the n uploads are malicious, n >= 2 f + 1.
Cost: O(K D + I (K^2 b + K^3)) for I iterations on b coordinates; memory O(K D + K b).
Deviations: where no upload survives all the iterations, those that survive most of them are averaged (the paper's
    intersection is empty then). The top right singular vector comes from the Gram matrix of the centred uploads: it is
    C^T u scaled to length 1, for the eigenvector u of the largest eigenvalue. A model of at most b coordinates is taken
    whole, so that one iteration says all.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import POSITIVE, TRACED, Range
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict

HIGHEST = jax.lax.Precision.HIGHEST
Draw = Callable[[PRNGKey, int, int, int], Array]
"""(key, iterations, coordinates of the model D, coordinates of a subset b) -> [iterations, b] int32, distinct."""


def random_subsets(key: PRNGKey, iterations: int, num_coordinates: int, size: int) -> Array:
    """[iterations, size] int32: ascending random coordinates, distinct in each row."""

    def draw(one: PRNGKey) -> Array:
        # The places of the largest of D uniform numbers: a fraction of the time of a whole permutation.
        return jnp.sort(jax.lax.top_k(jax.random.uniform(one, (num_coordinates,)), size)[1])

    return jax.lax.map(draw, jax.random.split(key, iterations))


@aggregators.register("dnc")
def dnc(
    variant: Literal["paper", "reference"] = "paper",
    attackers: Annotated[int, Range(0, 10**6)] | None = None,
    iterations: Annotated[int, Range(1, 1000)] | None = None,
    subset_size: Annotated[int, Range(1, 10**9)] = 10_000,
    filter_fraction: Annotated[float, POSITIVE, TRACED] | None = None,
) -> Aggregator:
    """Averages the uploads that are, in every iteration, among the n - c f with the smallest squared projections.

    Each iteration draws b coordinates, centres the updates there and projects them on their top right singular
    vector. Identical uploads tie; the lowest rows are kept.

    Reference:
        * One iteration.
        * Every update is divided by its norm + 1e-5 first.
        * int(0.5 f) uploads are dropped, where f = int(rate K) comes from the true rate of attackers; here f is the
          option `attackers`, by default int(0.3 n), the code's default rate.
        * The kept positions are used as client ids, so that where the drawn order is not 0..K-1 an arbitrary client
          is dropped.
        * An id that no upload has (some clients are absent) makes it average that client's old model; here such an
          id is passed over, and where no kept id is there, the kept positions are meant.
        * The whole state, batch statistics and counters, is scored; here trainable weights alone.

    Traits: the reference has no permutation trait, because it takes positions for client ids, and is not robust,
        because normalised updates hide an outlier's length.

    Args:
        variant: the publication or the SPMC code.
        attackers: f; None is (n - 1) // 2 of n usable uploads, in the reference int(0.3 n).
        iterations: I; None is 5, in the reference 1.
        subset_size: b, the number of coordinates that an iteration looks at.
        filter_fraction: c, uploads dropped per assumed attacker; None is 1, in the reference 0.5.

    Raises:
        ConfigError: fewer than 2 f + 1 uploads a round (in the reference fewer than f + 1).
    """
    return with_draw(random_subsets, variant, attackers, iterations, subset_size, filter_fraction)


def with_draw(
    draw: Draw,
    variant: Literal["paper", "reference"] = "paper",
    attackers: int | None = None,
    iterations: int | None = None,
    subset_size: int = 10_000,
    filter_fraction: float | Array | None = None,
) -> Aggregator:
    """The rule `dnc` with the draw of its coordinates given from outside; the other arguments are those of `dnc`."""
    paper = variant == "paper"
    rounds_of_filtering = (5 if paper else 1) if iterations is None else iterations
    fraction = (1.0 if paper else 0.5) if filter_fraction is None else filter_fraction

    def assumed(usable: Any) -> Any:
        """F for a number of usable uploads, which may be traced."""
        if attackers is not None:
            return attackers
        return (usable - 1) // 2 if paper else 3 * usable // 10

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        present = upload.participating
        check_attackers(attackers, len(present), paper)
        points = trees.ravel_clients(trees.subtract(upload.client_params, upload.global_params))
        if not paper:
            points = points / (jnp.sqrt(jnp.sum(points * points, axis=1, keepdims=True)) + 1e-5)
        usable = present.sum()
        # A hair is added so that c f just below a whole number counts as that number.
        dropped = jnp.floor(fraction * assumed(usable) + 1e-4).astype(jnp.int32)
        keep = jnp.clip(usable - dropped, 1, len(present))
        size = points.shape[1]
        if size <= subset_size:
            all_scores, ranking = jax.tree.map(lambda x: x[None], outlier_scores(points, present))
        else:
            subsets = draw(key, rounds_of_filtering, size, subset_size)
            all_scores, ranking = jax.lax.map(lambda subset: outlier_scores(points[:, subset], present), subsets)
        kept = survivors(ranking, present, keep)
        used = kept if paper else positions_as_ids(kept, present, upload.client_ids)
        weights = used / jnp.maximum(used.sum(), 1)
        verdict = Verdict(weights, all_scores.mean(axis=0), flagged=present & ~used)
        return trees.weighted_mean(upload.client_params, weights), verdict, state

    def chosen(num_clients: int) -> dict[str, Any]:
        options = {"attackers": assumed(num_clients), "iterations": rounds_of_filtering, "filter_fraction": fraction}
        given = {"attackers": attackers, "iterations": iterations, "filter_fraction": filter_fraction}
        return {name: value for name, value in options.items() if given[name] is None}

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=True, consensus=True, permutation=paper, robust=paper, stateless=True),
        min_clients=fewest(attackers or 0, paper),
        chosen=chosen,
    )


def fewest(attackers: int, paper: bool) -> int:
    """The fewest uploads among which f may be malicious."""
    return (2 if paper else 1) * attackers + 1


def check_attackers(attackers: int | None, num_clients: int, paper: bool) -> None:
    """Raises ConfigError where a given f is too large for the uploads of a round."""
    if attackers is not None and num_clients < fewest(attackers, paper):
        bound = "2 f + 1" if paper else "f + 1"
        raise ConfigError(
            f"aggregator.options.attackers = {attackers} is not allowed with {num_clients} uploads a round: dnc needs "
            f"{bound} = {fewest(attackers, paper)}."
        )


def outlier_scores(points: Array, present: Array) -> tuple[Array, Array]:
    """Squared projections of the centred rows on their top right singular vector.

    Returns:
        [K] the squares, 0 where a row is absent; and [K] the same less a common number, to rank them by. Where one
        upload is far from all others these differ from each other by little more than the last digit of their squares.
    """
    share = present / jnp.maximum(present.sum(), 1)
    mean = jnp.matmul(share, points, precision=HIGHEST)
    centred = jnp.where(present[:, None], points - mean[None], 0.0)
    # Entries above 1 are scaled down: the Gram matrix of one far upload would overflow, and rank nobody.
    scale = jnp.maximum(jnp.max(jnp.abs(centred)), 1.0)
    scaled = centred / scale
    gram = jnp.matmul(scaled, scaled.T, precision=HIGHEST)
    vector = jnp.linalg.eigh(gram)[1][:, -1]
    direction = jnp.matmul(vector, scaled, precision=HIGHEST)
    length = trees.root(jnp.sum(jnp.square(direction)))
    direction = direction / jnp.where(length > 0, length, 1.0)
    # Differences to one of the rows are exact where rows are alike; equal ones are all 0 then, and tie.
    middle = _middle_row(vector, present)
    near = jnp.where(present[:, None], points - points[middle][None], 0.0) / scale
    places = jnp.matmul(near, direction, precision=HIGHEST)
    center = jnp.matmul(share, places, precision=HIGHEST)
    # The guard keeps squared norms below 1e36, so that the products stay finite. (p - m)^2 less m^2 is p (p - 2 m).
    squares = jnp.where(present, jnp.square((places - center) * scale), 0.0)
    return squares, places * (places - 2 * center)


def _middle_row(values: Array, present: Array) -> Array:
    """The present row that holds the lower median of [K] values."""
    order = jnp.argsort(jnp.where(present, values, jnp.inf))
    return order[jnp.maximum(present.sum() - 1, 0) // 2]


def survivors(ranking: Array, present: Array, keep: Array) -> Array:
    """[K] bool: rows that are among the `keep` lowest of [I, K] numbers in every iteration, else in most of them."""
    order = jnp.argsort(jnp.where(present[None, :], ranking, jnp.inf), axis=1, stable=True)
    ranks = jnp.argsort(order, axis=1, stable=True)
    times = ((ranks < keep) & present[None, :]).sum(axis=0)
    return present & (times == times.max())


def by_position(values: Array, present: Array) -> Array:
    """[K]: the values of the present rows moved to the front, in order; 0 or False behind them."""
    places = jnp.where(present, jnp.cumsum(present) - 1, len(present))
    return jnp.zeros_like(values).at[places].set(values, mode="drop")


def positions_as_ids(kept: Array, present: Array, client_ids: Array) -> Array:
    """[K] bool: the rows whose client id is a kept position; `kept` itself where there is none."""
    within = client_ids < len(present)
    mistaken = present & within & by_position(kept, present)[jnp.where(within, client_ids, 0)]
    return jnp.where(mistaken.any(), mistaken, kept)
