"""Do methods keep their ranks when the clients train otherwise? V of each, and how much alike the rankings are.

Made where at least three methods were played under at least two sets of the clients' own training settings (learning
rate, batch, epochs, ...) and conditions that are otherwise the same. Lachnit and Karame (CCS 2025, arXiv 2509.05192)
found that these settings alone decide how long a backdoor lasts, so that a ranking at one of them says little.
"""

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc.config import belongs_to_method
from fedjax_spmc.report.estimates import UNDEFINED, Estimate, resampling_weights
from fedjax_spmc.report.figures import LINE_COLOURS, Panel, draw, legend_key, plot_estimates
from fedjax_spmc.report.settings import (
    Setting,
    conditions_of,
    differing_fields,
    method_names,
    num_seeds,
    short_name,
    value_text,
)
from fedjax_spmc.report.tables import INTERVALS, Cell, Row, Table, fixed_point

LEAST_METHODS, LEAST_CONDITIONS = 3, 2
METRIC = "V"
Values = np.ndarray


class Rankings(NamedTuple):
    """Methods under several settings of the clients' training.

    Attributes:
        methods: those that were played under all of them.
        conditions: in words; the one that is nearest to the papers' settings comes first.
        cells: [condition][method] -> the setting.
    """

    methods: list[str]
    conditions: list[str]
    cells: list[list[Setting]]


def families(settings: Sequence[Setting]) -> list[Rankings]:
    """Those that can be compared, the one of most settings first."""
    by_rest: dict[str, list[Setting]] = {}
    for setting in settings:
        if setting.estimate(METRIC).known:
            rest = {path: value for path, value in setting.config.items() if not _varies(path)}
            by_rest.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(setting)
    found = [one for members in by_rest.values() if (one := _rankings(members)) is not None]
    return sorted(found, key=lambda one: -len(one.methods) * len(one.conditions))


def _varies(path: str) -> bool:
    return belongs_to_method(path) or path.startswith("local.")


def _rankings(members: Sequence[Setting]) -> Rankings | None:
    axes = [path for path in differing_fields(members) if not belongs_to_method(path)]
    by_condition: dict[str, dict[str, Setting]] = {}
    for setting, method in zip(members, method_names(members), strict=True):
        words = ", ".join(f"{short_name(path)}={value_text(setting.config[path])}" for path in axes)
        by_condition.setdefault(words, {})[method] = setting
    methods = [
        method
        for method in dict.fromkeys(name for cells in by_condition.values() for name in cells)
        if all(method in cells for cells in by_condition.values())
    ]
    if len(by_condition) < LEAST_CONDITIONS or len(methods) < LEAST_METHODS:
        return None
    ordered = sorted(by_condition, key=lambda words: len(conditions_of(by_condition[words][methods[0]].config)))
    return Rankings(methods, ordered, [[by_condition[words][method] for method in methods] for words in ordered])


def agreement(ours: Values, others: Values) -> Estimate:
    """Kendall's tau-b between two rankings of methods by their means over the seeds.

    Args:
        ours, others: [seeds, methods].

    Returns:
        1 where they are the same, -1 where one is the other backwards; undefined where one of them ranks nobody. The
        interval is over the seeds, drawn in pairs, where both have the same number, and two or more.
    """
    tau = kendall(ours.mean(axis=0), others.mean(axis=0))
    if math.isnan(tau):
        return UNDEFINED
    low = high = math.nan
    if len(ours) == len(others) > 1:
        weights, times = np.unique(resampling_weights(len(ours)), axis=0, return_counts=True)
        drawn = np.array([kendall(share @ ours, share @ others) for share in weights])
        known = ~np.isnan(drawn)
        low, high = np.quantile(np.repeat(drawn[known], times[known]), (0.025, 0.975))
    return Estimate(tau, float(low), float(high), len(ours))


def kendall(ours: Values, others: Values) -> float:
    """Kendall's tau-b of two [methods]; NaN where all values of one of them are equal."""
    from scipy.stats import kendalltau

    if np.ptp(ours) == 0 or np.ptp(others) == 0:
        return math.nan
    return float(kendalltau(ours, others).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def values_of(family: Rankings) -> Values:
    """[conditions, seeds, methods] of V, over the seeds that all settings have."""
    known = [[{run.config["seed"]: run.numbers[METRIC] for run in one.counted} for one in row] for row in family.cells]
    seeds = sorted(set.intersection(*(set(one) for row in known for one in row)))
    return np.array([[[one[seed] for one in row] for seed in seeds] for row in known])


def rankings_tables(settings: Sequence[Setting]) -> list[Table]:
    """The table "rankings" of each family; those of a second one are named "rankings2"."""
    return [_table(f"rankings{i + 1 if i else ''}", one) for i, one in enumerate(families(settings))]


def _table(name: str, family: Rankings) -> Table:
    values = values_of(family)
    there = values.shape[1] > 0
    rows = []
    for index, (words, cells) in enumerate(zip(family.conditions, family.cells, strict=True)):
        shown = [Cell(text="/".join(sorted({num_seeds(one) for one in cells})))]
        shown += [Cell(one.estimate(METRIC), marks=one.marks(), digits=1) for one in cells]
        alike = agreement(values[0], values[index]) if there and index else UNDEFINED
        rows.append(Row("", (words,), [*shown, Cell(alike)]))
    pairs = itertools.combinations(values.mean(axis=1), 2) if there else ()
    known = [tau for a, b in pairs if not math.isnan(tau := kendall(a, b))]
    notes = [
        INTERVALS,
        "τ: Kendall's rank correlation (tau-b) of the methods' V with their V in the first line: 1 where they rank"
        " alike, 0 where one ranking says nothing of the other, −1 where it is the other backwards; in brackets the"
        " 95 % interval over the seeds that all methods have, drawn in pairs.",
    ]
    if known:
        notes.append(f"Mean τ of all {len(known)} pairs of lines: {fixed_point(float(np.mean(known)), 2)}.")
    title = "Do rankings survive other settings of the clients' training?"
    columns = ["seeds", *family.methods, "τ"]
    return Table(name, title, notes, ("training",), [("", len(columns))], columns, rows)


def rankings_pictures(settings: Sequence[Setting]) -> list[Panel]:
    """For each family V of every method, a line per set of training settings, with the intervals over the seeds."""
    panels = []
    for family in families(settings):
        caption = f"{METRIC} of each method under {len(family.conditions)} settings of the clients' training"
        longest = max(map(len, family.conditions))
        height, left = 0.9 + 0.34 * len(family.conditions), 0.35 + 0.065 * longest
        paint = lambda axis, family=family: _plot(axis, family)  # noqa: E731
        picture = draw(paint, caption, width=4.4 + left, height=height, margins=(left, 0.15, 0.1, 0.5))
        legend = [(name, legend_key(index)) for index, name in enumerate(family.methods)]
        panels.append(Panel("", [picture], legend))
    return panels


def _plot(axis: Any, family: Rankings) -> None:
    count = len(family.methods)
    for column in range(count):
        places = np.arange(len(family.cells)) + (column - (count - 1) / 2) * 0.7 / count
        found = [cells[column].estimate(METRIC) for cells in family.cells]
        colour = LINE_COLOURS[column % len(LINE_COLOURS)]
        plot_estimates(axis, places, found, colour)
    axis.set_yticks(range(len(family.conditions)), family.conditions, fontsize=8)
    axis.set_ylim(len(family.cells) - 0.4, -0.6)
    axis.set(xlabel=f"{METRIC}, percent")
    axis.grid(alpha=0.3, axis="x")
