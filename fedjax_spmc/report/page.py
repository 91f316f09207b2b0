"""Writes the report's folder: `index.html`, one page that needs nothing else, and the tables beside it."""

import json
import os
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_spmc import numerics
from fedjax_spmc.errors import ConfigError, WorkdirError
from fedjax_spmc.nearest import did_you_mean
from fedjax_spmc.paths import closed_to_writing, expanded
from fedjax_spmc.reading import UnreadableError, json_object, reason_of
from fedjax_spmc.record.files import replace, unwritable
from fedjax_spmc.report import (
    anchor,
    beside,
    figures,
    latex,
    matrix,
    overview,
    published,
    rankings,
    read,
    tables,
    triggers,
)
from fedjax_spmc.report.figures import Picture
from fedjax_spmc.report.images import RunImages, TestImages
from fedjax_spmc.report.read import Run
from fedjax_spmc.report.settings import Setting, group, labels
from fedjax_spmc.report.tables import Table

MARKER = "report.json"
"""Says that a folder holds a report, and which files of it are the report's."""
DEFAULT_DETAILS = 8
"""How many runs get pictures of their own by default."""


class RunDetail(NamedTuple):
    """A run's own part of the page.

    Attributes:
        title: the setting and the seed.
        run: the run.
        departures: the fields in which it departs from the paper's setting, as text.
        pictures: of its curves, weights, partition, ...
        missing: sentences about what cannot be shown.
        test_images: None where they cannot be shown.
    """

    title: str
    run: Run
    departures: list[str]
    pictures: list[Picture]
    missing: list[str]
    test_images: TestImages | None


@numerics.pinned()
def build(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    paper_tables: Collection[str] = (),
    details: int = DEFAULT_DETAILS,
    data_dir: str | None = None,
    title: str = "",
    columns: Collection[str] = (),
    spread: str = tables.INTERVAL,
) -> Path:
    """Writes a report of all runs at and below the given folders.

    Args:
        sources: run folders, sweep folders, folders of these.
        out: where the report goes: a new or empty folder, or one with a report, which is replaced.
        paper_tables: names of the papers' tables that are shown whatever was run; see `published.LAYOUTS`.
        details: how many runs get pictures of their own.
        data_dir: where data sets are, in place of the configs' own.
        title: of the page.
        columns: names of columns, with underscores for spaces: the tables that have any of them show these alone.
        spread: of `tables.SPREADS`, what stands beside a mean.

    Returns:
        The page.

    Raises:
        WorkdirError: nothing was found, or `out` cannot be used.
        ConfigError: no table has one of the columns.
    """
    path = expanded(out, "--out")
    old = check_out(path)
    found = read.read(sources)
    settings, notes = group(found.runs)
    listed = [*published.tables(settings, paper_tables), *matrix.matrix_tables(settings), *overview.tables(settings)]
    listed = [tables.with_spread(one, spread) for one in _narrowed(listed, columns)]
    files = {f"tables/{one.name}.{ending}": write(one) for one in listed for ending, write in WRITERS.items()}
    files["tables/all.tex"] = latex.document([one.name for one in listed])
    text = _page(found, settings, notes, listed, details, data_dir, title)
    files["index.html"] = figures.with_unique_ids(text)
    files[MARKER] = json.dumps({"report": found.sources, "files": sorted(files)}, indent=2) + "\n"
    _write(path, files, old)
    return path / "index.html"


WRITERS = {
    "csv": tables.to_csv, "wide.csv": tables.to_wide_csv, "md": tables.to_markdown, "tex": latex.to_latex,
}  # fmt: skip


def _narrowed(listed: Sequence[Table], columns: Collection[str]) -> list[Table]:
    """The tables with the wanted columns alone."""
    known = list(dict.fromkeys(name.replace(" ", "_") for one in listed for name in one.columns))
    for name in columns:
        if name not in known:
            meant = did_you_mean(name, known)
            raise ConfigError(
                f"--columns = {name} is not allowed: {f'{meant} It' if meant else 'it'} must be a column of a table "
                f"here: {', '.join(known)}."
            )
    return [tables.with_columns(one, columns) for one in listed] if columns else list(listed)


def check_out(path: Path) -> list[str]:
    """The files of the report that is in a folder; none where it is new or empty.

    Raises:
        WorkdirError: it is no folder, or holds something that is no report.
    """
    name = f"--out = {str(path)!r}"
    try:
        there = os.path.lexists(path)
        if there and not path.is_dir():
            raise WorkdirError(f"{name} is no folder: give another one.")
        closed = closed_to_writing(path)
        if closed:
            raise WorkdirError(f"{name} cannot be used ({closed}): give another one.")
        if not there or not any(path.iterdir()):
            return []
    except OSError as error:
        raise WorkdirError(f"{name} cannot be used ({reason_of(error)}): give another one.") from None
    try:
        files = json_object(path / MARKER).get("files")
    except (FileNotFoundError, UnreadableError) as error:
        if isinstance(error, UnreadableError) and not error.damaged:
            raise WorkdirError(f"{name} cannot be used: {MARKER} in it {error}.") from None
        files = None
    if not isinstance(files, list) or "index.html" not in files:
        raise WorkdirError(f"{name} holds something that is no report: give a new or an empty folder.")
    return [file for file in files if isinstance(file, str)]


def _write(path: Path, files: dict[str, str], old: Sequence[str]) -> None:
    """Writes all files, each atomically, and removes those of the old report that are no more."""
    try:
        (path / "tables").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace(path / name, content.encode())
        for name in set(old) - files.keys():
            if name.startswith("tables/") and ".." not in name:
                (path / name).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(f"--out = {str(path)!r}", path, error) from None


def _page(
    found: read.FoundRuns,
    settings: Sequence[Setting],
    notes: Sequence[str],
    listed: Sequence[Table],
    details: int,
    data_dir: str | None,
    title: str,
) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    papers = {one.name for one in listed if one.name.partition("_")[0] in published.LAYOUTS}
    grids = {one.name for one in listed if one.name.startswith("matrix")}
    panels, panels_left_out = figures.curves(settings)
    varied, common = overview.config_differences(settings)
    shown_runs, runs_left_out = choose_runs(settings, details)
    text = (resources.files("fedjax_spmc.report") / "template.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["raw"] = Markup
    return environment.from_string(text).render(
        title=title or "Federated learning under backdoor attack: what the runs say",
        found=found,
        status_counts=overview.status_counts(found),
        settings=settings,
        notes=[*notes, *overview.remarks_on(settings)],
        asked=overview.asked(settings) if settings else "",
        headline=figures.headline(settings),
        facts=overview.facts(found),
        varied=varied,
        common=common,
        papers=[one for one in listed if one.name in papers],
        matrix=[one for one in listed if one.name in grids],
        overview={one.name: one for one in listed if one.name not in papers | grids},
        pictures={
            **{one.name: beside.pictures(one) for one in listed if one.name in papers},
            "anchor": anchor.anchor_pictures(settings),
            **rankings.rankings_pictures(settings),
        },
        panels=panels,
        panels_left_out=panels_left_out,
        details=_details(shown_runs, settings, RunImages(data_dir)),
        runs_left_out=runs_left_out,
        version=metadata.version("fedjax_spmc"),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def choose_runs(settings: Sequence[Setting], limit: int) -> tuple[list[Run], int]:
    """One run of each setting, at most `limit`, SPMC's and FDCR's first; and how many runs are left out.

    Of a setting's runs it is one with a model if there is any, then the one of the lowest seed.
    """
    candidates = [
        min(
            (run for run in one.runs if run.lines or run.has_model()), key=lambda run: not run.has_model(), default=None
        )
        for one in settings
    ]
    runs = [run for run in candidates if run is not None]
    own = ("spmc", "fdcr")
    first = [run for run in runs if run.config["local.rule"] in own or run.config["aggregator.name"] in own]
    rest = [run for run in runs if not any(run is other for other in first)]
    kept = [*first, *rest][: max(0, limit)]
    chosen = [run for run in runs if any(run is other for other in kept)]
    return chosen, sum(len(one.runs) for one in settings) - len(chosen)


def _details(runs: Sequence[Run], settings: Sequence[Setting], images: RunImages) -> list[RunDetail]:
    names = {id(run): label for setting, label in zip(settings, labels(settings), strict=True) for run in setting.runs}
    by_run: dict[int, Any] = {id(run): setting for setting in settings for run in setting.runs}
    made = []
    for run in runs:
        title = f"{names[id(run)]}, seed {run.config['seed']}"
        pictures, missing = [*figures.run_pictures(run), *triggers.pictures(run)], []
        if not run.lines:
            missing.append("No evaluated round was written: there are no curves.")
        partition, shown = images.partition(run), images.test_images(run)
        if isinstance(partition, Picture):
            pictures.append(partition)
        else:
            missing.append(partition)
        if not isinstance(shown, TestImages):
            missing.append(shown)
        pictures = [figures.named(one, title) for one in pictures]
        departures = overview.departures_text(by_run[id(run)])
        test_images = shown.named(title) if isinstance(shown, TestImages) else None
        made.append(RunDetail(title, run, departures, pictures, missing, test_images))
    return made
