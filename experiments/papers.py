"""What the scripts of the papers' tables and figures share: play what is missing of some sweeps, then report.

Cells that `experiments/results/` holds are taken from there and not played again.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import keep

from fedjax_spmc import config as configs
from fedjax_spmc.config import FIELDS
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.report import page, read
from fedjax_spmc.run import guarded, use_compilation_cache
from fedjax_spmc.sweep import Sweep, engine, expand
from fedjax_spmc.sweep.__main__ import override
from fedjax_spmc.sweep.plan import cell_id
from fedjax_spmc.sweep.table import FINISHED, Table

ROOT = Path(__file__).resolve().parent.parent
FLAGS = """
flags: --rounds=N --seeds=0,1,2 --limit=N (so many training and so many test images) --data=NAME,... --methods=NAME,...
       --only=FIELD=VALUE,... (in place of the values that a field is swept over) --reference (as the authors' code
       does it) --workdir=DIR --out=DIR --details=N --keep (copies the finished cells' small files to
       experiments/results) --dry-run --config.FIELD=VALUE
"""


def main(
    doc: str | None,
    sweeps: Sequence[tuple[str, str]],
    tables: Sequence[str],
    workdir: str,
    narrow: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    models: bool = False,
) -> int:
    """The command of a script; returns its exit code: 0, 1 where a cell failed or diverged, 2 for bad input.

    Args:
        doc: of the script.
        sweeps: (file in configs/sweeps, its argument).
        tables: the papers' tables that the report shows in any case.
        workdir: of the sweep, by default.
        narrow: swept fields and the values that they are narrowed to.
        seeds: by default.
        models: the pictures need models, so that cells without one are played again.
    """
    return guarded(lambda: _main(doc or "", sweeps, tables, workdir, dict(narrow or {}), seeds, models))


def _main(
    doc: str,
    sweeps: Sequence[tuple[str, str]],
    tables: Sequence[str],
    workdir: str,
    narrow: dict[str, Sequence[Any]],
    seeds: Sequence[int],
    models: bool,
) -> int:
    parser = argparse.ArgumentParser(description=doc + FLAGS, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seeds", default=",".join(map(str, seeds)))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--data")
    parser.add_argument("--methods")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--workdir", default=workdir)
    parser.add_argument("--out")
    parser.add_argument("--details", type=int, default=page.DETAILS)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results")
    flags, rest = parser.parse_known_args()
    changes = [("federation.rounds", str(flags.rounds))]
    if flags.limit is not None:
        changes += [("data.limit_train", str(flags.limit)), ("data.limit_test", str(flags.limit))]
    for word in rest:
        name, equals, value = word.partition("=")
        if not name.startswith("--config.") or not equals:
            raise ConfigError(f"{word} is no flag of this command; see --help.")
        changes.append((name.removeprefix("--config."), value))
    numbers = flags.seeds.split(",")
    if not all(number.isdigit() for number in numbers):
        raise ConfigError(f"--seeds = {flags.seeds} is not allowed: it must be whole numbers with commas.")
    if flags.data:
        narrow["data.name"] = flags.data.split(",")
    if flags.methods:
        narrow["method"] = flags.methods.split(",")
    for word in flags.only:
        name, _, values = word.partition("=")
        narrow[name] = values.split(",")

    wanted = [_sweep(name, arg, flags.reference, narrow, [int(n) for n in numbers], changes) for name, arg in sweeps]
    kept = {} if models else _kept(flags.results)
    ids: set[str] = set()
    for one in wanted:
        cells = expand(one)
        ids |= {cell.id for cell in cells}
        missing = [cell for cell in cells if cell.id not in kept]
        print(f"{len(cells)} cells, {len(cells) - len(missing)} of them kept in {flags.results}", file=sys.stderr)
        if missing and not flags.dry_run:
            use_compilation_cache(missing[0].config)
            engine.play(one, missing, Table(flags.workdir), sys.stderr)
    if flags.dry_run:
        return 0
    rows = Table(flags.workdir).rows if Path(flags.workdir).is_dir() else {}
    if flags.keep:
        _keep(flags.workdir, rows, flags.results)
    sources = [*([flags.workdir] if rows else []), *sorted(str(kept[name]) for name in ids & kept.keys())]
    out = flags.out or str(Path(flags.workdir) / "report")
    print(f"report: {page.build(sources, out, tables, flags.details)}")
    return 0 if all(rows[name]["status"] == FINISHED for name in ids & rows.keys()) else 1


def _sweep(
    file: str,
    arg: str,
    reference: bool,
    narrow: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    changes: Sequence[tuple[str, str]],
) -> Sweep:
    path = ROOT / "configs" / "sweeps" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"_sweep_{file}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.get_config(",".join(word for word in (arg, "reference" if reference else "") if word))
    if reference and "method" in narrow:
        narrow = {**narrow, "method": [f"{method},reference" for method in narrow["method"]]}
    grid = {
        name: [_value(name, value, values) for value in narrow[name]] if name in narrow else values
        for name, values in made.grid.items()
    }
    return override(made._replace(grid=grid, seeds=tuple(seeds)), changes)


def _value(name: str, wanted: Any, swept: Sequence[Any]) -> Any:
    """A value of a swept field, which the command line gives as text."""
    if not isinstance(wanted, str) or wanted in swept:
        return wanted
    same = [value for value in swept if str(value) == wanted]
    return same[0] if same else FIELDS[name].parse(wanted) if name in FIELDS else wanted


def _kept(results: Path) -> dict[str, Path]:
    """Experiment -> the folder that keeps it, of all that finished."""
    if not results.is_dir() or not any(results.iterdir()):
        return {}
    found = {}
    for run in read.read([results]).runs:
        if run.folder is not None and run.status == FINISHED:
            config = configs.resolve(json.loads((run.folder / "config.json").read_text()))
            found[cell_id(config)] = run.folder
    return found


def _keep(workdir: str, rows: Mapping[str, Mapping[str, Any]], results: Path) -> None:
    for name, row in rows.items():
        place = results / Path(workdir).name / name
        if row["status"] == FINISHED and not place.exists():
            keep(Path(workdir) / row["folder"], place)
