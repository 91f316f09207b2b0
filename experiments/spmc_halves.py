"""SPMC's two halves apart and together, at 30 % malicious clients: the table of docs/spmc.md.

    python experiments/spmc_halves.py [--data=cifar10] [--seeds=0,1,2] [--rounds=12] [--methods=average,both]
                                      [--workdir=runs/spmc_halves] [--results=experiments/results/spmc_halves]

Plays every cell (method, seed) that the results do not hold yet, puts its small files (config, environment, metrics,
summary) there, writes one row a cell into `results.jsonl`, and prints the table of all rows as Markdown: mean over
seeds and half the width of the 95 % t-interval. A cell that was interrupted goes on where it stopped. On two CPU cores
a CIFAR-10 cell of 12 rounds takes 5 to 10 minutes.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import by_client, interval, keep, malicious, play, read

ROOT = Path(__file__).resolve().parent.parent
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "average_1_epoch": ("fedavg", {"local.epochs": 1}),
    "average": ("fedavg", {}),
    "client_half": ("spmc", {"aggregator.name": "mean"}),
    "server_half": ("spmc", {"local.rule": "sgd"}),
    "both": ("spmc", {}),
    "both_benign": ("spmc", {"local.options.align": "benign"}),
    "both_reference": ("spmc,reference", {}),
}
"""Name in the table -> preset and fields on top of it."""
LABELS = {
    "average_1_epoch": "averaging, 1 local epoch",
    "average": "averaging, 10 local epochs",
    "client_half": "client half only",
    "server_half": "server half only",
    "both": "both halves",
    "both_benign": "both, `align=benign`",
    "both_reference": "both, `:reference`",
}
COLUMNS = ("A", "ASR", "R_all", "V_all", "alpha_benign", "alpha_malicious")


def row(folder: Path, method: str, seed: int) -> dict[str, Any]:
    """A cell as one row: what was varied, the summary, and the mean weights of benign and of malicious clients."""
    config, environment, summary, lines = read(folder)
    truth, weights = malicious(config), by_client(lines, "weights")
    return {
        "data": config["data"]["name"],
        "method": method,
        "seed": seed,
        "commit": environment["commit"],
        **summary,
        "alpha_benign": float(weights[:, ~truth].mean()),
        "alpha_malicious": float(weights[:, truth].mean()),
        "alpha_smallest": float(weights.min()),
        "alpha_largest": float(weights.max()),
    }


def collect(results: Path) -> list[dict[str, Any]]:
    """Rows of all cells that the results hold, written to `results.jsonl` too."""
    rows = [
        row(folder, folder.parent.name, int(folder.name.removeprefix("seed")))
        for folder in sorted(results.glob("*/*/seed*"))
    ]
    (results / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return rows


def table(rows: Sequence[dict[str, Any]], data: str, rounds: int) -> str:
    """Markdown, one line a method."""
    lines = ["| method | seeds | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 2)]
    for method, label in LABELS.items():
        chosen = [one for one in rows if (one["data"], one["method"], one["rounds"]) == (data, method, rounds)]
        if chosen:
            cells = [interval([one[column] for one in chosen]) for column in COLUMNS]
            lines.append(f"| {label} | {len(chosen)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas (default 0,1,2)")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--methods", default=",".join(METHODS), help=f"of {', '.join(METHODS)} (default all)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/spmc_halves"))
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results" / "spmc_halves")
    arguments = parser.parse_args()
    methods = [name for name in arguments.methods.split(",") if name]
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        parser.error(f"--methods: {unknown[0]!r} is unknown: it must be one of {', '.join(METHODS)}.")
    for seed in [int(text) for text in arguments.seeds.split(",") if text]:
        for method in methods:
            cell = Path(f"{arguments.data}_{arguments.rounds}_rounds", method, f"seed{seed}")
            kept, folder = arguments.results / cell, arguments.workdir / cell
            if kept.is_dir():
                continue
            preset, fields = METHODS[method]
            play(preset, {"federation.rounds": arguments.rounds, "seed": seed, **fields}, arguments.data, folder)
            keep(folder, kept)
    print(table(collect(arguments.results), arguments.data, arguments.rounds))


if __name__ == "__main__":
    main()
