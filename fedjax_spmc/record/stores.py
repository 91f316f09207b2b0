"""The part of a checkpoint that lies in stores (`store.Store`): a file for each, of the rows that it holds.

Orbax would want all of them in memory once more; here they go one by one.
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_spmc.store import Store


def is_store(leaf: Any) -> bool:
    """Whether it is a store, for maps over states."""
    return isinstance(leaf, Store)


def files_of(folder: Path, rounds: int) -> list[Path]:
    """The files of the checkpoint of `rounds`, in the order of the stores in a state."""
    return sorted(folder.glob(f"clients-{rounds}-*.rows"))


def write(folder: Path, rounds: int, state: Any) -> None:
    """Writes the stores of a state; each file is there whole or not at all.

    A file has the ids [M] int64 as `np.save` writes them, then M rows of bytes, each the leaves of one client.

    Raises:
        OSError: it cannot be written.
    """
    for number, store in enumerate(_stores(state)):
        path = folder / f"clients-{rounds}-{number}.rows"
        half = path.with_suffix(".half")
        with half.open("wb") as file:
            np.save(file, np.array(store.ids, np.int64))
            for _, row in store.packed():
                file.write(row.data)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)


def without(state: Any) -> Any:
    """The state with () in place of its stores."""
    return jax.tree.map(lambda leaf: () if is_store(leaf) else leaf, state, is_leaf=is_store)


def read(folder: Path, rounds: int, like: Any, state: Any) -> Any:
    """`state`, which is `without` stores, with those of `like` and the rows of the files in them.

    Raises:
        ValueError, OSError: a file is missing or of another length.
    """
    paths = iter(files_of(folder, rounds))

    def filled(leaf: Any, there: Any) -> Any:
        if not is_store(leaf):
            return there
        path = next(paths, None)
        if path is None:
            raise ValueError(f"clients-{rounds}-*.rows is missing")
        with path.open("rb") as file:
            ids = np.load(file)

            def row() -> np.ndarray:
                data = np.empty(leaf.row_bytes, np.uint8)
                if file.readinto(data.data) != leaf.row_bytes:
                    raise ValueError(f"{path.name} is too short")
                return data

            return leaf.with_rows((int(one), row()) for one in ids)

    return jax.tree.map(filled, like, state, is_leaf=is_store)


def remove_but(folder: Path, rounds: int) -> None:
    """Removes the files of other checkpoints, and halves."""
    for path in {*folder.glob("clients-*.rows"), *folder.glob("clients-*.half")} - set(files_of(folder, rounds)):
        path.unlink(missing_ok=True)


def _stores(state: Any) -> list[Store]:
    return [leaf for leaf in jax.tree.leaves(state, is_leaf=is_store) if is_store(leaf)]
