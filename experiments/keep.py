"""Keeps the small files of a sweep's finished cells, for tables in docs/ that are made of them.

    python experiments/keep.py SWEEP TARGET
    python experiments/keep.py sweeps/neurotoxin experiments/results/neurotoxin_small

Copies config.json, environment.json, roster.json and summary.json of every finished cell to a folder of its own in
TARGET, and of each line of metrics.jsonl what the report's tables and curves are made of: the percentages, and where
anybody was flagged in the run the flags. Histograms, weights and scores are left out. Cells that TARGET holds already
are left as they are.
Exit codes: 0 done, 2 bad input (one sentence says what).
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.paths import expanded
from fedjax_spmc.record.files import replace
from fedjax_spmc.sweep.table import TABLE_FILE
from fedjax_spmc.terminal import show

COPIED = ("config.json", "environment.json", "roster.json", "summary.json")
PERCENTAGES = ("A", "ASR", "ASR_all", "R", "V", "R_all", "V_all")
FLAGS = ("client_ids", "participating", "malicious", "flagged", "tpr", "fpr")


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
    rows = [json.loads(line) for line in (sweep / TABLE_FILE).read_text(encoding="utf-8").splitlines()]
    new = [row for row in rows if row["status"] == "finished" and not (target / row["config_hash"]).exists()]
    for row in new:
        keep_cell(sweep / row["folder"], target / row["config_hash"])
    show(f"{len(new)} cells kept in {target}, {len(rows) - len(new)} were there already or are not finished")
    return 0


def keep_cell(folder: Path, target: Path) -> None:
    """Copies the small files of one finished cell to a new folder, metrics.jsonl last."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    flagging = any(any(line["flagged"]) for line in lines)
    target.mkdir(parents=True)
    for name in COPIED:
        shutil.copy(folder / name, target / name)
    text = "".join(json.dumps(small_line(line, flagging)) + "\n" for line in lines)
    replace(target / "metrics.jsonl", text.encode())


def small_line(line: Mapping[str, Any], flagging: bool) -> dict[str, Any]:
    """What is kept of a line: what is undefined is left out, percentages have four decimals."""
    kept: dict[str, Any] = {"round": line["round"]}
    kept |= {name: round(line[name], 4) for name in PERCENTAGES if line[name] is not None}
    return kept | ({name: line[name] for name in FLAGS if line[name] is not None} if flagging else {})


if __name__ == "__main__":
    sys.exit(main())
