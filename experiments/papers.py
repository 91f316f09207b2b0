"""A table or figure of the papers beside what comes out here: runs what is missing of its sweeps, then reports.

    python experiments/papers.py NAME [flags]
    python experiments/papers.py spmc_table2                                                    # the paper's settings
    python experiments/papers.py fdcr_table1 --rounds=2 --seeds=0 --limit=2000 --data=cifar10   # a look

Cells that the folder of `--results` holds are taken from there and not run again; `--keep` puts finished cells there.
Exit codes: 0 done, 1 a cell failed or diverged, 2 bad input (one sentence says what).
"""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cells import RESULTS, copy_results, seeds_of

from fedjax_spmc import config as configs
from fedjax_spmc.command import Flags, Overrides, Parser, run_command
from fedjax_spmc.config import FIELDS
from fedjax_spmc.config.files import use_compilation_cache
from fedjax_spmc.options import Option, Range
from fedjax_spmc.paths import expanded, folder_to_write
from fedjax_spmc.report import page, read
from fedjax_spmc.sweep import Sweep, engine, expand
from fedjax_spmc.sweep.__main__ import override
from fedjax_spmc.sweep.plan import cell_id
from fedjax_spmc.sweep.table import FINISHED, Table
from fedjax_spmc.terminal import note, show

SWEEPS = Path(__file__).resolve().parent.parent / "configs" / "sweeps"
COUNT = Range(1, 10**9)


class PaperResult(NamedTuple):
    """A table or figure of a paper.

    Attributes:
        title: what it is, for the help.
        sweeps: (file in configs/sweeps without its ending, its argument).
        workdir: the sweep folder, by default.
        tables: the papers' tables that the report shows in any case; see `report.published.LAYOUTS`.
        values: swept field -> the values that it is restricted to.
        seeds: by default.
        needs_models: it has pictures that need models, so that kept cells, which have none, are run again.
    """

    title: str
    sweeps: Sequence[tuple[str, str]]
    workdir: str
    tables: Sequence[str] = ()
    values: Mapping[str, Sequence[Any]] = {}
    seeds: str = "0,1,2"
    needs_models: bool = False


RESULTS_OF_PAPERS = {
    "fdcr_table1": PaperResult(
        "FDCR's Table 1: 2-means, DBSCAN and FINCH, two data sets, two betas",
        [("fdcr_table1", "")],
        "sweeps/fdcr_table1",
        ["fdcr1"],
    ),
    "fdcr_table2": PaperResult(
        "FDCR's Table 2: discrepancies with and without importances, CIFAR-10, two betas",
        [("fdcr_table2", "")],
        "sweeps/fdcr_table2",
        ["fdcr2"],
    ),
    "fdcr_table3": PaperResult(
        "FDCR's Table 3: averaging, FCDC, FPRA and both, two data sets, two betas",
        [("fdcr_table3", "fedavg"), ("fdcr_table3", "")],
        "sweeps/fdcr_table3",
        ["fdcr3"],
    ),
    "fdcr_table4": PaperResult(
        "FDCR's Table 4: fourteen methods, three data sets, two betas, two fractions",
        [("fdcr_table4", "")],
        "sweeps/fdcr_table4",
        ["fdcr4"],
    ),
    "spmc_table2": PaperResult(
        "SPMC's Table 2: eleven methods, three data sets, gamma 0.2 and 0.3",
        [("spmc_table2", "")],
        "sweeps/spmc_table2",
        ["spmc2"],
    ),
    "spmc_fig6": PaperResult(
        "SPMC's Figure 6: A and R over the rounds on CIFAR-10, all methods of Table 2 and its cells",
        [("spmc_table2", "")],
        "sweeps/spmc_table2",
        values={"data.name": ["cifar10"]},
    ),
    "spmc_fig7": PaperResult(
        "SPMC's Figure 7: Grad-CAM of SPMC and DnC with and without the trigger, CIFAR-10, gamma 0.3",
        [("spmc_table2", "")],
        "sweeps/spmc_table2",
        values={"data.name": ["cifar10"], "method": ["dnc", "spmc"], "attack.malicious_fraction": [0.3]},
        seeds="0",
        needs_models=True,
    ),
}
"""By the NAME of the command line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    names = "\n".join(f"  {name:<12} {paper.title}" for name, paper in RESULTS_OF_PAPERS.items())
    parser = Parser("", f"{__doc__}\nNAME is one of\n{names}\n", overrides=True, resumes=True)
    parser.positional("NAME", "one of the names above")
    parser.flag(Option("--rounds", int, 50, range=COUNT), "N", "rounds of every cell")
    parser.flag(Option("--seeds", str, None, optional=True), "N,...", "of every cell (default 0,1,2; spmc_fig7: 0)")
    parser.flag(Option("--limit", int, None, optional=True, range=COUNT), "N", "so many training and test images")
    parser.flag(Option("--data", str, None, optional=True), "NAME,...", "data sets in place of the paper's")
    parser.flag(Option("--methods", str, None, optional=True), "NAME,...", "methods in place of the paper's")
    only = Option("--only", str, ())
    parser.flag(only, "FIELD=VALUE,...", "values in place of those that a field is swept over", repeated=True)
    parser.switch("--reference", "as the authors' code does it")
    parser.flag(Option("--workdir", str, None, optional=True), "DIR", "the sweep folder (default: named by the sweep)")
    parser.flag(Option("--out", str, None, optional=True), "DIR", "where the report goes (default WORKDIR/report)")
    details = Option("--details", int, page.DEFAULT_DETAILS, range=Range(0, 10**6))
    parser.flag(details, "N", "how many runs get pictures of their own")
    parser.flag(Option("--results", str, str(RESULTS)), "DIR", "kept results")
    parser.switch("--keep", "copies the small files of finished cells to the kept results")
    parser.switch("--dry-run", "only says how many cells there are and how many of them are kept")
    return run_command(parser, lambda flags: _papers(parser, flags), arguments)


def _papers(parser: Parser, flags: Flags) -> int:
    if len(flags.positional) != 1 or flags.positional[0] not in RESULTS_OF_PAPERS:
        given = " ".join(flags.positional) or "nothing"
        raise parser.refusal(f"NAME must be one of {', '.join(RESULTS_OF_PAPERS)}, and {given} is given")
    paper = RESULTS_OF_PAPERS[flags.positional[0]]
    workdir = expanded(flags["workdir"] or paper.workdir, "--workdir")
    results = (folder_to_write if flags["keep"] else expanded)(flags["results"], "--results")
    out = flags["out"] or workdir / "report"
    page.check_out(expanded(out, "--out"))
    sweeps = _sweeps(parser, flags, paper)
    kept = {} if paper.needs_models else _kept_cells(results)
    ids: set[str] = set()
    for sweep in sweeps:
        cells = expand(sweep)
        ids |= {cell.id for cell in cells}
        missing = [cell for cell in cells if cell.id not in kept]
        note(f"{len(cells)} cells, {len(cells) - len(missing)} of them kept in {results}")
        if missing and not flags["dry_run"]:
            use_compilation_cache(missing[0].config)
            engine.play(sweep, missing, Table(workdir), sys.stderr)
    if flags["dry_run"]:
        return 0
    rows = Table(workdir).rows if workdir.is_dir() else {}
    if flags["keep"]:
        _keep(workdir, rows, results)
    sources = [*([workdir] if rows else []), *sorted(kept[name] for name in ids & kept.keys())]
    show(f"report: {page.build(sources, out, paper.tables, flags['details'])}")
    return 0 if all(rows[name]["status"] == FINISHED for name in ids & rows.keys()) else 1


def _sweeps(parser: Parser, flags: Flags, paper: PaperResult) -> list[Sweep]:
    """The paper's sweeps as the flags want them."""
    values = dict(paper.values)
    if flags["data"]:
        values["data.name"] = flags["data"].split(",")
    if flags["methods"]:
        values["method"] = flags["methods"].split(",")
    for text in flags["only"]:
        name, equals, given = text.partition("=")
        if not equals or not given:
            raise parser.refusal(f"--only = {text} is not allowed: it must be FIELD=VALUE,VALUE,...")
        values[name] = given.split(",")
    overrides: Overrides = [("federation.rounds", str(flags["rounds"]))]
    if flags["limit"] is not None:
        overrides += [("data.limit_train", str(flags["limit"])), ("data.limit_test", str(flags["limit"]))]
    overrides += flags.overrides
    seeds = seeds_of(parser, flags["seeds"] or paper.seeds)
    return [_sweep(*sweep, flags["reference"], values, seeds, overrides) for sweep in paper.sweeps]


def _sweep(
    file: str,
    argument: str,
    reference: bool,
    values: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    overrides: Overrides,
) -> Sweep:
    """The sweep of a file in configs/sweeps, its grid restricted to some values and its base config changed."""
    spec = importlib.util.spec_from_file_location(f"_sweep_{file}", SWEEPS / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sweep = module.get_config(",".join(word for word in (argument, "reference" if reference else "") if word))
    if reference and "method" in values:
        values = {**values, "method": [f"{method},reference" for method in values["method"]]}
    grid = {
        name: [_grid_value(name, value, swept) for value in values[name]] if name in values else swept
        for name, swept in sweep.grid.items()
    }
    return override(sweep._replace(grid=grid, seeds=tuple(seeds)), overrides)


def _grid_value(name: str, wanted: Any, swept: Sequence[Any]) -> Any:
    """A value of a swept field, which the command line gives as text."""
    if not isinstance(wanted, str) or wanted in swept:
        return wanted
    same = [value for value in swept if str(value) == wanted]
    return same[0] if same else FIELDS[name].parse(wanted) if name in FIELDS else wanted


def _kept_cells(results: Path) -> dict[str, Path]:
    """Cell id -> the folder that keeps it, of all kept results that finished."""
    if not results.is_dir() or not any(results.iterdir()):
        return {}
    found = {}
    for run in read.read([results]).runs:
        if run.folder is not None and run.status == FINISHED:
            config = configs.resolve(json.loads((run.folder / "config.json").read_text()))
            found[cell_id(config)] = run.folder
    return found


def _keep(workdir: Path, rows: Mapping[str, Mapping[str, Any]], results: Path) -> None:
    """Copies the small files of the sweep's finished cells that are not kept yet."""
    for name, row in rows.items():
        folder = results / workdir.name / name
        if row["status"] == FINISHED and not folder.exists():
            copy_results(workdir / row["folder"], folder)


if __name__ == "__main__":
    sys.exit(main())
