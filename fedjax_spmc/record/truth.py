"""The truth of a run as plain values: who was malicious (`roster.json`), who has which classes (`partition.npz`), and
the attack's state (`attack.npz`).

It is written down once and read back: nothing is drawn again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import keys, trees
from fedjax_spmc.data import Dataset, partition
from fedjax_spmc.types import Roster, State

SCHEDULE = ("first", "last", "every", "turns")


def roster_content(roster: Roster) -> dict[str, Any]:
    """The content of `roster.json`: num_clients, the ids of the malicious clients, and the schedule."""
    malicious = np.asarray(roster.malicious)
    schedule = {name: int(getattr(roster, name)) for name in SCHEDULE}
    return {"num_clients": len(malicious), "malicious": np.flatnonzero(malicious).tolist(), **schedule}


def malicious_of(content: Mapping[str, Any]) -> np.ndarray:
    """[N] bool: who is malicious.

    Raises:
        ValueError: the content is damaged.
    """
    try:
        malicious = np.zeros(content["num_clients"], bool)
        malicious[np.array(content["malicious"], int)] = True
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise ValueError("roster.json is damaged") from None
    return malicious


def roster_of(content: Mapping[str, Any]) -> Roster:
    """The roster, before round 0.

    Raises:
        ValueError: the content is damaged.
    """
    malicious = malicious_of(content)
    try:
        schedule = {name: jnp.int32(content[name]) for name in SCHEDULE}
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError("roster.json is damaged") from None
    return Roster(malicious=jnp.asarray(malicious), round=jnp.int32(0), **schedule)


def partition_arrays(dataset: Dataset, parts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The content of `partition.npz`: who has how many training examples.

    Args:
        dataset: whose training pool is divided.
        parts: index arrays, one per client.

    Returns:
        sizes [N] int32; counts [N, classes] int32, where an example has one label; users [N], the names of the users
        that the clients are, where each is one.
    """
    counts = partition.counts(dataset.train_labels, parts, dataset.info.num_classes)
    users = partition.users_of(parts, dataset.owners, dataset.users)
    arrays = {"sizes": np.array([len(part) for part in parts], np.int32)}
    arrays |= {} if counts is None else {"counts": counts.astype(np.int32)}
    return arrays if users is None else arrays | {"users": np.array(users)}


def attack_arrays(own: State) -> dict[str, np.ndarray]:
    """The leaves of an attack's state under their paths joined by dots; keys as their numbers."""
    names = trees.leaf_names(own)
    leaves = map(keys.numbers_of, jax.tree.leaves(own))
    return {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}


def attack_of(arrays: Mapping[str, np.ndarray], like: State) -> State:
    """The state of an attack from its arrays.

    Args:
        arrays: from `attack_arrays`.
        like: a state of the same structure.

    Raises:
        ValueError: the arrays are those of another attack.
    """
    leaves = []
    for old, (name, wanted) in zip(jax.tree.leaves(like), attack_arrays(like).items(), strict=True):
        if name not in arrays or arrays[name].shape != wanted.shape or arrays[name].dtype != wanted.dtype:
            raise ValueError(f"{name} is missing or has another shape")
        leaves.append(keys.leaf_of(jnp.asarray(arrays[name]), old))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
