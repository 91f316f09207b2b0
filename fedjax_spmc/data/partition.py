"""Dividing the training pool among the clients: pure functions of their arguments and of a numpy generator.

Every function returns one int32 index array per client; together they hold every index of the pool exactly once, but
for `natural`, where those of users who are no clients are left out. The registered factories return
`fn(labels, num_clients, rng)`, so that all partitions are called alike.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np

from fedjax_spmc.data.dataset import num_train
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import Range
from fedjax_spmc.registry import partitions

Partition = Callable[[np.ndarray, int, np.random.RandomState], list[np.ndarray]]
"""(labels [n] or [n, T], num_clients, rng) -> index arrays, one per client."""

MAX_ATTEMPTS = 10_000

Beta = Annotated[float, Range(0, 1e6, low_open=True)]
MinSize = Annotated[int, Range(0, 10**9)]


def split_validation(num_examples: int, val_fraction: float, rng: np.random.RandomState) -> tuple[int, np.ndarray]:
    """Splits the tail off for validation; the reference draws this before it divides the rest.

    Args:
        num_examples: examples before the split, in file order.
        val_fraction: share of the tail.
        rng: advanced by one shuffle.

    Returns:
        Size of the training pool (the first examples), and the shuffled indices int32 of the others.
    """
    cut = num_train(num_examples, val_fraction)
    tail = np.arange(cut, num_examples, dtype=np.int32)
    rng.shuffle(tail)
    return cut, tail


def dirichlet(
    labels: np.ndarray, num_clients: int, beta: float, rng: np.random.RandomState, min_size: int = 10
) -> list[np.ndarray]:
    """Label skew: each class is divided by proportions drawn from a Dirichlet distribution.

    The draws are those of the SPMC reference in the same order, so that a numpy seed gives the reference's partition. A
    client that holds its equal share of the pool already gets nothing more of later classes. Repeats until every client
    holds `min_size` examples.

    Args:
        labels: [n] integers, of the training pool only. Classes are 0..max(labels).
        num_clients: N.
        beta: concentration; small = each client sees few classes; 0 = every class divided equally.
        rng: advanced in place.
        min_size: fewest examples that a client may hold.

    Raises:
        ConfigError: too few examples, labels at every place, or no division with `min_size` was found.
    """
    labels = np.asarray(labels)
    _check_one_label(labels, "dirichlet")
    _check_sizes(len(labels), num_clients, min_size)
    for _ in range(MAX_ATTEMPTS):
        clients = _dirichlet_attempt(labels, num_clients, beta, rng)
        smallest = min(len(client) for client in clients)
        if smallest >= min_size:
            for client in clients:
                rng.shuffle(client)
            return clients
        if beta == 0:  # the sizes of an equal division do not depend on the draw
            raise ConfigError(
                f"partition.min_size = {min_size} cannot be met with partition.beta = 0: the equal division of each"
                f" class among {num_clients} clients gives one of them {smallest} examples; it must be at most that."
            )
    raise _too_many_attempts(beta, min_size, num_clients, len(labels))


def _dirichlet_attempt(
    labels: np.ndarray, num_clients: int, beta: float, rng: np.random.RandomState
) -> list[np.ndarray]:
    share = len(labels) / num_clients
    parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    sizes = np.zeros(num_clients, np.int64)
    for label in range(int(labels.max(initial=0)) + 1):
        members = np.flatnonzero(labels == label).astype(np.int32)
        rng.shuffle(members)
        if beta == 0:
            pieces = np.array_split(members, num_clients)
        else:
            weights = rng.dirichlet([beta] * num_clients) * (sizes < share)
            total = weights.sum()
            # A tiny beta can put all the weight on clients that are full (or underflow to NaN). The reference then
            # divides 0 by 0, which sends the whole class to the last client; so do zeros, without the warning.
            weights = weights / total if total > 0 else np.zeros(num_clients)
            pieces = np.split(members, (np.cumsum(weights) * len(members)).astype(int)[:-1])
        for client, piece in enumerate(pieces):
            parts[client].append(piece)
            sizes[client] += len(piece)
    return [np.concatenate(part) for part in parts]


def iid(labels: np.ndarray, num_clients: int, rng: np.random.RandomState) -> list[np.ndarray]:
    """Equal parts (sizes differ by one at most) of a shuffled pool; labels play no role.

    Raises:
        ConfigError: fewer examples than clients.
    """
    _check_sizes(len(labels), num_clients, 1, "federation.num_clients")
    return np.array_split(rng.permutation(len(labels)).astype(np.int32), num_clients)


def shards(
    labels: np.ndarray, num_clients: int, rng: np.random.RandomState, shards_per_client: int = 2
) -> list[np.ndarray]:
    """Sorted by label and cut into num_clients * `shards_per_client` runs, which are dealt out at random.

    This is the pathological division of McMahan et al. (2017): a client sees about `shards_per_client` classes.

    Raises:
        ConfigError: fewer examples than runs, or labels at every place.
    """
    _check_one_label(np.asarray(labels), "shards")
    _check_sizes(len(labels), num_clients, shards_per_client, "partition.shards")
    by_label = np.argsort(np.asarray(labels), kind="stable").astype(np.int32)
    runs = np.array_split(by_label, num_clients * shards_per_client)
    dealt = rng.permutation(len(runs)).reshape(num_clients, shards_per_client)
    clients = [np.concatenate([runs[run] for run in hand]) for hand in dealt]
    for client in clients:
        rng.shuffle(client)
    return clients


_deal_shards = shards  # the option of the factory below hides the function's name


def quantity(
    labels: np.ndarray, num_clients: int, beta: float, rng: np.random.RandomState, min_size: int = 10
) -> list[np.ndarray]:
    """Quantity skew: the sizes are drawn from a Dirichlet distribution, the classes are iid.

    Repeats the draw of the sizes until every client holds `min_size` examples (NIID-Bench, Li et al. 2022).

    Raises:
        ConfigError: too few examples, or no division with `min_size` was found.
    """
    _check_sizes(len(labels), num_clients, min_size)
    shuffled = rng.permutation(len(labels)).astype(np.int32)
    for _ in range(MAX_ATTEMPTS):
        weights = np.nan_to_num(rng.dirichlet([beta] * num_clients))
        cuts = (np.cumsum(weights) * len(labels)).astype(int)[:-1]
        clients = np.split(shuffled, cuts)
        if min(len(client) for client in clients) >= min_size:
            return clients
    raise _too_many_attempts(beta, min_size, num_clients, len(labels))


def natural(owners: np.ndarray, num_clients: int, rng: np.random.RandomState, min_size: int = 10) -> list[np.ndarray]:
    """One client for each of `num_clients` users, drawn among those who have at least `min_size` examples.

    Clients stand in the order drawn, so that the last ones are any users; each has its examples in stored order.

    Args:
        owners: [n] integers, the user of each example.
        num_clients: N.
        rng: advanced by one shuffle.
        min_size: fewest examples of a client.

    Raises:
        ConfigError: there are fewer such users than clients.
    """
    sizes = np.bincount(owners)
    able = np.flatnonzero(sizes >= max(1, min_size))
    if num_clients > len(able):
        raise ConfigError(
            f"federation.num_clients = {num_clients} is not allowed with partition.name = 'natural': it must be at "
            f"most {len(able)}, the number of users with at least partition.min_size = {min_size} training examples."
        )
    drawn = rng.permutation(able)[:num_clients]
    return [np.flatnonzero(owners == user).astype(np.int32) for user in drawn]


def counts(labels: np.ndarray, parts: Sequence[np.ndarray], num_classes: int) -> np.ndarray | None:
    """Examples of each client by class: [N, classes]; None where an example has labels at every place, and no class.

    Args:
        labels: [n] or [n, T] integers; -1 = no label, which counts nowhere.
        parts: index arrays, one per client.
        num_classes: labels are 0..num_classes-1.
    """
    if np.ndim(labels) > 1:
        return None
    of_clients = [np.asarray(labels)[part] for part in parts]
    return np.stack([np.bincount(own[own >= 0], minlength=num_classes) for own in of_clients])


def users_of(parts: Sequence[np.ndarray], owners: np.ndarray | None, users: Sequence[str]) -> list[str] | None:
    """The name of each client's user; None unless every client has the examples of one user.

    Args:
        parts: index arrays, one per client.
        owners: [n] integers, the user of each example, a place in `users`; None where there are none.
        users: their names.
    """
    if owners is None or any(len(part) == 0 or np.ptp(owners[part]) > 0 for part in parts):
        return None
    return [users[int(owners[part[0]])] for part in parts]


def _check_one_label(labels: np.ndarray, name: str) -> None:
    if labels.ndim > 1:
        raise ConfigError(
            f"partition.name = {name!r} is not allowed with data that have a label at every place of a sequence: it "
            "must be one that goes by no class, such as iid or quantity."
        )


def _check_sizes(num_examples: int, num_clients: int, least: int, field: str = "partition.min_size") -> None:
    if num_clients < 1:
        raise ConfigError(f"federation.num_clients = {num_clients} is not allowed: it must be at least 1.")
    if num_clients * least > num_examples:
        value = num_clients if field == "federation.num_clients" else least
        hint = " (whatever partition.beta is)" if field == "partition.min_size" else ""
        raise ConfigError(
            f"{field} = {value} is not possible{hint}: {num_clients} clients need {num_clients * least} examples and"
            f" the training pool holds {num_examples}, so it must be at most"
            f" {num_examples if field == 'federation.num_clients' else num_examples // num_clients}."
        )


def _too_many_attempts(beta: float, min_size: int, num_clients: int, num_examples: int) -> ConfigError:
    return ConfigError(
        f"partition.min_size = {min_size} was not met in {MAX_ATTEMPTS} draws with partition.beta = {beta:g} for"
        f" {num_clients} clients and {num_examples} examples: it must be smaller, or partition.beta larger."
    )


@partitions.register("dirichlet")
def dirichlet_factory(beta: Beta = 0.5, min_size: MinSize = 10) -> Partition:
    """Label skew: each class is divided in shares drawn from Dirichlet(beta), as the reference draws them."""
    return lambda labels, num_clients, rng: dirichlet(labels, num_clients, beta, rng, min_size)


@partitions.register("iid")
def iid_factory() -> Partition:
    """Equal shares of shuffled examples."""
    return iid


@partitions.register("shards")
def shards_factory(shards: Annotated[int, Range(1, 10**6)] = 2) -> Partition:
    """Each client gets so many shards of examples sorted by label, so that it sees few classes."""
    return lambda labels, num_clients, rng: _deal_shards(labels, num_clients, rng, shards)


@partitions.register("quantity")
def quantity_factory(beta: Beta = 0.5, min_size: MinSize = 10) -> Partition:
    """Quantity skew: sizes drawn from Dirichlet(beta), classes alike."""
    return lambda labels, num_clients, rng: quantity(labels, num_clients, beta, rng, min_size)


@partitions.register("natural")
def natural_factory(min_size: MinSize = 10, owners: np.ndarray | None = None) -> Partition:
    """One client for each user, speaker or forum, drawn among those who have enough examples; the test stays whole."""

    def divide(labels: np.ndarray, num_clients: int, rng: np.random.RandomState) -> list[np.ndarray]:
        del labels
        if owners is None:
            raise ConfigError(
                "partition.name = 'natural' is not allowed with data whose examples are of no known users: it must be "
                "another one, such as iid."
            )
        return natural(owners, num_clients, rng, min_size)

    return divide
