"""The matrix of attacks against methods: a heat map for each quantity, a line per attack, a column per method.

Made where at least two attacks were played against at least two methods under conditions that are otherwise the same.
"""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_spmc.config import belongs_to_method
from fedjax_spmc.report.estimates import estimate
from fedjax_spmc.report.read import Run
from fedjax_spmc.report.settings import Setting, method_names, parts_of_attack, told_apart
from fedjax_spmc.report.tables import Cell, Row, Table

END, LATER = "end", "later"


class Quantity(NamedTuple):
    """What a table of the matrix shows.

    Attributes:
        metric: a key of the lines of `metrics.jsonl`, or of `Run.numbers` where `when` is "".
        when: END = in the last round of the attack, LATER = in the last round of the run, "" = over the run.
        title: of its table.
        good: whether more of it is better for the defender.
    """

    metric: str
    when: str
    title: str
    good: bool


QUANTITIES = {
    "a_end": Quantity("A", END, "A when the attack ends", True),
    "asr_end": Quantity("ASR", END, "ASR when the attack ends", False),
    "a_later": Quantity("A", LATER, "A in the last round", True),
    "asr_later": Quantity("ASR", LATER, "ASR in the last round", False),
    "tpr": Quantity("tpr_run", "", "TPR of the flags", True),
    "fpr": Quantity("fpr_run", "", "FPR of the flags", False),
}
"""The tables, by the last part of their names."""


class Matrix(NamedTuple):
    """Settings under one set of conditions.

    Attributes:
        attacks, methods: names of lines and columns.
        cells: (attack, method) -> the setting.
    """

    attacks: list[str]
    methods: list[str]
    cells: dict[tuple[str, str], Setting]


def matrices(settings: Sequence[Setting]) -> list[Matrix]:
    """The matrices of the settings, those with most cells first."""
    by_conditions: dict[str, list[Setting]] = {}
    for setting in settings:
        rest = {
            path: setting.config[path]
            for path in setting.config
            if not _of_attack(path) and not belongs_to_method(path)
        }
        by_conditions.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(setting)
    found = []
    for members in by_conditions.values():
        by_cell = {
            (attack, method): setting
            for setting, attack, method in zip(members, _attack_names(members), method_names(members), strict=True)
        }
        attacks, methods = (list(dict.fromkeys(key[i] for key in by_cell)) for i in (0, 1))
        if len(attacks) > 1 and len(methods) > 1:
            found.append(Matrix(sorted(attacks), methods, by_cell))
    return sorted(found, key=lambda one: -len(one.cells))


def matrix_tables(settings: Sequence[Setting]) -> list[Table]:
    """The tables `matrix_a_end` and so on for each matrix; those of a second one are named `matrix2_a_end`."""
    made = []
    for index, matrix in enumerate(matrices(settings)):
        for name, quantity in QUANTITIES.items():
            table = _table(f"matrix{index + 1 if index else ''}_{name}", matrix, quantity)
            if any(cell.estimate.known for row in table.rows for cell in row.cells):
                made.append(table)
    return made


def _table(name: str, matrix: Matrix, quantity: Quantity) -> Table:
    rows = []
    for attack in matrix.attacks:
        cells = []
        for method in matrix.methods:
            setting = matrix.cells.get((attack, method))
            cells.append(Cell() if setting is None else _cell(setting, quantity))
        rows.append(Row("", (attack,), cells))
    rows = [Row(row.section, row.labels, cells) for row, cells in zip(rows, _heated(rows, quantity), strict=True)]
    when = {
        END: "In the last round of the attack",
        LATER: "In the last round of the run",
        "": "Of all evaluated rounds together; – of rules that never flag anybody",
    }[quantity.when]
    notes = [
        f"{when}, percent: mean over the seeds, in brackets the 95 % percentile bootstrap interval over them. The "
        f"darker, the {'less' if quantity.good else 'more'}: dark is bad for the defender. The shades go from the "
        "smallest to the largest mean of this table."
    ]
    return Table(name, quantity.title, notes, ("attack",), [("", len(matrix.methods))], matrix.methods, rows)


def _cell(setting: Setting, quantity: Quantity) -> Cell:
    values = [value_of(run, quantity) for run in setting.counted]
    return Cell(estimate(values), marks=setting.marks(), digits=1)


def _heated(rows: Sequence[Row], quantity: Quantity) -> list[list[Cell]]:
    """The cells with their shades, over the range of the means."""
    means = [cell.estimate.mean for row in rows for cell in row.cells if cell.estimate.known]
    low, span = min(means, default=0.0), max(means, default=0.0) - min(means, default=0.0)

    def shade(cell: Cell) -> Cell:
        if not cell.estimate.known or span == 0:
            return cell
        share = (cell.estimate.mean - low) / span
        return cell._replace(heat=1 - share if quantity.good else share)

    return [[shade(cell) for cell in row.cells] for row in rows]


def value_of(run: Run, quantity: Quantity) -> float:
    """A quantity of one run; NaN where it is undefined or the round was not evaluated."""
    if not quantity.when:
        return run.numbers[quantity.metric]
    rounds, values = run.series(quantity.metric)
    last = run.config["attack.schedule.last"]
    if quantity.when == LATER:
        return float(values[-1]) if len(values) else math.nan
    end = len(rounds) and rounds[-1] if last is None else last + 1  # `rounds` count from 1
    at_end = values[np.asarray(rounds) == end]
    return float(at_end[0]) if len(at_end) else math.nan


def _of_attack(path: str) -> bool:
    return path.startswith("attack.")


def _attack_names(settings: Sequence[Setting]) -> list[str]:
    """A name for each setting's attack: its parts, and the options in which it differs from others of these parts."""
    names = [" + ".join(parts_of_attack(one.config)) for one in settings]
    return told_apart(settings, names, lambda path: _of_attack(path) and path != "attack.name")
