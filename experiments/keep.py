"""Keeps the small files of a sweep's ended cells, for tables in docs/ that are made of them.

    python experiments/keep.py SWEEP TARGET
    python experiments/keep.py sweeps/neurotoxin experiments/results/neurotoxin_small

TARGET becomes a sweep's folder too: the rows of the cells that finished or diverged in results.jsonl, and of each of
them config.json, environment.json, roster.json, summary.json and of each line of metrics.jsonl what the report's tables
and curves are made of: the percentages, the perplexity, the flags of a rule that flags, and where predictions are
rejected what is so without rejection and, of the last line, the histograms. Weights, scores and models are left out.
Cells that TARGET holds already are left as they are. To go on with a sweep of which only the kept files are left, copy
TARGET to where it is to be played.
Exit codes: 0 done, 2 bad input (one sentence says what).
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import KEPT_FILES

from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.metrics import NEXT_TOKEN, REJECTION
from fedjax_spmc.paths import expanded
from fedjax_spmc.record.files import append_line, replace
from fedjax_spmc.sweep.table import TABLE_FILE
from fedjax_spmc.terminal import show

METRICS = "metrics.jsonl"
ENDED = ("finished", "diverged")
"""What is kept: a model that stopped being finite is a result too."""
NUMBERS = ("A", "ASR", "ASR_all", "R", "V", "R_all", "V_all", *NEXT_TOKEN)
RATES = ("tpr", "fpr")
"""Undefined in every line where the rule never flags; one that flags may have flagged nobody."""
FLAGS = ("client_ids", "participating", "malicious", "flagged", *RATES)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser("", __doc__)
    parser.positional("SWEEP TARGET", "the sweep's folder, and where its cells' files go")
    return run_command(parser, lambda flags: _keep(parser, flags), arguments)


def _keep(parser: Parser, flags: Flags) -> int:
    if len(flags.positional) != 2:
        raise parser.refusal(f"SWEEP and TARGET are needed, and {len(flags.positional)} folders are given")
    sweep, target = (expanded(text, name) for text, name in zip(flags.positional, ("SWEEP", "TARGET"), strict=True))
    if not (sweep / TABLE_FILE).is_file():
        raise parser.refusal(
            f"SWEEP = {str(sweep)!r} is not allowed: it must be the folder of a sweep, with {TABLE_FILE}"
        )
    kept = {row["config_hash"] for row in rows_of(target)}
    rows = rows_of(sweep)
    new = [row for row in rows if row["status"] in ENDED and row["config_hash"] not in kept]
    for row in new:
        keep_cell(sweep / row["folder"], target / row["folder"])
        append_line(target / TABLE_FILE, row)
    show(f"{len(new)} cells kept in {target}, {len(rows) - len(new)} were there already or have not ended")
    return 0


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a sweep's table; none where there is no table."""
    table = folder / TABLE_FILE
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()] if table.is_file() else []


def keep_cell(folder: Path, target: Path) -> None:
    """Copies the small files of one cell."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    flags = any(line.get(name) is not None for line in lines for name in RATES)
    rejects = any(line.get("confidence") for line in lines)
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT_FILES:
        if name != METRICS:
            shutil.copy(folder / name, target / name)
    small = [small_line(line, flags, rejects) for line in lines]
    if rejects:
        small[-1]["histograms"] = lines[-1].get("histograms")
    text = "".join(json.dumps(line) + "\n" for line in small)
    replace(target / METRICS, text.encode())


def small_line(line: Mapping[str, Any], flags: bool, rejects: bool) -> dict[str, Any]:
    """What is kept of a line: what is undefined is left out, numbers have four decimals."""
    numbers = (*NUMBERS, *(("confidence", *REJECTION) if rejects else ()))
    kept: dict[str, Any] = {"round": line["round"]}
    kept |= {name: round(line[name], 4) for name in numbers if line.get(name) is not None}
    return kept | ({name: line[name] for name in FLAGS if line.get(name) is not None} if flags else {})


if __name__ == "__main__":
    sys.exit(main())
