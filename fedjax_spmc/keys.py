"""Randomness: every key is folded from (seed, round, client, purpose); there is no global generator."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

PURPOSES = (
    "init", "roster", "attack", "sampling", "begin_round", "craft", "aggregate", "shuffle", "augment", "frozen_augment",
    "train", "prepare", "finish", "poison", "take", "defend", "benign", "step",
)  # fmt: skip
"""The purposes of draws. Append only: the position is the number that is folded in."""
IMPLEMENTATION = "threefry2x32"
"""The random generator of every key, whatever JAX's default is; `numerics.pinned` fixes its form."""


def root_key(seed: Any) -> Any:
    """The key of a seed, from which all others are folded."""
    return jax.random.key(seed, impl=IMPLEMENTATION)


def key_of_numbers(numbers: Any) -> Any:
    """The key, or array of keys, of `jax.random.key_data`."""
    return jax.random.wrap_key_data(numbers, impl=IMPLEMENTATION)


def purpose_key(key: Any, purpose: str, *indices: Any) -> Any:
    """The key for one purpose, folded with each of `indices` (round, client id, ...) in turn."""
    key = jax.random.fold_in(key, PURPOSES.index(purpose))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


def name_key(key: Any, name: str) -> Any:
    """The key of a part by its name, whatever stands beside it."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed key or an array of such."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def numbers_of(leaf: Any) -> Any:
    """A leaf as files can hold it: a key as its numbers, anything else as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def leaf_of(numbers: Any, like: Any) -> Any:
    """The leaf, of the kind that `like` is, from `numbers_of` it."""
    return key_of_numbers(numbers) if is_key(like) else numbers
