"""Made-up run folders, so that the report's tests need no training."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc.config import make_config

SCHEDULE = {"first": 0, "last": 2**31 - 1, "every": 1, "turns": 0}
OLD_KEYS = {"participating", "precision", "f1", "auc", "attacking", "malicious"}
"""Keys that lines of older versions lack."""


def config_of(preset: str = "fedavg", **fields: Any) -> dict[str, Any]:
    """A recorded config; fields by path with `__` for the dot, set after the preset."""
    made = make_config(preset)
    for name, value in fields.items():
        configs.set_field(made, name.replace("__", "."), value)
    return configs.to_plain(configs.with_chosen_options(configs.resolve(made)))


def line_of(index: int, accuracy: float, asr: float, clients: int = 10, bad: int = 3, old: bool = False) -> dict:
    """A line of `metrics.jsonl` in which the malicious, the last `bad` clients, are flagged in odd rounds."""
    flagged = [index % 2 == 1 and k >= clients - bad for k in range(clients)]
    line = {
        "round": index, "A": accuracy, "ASR": asr, "ASR_all": asr + 1, "R": 100 - asr, "V": (accuracy + 100 - asr) / 2,
        "R_all": 99 - asr, "V_all": (accuracy + 99 - asr) / 2, "per_class": [accuracy] * 10, "train_loss": 1.0,
        "weights": [1 / clients] * clients, "scores": [0.1 * k + index for k in range(clients)], "flagged": flagged,
        "client_ids": list(range(clients)), "tpr": 100.0 * (index % 2), "fpr": 0.0, "precision": None, "f1": None,
        "auc": 1.0, "participating": [True] * clients, "attacking": [k >= clients - bad for k in range(clients)],
        "malicious": [k >= clients - bad for k in range(clients)], "non_finite": 0, "aggregation_failed": 0,
        "round_seconds": 1.0, "eval_seconds": 0.5,
    }  # fmt: skip
    return {name: value for name, value in line.items() if not (old and name in OLD_KEYS)}


def roster_of(config: dict[str, Any]) -> dict[str, Any]:
    """The content of `roster.json` of a run in which the last clients are malicious."""
    clients = config["federation"]["num_clients"]
    bad = int(np.floor(clients * config["attack"]["malicious_fraction"])) if config["attack"]["name"] != "none" else 0
    return {"num_clients": clients, "malicious": list(range(clients - bad, clients)), **SCHEDULE}


def make_run(
    folder: Path,
    preset: str = "fedavg",
    accuracy: float = 60.0,
    asr: float = 40.0,
    rounds: int = 6,
    played: int | None = None,
    summary: dict[str, Any] | None = None,
    note: str = "",
    old: bool = False,
    **fields: Any,
) -> Path:
    """Writes a run folder without a model; `played` below `rounds` leaves it unfinished."""
    config = config_of(preset, federation__rounds=rounds, **fields)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    facts = {"name": config["data"]["name"], "fingerprint": "f" * 64, "note": note, "num_classes": 10}
    versions = {"python": "3.11", "jax": "0.6", "fedjax_spmc": "0.1.0"}
    (folder / "roster.json").write_text(json.dumps(roster_of(config)))
    environment = {"versions": versions, "device": {"kind": "cpu", "count": 1}, "commit": "c" * 40, "data": facts}
    (folder / "environment.json").write_text(json.dumps(environment))
    count = rounds if played is None else played
    clients = config["federation"]["num_clients"]
    bad = int(np.floor(clients * config["attack"]["malicious_fraction"]))
    lines = [line_of(index, accuracy, asr, clients, bad, old) for index in range(count)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if played is None:
        content = {"status": "finished", "rounds": rounds, "oracle": False, "data_note": note} | (summary or {})
        (folder / "summary.json").write_text(json.dumps(content))
    return folder
