"""Tables of estimates, and how they are written: CSV (a row per cell, or per line) and Markdown; LaTeX: `latex.py`."""

import csv
import io
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from fedjax_spmc.report.estimates import UNDEFINED, Estimate
from fedjax_spmc.report.settings import MARKS

BEST, SECOND = 1, 2
INTERVAL, STD = "interval", "std"
SPREADS = (INTERVAL, STD)
"""What stands beside a mean: its bootstrap interval, or the standard deviation over the seeds (n - 1)."""
RANKING = (
    "Bold: the best mean of a column, and every cell whose interval overlaps the best one's; underlined: the same among"
    " the cells that are left. Only cells with two finished seeds or more are compared, without an oracle and without a"
    " mark that speaks against it."
)
INTERVALS = (
    "Mean over the seeds of the mean of the last five evaluated rounds (of as many as there are, where fewer), percent;"
    " in brackets the 95 % percentile bootstrap interval over seeds. Of two or three seeds it spans hardly more"
    " than the smallest and the largest and is narrower than it should be."
)


class Cell(NamedTuple):
    """One cell.

    Attributes:
        estimate: mean and interval.
        published: the paper's figure; NaN where there is none.
        marks: letters of `settings.MARKS`.
        rank: BEST, SECOND or 0.
        digits: decimals that are shown.
        text: what is shown in place of the estimate, which still sorts.
        heat: how dark the cell is on a page, 0 to 1; NaN = no heat map.
        spread: of `SPREADS`, what stands beside the mean.
    """

    estimate: Estimate = UNDEFINED
    published: float = math.nan
    marks: str = ""
    rank: int = 0
    digits: int = 2
    text: str | None = None
    heat: float = math.nan
    spread: str = INTERVAL

    @property
    def difference(self) -> float:
        """The mean minus the published figure; NaN where either is missing."""
        return self.estimate.mean - self.published

    def value(self) -> str:
        """The mean, or the text; a dash for nothing."""
        if self.text is not None:
            return self.text
        return fixed_point(self.estimate.mean, self.digits) if self.estimate.known else "–"

    def interval(self) -> str:
        """`[low, high]`, or nothing."""
        if self.text is not None or not self.estimate.interval:
            return ""
        return f"[{fixed_point(self.estimate.low, self.digits)}, {fixed_point(self.estimate.high, self.digits)}]"

    def beside(self) -> str:
        """What stands beside the mean: the interval, or ± the standard deviation; or nothing."""
        if self.spread == INTERVAL:
            return self.interval()
        known = self.text is None and not math.isnan(self.estimate.std)
        return f"± {fixed_point(self.estimate.std, self.digits)}" if known else ""

    def comparison(self) -> str:
        """The paper's number and the difference as text, or nothing."""
        if math.isnan(self.published):
            return ""
        apart = "" if math.isnan(self.difference) else f", {self.difference:+.2f}".replace("-", "−")
        return f"paper {self.published:.2f}{apart}"

    def shade(self) -> str:
        """The cell's style on a page: how dark it is, or nothing."""
        return "" if math.isnan(self.heat) else f"--heat: {100 * self.heat:.0f}%"

    def sort_key(self) -> str:
        """The value by which a click on the column's header sorts; empty comes last."""
        return f"{self.estimate.mean:.9g}" if self.estimate.known else self.text or ""


class Row(NamedTuple):
    """A row: the section of the table that it is in ("" for none), its labels and its cells."""

    section: str
    labels: tuple[str, ...]
    cells: list[Cell]


class Table(NamedTuple):
    """A table.

    Attributes:
        name: of its files.
        title: above it.
        notes: sentences below it.
        label_columns: names of the leading columns, which hold the labels of the rows.
        groups: (name, columns) of the columns, left to right; ("", n) where they are not grouped.
        columns: names of the columns.
        rows: all lines.
        introduction: a sentence between title and table.
    """

    name: str
    title: str
    notes: list[str]
    label_columns: tuple[str, ...]
    groups: list[tuple[str, int]]
    columns: list[str]
    rows: list[Row]
    introduction: str = ""

    def legend(self) -> list[str]:
        """The meaning of each mark that occurs."""
        used = {letter for row in self.rows for cell in row.cells for letter in cell.marks}
        return [f"{letter}: {meaning}." for letter, meaning in MARKS.items() if letter in used]

    def sections(self) -> list[tuple[str, list[Row]]]:
        """The rows by section, in order."""
        parts: dict[str, list[Row]] = {}
        for row in self.rows:
            parts.setdefault(row.section, []).append(row)
        return list(parts.items())

    def group_of(self, column: int) -> str:
        """The group of a column."""
        names = [name for name, size in self.groups for _ in range(size)]
        return names[column]


IN_BRACKETS = re.compile(
    r"in brackets the 95 % percentile bootstrap interval over (seeds|them)(\. Of two or three seeds .*)?"
)


def with_spread(table: Table, spread: str) -> Table:
    """The table with another spread beside its means, and its notes about it."""
    if spread == INTERVAL:
        return table
    rows = [row._replace(cells=[cell._replace(spread=spread) for cell in row.cells]) for row in table.rows]
    notes = [IN_BRACKETS.sub(r"± the standard deviation over \1 (n - 1)", note) for note in table.notes]
    return table._replace(rows=rows, notes=notes)


def with_columns(table: Table, names: Collection[str]) -> Table:
    """The table with these columns alone, spaces written as underscores; whole where it has none of them."""
    keep = [i for i, name in enumerate(table.columns) if name.replace(" ", "_") in names]
    if not keep:
        return table
    groups: list[tuple[str, int]] = []
    for i in keep:
        name = table.group_of(i)
        if groups and groups[-1][0] == name:
            groups[-1] = (name, groups[-1][1] + 1)
        else:
            groups.append((name, 1))
    rows = [row._replace(cells=[row.cells[i] for i in keep]) for row in table.rows]
    return table._replace(columns=[table.columns[i] for i in keep], groups=groups, rows=rows)


def fixed_point(value: float, digits: int) -> str:
    """A number with so many decimals and a typographic minus."""
    return f"{value:.{digits}f}".replace("-", "−")


def ranks(cells: Sequence[tuple[Estimate, bool]]) -> list[int]:
    """BEST, SECOND or 0 of each cell of a column in which more is better; see `RANKING`.

    Args:
        cells: the estimate, and whether it may be ranked.
    """
    result = [0] * len(cells)
    remaining = [i for i, (one, allowed) in enumerate(cells) if allowed and one.interval]
    if len(remaining) < 2:
        return result
    for rank in (BEST, SECOND):
        if remaining:
            best = max((cells[i][0] for i in remaining), key=lambda one: one.mean)
            overlapping = [i for i in remaining if cells[i][0].high >= best.low]
            for i in overlapping:
                result[i] = rank
            remaining = [i for i in remaining if i not in overlapping]
    return result


def to_csv(table: Table) -> str:
    """A row per cell, in full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    heads = [head.lower().replace(" ", "_") for head in table.label_columns]
    values = ["mean", "low", "high", "seeds", "published", "difference", "marks", "rank", "text"]
    writer.writerow(["section", *heads, "group", "column", *values])
    for row in table.rows:
        for column, cell in enumerate(row.cells):
            one = cell.estimate
            numbers = [one.mean, one.low, one.high, one.seeds, cell.published, cell.difference]
            plain = ["" if isinstance(value, float) and math.isnan(value) else value for value in numbers]
            place = [row.section, *row.labels, table.group_of(column), table.columns[column]]
            writer.writerow([*place, *plain, cell.marks, cell.rank or "", cell.text or ""])
    return buffer.getvalue()


def to_wide_csv(table: Table) -> str:
    """A row per line of the table, in full precision: of each column the mean, and its spread where there is any."""
    kinds: list[list[tuple[str, Callable[[Cell], float | str]]]] = []
    for column in range(len(table.columns)):
        cells = [row.cells[column] for row in table.rows]
        wanted: list[tuple[str, Callable[[Cell], float | str]]] = [("", _plain_value)]
        if any(cell.estimate.interval for cell in cells):
            wanted += [(" low", lambda cell: cell.estimate.low), (" high", lambda cell: cell.estimate.high)]
            wanted += [(" std", lambda cell: cell.estimate.std)]
        if any(not math.isnan(cell.published) for cell in cells):
            wanted += [(" published", lambda cell: cell.published)]
        kinds.append(wanted)
    names = [f"{table.group_of(i)} {name}".strip() for i, name in enumerate(table.columns)]
    heads = [head for name, wanted in zip(names, kinds, strict=True) for head in (f"{name}{end}" for end, _ in wanted)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["section", *table.label_columns, *heads, "marks"])
    for row in table.rows:
        values = [of(cell) for cell, wanted in zip(row.cells, kinds, strict=True) for _, of in wanted]
        plain = ["" if isinstance(value, float) and math.isnan(value) else value for value in values]
        marks = "".join(letter for letter in MARKS if any(letter in cell.marks for cell in row.cells))
        writer.writerow([row.section, *row.labels, *plain, marks])
    return buffer.getvalue()


def _plain_value(cell: Cell) -> float | str:
    return cell.estimate.mean if cell.text is None or cell.estimate.known else cell.text


def _markdown_text(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown_cell(cell: Cell) -> str:
    value = _markdown_text(cell.value())
    value = {BEST: f"**{value}**", SECOND: f"<u>{value}</u>"}.get(cell.rank, value)
    marks = f"<sup>{cell.marks}</sup>" if cell.marks else ""
    beside = f"({cell.comparison()})" if cell.comparison() else ""
    return " ".join(part for part in (value + marks, cell.beside(), beside) if part)


def markdown_rows(table: Table) -> str:
    """The table alone, without title and notes."""
    sectioned = any(row.section for row in table.rows)
    heads = [*([""] if sectioned else []), *table.label_columns]
    columns = [f"{table.group_of(i)} {name}".strip() for i, name in enumerate(table.columns)]
    lines = ["| " + " | ".join([*heads, *columns]) + " |", "|" + "---|" * (len(heads) + len(columns))]
    for row in table.rows:
        first = [*([row.section] if sectioned else []), *map(_markdown_text, row.labels)]
        lines.append("| " + " | ".join([*first, *map(_markdown_cell, row.cells)]) + " |")
    return "\n".join(lines) + "\n"


def to_markdown(table: Table) -> str:
    """Title, table, notes."""
    notes = "".join(f"* {note}\n" for note in [*table.notes, *table.legend()])
    introduction = f"{table.introduction}\n\n" if table.introduction else ""
    return f"## {table.title}\n\n{introduction}{markdown_rows(table)}\n{notes}"
