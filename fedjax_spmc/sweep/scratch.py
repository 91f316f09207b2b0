"""The files of a program in progress, from which a killed sweep goes on at its last checkpoint.

A folder for the cells that a program plays at once: `cells.json` says which they are, `environment.json` where and
under what they are played, `lines.jsonl` has the lines of the evaluated rounds, `checkpoint/` the state of all lanes.
It is removed once its cells have their rows.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_spmc import reading
from fedjax_spmc.errors import DamagedError, WorkdirError
from fedjax_spmc.numerics import check_same
from fedjax_spmc.record import files
from fedjax_spmc.record.checkpoint import Checkpoints
from fedjax_spmc.record.environment import continued
from fedjax_spmc.record.resume import Snapshot


class ProgramCells(NamedTuple):
    """The cells that a program plays at once.

    Attributes:
        group: key of their group.
        ids: of the cells, by lane.
        axis, devices, batch: of the layout: what the devices share, how many there are, experiments on each.
        fingerprint: of the data.
        held_sha256: sum of what the attack holds, or None.
        starts: sha256 of the model with which each lane's cell begins, or None.
    """

    group: str
    ids: tuple[str, ...]
    axis: str
    devices: int
    batch: int
    fingerprint: str
    held_sha256: str | None
    starts: tuple[str | None, ...]


Entry = dict[str, Any]
"""An evaluated round: {"round": r, "lines": [a line of `metrics.jsonl`, or None, by lane]}."""


class Scratch:
    """The folder of one program in progress.

    Args:
        folder: where programs in progress are kept, `WORKDIR/work`; None keeps nothing.
        cells: what the program plays.
        environment: as `environment.json`, here and now.
        log: takes a line for the user.

    Attributes:
        environment: as `environment.json`: with a line for each time that the program went on.
    """

    def __init__(
        self, folder: Path | None, cells: ProgramCells, environment: Mapping[str, Any], log: Callable[[str], None]
    ):
        name = hashlib.sha256(json.dumps(cells.ids).encode()).hexdigest()[:16]
        self._path = None if folder is None else folder / name
        self._cells = cells
        self.environment = environment
        self._log = log
        self._checkpoints: Checkpoints | None = None

    def resume(self, like: Snapshot) -> tuple[int, Snapshot, list[Entry]]:
        """Rounds played, the snapshot of all lanes, and the evaluated rounds.

        Args:
            like: the snapshot before round 0; it is returned, with 0 and no rounds, where nothing usable is there.

        Raises:
            WorkdirError: numbers would come out otherwise than before, what is there may be whole and cannot be read,
                or nothing can be written.
        """
        if self._path is None:
            return 0, like, []
        try:
            if _read(self._path) == self._cells:
                self._checkpoints = Checkpoints(self._path / "checkpoint")
                done = self._checkpoints.latest()
                if done is not None:
                    snapshot = self._checkpoints.restore(done, like)
                    entries = [entry for entry in self._entries() if entry["round"] < done]
                    self._go_on(done)
                    self._rewrite(entries)
                    return done, snapshot, entries
        except DamagedError as error:  # it costs no more than the rounds that it stood for
            self.close()
            self._log(f"these rounds are played again: {error}")
        except WorkdirError:
            self.close()
            raise
        shutil.rmtree(self._path, ignore_errors=True)
        try:
            self._path.mkdir(parents=True)
            files.replace(self._path / "environment.json", json.dumps(self.environment).encode())
            files.replace(self._path / "cells.json", json.dumps(self._cells._asdict()).encode())
        except OSError as error:
            raise files.unwritable(str(self._path), self._path, error) from None
        self._checkpoints = Checkpoints(self._path / "checkpoint")
        return 0, like, []

    def add(self, entry: Entry) -> None:
        """Appends an evaluated round and waits until it is on the disk."""
        if self._path is None:
            return
        try:
            files.append_line(self._path / "lines.jsonl", entry)
        except OSError as error:
            raise files.unwritable(str(self._path), self._path, error) from None

    def save(self, rounds: int, snapshot: Snapshot) -> None:
        """Writes the snapshot of all lanes after so many rounds."""
        if self._checkpoints is not None:
            self._checkpoints.save(rounds, snapshot)

    def close(self) -> None:
        """Ends the background work of the checkpoints."""
        if self._checkpoints is not None:
            self._checkpoints.close()
            self._checkpoints = None

    def remove(self) -> None:
        """Removes the folder: its cells have their rows."""
        self.close()
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)

    def _go_on(self, done: int) -> None:
        """Compares the environment with that in which the program was begun, and notes that it goes on.

        Raises:
            DamagedError: what was noted is not there or no longer whole.
            WorkdirError: it cannot be read, or differs in what touches numbers.
        """
        assert self._path is not None
        path = self._path / "environment.json"
        try:
            before = reading.json_object(path)
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing.") from None
        except reading.UnreadableError as error:
            raise (DamagedError if error.damaged else WorkdirError)(f"{path} {error}.") from None
        if not isinstance(before.get("numerics"), dict):
            raise DamagedError(f"{path} is damaged (it says nothing of the flags that touch numbers).")
        check_same(before["numerics"], self.environment["numerics"], str(self._path))
        self.environment = continued(before, self.environment, done)
        files.replace(path, json.dumps(self.environment).encode())

    def _entries(self) -> list[Entry]:
        assert self._path is not None
        path = self._path / "lines.jsonl"
        try:
            return reading.parsed(path, lambda text: [reading.json_of(x) for x in text.decode().split("\n")[:-1]])
        except FileNotFoundError:
            return []
        except reading.UnreadableError as error:
            raise (DamagedError if error.damaged else WorkdirError)(f"{path} {error}.") from None

    def _rewrite(self, entries: Sequence[Entry]) -> None:
        assert self._path is not None
        files.replace_lines(self._path / "lines.jsonl", entries)


def unfinished_programs(folder: Path) -> Iterator[ProgramCells]:
    """The cells of each program in progress that a folder holds; what is damaged is passed over.

    Raises:
        WorkdirError: what is there may be whole, and cannot be read.
    """
    for path in sorted(folder.glob("*/cells.json")):
        cells = _read(path.parent)
        if cells is not None:
            yield cells


def _read(path: Path) -> ProgramCells | None:
    try:
        content: Any = reading.json_object(path / "cells.json")
        return ProgramCells(**content | {name: tuple(content[name]) for name in ("ids", "starts")})
    except (FileNotFoundError, KeyError, TypeError):
        return None
    except reading.UnreadableError as error:
        if error.damaged:
            return None
        raise WorkdirError(f"{path / 'cells.json'} {error}.") from None
