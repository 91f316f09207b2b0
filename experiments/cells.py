"""A study: named cells (a preset and fields on top of it), played once with each seed and kept as small files."""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_spmc.report import overview, read, tables
from fedjax_spmc.report.settings import group

RESULTS = Path(__file__).resolve().parent / "results"
KEPT = ("config.json", "environment.json", "metrics.jsonl", "summary.json")

Cells = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Name -> preset, fields."""


def study(doc: str | None, name: str, cells: Cells, default: str, shown: Sequence[str]) -> None:
    """The command of a study: plays the cells that the results do not hold yet, then prints the report's tables.

    A cell's files go to RESULTS/DATA_ROUNDS_rounds/CELL/seedN.

    Args:
        doc: of the script.
        name: of the study's folder.
        cells: all of them.
        default: of `--cells`.
        shown: the report's tables that are printed.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--seeds", default="0,1,2", help="numbers with commas (default 0,1,2)")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument(
        "--cells", default=default, help="names of cells, or words that a name must hold one of; default: %(default)r"
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs") / name)
    parser.add_argument("--results", type=Path, default=RESULTS / name)
    flags = parser.parse_args()
    words = flags.cells.split(",")
    chosen = [cell for cell in cells if any(word == cell or (word in cell and word not in cells) for word in words)]
    if not chosen:
        parser.error(f"--cells = {flags.cells!r} names no cell: they are {', '.join(cells)}.")
    for seed in [int(text) for text in flags.seeds.split(",") if text]:
        for cell in chosen:
            place = Path(f"{flags.data}_{flags.rounds}_rounds", cell, f"seed{seed}")
            if (flags.results / place).is_dir():
                continue
            preset, fields = cells[cell]
            fixed = {"seed": seed, "federation.rounds": flags.rounds}
            play(preset, {**fixed, **fields}, flags.data, flags.workdir / place)
            keep(flags.workdir / place, flags.results / place)
    settings, _ = group(read.read([flags.results]).runs)
    print("\n".join(tables.to_markdown(one) for one in overview.tables(settings) if one.name in shown))


def play(preset: str, fields: Mapping[str, Any], data: str, workdir: Path) -> None:
    """Runs one cell to its end, or goes on with it; a finished one is left as it is."""
    from fedjax_spmc import config as configs
    from fedjax_spmc import experiment
    from fedjax_spmc.config import make_config

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
