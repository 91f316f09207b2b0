"""The run folder: its files, its lock, and the checks before a run may use it."""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from fedjax_spmc import config as configs
from fedjax_spmc import metrics, models, numerics, reading
from fedjax_spmc.data.tokens import Tokenizer
from fedjax_spmc.errors import ConfigError, DamagedError, PluginError, WorkdirError
from fedjax_spmc.options import quoted
from fedjax_spmc.paths import expanded
from fedjax_spmc.record import files, truth
from fedjax_spmc.record.environment import changes, check_data, continued, digest_of
from fedjax_spmc.types import Model, Roster, State, Variables

T = TypeVar("T")

OWN_FILES = (
    "metrics.jsonl", "summary.json", "model.npz", "checkpoint", "environment.json", "roster.json", "attack.npz",
)  # fmt: skip
REPLACED_FILES = (
    "config.json", "environment.json", "metrics.jsonl", "summary.json", "model.npz", "details.npz", "roster.json",
    "attack.npz", "rule.npz", "partition.npz", "vocabulary.json", "*.png",
)  # fmt: skip
LINE_KEYS = {
    *metrics.SCALARS,
    *(
        "round",
        "weights",
        "scores",
        "flagged",
        "client_ids",
        "participating",
        "attacking",
        "malicious",
        "non_finite",
        "aggregation_failed",
    ),
}
"""Keys that a line of `metrics.jsonl` must have, because they are read back."""


class RunFolder:
    """A workdir. Creating the object only reads; `begin` takes the lock, `write_start` writes what is known
    at the start.

    Args:
        path: the folder; it may not exist yet.
        config: the resolved config.
        read_only: the folder is only looked at, and need not be writable.

    Raises:
        WorkdirError: it cannot be written, holds something else, or is damaged.
        ConfigError: it holds a run of another config; the field is named.
    """

    def __init__(self, path: str | os.PathLike[str], config: configs.Config, read_only: bool = False):
        self.path = expanded(path, "workdir")
        self._read_only = read_only
        self._config = configs.with_chosen_options(config)
        self._lock: FileLock | None = None
        self._environment: Mapping[str, Any] = {}
        self._check()

    def begin(self, environment: Mapping[str, Any]) -> None:
        """Takes the lock and checks that a run that is there goes on with the same data, start and numerics."""
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            self._lock = lock
        except Timeout:
            if not (self.path / ".lock").exists():  # file systems such as /proc let nobody make a file
                raise self._unwritable("no file can be made there") from None
            raise WorkdirError(
                f"workdir = {str(self.path)!r} is in use by another process: wait for it or give another --workdir."
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        self._check()
        old, where = self.environment(), f"workdir = {str(self.path)!r}"
        if old is not None:
            now = environment["data"]
            check_data(old["data"], now["fingerprint"], now["held_sha256"], where, "give another --workdir.")
            numerics.check_same(old.get("numerics"), environment["numerics"], where)
        began, begins = ((facts or {}).get("start_sha256") for facts in (old, environment))
        if old is not None and began != begins:
            raise ConfigError(
                f"model.start = {self._config.model.start!r} is not allowed in workdir = {str(self.path)!r}: the run "
                f"there began with another file (sha256 {str(began)[:12]}, now {str(begins)[:12]}); give another "
                "--workdir to start a new one."
            )
        self._environment = environment
        if not (self.path / "config.json").exists():  # it comes first: files without it are taken for somebody else's
            self.write_start()

    def write_start(self, rounds_played: int = 0, ended: bool = False) -> list[str]:
        """Writes `config.json` and `environment.json`: the run that is there, if any, can go on.

        Args:
            rounds_played: after which the run goes on; `environment.json` gets a line more.
            ended: no round is left to play; then the environment stays as it is.

        Returns:
            What has changed since the last round, of versions, device and commit, in words.
        """
        for name in REPLACED_FILES:
            for left_over in self.path.glob(f".{name}-*"):  # of a process that was killed while it wrote
                left_over.unlink(missing_ok=True)
        self.write_json("config.json", configs.to_plain(self._config))
        old = self.environment()
        if old is None or not rounds_played:
            self.write_json("environment.json", self._environment)
            return []
        if ended:
            return []
        self.write_json("environment.json", continued(old, self._environment, rounds_played))
        return changes(old, self._environment)

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.release()

    def history(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; an incomplete last one, as an interruption leaves it, is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []

        def parse(content: bytes) -> list[dict[str, Any]]:
            history = [reading.json_of(line) for line in content.decode().split("\n")[:-1]]
            for number, line in enumerate(history, 1):
                if not isinstance(line, dict) or not line.keys() >= LINE_KEYS or type(line["round"]) is not int:
                    raise ValueError(f"line {number} is no evaluated round")
            return history

        return self._read(path, lambda: reading.parsed(path, parse))

    def rewrite_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Replaces `metrics.jsonl`, atomically."""
        try:
            files.replace_lines(self.path / "metrics.jsonl", history)
        except OSError as error:
            raise self._unwritable(error) from None

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl` and waits until it is on the disk."""
        try:
            files.append_line(self.path / "metrics.jsonl", line)
        except OSError as error:
            raise self._unwritable(error) from None

    def environment(self) -> dict[str, Any] | None:
        """`environment.json`, or None.

        Raises:
            WorkdirError: it is damaged.
        """
        content = self._read_json("environment.json")
        if content is None:
            return None
        facts = content.get("data")
        facts = facts if isinstance(facts, dict) else {}
        shape = facts.get("input_shape")
        whole = isinstance(shape, list) and len(shape) in (1, 3) and all(type(n) is int for n in shape)
        if not whole or type(facts.get("num_classes")) is not int or not isinstance(facts.get("fingerprint"), str):
            raise WorkdirError(
                f"{self.path / 'environment.json'} is damaged: remove the run folder or give another --workdir."
            )
        return content

    def check_data(self, fingerprint: str, held: Any, advice: str) -> None:
        """Refuses data other than those of the run.

        Args:
            fingerprint: of the data set here.
            held: the arrays that the attack holds here.
            advice: the end of the sentence: what to do.

        Raises:
            WorkdirError: they differ, or nothing says which they were.
        """
        recorded = self.environment()
        if recorded is None:
            raise WorkdirError(f"{self.path / 'environment.json'} is missing: nothing says on which data the run was.")
        check_data(recorded["data"], fingerprint, digest_of(held), f"workdir = {str(self.path)!r}", advice)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file, atomically."""
        self._replace(name, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())

    def write_model(self, variables: Variables) -> None:
        """Writes `model.npz`, atomically: torch names and layout, no pickle."""
        self._write_arrays("model.npz", models.to_torch_dict(variables))

    def write_details(self, details: Mapping[str, Any]) -> None:
        """Writes the aggregator's arrays of the last evaluated round as `details.npz`, atomically; nothing for none."""
        if details:
            self._write_arrays("details.npz", details)

    def write_attack(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the attack's state (`truth.attack_arrays`) as `attack.npz`, atomically, no pickle."""
        self._write_arrays("attack.npz", arrays)

    def write_rule(self, arrays: Mapping[str, Any]) -> None:
        """Writes what the local rule shows of a client (`LocalRule.details`) as `rule.npz`, atomically; nothing for
        none."""
        if arrays:
            self._write_arrays("rule.npz", arrays)

    def write_partition(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes who has how many examples (`truth.partition_arrays`) as `partition.npz`, atomically."""
        self._write_arrays("partition.npz", arrays)

    def write_vocabulary(self, tokenizer: Tokenizer | None) -> None:
        """Writes the words by id as `vocabulary.json`, atomically; nothing where the data are no texts."""
        if tokenizer is not None:
            self.write_json("vocabulary.json", tokenizer.content())

    def roster(self) -> Roster:
        """The roster of `roster.json`, before round 0.

        Raises:
            WorkdirError: it is missing or damaged.
        """
        content = self._read_json("roster.json")
        if content is None:
            raise WorkdirError(f"{self.path / 'roster.json'} is missing: nothing says who was malicious.")
        try:
            return truth.roster_of(content)
        except ValueError:
            raise WorkdirError(
                f"{self.path / 'roster.json'} is damaged: remove the run folder or give another --workdir."
            ) from None

    def read_attack(self, like: State) -> State:
        """The attack's state in `attack.npz`.

        Args:
            like: a state of the same structure.

        Raises:
            WorkdirError: it is missing, damaged or of another attack.
        """
        return self._read_arrays("attack.npz", lambda arrays: truth.attack_of(arrays, like))

    def details(self) -> dict[str, np.ndarray]:
        """The arrays of `details.npz`; none where the file is not there or cannot be read: pictures alone need them."""
        return files.read_arrays(self.path / "details.npz")

    def read_model(self, model: Model) -> Variables:
        """Reads `model.npz`.

        Raises:
            WorkdirError: it is missing, damaged or of another model.
        """
        return self._read_arrays("model.npz", lambda arrays: models.from_torch_dict(model, arrays))

    def _read_arrays(self, name: str, make: Callable[[dict[str, np.ndarray]], T]) -> T:
        path = self.path / name
        try:
            arrays = reading.arrays(path)
        except FileNotFoundError:
            raise WorkdirError(f"{path} is missing: the run has not finished a round yet.") from None
        except reading.UnreadableError as error:
            raise WorkdirError(f"{path} {error}.") from None
        try:
            return make(arrays)
        except (ValueError, TypeError) as error:
            raise WorkdirError(f"{path} {reading.UnreadableError(error)}.") from None

    def _write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{key: np.asarray(array) for key, array in arrays.items()})
        self._replace(name, buffer.getvalue())

    def _replace(self, name: str, content: bytes) -> None:
        try:
            files.replace(self.path / name, content)
        except OSError as error:
            raise self._unwritable(error) from None

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return self._read(path, lambda: reading.json_object(path)) if os.path.exists(path) else None

    def _read(self, path: Path, read: Callable[[], T]) -> T:
        try:
            return read()
        except reading.UnreadableError as error:
            remedy = ": remove the run folder or give another --workdir" if error.damaged else ""
            raise WorkdirError(f"{path} {error}{remedy}.") from None

    def _check(self) -> None:
        parent = self.path
        while not os.path.exists(parent) and parent != parent.parent:  # Path.exists raises where a name is too long
            parent = parent.parent
        if not parent.is_dir():
            raise self._unwritable("it is no folder" if parent == self.path else f"{parent} is no folder")
        if not self._read_only and not os.access(parent, os.W_OK | os.X_OK):
            raise self._unwritable("permission denied")
        old = self._read_json("config.json")
        if old is None:
            found = [name for name in OWN_FILES if os.path.exists(self.path / name)]
            if found:
                raise WorkdirError(
                    f"workdir = {str(self.path)!r} holds {found[0]} but no config.json: give another --workdir."
                )
            return
        old = resolved_config(self.path / "config.json", old)
        for path in configs.differing_fields(old, self._config):
            before, now = (configs.flatten(c).get(path) for c in (old, self._config))
            raise ConfigError(
                f"{path} = {now!r} is not allowed in workdir = {str(self.path)!r}: the run there has {before!r}; "
                "give another --workdir to start a new one."
            )

    def _unwritable(self, reason: Any) -> WorkdirError:
        return files.unwritable(f"workdir = {quoted(str(self.path))}", self.path, reason)


def resolved_config(path: Path, content: Mapping[str, Any]) -> configs.Config:
    """The config of a `config.json`, resolved.

    Raises:
        WorkdirError: it cannot be used here; names `path`.
    """
    try:
        return configs.resolve(content)
    except PluginError as error:
        raise WorkdirError(f"{path} cannot be used here: {error}") from None
    except ConfigError as error:
        for kind, field in configs.SECTIONS.values():
            given = configs.flatten(content).get(field)
            for name in given if isinstance(given, (tuple, list)) else [given]:
                if isinstance(name, str) and name not in kind.names():
                    raise WorkdirError(
                        f"{path} cannot be used here: there is no {kind.kind} {name!r}, so that a plug-in is missing: "
                        "its module must be imported first (the flag --plugins=MODULE, or `import MODULE` in Python)."
                    ) from None
        raise DamagedError(
            f"{path} is damaged or of another version ({str(error).rstrip('.')}): remove the run folder or give "
            "another --workdir."
        ) from None
