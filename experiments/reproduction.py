"""Fills the tables in README.md and docs/ from kept result files, so that no number there is typed by hand.

    python experiments/reproduction.py            # writes them anew
    python experiments/reproduction.py --check    # exit code 1 where a page is not what the results say

A table stands between `<!-- report FOLDER,FOLDER TABLE [methods=NAME,NAME] [columns=NAME,NAME] -->` and `<!-- end -->`:
TABLE of `python -m fedjax_spmc.report FOLDER FOLDER`, the folders below experiments/results, with these columns, and
these rows by their first head, what stands in brackets left out.
"""

import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fedjax_spmc.command import Parser, run_command
from fedjax_spmc.report import matrix, overview, published, read, tables
from fedjax_spmc.report.settings import group
from fedjax_spmc.terminal import show

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- report (\S+) (\S+)([^>]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@cache
def made(folders: str) -> dict[str, tables.Table]:
    """All tables of the report of some folders, by name."""
    found = read.read([ROOT / "experiments" / "results" / folder for folder in folders.split(",")])
    runs = [run._replace(name=str(Path(run.name).relative_to(ROOT))) for run in found.runs]
    settings, _ = group(runs)
    listed = [
        *published.tables(settings, tuple(published.LAYOUTS)),
        *matrix.matrix_tables(settings),
        *overview.tables(settings),
    ]
    return {one.name: one for one in listed}


def narrowed(table: tables.Table, options: dict[str, list[str]]) -> tables.Table:
    """The table with the wanted columns and rows alone."""
    keep = [
        i
        for i, name in enumerate(table.columns)
        if "columns" not in options or name.replace(" ", "_") in options["columns"]
    ]
    wanted = options.get("methods")
    rows = [
        row._replace(cells=[row.cells[i] for i in keep])
        for row in table.rows
        if wanted is None or row.labels[0].partition(" (")[0] in wanted
    ]
    groups = [(table.group_of(i), 1) for i in keep]
    return table._replace(columns=[table.columns[i] for i in keep], rows=rows, groups=groups)


def block(folders: str, name: str, words: str) -> str:
    """The table and its legend as Markdown."""
    options = {key: value.split(",") for key, _, value in (word.partition("=") for word in words.split())}
    table = narrowed(made(folders)[name], options)
    legend = "".join(f"* {line}\n" for line in table.legend())
    return f"\n{tables.markdown_rows(table)}\n{legend}" + "\n" * bool(legend)


def filled(text: str) -> str:
    """A page with its tables made anew."""
    return BLOCK.sub(lambda m: m[1] + block(m[2], m[3], m[4]) + m[6], text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.switch("--check", "writes nothing, and ends with 1 where a table is not what the results say")
    return run_command(parser, lambda flags: _make(flags["check"]), arguments)


def _make(check: bool) -> int:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    stale = [page for page in pages if filled(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    for page in stale:
        show(f"{page.relative_to(ROOT)} is not what the results say")
        if not check:
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    return int(bool(stale) and check)


if __name__ == "__main__":
    sys.exit(main())
