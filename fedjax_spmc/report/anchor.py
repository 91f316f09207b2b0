"""How far plain averaging lies from the papers' averaging rows: which setting of what they leave open gives them.

A rule can be compared with a paper only where averaging, under the same attack, gives what the paper prints for it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_spmc.config import is_averaging
from fedjax_spmc.report.figures import LINE_COLOURS, Panel, draw
from fedjax_spmc.report.published import (
    Case,
    case_of,
    case_title,
    published_numbers,
    under_the_papers_attack,
)
from fedjax_spmc.report.settings import Setting, labels, num_seeds, rounds_played
from fedjax_spmc.report.tables import INTERVALS, Cell, Row, Table, fixed_point

PAPERS = {"SPMC": ("spmc2", "FedAvg"), "FDCR": ("fdcr4", "Vanilla")}
"""Paper -> the table of `published.csv` and its row of plain averaging."""
LEAST = 3
"""Settings of one case from which on they are a search for the papers' row."""


def published_rows(case: Case) -> dict[str, tuple[float, float]]:
    """Paper -> A and R_all of its averaging row, in the papers that print the case."""
    found = {}
    for paper, (table, row) in PAPERS.items():
        numbers = published_numbers(table).get((row, case))
        if numbers is not None and not any(map(math.isnan, numbers[:2])):
            found[paper] = numbers[:2]
    return found


def searches(settings: Sequence[Setting]) -> dict[Case, list[Setting]]:
    """Settings of plain averaging under BadNets by case, the nearest first: enough of them, and of a published case."""
    found: dict[Case, list[Setting]] = {}
    for setting in settings:
        config = setting.config
        if is_averaging(config) and under_the_papers_attack(config) and setting.estimate("R_all").known:
            found.setdefault(case_of(config), []).append(setting)
    return {
        case: sorted(members, key=lambda one: min(distances(one, row)[0] for row in published_rows(case).values()))
        for case, members in found.items()
        if len(members) >= LEAST and published_rows(case)
    }


def distances(setting: Setting, row: tuple[float, float]) -> tuple[float, list[float]]:
    """How far the mean over the seeds, and every seed, is from a row: Euclidean, in points of A and R_all."""
    own = [(run.numbers["A"], run.numbers["R_all"]) for run in setting.counted]
    mean = (setting.estimate("A").mean, setting.estimate("R_all").mean)
    return math.dist(mean, row), [math.dist(one, row) for one in own]


def anchor_tables(settings: Sequence[Setting]) -> list[Table]:
    """The table "anchor", a line per setting, the nearest first; none where nobody has searched."""
    found = searches(settings)
    rows = []
    for case, members in found.items():
        published = published_rows(case)
        for setting, label in zip(members, labels(members), strict=True):
            marks = setting.marks()
            cells = [Cell(text=num_seeds(setting)), Cell(text=rounds_played(setting))]
            cells += [Cell(setting.estimate(name), marks=marks) for name in ("A", "R_all")]
            apart = {paper: distances(setting, row) for paper, row in published.items()}
            for paper in PAPERS:
                mean, seeds = apart.get(paper, (math.nan, []))
                spread = f" ({fixed_point(min(seeds), 1)} to {fixed_point(max(seeds), 1)})" if len(seeds) > 1 else ""
                cells.append(Cell(text=fixed_point(mean, 1) + spread if seeds else "–"))
            rows.append(Row(case_title(case), (label,), cells))
    columns = ["seeds", "rounds", "A", "R_all", *(f"from {paper}'s row" for paper in PAPERS)]
    notes = [
        INTERVALS,
        "From a row: the distance of the mean over the seeds from the published averaging row, in points of A and"
        " R_all (the root of the sum of both squares); in brackets those of the nearest and the farthest seed.",
        *(f"{case_title(case)}: {_rows_in_words(case)}." for case in found),
    ]
    title = "Plain averaging beside the published averaging rows"
    return [Table("anchor", title, notes, ("setting",), [("", len(columns))], columns, rows)] if rows else []


def _rows_in_words(case: Case) -> str:
    return "; ".join(f"{paper} prints A {a:g}, R_all {r:g}" for paper, (a, r) in published_rows(case).items())


def anchor_pictures(settings: Sequence[Setting]) -> list[Panel]:
    """For each case A against R_all: every seed a dot, the mean over them numbered, the papers' rows as crosses."""
    panels = []
    for case, members in searches(settings).items():
        names = labels(members)
        caption = (
            f"Plain averaging, {case_title(case)}: seeds (dots), their means (numbered), the published rows (crosses)"
        )
        picture = draw(lambda axis, m=members, c=case: _plot(axis, m, c), caption, width=5.4, height=4.2)
        panels.append(Panel(case_title(case), [picture], [(name, f"<b>{i}</b>") for i, name in enumerate(names, 1)]))
    return panels


def _plot(axis: Any, members: Sequence[Setting], case: Case) -> None:
    for index, setting in enumerate(members):
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        points = np.array([(run.numbers["A"], run.numbers["R_all"]) for run in setting.counted])
        axis.plot(*points.T, linestyle="none", marker=".", color=colour, alpha=0.6)
        axis.plot(*points.mean(axis=0), linestyle="none", marker="o", color=colour, markersize=7)
        axis.annotate(str(index + 1), points.mean(axis=0), xytext=(5, 4), textcoords="offset points", fontsize=9)
    for paper, row in published_rows(case).items():
        axis.plot(*row, linestyle="none", marker="x", color="#000000", markersize=9, markeredgewidth=2)
        axis.annotate(paper, row, xytext=(-6, -12), textcoords="offset points", fontsize=9, ha="right")
    axis.set(xlabel="accuracy A, percent", ylabel="robustness R_all, percent")
    axis.margins(0.1)
    axis.grid(alpha=0.3)
