"""Pictures of the papers' tables: what came out of every method beside what the paper prints for it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fedjax_spmc.report.figures import LINE_COLOURS, Panel, dot_key, draw, named, plot_estimates
from fedjax_spmc.report.tables import Cell, Table

METRICS = {"A": "accuracy A", "R": "robustness R_all"}
"""Columns of a paper's table that are drawn, and their titles."""
LEAST = 2
"""Methods with both, from which on there is a picture."""
Line = tuple[str, Cell]


def pictures(table: Table) -> list[Panel]:
    """A panel for each case of a paper's table of which methods were run: A, and R_all."""
    panels = []
    for title, metrics in _cases(table):
        made = []
        for metric, lines in metrics.items():
            if len(lines) < LEAST:
                continue
            caption = f"{METRICS[metric]} beside the paper's, {title}: means over the seeds (dots) with 95 % intervals"
            left = 0.35 + 0.075 * max(len(_marked(*line)) for line in lines)
            paint = lambda axis, lines=lines, words=METRICS[metric]: _plot(axis, lines, words)  # noqa: E731
            margins = (left, 0.15, 0.1, 0.5)
            picture = draw(paint, caption, width=3.9 + left, height=0.8 + 0.26 * len(lines), margins=margins)
            made.append(named(picture, f"{table.title}. {table.introduction}"))
        if made:
            keys = [("here", dot_key(LINE_COLOURS[0])), ("the paper", dot_key("currentColor", "x"))]
            panels.append(Panel(f"{table.title}: {title}", made, keys))
    return panels


def _cases(table: Table) -> Iterator[tuple[str, dict[str, list[Line]]]]:
    """(title of a case, metric -> its lines with a published figure and one of ours), of the whole table."""
    sections = dict.fromkeys(row.section for row in table.rows)
    for section in sections:
        start = 0
        for group, columns in table.groups:
            names = list(table.columns[start : start + columns])
            places = {metric: start + names.index(metric) for metric in METRICS if metric in names}
            lines = {metric: _lines(table, section, place) for metric, place in places.items()}
            start += columns
            yield f"{group}, {section}" if group else section, lines


def _lines(table: Table, section: str, place: int) -> list[Line]:
    both = [(row.labels[0], row.cells[place]) for row in table.rows if row.section == section]
    return [(name, cell) for name, cell in both if not np.isnan(cell.difference)]


def _marked(name: str, cell: Cell) -> str:
    """The name of a line, and the marks that the table explains."""
    return f"{name} ({cell.marks})" if cell.marks else name


def _plot(axis: Any, lines: Sequence[Line], words: str) -> None:
    places = np.arange(len(lines))
    plot_estimates(axis, places, [cell.estimate for _, cell in lines], LINE_COLOURS[0])
    published = [cell.published for _, cell in lines]
    axis.plot(published, places, linestyle="none", marker="x", color="#000000", markersize=6, markeredgewidth=1.6)
    axis.set_yticks(places, [_marked(*line) for line in lines], fontsize=9)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.set(xlabel=f"{words}, percent")
    axis.grid(alpha=0.3, axis="x")
