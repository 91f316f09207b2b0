"""The whole state on disk (Orbax), with a sum of every file: resuming gives the same bits, damage is noticed."""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import keys, reading
from fedjax_spmc.errors import DamagedError, UserError, WorkdirError
from fedjax_spmc.record import files, stores
from fedjax_spmc.startup import Imports

MANIFEST = "manifest.json"
"""Beside the checkpoint: its number of rounds and the sha256 of each of its files."""

LEAST_ROOM = 2**16
"""Bytes without which no checkpoint is begun: on a full disk Orbax leaves writes behind that complain later."""


class Checkpoints:
    """The last checkpoint of a run folder; saving is atomic, and only the newest is kept.

    Args:
        folder: `WORKDIR/checkpoint`.
    """

    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise self.damaged("it is no folder") from None
        except OSError as error:
            raise self._unwritable(error) from None

    @functools.cached_property
    def _ocp(self) -> Any:
        """Orbax, which takes half a second: not every command needs it, and none before it saves or restores."""
        with Imports():
            import orbax.checkpoint as ocp

        return ocp

    @functools.cached_property
    def _manager(self) -> Any:
        """Orbax's manager, which takes another half: made when the first checkpoint is saved or restored."""
        options = self._ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        try:
            return self._ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise self._unwritable(error) from None
        except Exception as error:
            raise self._unreadable(error) from None

    def latest(self) -> int | None:
        """Rounds played when the newest checkpoint was saved; None without one.

        Orbax names the folder of a checkpoint by that number once it is whole.

        Raises:
            WorkdirError: the folder cannot be read.
        """
        try:
            whole = [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal() and path.is_dir()]
        except OSError as error:
            raise self._unreadable(error) from None
        return max(whole, default=None)

    def save(self, rounds: int, state: Any) -> None:
        """Writes `state`, to be found under `rounds`.

        Raises:
            WorkdirError: it cannot be written; the checkpoint before it is still there.
        """
        args = self._ocp.args
        try:
            room = shutil.disk_usage(self._folder)
            if room.total and room.free < LEAST_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            stores.write(self._folder, rounds, state)
            with _quiet_absl(), _uninterrupted():
                self._manager.save(rounds, args=args.StandardSave(_storable(state)), force=True)
            manifest = {"rounds": rounds, "structure": _structure(state), "sha256": self._sums(rounds)}
            files.replace(self._folder / MANIFEST, json.dumps(manifest, indent=1).encode())
            stores.remove_but(self._folder, rounds)
        except UserError:
            raise
        except Exception as error:
            for half in self._folder.glob(f"{rounds}.*"):  # its temporary folder, which would be in the way
                shutil.rmtree(half, ignore_errors=True)
            raise self._unwritable(error) from None

    def restore(self, rounds: int, like: Any) -> Any:
        """Reads the checkpoint of `rounds`.

        Args:
            rounds: from `latest`.
            like: a state of the same structure, shapes and dtypes.

        Raises:
            DamagedError: it is missing, truncated, corrupt, or of another structure.
            WorkdirError: it may be whole, and cannot be read.
        """
        # The files are checked first: on a damaged one Orbax leaves reads behind that complain on standard error.
        try:
            whole = self._check(rounds, _structure(like))
        except OSError as error:
            raise self._unreadable(error) from None
        manager = self._manager
        try:
            with _quiet_absl(), _uninterrupted():  # an error is raised and reported in one sentence
                restored: Any = manager.restore(rounds, args=self._ocp.args.StandardRestore(_storable(like)))
            state = jax.tree.map(_restored, stores.without(like), restored)
            return stores.read(self._folder, rounds, like, state)
        except Exception as error:
            raise self._unreadable(error, damaged=False if whole else None) from None

    def close(self) -> None:
        """Ends the manager's background work."""
        if "_manager" in self.__dict__:  # it was made
            self._manager.close()

    def _unwritable(self, error: Exception) -> WorkdirError:
        number = re.search(r"os_error_code='(\d+)'", str(error))  # of the storage below Orbax, which raises no OSError
        words = OSError(int(number[1]), os.strerror(int(number[1]))) if number else error
        return files.unwritable(f"checkpoint {self._folder}", self._folder, words)

    def _sums(self, rounds: int) -> dict[str, str]:
        """sha256 of every file of a checkpoint."""
        step = self._folder / str(rounds)
        found = {str(path.relative_to(step)): path for path in step.rglob("*") if path.is_file()}
        found |= {path.name: path for path in stores.files_of(self._folder, rounds)}
        sums = {}
        for name, path in sorted(found.items()):
            with path.open("rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return sums

    def _check(self, rounds: int, structure: dict[str, str]) -> bool:
        """Checks the files of a checkpoint; whether the manifest knows them."""
        try:
            manifest = reading.json_object(self._folder / MANIFEST)
            noted, sums = int(manifest["rounds"]), dict(manifest["sha256"])
            saved = dict(manifest.get("structure", structure))
        except FileNotFoundError:
            return False  # killed between the first checkpoint and its manifest
        except (reading.UnreadableError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, reading.UnreadableError) and not error.damaged:
                raise WorkdirError(f"{self._folder / MANIFEST} {error}.") from None
            raise self.damaged(f"{MANIFEST} cannot be read") from None
        if noted > rounds:
            raise self.damaged(f"that of round {noted} is missing")
        if noted == rounds:  # else killed between this checkpoint and its manifest
            found = self._sums(rounds)
            for name in sorted(sums.keys() | found.keys()):
                if sums.get(name) != found.get(name):
                    raise self.damaged(f"{rounds}/{name} {'has changed' if name in found else 'is missing'}")
        for name in sorted(saved.keys() | structure.keys()):
            if saved.get(name) != structure.get(name):
                raise DamagedError(
                    f"checkpoint {self._folder} holds a state of another structure ({name} is {saved.get(name)} there "
                    f"and {structure.get(name)} here): it was made by another version of the program or of a plug-in; "
                    "give another --workdir."
                )
        return noted == rounds

    def damaged(self, reason: str) -> WorkdirError:
        """The error that says that no checkpoint can be used, and why."""
        return self._unreadable(reason, damaged=True)

    def _unreadable(self, cause: object, damaged: bool | None = None) -> WorkdirError:
        error = reading.UnreadableError(cause, damaged)
        if not error.damaged:
            return WorkdirError(f"checkpoint {self._folder} {error}.")
        return DamagedError(
            f"checkpoint {self._folder} {error}: remove the run folder or give another --workdir to start anew."
        )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets Ctrl-C wait for the end of a `with` block: half of what Orbax does leaves coroutines that complain."""
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Keeps absl's log silent for the length of a `with` block."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _structure(state: Any) -> dict[str, str]:
    """The leaves of a state: path -> dtype and shape, of those in a store the shape for all clients."""

    def named(tree: Any) -> dict[str, Any]:
        leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=stores.is_store)[0]
        return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}

    found: dict[str, str] = {}
    for name, leaf in named(state).items():
        if stores.is_store(leaf):
            rows = {f"{name}.{part}": row for part, row in named(leaf.row).items()}
            found |= {part: f"{row.dtype}{[leaf.num_clients, *row.shape]} of those drawn" for part, row in rows.items()}
        else:
            found[name] = f"{leaf.dtype}{list(leaf.shape)}"
    return found


def _storable(state: Any) -> Any:
    """The state with leaves of the types that Orbax knows: keys as their data, NumPy's scalars as arrays."""

    def storable(leaf: Any) -> Any:
        return np.asarray(leaf) if isinstance(leaf, np.generic) else keys.numbers_of(leaf)

    return jax.tree.map(storable, stores.without(state))


def _restored(leaf: Any, data: Any) -> Any:
    """An array that Orbax read, as a leaf of the type that the state has there."""
    # By way of the host: what Orbax reads is committed to its device, and a round of it would be compiled anew.
    return keys.leaf_of(jnp.asarray(np.asarray(data)), leaf)
