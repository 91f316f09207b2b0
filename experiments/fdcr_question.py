"""Does FDCR work when the server does not know who is malicious? The tables of docs/fdcr.md.

    python experiments/fdcr_question.py [--data=cifar10] [--seeds=0,1,2] [--rounds=12] [--cells=badnets]
                                        [--workdir=runs/fdcr_question] [--results=experiments/results/fdcr_question]

Plays every cell that the results do not hold yet: Fisher (authors, batch, per_sample) x malicious augmentation (frozen,
live) x attack (badnets, dba) with the leak off, plain averaging under the same attacks, and "leak" (authors' Fisher,
frozen, badnets, leak on), each with every seed; 3 of 10 clients are malicious, Dirichlet 0.5, the trigger and poison
fraction of the released code. `--cells` takes names of cells, or words that a name must hold one of. Keeps its small
files (config, environment, metrics, summary), writes one row a cell into `results.jsonl`, and prints the tables as
Markdown: mean over seeds and half the width of the 95 % t-interval. A cell that was interrupted goes on where it
stopped. A CIFAR-10 cell of 12 rounds takes about 6 minutes of one CPU core that has nothing else to do.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import by_client, interval, keep, malicious, play, read

from fedjax_spmc import metrics

ROOT = Path(__file__).resolve().parent.parent
FISHERS = ("authors", "batch", "per_sample")
AUGMENTATIONS = ("frozen", "live")
ATTACKS = ("badnets", "dba")
CELLS = [
    f"{fisher}-{augmentation}-{attack}" for attack in ATTACKS for augmentation in AUGMENTATIONS for fisher in FISHERS
]
LEAK = "authors-frozen-badnets-leak"
BASELINES = [f"averaging-{augmentation}-{attack}" for attack in ATTACKS for augmentation in AUGMENTATIONS]
"""Plain averaging under the same attacks."""
ALL = [*BASELINES, *CELLS, LEAK]
COLUMNS = ("A", "ASR", "R_all", "V_all", "TPR", "FPR", "AUC")
THIRDS = ("first", "middle", "last")


def setting_of(cell: str, seed: int, rounds: int) -> tuple[str, dict[str, Any]]:
    """The preset of a cell, and the fields on top of it."""
    fisher, augmentation, attack, *leak = cell.split("-")
    fields = {
        "seed": seed,
        "federation.rounds": rounds,
        "attack.name": attack,
        "attack.options.augmentation": augmentation,
    }
    if fisher == "averaging":
        return "fedavg", fields | {"attack.poison_fraction": 0.5, "attack.trigger": "fdcr_code"}
    fields |= {"local.options.fisher_kind": fisher, "aggregator.options.oracle_fisher_noise": bool(leak)}
    return "fdcr,reference", fields


def row(folder: Path, cell: str, seed: int) -> dict[str, Any]:
    """A kept cell as one row: the summary, and detection over the run and by thirds of it."""
    config, environment, summary, lines = read(folder)
    truth = malicious(config)
    scores = by_client(lines, "scores")
    over_run = metrics.detection_over_run(lines, truth)
    columns = {
        "TPR": over_run["tpr"],
        "FPR": over_run["fpr"],
        "AUC": over_run["auc"],
        "perfect_rounds": over_run["perfect_rounds"],
        "score_benign": float(scores[:, ~truth].mean()),
        "score_malicious": float(scores[:, truth].mean()),
    }
    for name, part in zip(THIRDS, np.array_split(np.arange(len(lines)), 3), strict=True):
        found = metrics.detection_over_run([lines[i] for i in part], truth)
        columns |= {f"TPR_{name}": found["tpr"], f"FPR_{name}": found["fpr"], f"AUC_{name}": found["auc"]}
    kept = {"data": config["data"]["name"], "cell": cell, "seed": seed, "commit": environment["commit"]}
    return {**kept, **summary, **columns}


def collect(results: Path) -> list[dict[str, Any]]:
    """Rows of all cells that the results hold, written to `results.jsonl` too."""
    found = sorted(results.glob("*/*/seed*"))
    rows = [row(folder, folder.parent.name, int(folder.name.removeprefix("seed"))) for folder in found]
    (results / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return rows


def tables(rows: Sequence[dict[str, Any]], data: str, rounds: int) -> str:
    """Markdown: what came out, and detection by thirds of the run; one line a cell."""
    heads = ("Fisher", "malicious augmentation", "attack", "leak", "seeds")
    thirds = [f"{name}_{third}" for name in ("TPR", "FPR", "AUC") for third in THIRDS]
    texts = []
    for columns in (COLUMNS, [*thirds, "perfect_rounds"]):
        lines = ["| " + " | ".join((*heads, *columns)) + " |", "|" + "---|" * (len(heads) + len(columns))]
        for cell in ALL:
            chosen = [one for one in rows if (one["data"], one["cell"], one["rounds"]) == (data, cell, rounds)]
            if chosen:
                fisher, augmentation, attack, *leak = cell.split("-")
                named = (fisher, augmentation, attack, "**on**" if leak else "off", str(len(chosen)))
                cells = [interval([one[c] for one in chosen], 2 if c.startswith("AUC") else 1) for c in columns]
                lines.append("| " + " | ".join((*named, *cells)) + " |")
        texts.append("\n".join(lines))
    return "\n\n".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas (default 0,1,2)")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument(
        "--cells", default="badnets", help="names of cells, or words that a name must hold one of (default badnets)"
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/fdcr_question"))
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results" / "fdcr_question")
    arguments = parser.parse_args()
    words = [word for word in arguments.cells.split(",") if word]
    chosen = [cell for cell in ALL if any(word == cell or (word in cell and word not in ALL) for word in words)]
    if words and not chosen:
        parser.error(f"--cells = {arguments.cells!r} names no cell: they are {', '.join(ALL)}.")
    for seed in [int(text) for text in arguments.seeds.split(",") if text]:
        for cell in chosen:
            place = Path(f"{arguments.data}_{arguments.rounds}_rounds", cell, f"seed{seed}")
            if (arguments.results / place).is_dir():
                continue
            play(*setting_of(cell, seed, arguments.rounds), arguments.data, arguments.workdir / place)
            keep(arguments.workdir / place, arguments.results / place)
    arguments.results.mkdir(parents=True, exist_ok=True)
    print(tables(collect(arguments.results), arguments.data, arguments.rounds))


if __name__ == "__main__":
    main()
