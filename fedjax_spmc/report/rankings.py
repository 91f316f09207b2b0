"""Do methods keep their ranks when the clients train otherwise? V of each, and how much alike the rankings are.

Made where at least three methods were played under at least two sets of the clients' own training settings (learning
rate, batch, epochs, ...) and conditions that are otherwise the same. Lachnit and Karame (CCS 2025, arXiv 2509.05192)
found that these settings alone decide how long a backdoor lasts, so that a ranking at one of them says little.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc.config import belongs_to_method
from fedjax_spmc.report.estimates import UNDEFINED, Estimate, resampling_weights
from fedjax_spmc.report.figures import MARKERS, Panel, dot_key, draw, plot_estimates, style_of
from fedjax_spmc.report.settings import (
    CONDITIONS,
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


class Rankings(NamedTuple):
    """Methods under several settings of the clients' training.

    Attributes:
        under: what is the same for all of them, in words.
        methods: those that were played under all of them.
        conditions: in words; the one that departs least from the papers' settings comes first.
        cells: [condition][method] -> the setting.
    """

    under: str
    methods: list[str]
    conditions: list[str]
    cells: list[list[Setting]]


def families(settings: Sequence[Setting]) -> list[Rankings]:
    """Those that can be compared, of settings whose numbers speak of their method; the one of most settings first."""
    by_rest: dict[str, list[Setting]] = {}
    for setting in settings:
        if setting.estimate(METRIC).known and setting.sound():
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
        by_condition.setdefault(_in_words(setting.config, axes), {})[method] = setting
    chosen, methods = _largest_grid(by_condition)
    if not methods:
        return None
    ordered = sorted(chosen, key=lambda words: len(conditions_of(by_condition[words][methods[0]].config)))
    config = members[0].config
    same = [*CONDITIONS, *(path for path in conditions_of(config) if path not in CONDITIONS and not _varies(path))]
    cells = [[by_condition[words][method] for method in methods] for words in ordered]
    return Rankings(_in_words(config, same), methods, ordered, cells)


def _in_words(config: Any, paths: Sequence[str]) -> str:
    return ", ".join(f"{short_name(path)}={value_text(config[path])}" for path in paths)


def _largest_grid(by_condition: dict[str, dict[str, Setting]]) -> tuple[list[str], list[str]]:
    """Conditions, and the methods that all of them have, so that there are most cells; none where there are too few."""
    ordered = sorted(by_condition, key=lambda words: -len(by_condition[words]))
    best: tuple[list[str], list[str]] = [], []
    for count in range(LEAST_CONDITIONS, len(ordered) + 1):
        chosen = ordered[:count]
        shared = [name for name in by_condition[chosen[0]] if all(name in by_condition[words] for words in chosen)]
        if len(shared) >= LEAST_METHODS and count * len(shared) > len(best[0]) * len(best[1]):
            best = chosen, shared
    return best


def agreement(ours: np.ndarray, others: np.ndarray) -> Estimate:
    """Kendall's tau-b between two rankings of methods by their means over the seeds.

    Args:
        ours, others: [seeds, methods].

    Returns:
        1 where they are the same, -1 where one is the other backwards; undefined where one of them ranks nobody. The
        interval is over the seeds, drawn in pairs.
    """
    (tau,) = kendall(ours.mean(axis=0, keepdims=True), others.mean(axis=0, keepdims=True))
    if np.isnan(tau):
        return UNDEFINED
    low = high = np.nan
    if len(ours) > 1:
        weights = resampling_weights(len(ours))  # one product for all draws: equal columns stay equal to the last bit
        drawn = kendall(weights @ ours, weights @ others)
        low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Estimate(float(tau), float(low), float(high), len(ours))


def kendall(ours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of [draws, methods] each, a number per draw; NaN where all values of one of them are equal.

    Source: Kendall, "The treatment of ties in ranking problems", Biometrika 33 (1945), 239-251.
    """
    first, second = np.triu_indices(ours.shape[1], 1)
    p, q = (np.sign(values[:, first] - values[:, second]) for values in (ours, others))
    untied = np.sqrt((p * p).sum(axis=1) * (q * q).sum(axis=1))
    return np.where(untied > 0, (p * q).sum(axis=1) / np.maximum(untied, 1.0), np.nan)


def values_of(family: Rankings) -> np.ndarray:
    """[conditions, seeds, methods] of V, over the seeds that all settings have."""
    known = [[{run.config["seed"]: run.numbers[METRIC] for run in one.counted} for one in row] for row in family.cells]
    seeds = sorted(set.intersection(*(set(one) for row in known for one in row)))
    return np.array([[[one[seed] for one in row] for seed in seeds] for row in known])


def rankings_tables(settings: Sequence[Setting]) -> list[Table]:
    """The table "rankings" of each family; those of a second one are named "rankings2"."""
    return [_table(_name(index), one) for index, one in enumerate(families(settings))]


def _name(index: int) -> str:
    return f"rankings{index + 1 if index else ''}"


def _table(name: str, family: Rankings) -> Table:
    values = values_of(family)
    there = values.shape[1] > 0
    rows = []
    for index, (words, cells) in enumerate(zip(family.conditions, family.cells, strict=True)):
        shown = [Cell(text="/".join(dict.fromkeys(map(num_seeds, cells))))]
        shown += [Cell(one.estimate(METRIC), marks=one.marks(), digits=1) for one in cells]
        alike = agreement(values[0], values[index]) if there and index else UNDEFINED
        text = f"{fixed_point(alike.mean, 2)} {Cell(alike).interval()}".rstrip() if alike.known else "–"
        rows.append(Row("", (words,), [*shown, Cell(alike, text=text)]))
    means = values.mean(axis=1) if there else np.zeros((0, len(family.methods)))
    known = [tau for a, b in itertools.combinations(means, 2) if not np.isnan(tau := kendall(a[None], b[None])[0])]
    notes = [
        INTERVALS,
        "τ: Kendall's rank correlation (tau-b) of the methods' V with their V in the first line, over the seeds that"
        " all have: 1 where they rank alike, 0 where one ranking says nothing of the other, −1 where it is the other"
        " backwards; beside it its 95 % bootstrap interval over these seeds, drawn in pairs.",
        "Settings that are never ranked (oracle, unfinished, at chance, ...) are left out.",
    ]
    if known:
        notes.append(f"Mean τ of all {len(known)} pairs of lines: {fixed_point(float(np.mean(known)), 2)}.")
    title = "Do rankings survive other settings of the clients' training?"
    columns = ["seeds", *family.methods, "τ"]
    introduction = f"All with {family.under}."
    return Table(name, title, notes, ("training",), [("", len(columns))], columns, rows, introduction=introduction)


def rankings_pictures(settings: Sequence[Setting]) -> dict[str, list[Panel]]:
    """Name of the table -> V of every method, a line per set of training settings, with intervals over the seeds."""
    panels = {}
    for index, family in enumerate(families(settings)):
        count = len(family.conditions)
        caption = f"{METRIC} of each method under {count} settings of the clients' training, {family.under}"
        height, left = 0.9 + 0.34 * count, 0.35 + 0.065 * max(map(len, family.conditions))
        paint = lambda axis, family=family: _plot(axis, family)  # noqa: E731
        picture = draw(paint, caption, width=4.4 + left, height=height, margins=(left, 0.15, 0.1, 0.5))
        legend = [(name, dot_key(*style_of(column, MARKERS))) for column, name in enumerate(family.methods)]
        panels[_name(index)] = [Panel("", [picture], legend)]
    return panels


def _plot(axis: Any, family: Rankings) -> None:
    count = len(family.methods)
    for column in range(count):
        places = np.arange(len(family.cells)) + (column - (count - 1) / 2) * 0.7 / count
        found = [cells[column].estimate(METRIC) for cells in family.cells]
        plot_estimates(axis, places, found, *style_of(column, MARKERS))
    axis.set_yticks(range(len(family.conditions)), family.conditions, fontsize=8)
    axis.set_ylim(len(family.cells) - 0.4, -0.6)
    axis.set(xlabel=f"{METRIC}, percent")
    axis.grid(alpha=0.3, axis="x")
