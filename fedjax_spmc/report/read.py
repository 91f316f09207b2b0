"""Finds the runs below the given folders: single ones, cells of sweeps and kept result folders alike.

Nothing is written and nothing is refused that can be shown: half a line is left out, a key that an older version did
not write is undefined, a folder that cannot be read becomes a sentence of `FoundRuns.problems`.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc import durability, metrics, reading
from fedjax_spmc.config import presets
from fedjax_spmc.errors import ConfigError, WorkdirError
from fedjax_spmc.paths import expanded
from fedjax_spmc.record.remarks import Remark, facts_of, remarks_in, remarks_of, with_stated
from fedjax_spmc.report import fields
from fedjax_spmc.report.history import (
    PER_RUN,
    client_ids,
    client_values,
    durability_of,
    number,
    numbers_of,
    participating,
    plain_numbers,
    read_lines,
)

FINISHED, DIVERGED, FAILED, UNFINISHED = "finished", "diverged", "failed", "unfinished"
SKIPPED_FOLDERS = {"checkpoint", "tensorboard", "work"}
"""Folders that belong to a run or a sweep and hold no run."""


class Run(NamedTuple):
    """One experiment as it was found.

    Attributes:
        name: its folder as the reader gave it.
        folder: where its files are; None where only a row of a sweep's table is left of it.
        config: the fields by dotted path; fields that its version did not know stand at their defaults.
        environment: `environment.json`; empty where it is missing.
        lines: `metrics.jsonl`, the lines that can be read, by round.
        status: finished, diverged, failed or unfinished.
        error: why it failed or diverged, in words.
        oracle: the aggregator was told who is malicious, or clients where the trigger is.
        note: what must be known of its data, or "".
        malicious: [N] bool.
        remarks: what must be known of it.
        numbers: means of the last five evaluated rounds (`metrics.MEANS`), of how many ("mean_of": fewer where no more
            were evaluated), and `PER_RUN`; NaN where undefined. Of a row alone also its metrics of durability.
    """

    name: str
    folder: Path | None
    config: dict[str, Any]
    environment: dict[str, Any]
    lines: list[dict[str, Any]]
    status: str
    error: str | None
    oracle: bool
    note: str
    malicious: np.ndarray
    remarks: list[Remark]
    numbers: dict[str, float]

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(rounds from 1, values with NaN where undefined), both [evaluated rounds]."""
        rounds = np.array([line["round"] + 1 for line in self.lines], int)
        return rounds, np.array([number(line.get(name)) for line in self.lines], float)

    def durability(self, thresholds: Sequence[float]) -> dict[str, float]:
        """How long the backdoor outlived the attack, see `durability.measure`; NaN where undefined or not known."""
        if self.lines:
            return durability_of(self.lines, self.config["attack.schedule.last"], thresholds)
        return {name: self.numbers.get(name, math.nan) for name in durability.names(thresholds)}

    def has_model(self) -> bool:
        """Whether the final model was kept."""
        return self.folder is not None and os.path.isfile(self.folder / "model.npz")

    def seconds(self) -> float:
        """Seconds of its rounds and evaluations; NaN where they were not recorded."""
        every = self.config["federation.eval_every"]
        taken = [
            number(line.get("round_seconds")) * every + np.nan_to_num(number(line.get("eval_seconds")))
            for line in self.lines
        ]
        return float(np.sum(taken)) if taken else math.nan


class FoundRuns(NamedTuple):
    """All runs that were found.

    Attributes:
        runs: each folder once, in order.
        problems: sentences about what could not be read.
        sources: the given folders.
    """

    runs: list[Run]
    problems: list[str]
    sources: list[str]


def read(sources: Sequence[str | os.PathLike[str]]) -> FoundRuns:
    """Reads all runs at and below the given folders.

    Raises:
        WorkdirError: a folder does not exist, or none of them holds a run or a sweep.
    """
    runs: dict[str, Run] = {}
    problems: list[str] = []
    has_sweep = False
    for source in (expanded(one, "RUN_OR_SWEEP") for one in sources):
        if not os.path.isdir(source):
            raise WorkdirError(f"{str(source)!r} is no folder: give run folders, sweep folders or folders of these.")
        before = len(runs)
        tables = []
        for folder, files in _walk(source):
            if "config.json" in files:
                try:
                    runs.setdefault(os.path.realpath(folder), _run_of_folder(folder))
                except WorkdirError as error:
                    problems.append(str(error))
            elif "results.jsonl" in files:
                tables.append(folder)
        for folder in tables:  # after their cells: what only a row is left of takes the fields of these
            has_sweep = True
            for row, base in _rows_without_folder(folder, runs, problems):
                key = os.path.realpath(folder) + "#" + row["config_hash"]
                runs[key] = _run_of_row(folder, row, base)
        if len(runs) == before:
            started = has_sweep or os.path.isdir(source / "work")
            has_sweep = has_sweep or started
            problems.append(f"{source} holds no run{' yet' if started else ''}.")
    if not runs and not has_sweep:
        raise WorkdirError(problems[0])
    return FoundRuns(list(runs.values()), problems, [str(source) for source in sources])


def by_client(run: Run, name: str) -> np.ndarray:
    """[evaluated rounds, N] float, NaN for those who did not take part."""
    table = np.full((len(run.lines), len(run.malicious)), np.nan)
    for i, line in enumerate(run.lines):
        here = participating(line)
        table[i, client_ids(line)[here]] = client_values(line, name)[here]
    return table


def _walk(source: Path) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files), sorted; folders below a run are left out."""
    for where, folders, files in os.walk(source):
        folders[:] = [] if "config.json" in files else sorted(set(folders) - SKIPPED_FOLDERS)
        yield Path(where), files


def _run_of_folder(folder: Path) -> Run:
    """A run from its folder.

    Raises:
        WorkdirError: its config cannot be read.
    """
    path = folder / "config.json"
    try:
        config = fields.checked_fields(reading.json_object(path), path)
    except (FileNotFoundError, reading.UnreadableError) as error:
        words = error if isinstance(error, reading.UnreadableError) else "is missing"
        raise WorkdirError(f"{path} {words}: the run is left out.") from None
    environment = _json(folder / "environment.json") or {}
    summary = _json(folder / "summary.json")
    lines = read_lines(folder / "metrics.jsonl", config["federation.num_clients"], fields.rule_flags(config))
    status = UNFINISHED if summary is None else str(summary.get("status", UNFINISHED))
    if status == FINISHED and lines and lines[-1]["round"] + 1 < config["federation.rounds"]:
        status = UNFINISHED  # it was extended, and goes on
    error = None
    if status == DIVERGED and summary is not None:
        first = summary.get("diverged_round")
        error = "training stopped being finite" + (f" in round {first + 1}" if type(first) is int else "")
    return _make_run(str(folder), folder, config, environment, lines, status, error, summary or {})


def _make_run(
    name: str,
    folder: Path | None,
    config: dict[str, Any],
    environment: dict[str, Any],
    lines: list[dict[str, Any]],
    status: str,
    error: str | None,
    summary: Mapping[str, Any],
) -> Run:
    facts = environment.get("data")
    note = summary.get("data_note") or (facts.get("note") if isinstance(facts, dict) else "") or ""
    oracle = bool(summary.get("oracle")) or bool(configs.oracle_options(config))
    malicious = fields.malicious_clients(config, folder)
    if lines:
        numbers = numbers_of(lines, malicious)
        remarks = remarks_of(config, with_stated(facts_of(config, lines, malicious), summary))
    else:
        numbers = {name: number(summary.get(name)) for name in (*metrics.MEANS, "mean_of", *PER_RUN)}
        given = summary.get("lifespan_thresholds")
        known = durability.names(given if isinstance(given, list) else [])
        numbers |= plain_numbers({name: summary.get(name) for name in known})
        remarks = remarks_in(summary)  # most fields of a row's config are taken from its neighbours
    return Run(name, folder, config, environment, lines, status, error, oracle, str(note), malicious, remarks, numbers)


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none that can be read."""
    try:
        return reading.json_object(path)
    except (FileNotFoundError, reading.UnreadableError):
        return None


def _rows_without_folder(
    folder: Path, runs: Mapping[str, Run], problems: list[str]
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Rows of a sweep's table whose cells have no folder, each with the fields of a cell beside it or None."""
    try:
        text = reading.text(folder / "results.jsonl")
    except (FileNotFoundError, reading.UnreadableError) as error:
        words = error if isinstance(error, reading.UnreadableError) else "is missing"
        problems.append(f"{folder / 'results.jsonl'} {words}.")
        return
    inside = os.path.realpath(folder) + os.sep
    base = next((run.config for key, run in runs.items() if key.startswith(inside)), None)
    for raw in text.split("\n"):
        try:
            row = reading.json_of(raw)
        except ValueError:
            continue
        if not isinstance(row, dict) or not {"config_hash", "status", "seed", "data"} <= row.keys():
            continue  # no row of a sweep
        kept = row.get("folder")
        if not isinstance(kept, str) or not os.path.isfile(folder / kept / "config.json"):
            yield row, base


def _run_of_row(folder: Path, row: Mapping[str, Any], base: Mapping[str, Any] | None) -> Run:
    """A run of which only a row is left: its fields over those of a cell of the same sweep, or over the defaults."""
    flat = dict(base) if base is not None else fields.with_defaults({})
    changes: dict[str, Any] = {}
    if isinstance(row.get("method"), str):
        try:
            changes = presets.preset_fields(row["method"])
        except ConfigError:  # of a plug-in, or of another version
            changes = {"aggregator.name": row["method"]}
    changes |= {path: value for path, value in row.items() if path in configs.FIELDS or configs.option_at(path)[0]}
    for section, (_, field) in configs.SECTIONS.items():
        if field in changes:
            flat = {path: value for path, value in flat.items() if configs.option_at(path)[0] != section}
    flat |= changes | {"data.name": row["data"], "seed": row["seed"]}
    if isinstance(row.get("confidence"), float):
        flat["evaluation.confidence"] = row["confidence"]
    if type(row.get("rounds")) is int:
        flat["federation.rounds"] = row["rounds"]
    device = {"platform": row.get("platform"), "kind": row.get("device")}
    facts = {"name": row["data"], "fingerprint": row.get("fingerprint"), "note": row.get("data_note")}
    environment = {"versions": row.get("versions") or {}, "device": device, "commit": row.get("commit"), "data": facts}
    name = f"{folder}/results.jsonl, {row['config_hash']}"
    return _make_run(name, None, flat, environment, [], str(row["status"]), row.get("error"), row)
