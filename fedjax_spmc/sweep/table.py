"""A sweep's folder: `results.jsonl` with a row per cell, `cells/` with the curves and the model of each.

A cell's folder has the files of a run folder, so that `experiment.load`, `evaluate` and `compare` read it. It is
written before its row: a row stands only for what is there.
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from fedjax_spmc import config as configs
from fedjax_spmc import durability, reading
from fedjax_spmc.data.tokens import Tokenizer
from fedjax_spmc.errors import WorkdirError
from fedjax_spmc.options import quoted
from fedjax_spmc.paths import expanded
from fedjax_spmc.record import files
from fedjax_spmc.record.folder import RunFolder
from fedjax_spmc.record.lines import at_confidence, measured, summary_of
from fedjax_spmc.record.remarks import Facts
from fedjax_spmc.sweep.plan import Cell
from fedjax_spmc.types import Variables

TABLE_FILE = "results.jsonl"
FINISHED, DIVERGED, FAILED = "finished", "diverged", "failed"


class Outcome(NamedTuple):
    """The result of a cell that was played to its end, or failed.

    Attributes:
        cell: which.
        summary: as `summary.json`; "failed" as status, and nothing else, where there is no result.
        environment: as `environment.json`.
        history: the lines of its `metrics.jsonl`.
        variables: the final model on the host; None where there is no result.
        roster: as `roster.json`.
        attack, partition: the arrays of `attack.npz` and `partition.npz`.
        tokenizer: of texts, see `vocabulary.json`; None for other data.
        seconds: its share of the time that its program ran.
        error: why it failed or diverged; None for a finished cell.
    """

    cell: Cell
    summary: dict[str, Any]
    environment: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()
    variables: Variables | None = None
    roster: Mapping[str, Any] = {}
    attack: Mapping[str, np.ndarray] = {}
    partition: Mapping[str, np.ndarray] = {}
    tokenizer: Tokenizer | None = None
    seconds: float = 0.0
    error: str | None = None


def failed_outcome(cell: Cell, environment: Mapping[str, Any], error: str) -> Outcome:
    """The outcome of a cell without a result: its row has the keys of the others, with None in them."""
    summary = summary_of(cell.config, [], Facts(), environment["data"]["note"], -1)
    return Outcome(cell, summary | {"status": FAILED}, environment, error=error)


class Table:
    """The table in a sweep's folder. Creating the object only reads; `begin` takes the lock.

    Args:
        path: the folder; it may not exist yet.

    Raises:
        WorkdirError: it holds something else, or the table is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = expanded(path, "workdir")
        self._lock: FileLock | None = None
        if os.path.exists(self.path / "config.json") and not os.path.exists(self.path / TABLE_FILE):
            raise WorkdirError(f"workdir = {str(self.path)!r} holds a single run: give another --workdir.")
        self.rows = self._read()

    def begin(self) -> None:
        """Takes the lock, reads again, and drops half a line that an interruption left.

        Raises:
            WorkdirError: another process has the folder, or it cannot be written.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise WorkdirError(
                f"workdir = {str(self.path)!r} is in use by another process: wait for it or give another --workdir."
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        self._lock = lock
        self.rows = self._read()
        for left_over in self.path.glob(f".{TABLE_FILE}-*"):  # of a process that was killed while it wrote
            left_over.unlink(missing_ok=True)
        self._rewrite()

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.release()

    def forget(self, ids: Iterable[str]) -> None:
        """Drops rows, of cells that are played again."""
        dropped = set(ids) & self.rows.keys()
        if dropped:
            self.rows = {name: row for name, row in self.rows.items() if name not in dropped}
            self._rewrite()

    def record(self, outcome: Outcome, keep_model: bool = True) -> dict[str, Any]:
        """Writes the outcome of a cell: its folder (config, environment, curves, summary, model), then its row.

        A cell that has a row keeps it, and its folder.
        """
        cell, row = outcome.cell, make_row(outcome)
        if cell.id in self.rows:
            return self.rows[cell.id]
        if outcome.variables is not None:
            path = self.path / folder_of(cell)
            shutil.rmtree(path, ignore_errors=True)  # of a process that was killed between it and its row
            folder = RunFolder(path, cell.config)
            folder.begin(outcome.environment)
            try:
                folder.rewrite_history(outcome.history)
                folder.write_json("roster.json", outcome.roster)
                folder.write_attack(outcome.attack)
                folder.write_partition(outcome.partition)
                folder.write_vocabulary(outcome.tokenizer)
                if keep_model:
                    folder.write_model(outcome.variables)
                folder.write_json("summary.json", outcome.summary)
            finally:
                folder.close()
        self._append(row)
        return row

    def measure_again(self, cell: Cell) -> None:
        """Brings the row and the folder of a finished cell to its fields of `evaluation`, where they have changed.

        Raises:
            WorkdirError: what they are read off is gone, or an older version did not write it.
        """
        row = self.rows[cell.id]
        now = {name: configs.plain(value) for name, value in cell.config.evaluation.items()}
        before: dict[str, Any] = now | {"confidence": 0.0}  # what a row of an older version does not say
        before |= {name: row[name] for name in now if name in row}
        if row["status"] == FAILED or before == now:
            return
        changed = next(name for name in now if before[name] != now[name])
        gone = WorkdirError(
            f"workdir = {str(self.path)!r} holds rows with evaluation.{changed} = {quoted(before[changed])}, but not "
            f"the lines of which those with {quoted(now[changed])} are made: give another --workdir."
        )
        folder = RunFolder(self.path / str(row["folder"]), cell.config)
        lines = folder.history()
        if not lines:
            raise gone
        try:
            history = [at_confidence(line, cell.config.evaluation.confidence) for line in lines]
        except ValueError:
            raise gone from None
        stale = set(durability.names(before["lifespan_thresholds"]))
        row = {name: value for name, value in row.items() if name not in stale} | measured(cell.config, history)
        summary = {name: row[name] for name in summary_of(cell.config, [], Facts(), None, -1)}
        # The sweep's own lock is held.
        folder.write_json("config.json", configs.to_plain(configs.with_chosen_options(cell.config)))
        folder.rewrite_history(history)
        folder.write_json("summary.json", summary)
        self.rows[cell.id] = row
        self._rewrite()

    def recorded_numerics(self, cell: Cell) -> dict[str, Any] | None:
        """What the folder of a finished cell says of the flags that its numbers depend on; None where it does not."""
        try:
            found = reading.json_object(self.path / folder_of(cell) / "environment.json").get("numerics")
        except (FileNotFoundError, reading.UnreadableError):
            return None
        return found if isinstance(found, dict) else None

    def _append(self, row: Mapping[str, Any]) -> None:
        """Appends a row and waits until it is on the disk."""
        try:
            files.append_line(self.path / TABLE_FILE, row)
        except OSError as error:
            raise self._unwritable(error) from None
        self.rows[row["config_hash"]] = dict(row)

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self.path / TABLE_FILE
        try:
            text = reading.text(path)
        except FileNotFoundError:
            return {}
        except reading.UnreadableError as error:
            raise WorkdirError(f"{path} {error}: give another --workdir.") from None
        rows: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(text.split("\n")[:-1], 1):  # behind the last line end: half a row
            try:
                row = reading.json_of(line)
                rows[row["config_hash"]] = row
                known = isinstance(row["config_hash"], str) and isinstance(row["status"], str)
            except (ValueError, KeyError, TypeError):
                known = False
            if not known:
                raise WorkdirError(f"{path} is damaged or no sweep's (line {number}): give another --workdir.")
        return rows

    def _rewrite(self) -> None:
        content = "".join(map(files.json_line, self.rows.values()))
        if os.path.exists(self.path / TABLE_FILE) and (self.path / TABLE_FILE).read_text() == content:
            return
        try:
            files.replace(self.path / TABLE_FILE, content.encode())
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> WorkdirError:
        return files.unwritable(f"workdir = {quoted(str(self.path))}", self.path, error)


def folder_of(cell: Cell) -> str:
    """Where a cell's files are, below the sweep's folder."""
    return f"cells/{cell.id}"


def make_row(outcome: Outcome) -> dict[str, Any]:
    """One row: the swept fields, seed, status, the summary of a run, and the environment."""
    cell, summary, environment = outcome.cell, outcome.summary, outcome.environment
    device, facts = environment["device"], environment["data"]
    return {
        **cell.fields,
        "seed": cell.config.seed,
        "status": summary["status"],
        "error": outcome.error,
        **{name: value for name, value in summary.items() if name != "status"},
        "config_hash": cell.id,
        "folder": None if outcome.variables is None else folder_of(cell),
        "seconds": round(outcome.seconds, 3),
        "commit": environment["commit"],
        "platform": device["platform"],
        "device": device["kind"],
        "versions": environment["versions"],
        "data": facts["name"],
        "fingerprint": facts["fingerprint"],
        "start_sha256": environment["start_sha256"],
    }
