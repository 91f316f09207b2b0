"""Studies of the docs: named cells, each a preset and fields on top of it, run with every seed and kept as small files.

    python experiments/cells.py NAME [flags]
    python experiments/cells.py spmc_halves --cells=average,both

Runs every chosen cell that the folder of `--results` does not hold yet, with each seed, copies its small files (config,
environment, metrics, summary) there, to DATA_ROUNDS_rounds/CELL/seedN, and prints the report's tables of all that is
kept. A cell that was interrupted goes on where it stopped.
Exit codes: 0 done, 2 bad input (one sentence says what), 3 training stopped being finite.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.options import Option, Range
from fedjax_spmc.paths import expanded, folder_to_write
from fedjax_spmc.report import overview, read, tables
from fedjax_spmc.report.settings import group
from fedjax_spmc.terminal import show

RESULTS = Path(__file__).resolve().parent / "results"
KEPT_FILES = ("config.json", "environment.json", "roster.json", "metrics.jsonl", "summary.json")

Cell = tuple[str, Mapping[str, Any]]
"""A preset, and the fields that are set on top of it: dotted path -> value."""


class Study(NamedTuple):
    """A set of cells that are compared.

    Attributes:
        title: what it is, for the help.
        cells: by name.
        default: of `--cells`; "" = all.
        tables: the report's tables that are printed.
    """

    title: str
    cells: Mapping[str, Cell]
    default: str
    tables: Sequence[str]


SPMC_HALVES: dict[str, Cell] = {
    "average_1_epoch": ("fedavg", {"local.epochs": 1}),
    "average": ("fedavg", {}),
    "client_half": ("spmc", {"aggregator.name": "mean"}),
    "server_half": ("spmc", {"local.rule": "sgd"}),
    "both": ("spmc", {}),
    "both_benign": ("spmc", {"local.options.align": "benign"}),
    "both_reference": ("spmc,reference", {}),
}
"""SPMC's local rule and its server rule apart and together, at 30 % malicious clients: the table of docs/spmc.md. On
two CPU cores a CIFAR-10 cell of 12 rounds takes 5 to 10 minutes."""


def _fdcr_cell(method: str, augmentation: str, attack: str, leak: bool = False) -> Cell:
    """A cell of `FDCR_QUESTION`; `method` is a Fisher, or "averaging"."""
    fields = {"attack.name": attack, "attack.augmentation": augmentation}
    if method == "averaging":
        return "fedavg", fields | {"attack.poison_fraction": 0.5, "attack.trigger": "fdcr_code"}
    return "fdcr,reference", fields | {
        "local.options.fisher_kind": method,
        "aggregator.options.oracle_fisher_noise": leak,
    }


FDCR_QUESTION: dict[str, Cell] = {
    f"{method}-{augmentation}-{attack}": _fdcr_cell(method, augmentation, attack)
    for attack in ("badnets", "dba")
    for augmentation in ("frozen", "live")
    for method in ("averaging", "authors", "batch", "per_sample")
} | {"authors-frozen-badnets-leak": _fdcr_cell("authors", "frozen", "badnets", leak=True)}
"""Does FDCR work when the server does not know who is malicious? The tables of docs/fdcr.md: Fisher (authors, batch,
per_sample) and plain averaging x malicious augmentation (frozen, live) x attack (badnets, dba) with the leak off, and
one cell with the leak on; 3 of 10 clients are malicious, Dirichlet 0.5, the trigger and poison fraction of the released
code. A CIFAR-10 cell of 12 rounds takes 6 to 9 minutes of one CPU core."""

FDCR_CODE = {"attack.trigger": "fdcr_code", "attack.poison_fraction": 0.5}
ANCHOR: dict[str, Cell] = {
    "paper": ("fedavg", {}),
    "trigger_spmc_code": ("fedavg", {"attack.trigger": "spmc_code"}),
    "trigger_fdcr_code": ("fedavg", FDCR_CODE),
    "poison_0.3": ("fedavg", {"attack.poison_fraction": 0.3}),
    "frozen": ("fedavg", {"attack.augmentation": "frozen"}),
    "epochs_1": ("fedavg", {"local.epochs": 1}),
    "weights_uniform": ("fedavg", {"aggregator.options.weights": "uniform"}),
    "order_drawn": ("fedavg", {"sampling.options.order": "drawn"}),
    "placement_random": ("fedavg", {"attack.placement": "random"}),
    "spmc_code": ("fedavg,reference", {}),
    "spmc_code_epochs_10": ("fedavg,reference", {"local.epochs": 10}),
    "fdcr_code": ("fedavg", FDCR_CODE | {"attack.augmentation": "frozen"}),
    "resnet10": ("fedavg", {"model.name": "resnet10"}),
}
"""Which setting gives the papers' averaging row? One factor at a time around the papers' setting of what they leave
open, and the two codes' own settings, all at 30 % malicious clients and Dirichlet 0.5. On one CPU core a CIFAR-10 cell
of 12 rounds takes 6 to 9 minutes (epochs_1: one; resnet10: hours)."""

THIRD_PARTY = {"mapping": "relu_softmax", "space": "updates", "temperature": 0.5, "eps": 0.0}
SPMC_QUESTION: dict[str, Cell] = {
    **{name: SPMC_HALVES[name] for name in ("average", "client_half", "server_half", "both")},
    "oracle": ("fedavg", {"aggregator.options.oracle_weights": True}),
    "client_half_oracle": ("spmc", {"aggregator.name": "mean", "aggregator.options.oracle_weights": True}),
    "temperature_0.01": ("spmc", {"aggregator.options.temperature": 0.01}),
    "temperature_0.001": ("spmc", {"aggregator.options.temperature": 0.001}),
    "minmax": ("spmc", {"aggregator.options.mapping": "minmax"}),
    "updates": ("spmc", {"aggregator.options.space": "updates"}),
    "third_party": (
        "spmc",
        {"local.rule": "sgd", "aggregator.pre": ("clip",)}
        | {f"aggregator.options.{option}": value for option, value in THIRD_PARTY.items()},
    ),
    "code_average": ANCHOR["spmc_code_epochs_10"],
    "code_oracle": ("fedavg,reference", {"local.epochs": 10, "aggregator.options.oracle_weights": True}),
    "code_client_half": ("spmc,reference", {"aggregator.name": "mean", "aggregator.options.weights": "uniform"}),
    "code_server_half": ("spmc,reference", {"local.rule": "sgd", "local.options": {}}),
    "code_both": ("spmc,reference", {}),
}
"""Does SPMC defend, and does any switch that its paper, its code or a third party documents make it defend? Both halves
apart and together beside averaging and beside averaging by a server that knew the attackers (..._oracle, marked; with
SPMC's clients their teacher then leaves the malicious out too); in the papers' setting, and (code_...) under the attack
and the settings of the authors' code. At 30 % malicious clients and Dirichlet 0.5; 38 rounds of averaging on CIFAR-10
took 39 to 43 minutes of one CPU core beside other work, SPMC's clients were not timed."""

STUDIES = {
    "anchor": Study(
        "plain averaging in every setting that the papers leave open (docs/reproduction.md)", ANCHOR, "", ("settings",)
    ),
    "spmc_halves": Study("SPMC's two halves apart and together (docs/spmc.md)", SPMC_HALVES, "", ("settings",)),
    "spmc_question": Study(
        "SPMC's halves and switches beside averaging, also by a server that knew the attackers",
        SPMC_QUESTION,
        "",
        ("settings", "detection"),
    ),
    "fdcr_question": Study(
        "FDCR when the server does not know who is malicious (docs/fdcr.md)",
        FDCR_QUESTION,
        "badnets",
        ("settings", "detection"),
    ),
}
"""By the NAME of the command line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    names = "\n".join(
        f"  {name:<14} {study.title}\n{'':17}cells: {', '.join(study.cells)}" for name, study in STUDIES.items()
    )
    parser = Parser("", f"{__doc__}\nNAME is one of\n{names}\n", resumes=True)
    parser.positional("NAME", "one of the names above")
    parser.flag(Option("--data", str, "cifar10"), "NAME", "data set")
    parser.flag(Option("--seeds", str, "0,1,2"), "N,...", "of every cell")
    parser.flag(Option("--rounds", int, 12, range=Range(1, 10**9)), "N", "rounds of every cell")
    cells = Option("--cells", str, None, optional=True)
    parser.flag(cells, "NAME,...", "cells, or parts of their names (default: all; fdcr_question: badnets)")
    parser.flag(Option("--workdir", str, None, optional=True), "DIR", "run folders (default runs/NAME)")
    parser.flag(Option("--results", str, None, optional=True), "DIR", "kept results (default experiments/results/NAME)")
    return run_command(parser, lambda flags: _cells(parser, flags), arguments)


def _cells(parser: Parser, flags: Flags) -> int:
    if len(flags.positional) != 1 or flags.positional[0] not in STUDIES:
        given = " ".join(flags.positional) or "nothing"
        raise parser.refusal(f"NAME must be one of {', '.join(STUDIES)}, and {given} is given")
    study_name = flags.positional[0]
    study = STUDIES[study_name]
    workdir = expanded(flags["workdir"] or f"runs/{study_name}", "--workdir")
    results = folder_to_write(flags["results"] or RESULTS / study_name, "--results")
    words = (study.default if flags["cells"] is None else flags["cells"]).split(",")
    chosen = [name for name in study.cells if any(w == name or (w in name and w not in study.cells) for w in words)]
    if not chosen:
        raise parser.refusal(f"--cells = {flags['cells']} names no cell: they are {', '.join(study.cells)}")
    for seed in seeds_of(parser, flags["seeds"]):
        for cell in chosen:
            folder = Path(f"{flags['data']}_{flags['rounds']}_rounds", cell, f"seed{seed}")
            if (results / folder).is_dir():
                continue
            preset, fields = study.cells[cell]
            fixed = {"seed": seed, "federation.rounds": flags["rounds"]}
            run_cell(preset, {**fixed, **fields}, flags["data"], workdir / folder)
            copy_results(workdir / folder, results / folder)
    settings, _ = group(read.read([results]).runs)
    show("\n".join(tables.to_markdown(one) for one in overview.tables(settings) if one.name in study.tables))
    return 0


def seeds_of(parser: Parser, text: str) -> list[int]:
    """The seeds that a command line gives.

    Raises:
        ConfigError: they are no whole numbers with commas.
    """
    if not all(word.isascii() and word.isdigit() for word in text.split(",")):
        raise parser.refusal(f"--seeds = {text} is not allowed: it must be whole numbers with commas")
    return [int(word) for word in text.split(",")]


def config_of(preset: str, fields: Mapping[str, Any], data: str) -> Any:
    """The config of a cell, not resolved."""
    from fedjax_spmc import config as configs

    config = configs.make_config(preset, data__name=data)
    for path, value in fields.items():
        configs.set_field(config, path, value)
    return config


def run_cell(preset: str, fields: Mapping[str, Any], data: str, workdir: Path) -> None:
    """Runs one cell to its end, or goes on with it; a finished one is left as it is."""
    from fedjax_spmc import experiment

    summary = workdir / "summary.json"
    if summary.is_file() and json.loads(summary.read_text())["status"] == "finished":
        return
    experiment.run(config_of(preset, fields, data), workdir)


def copy_results(run_folder: Path, target: Path) -> None:
    """Copies the small files of a finished cell to a new folder."""
    target.mkdir(parents=True)
    for name in KEPT_FILES:
        shutil.copy(run_folder / name, target / name)


if __name__ == "__main__":
    sys.exit(main())
