"""What the studies of this folder share: cells (a config and a seed) that are played once and kept as small files."""

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

KEPT = ("config.json", "environment.json", "metrics.jsonl", "summary.json")


def play(preset: str, fields: Mapping[str, Any], data: str, workdir: Path) -> None:
    """Runs one cell to its end, or goes on with it; a finished one is left as it is."""
    from fedjax_spmc import config as configs
    from fedjax_spmc import experiment
    from fedjax_spmc.presets import make_config

    summary = workdir / "summary.json"
    if summary.is_file() and json.loads(summary.read_text())["status"] == "finished":
        return
    config = make_config(preset, data__name=data)
    for path, value in fields.items():
        configs.set_field(config, path, value)
    experiment.run(config, workdir)


def keep(workdir: Path, kept: Path) -> None:
    """Copies the small files of a finished cell."""
    kept.mkdir(parents=True)
    for name in KEPT:
        shutil.copy(workdir / name, kept / name)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """config, environment, summary and the lines of `metrics.jsonl` of a kept cell."""
    config, environment, summary = (json.loads((folder / name).read_text()) for name in (KEPT[0], KEPT[1], KEPT[3]))
    return config, environment, summary, [json.loads(line) for line in (folder / KEPT[2]).read_text().splitlines()]


def malicious(config: Mapping[str, Any]) -> np.ndarray:
    """[N] bool: the last int(N * fraction) clients, as `attack.placement = "last"` has it."""
    num_clients = config["federation"]["num_clients"]
    return np.arange(num_clients) >= num_clients - int(num_clients * config["attack"]["malicious_fraction"])


def by_client(lines: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """[rounds, N] of a per-client entry, where all clients take part in every round."""
    return np.array([np.array(line[name])[np.argsort(line["client_ids"])] for line in lines])


def interval(values: Sequence[float | None], digits: int | None = None) -> str:
    """Mean and half the width of its 95 % t-interval; the mean alone for one seed, a dash for none."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = statistics.fmean(known)
    digits = (4 if mean < 1 else 2) if digits is None else digits
    if len(known) < 2:
        return f"{mean:.{digits}f}"
    half = stats.t.ppf(0.975, len(known) - 1) * statistics.stdev(known) / len(known) ** 0.5
    return f"{mean:.{digits}f} ± {half:.{digits}f}"
