"""Randomness: every key is folded from (seed, round, client, purpose); there is no global generator."""

import zlib
from typing import Any

import jax

PURPOSES = (
    "init", "roster", "attack", "sampling", "begin_round", "craft", "aggregate", "shuffle", "augment", "frozen_augment",
    "train", "prepare", "finish", "poison", "take", "defend", "benign", "step",
)  # fmt: skip
"""The purposes of draws. Append only: the position is the number that is folded in."""


def purpose_key(key: Any, purpose: str, *indices: Any) -> Any:
    """The key for one purpose, folded with each of `indices` (round, client id, ...) in turn."""
    key = jax.random.fold_in(key, PURPOSES.index(purpose))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return key


def name_key(key: Any, name: str) -> Any:
    """The key of a part by its name, whatever stands beside it."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
