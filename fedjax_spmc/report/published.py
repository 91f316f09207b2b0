"""The papers' tables: their layout, their figures (`published.csv`), and which settings stand in which cell.

Source of the figures: SPMC (ICML 2025), Table 2; FDCR (NeurIPS 2024), Tables 1 to 4, whose A is the accuracy and whose
R and V keep the test images of the target class (R_all, V_all here).
"""

import csv
import functools
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from fedjax_spmc.config import FIELDS, belongs_to_method
from fedjax_spmc.report import settings as settings_module
from fedjax_spmc.report.estimates import Estimate
from fedjax_spmc.report.settings import Setting, value_text
from fedjax_spmc.report.tables import INTERVALS, RANKING, Cell, Row, Table, ranks

METRICS = ("A", "R_all", "V_all")
AXES = ("data.name", "partition.beta", "attack.malicious_fraction")
"""The fields that a paper's table varies beside the method."""
MAX_BLOCKS = 12
"""Sets of conditions of which a paper's table is shown, at most."""
DATA_TITLES = {
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "usps": "USPS",
}  # fmt: skip

MethodOptions = tuple[str, Mapping[str, Any]]
"""A method, and the options in which it departs from the paper's default."""
_OPTION = "aggregator.options."


class Layout(NamedTuple):
    """A paper's table: its title, the paper's own method, and the method of each row by the row's name."""

    title: str
    method: str
    rows: dict[str, MethodOptions]


LAYOUTS: dict[str, Layout] = {
    "spmc2": Layout(
        "SPMC, Table 2",
        "spmc",
        {
            "FedAvg": ("fedavg", {}), "DnC": ("dnc", {}), "Sageflow": ("sageflow", {}), "Bulyan": ("bulyan", {}),
            "RFA": ("rfa", {}), "RLR": ("rlr", {}), "CRFL": ("crfl", {}), "FoolsGold": ("foolsgold", {}),
            "RSA": ("rsa", {}), "Finetuning": ("finetuning", {}), "Ours (SPMC)": ("spmc", {}),
        },
    ),
    "fdcr1": Layout(
        "FDCR, Table 1: clustering",
        "fdcr",
        {
            "K-Means": ("fdcr", {f"{_OPTION}cluster": "kmeans"}), "DBSCAN": ("fdcr", {f"{_OPTION}cluster": "dbscan"}),
            "FINCH (Our)": ("fdcr", {}),
        },
    ),
    "fdcr2": Layout(
        "FDCR, Table 2: importances",
        "fdcr",
        {
            "FCDC without I_k": ("fdcr", {f"{_OPTION}importance": False, f"{_OPTION}rescale": "off"}),
            "FCDC with I_k": ("fdcr", {f"{_OPTION}rescale": "off"}),
        },
    ),
    "fdcr3": Layout(
        "FDCR, Table 3: its two parts",
        "fdcr",
        {
            "none (FedAvg)": ("fedavg", {}), "FCDC only": ("fdcr", {f"{_OPTION}rescale": "off"}),
            "FPRA only": ("fdcr", {f"{_OPTION}discrepancy": False}), "FCDC+FPRA (FDCR)": ("fdcr", {}),
        },
    ),
    "fdcr4": Layout(
        "FDCR, Table 4",
        "fdcr",
        {
            "Vanilla": ("fedavg", {}), "Multi Krum": ("multi_krum", {}), "FoolsGold": ("foolsgold", {}),
            "RLR": ("rlr", {}), "DnC": ("dnc", {}), "MMA": ("multi_metrics", {}), "Trim Median": ("trimmed_mean", {}),
            "Bulyan": ("bulyan", {}), "RFA": ("rfa", {}), "FLTrust": ("fltrust", {}), "Sageflow": ("sageflow", {}),
            "Finetuning": ("finetuning", {}), "CRFL": ("crfl", {}), "FDCR": ("fdcr", {}),
        },
    ),
}  # fmt: skip
"""By the name that `--tables` and `published.csv` use."""

REQUIRED_ROWS: dict[str, Collection[str]] = {
    "fdcr1": ("K-Means", "DBSCAN"),
    "fdcr2": ("FCDC without I_k",),
    "fdcr3": ("FCDC only", "FPRA only"),
}
"""Table -> rows of which at least one must have been run for the table to be shown; other tables have the rest too."""

Case = tuple[str, float, float]
"""Data set, beta, fraction of malicious clients."""


@functools.cache
def published_numbers(table: str) -> dict[tuple[str, Case], tuple[float, float, float]]:
    """(row, case) -> the published A, R_all, V_all."""
    text = (resources.files("fedjax_spmc.report") / "published.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        if row["table"] == table:
            case = (row["data"], float(row["beta"]), float(row["malicious_fraction"]))
            found[row["row"], case] = (float(row["A"]), float(row["R_all"]), float(row["V_all"]))
    return found


def case_of(config: Mapping[str, Any]) -> Case:
    """The case of a setting: data set, beta, fraction of malicious clients."""
    return config["data.name"], float(config["partition.beta"]), float(config["attack.malicious_fraction"])


def case_title(case: Case) -> str:
    """A case in words."""
    data, beta, fraction = case
    return f"{DATA_TITLES.get(data, data)}, β = {beta:g}, γ = {fraction:g}"


def under_the_papers_attack(config: Mapping[str, Any]) -> bool:
    """Whether a setting has the attack and the partition of the papers' tables."""
    return config.get("attack.name") == "badnets" and config.get("partition.name") == "dirichlet"


def row_of(table: str, config: Mapping[str, Any]) -> str | None:
    """The row of a paper's table that a setting belongs to, or None."""
    if not under_the_papers_attack(config):
        return None
    own = departures_of_method(config)
    method = settings_module.method_of(config)
    for name, (wanted, options) in LAYOUTS[table].rows.items():
        if wanted == method and own == options:
            return name
    return None


def departures_of_method(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the method in which a setting departs from the paper's, or from the code's where it is nearer."""
    own = settings_module.departures(config, settings_module.variant_of(config))
    return {path: value for path, value in own.items() if belongs_to_method(path)}


def conditions_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions, other than the axes of the tables, in which a setting departs from the paper's."""
    return {path: value for path, value in settings_module.conditions_of(config).items() if path not in AXES}


def tables(settings: Sequence[Setting], wanted: Collection[str] = ()) -> list[Table]:
    """The papers' tables of which settings were run.

    A setting stands in a table only if it is the table's own: the paper's method, conditions and case. Tables that are
    asked for show what was run, under whatever conditions and in whatever variant, one table for each set of
    conditions, and say so.

    Args:
        settings: from `settings.group`.
        wanted: names of tables that are shown whatever was run.
    """
    made = []
    for name in LAYOUTS:
        blocks: dict[str, list[Setting]] = {}
        for setting in settings:
            if _has_row(name, setting) if name in wanted else stands_in(name, setting.config):
                blocks.setdefault(json.dumps(conditions_of(setting.config), default=str), []).append(setting)
        shown = [block for block in blocks.values() if name in wanted or _is_worth_showing(name, block)]
        shown.sort(key=lambda block: -len(block))
        for index, block in enumerate(shown[:MAX_BLOCKS]):
            one = _table(name, block, "" if not index else f"_{index + 1}")
            if len(shown) > MAX_BLOCKS and not index:
                one.notes.append(
                    f"{len(shown) - MAX_BLOCKS} further sets of conditions stand in the table of settings."
                )
            made.append(one)
        if not shown and name in wanted:
            made.append(_table(name, [], ""))
    return made


def stands_in(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a setting is one of a paper's table: a row's method, the paper's conditions, a case that it prints."""
    row = row_of(name, config)
    return row is not None and not conditions_of(config) and (row, case_of(config)) in published_numbers(name)


def row_label(name: str, row: str) -> str:
    """The name of a row: the method's own, and in brackets what the paper calls it where that is another name."""
    method, options = LAYOUTS[name].rows[row]
    ours = ", ".join([method, *(f"{path.rpartition('.')[2]}={value_text(value)}" for path, value in options.items())])
    papers = re.sub(r" \(.*\)$", "", row)
    same = re.sub(r"[ _-]", "", papers).lower() == method.replace("_", "")
    return ours if same else f"{ours} ({papers})"


def _has_row(name: str, setting: Setting) -> bool:
    """Whether a setting has a row in the table: the paper's, or one below for a relative of the paper's method."""
    if not under_the_papers_attack(setting.config):
        return False
    relative = LAYOUTS[name].method in (setting.config["local.rule"], setting.config["aggregator.name"])
    return row_of(name, setting.config) is not None or (relative and name in ("spmc2", "fdcr4"))


def _is_worth_showing(name: str, block: Sequence[Setting]) -> bool:
    rows = {row_of(name, setting.config) for setting in block} - {None}
    if name in REQUIRED_ROWS:
        return bool(rows & set(REQUIRED_ROWS[name]))
    return len(rows) > 1 or any(
        LAYOUTS[name].method in (setting.config["local.rule"], setting.config["aggregator.name"]) for setting in block
    )


def _table(name: str, block: Sequence[Setting], suffix: str) -> Table:
    layout, published = LAYOUTS[name], published_numbers(name)
    cases = list(dict.fromkeys(case for _, case in published))
    run = {case_of(setting.config) for setting in block} or set(cases)
    here = [case for case in cases if case in run] + sorted(run - set(cases))
    columns = list(dict.fromkeys((data, beta) for data, beta, _ in here))
    fractions = list(dict.fromkeys(fraction for *_, fraction in here))
    betas = len({beta for _, beta in columns}) > 1
    groups = [(DATA_TITLES.get(d, d) + (f", β = {beta:g}" if betas else ""), len(METRICS)) for d, beta in columns]

    by_place: dict[tuple[str, Case], Setting] = {}
    extra = []
    for setting in block:
        row = row_of(name, setting.config)
        if row is None:
            extra.append(setting)
        else:
            by_place[row, case_of(setting.config)] = setting
    for setting, label in zip(extra, _labels(extra, block), strict=True):
        by_place[label, case_of(setting.config)] = setting
    names = [*layout.rows, *dict.fromkeys(row for row, _ in by_place if row not in layout.rows)]

    rows = []
    for fraction in fractions:
        section = f"γ = {fraction:g}" + (f", β = {columns[0][1]:g}" if not betas else "")
        lines: list[list[Cell]] = []
        allowed: list[list[bool]] = []
        for row in names:
            cells, may = [], []
            for data, beta in columns:
                setting = by_place.get((row, (data, beta, fraction)))
                known = published.get((row, (data, beta, fraction)), (math.nan,) * 3)
                for metric, figure in zip(METRICS, known, strict=True):
                    cells.append(_cell(setting, metric, figure))
                    may.append(setting is not None and setting.ranked())
            lines.append(cells)
            allowed.append(may)
        for column in range(len(columns) * len(METRICS)):
            pairs = [(line[column].estimate, may[column]) for line, may in zip(lines, allowed, strict=True)]
            for line, rank in zip(lines, ranks(pairs), strict=True):
                line[column] = line[column]._replace(rank=rank)
        for row, cells in zip(names, lines, strict=True):
            if row in layout.rows or any(cell.estimate.known or cell.marks for cell in cells):
                rows.append(Row(section, (row_label(name, row) if row in layout.rows else row,), cells))
    notes = [
        INTERVALS,
        "R and V keep the test images of the target class (R_all, V_all), as the papers' tables do.",
        RANKING,
    ]
    left_out = [case for case in cases if case not in run]
    if left_out:
        words = "; ".join(map(case_title, left_out))
        notes.append(f"Not run, and left out here: {words}.")
    if extra:
        notes.append("Rows below the paper's own are variants that it does not print.")
    away = bool(block) and bool(conditions_of(block[0].config))
    return Table(
        name + suffix,
        f"{layout.title}, beside runs under other settings" if away else layout.title,
        notes,
        ("method",),
        groups,
        [metric for _ in columns for metric in ("A", "R", "V")],
        rows,
        introduction=_introduction(block),
    )


def _labels(extra: Sequence[Setting], block: Sequence[Setting]) -> list[str]:
    names = settings_module.labels(block, AXES)
    by_setting = {id(setting): name for setting, name in zip(block, names, strict=True)}
    return [by_setting[id(setting)] for setting in extra]


def _cell(setting: Setting | None, metric: str, published: float) -> Cell:
    if setting is None:
        return Cell(published=published)
    estimate: Estimate = setting.estimate(metric)
    text = None if estimate.known else ("failed" if "f" in setting.marks() else "no round yet")
    return Cell(estimate, published, setting.marks(), text=text)


def _introduction(block: Sequence[Setting]) -> str:
    """The sentence above a table: under which conditions and seeds it was run."""
    if not block:
        return "Nothing of this table has been run."
    seeds = sorted({run.config["seed"] for setting in block for run in setting.runs})
    apart = conditions_of(block[0].config)
    paper = {path: option.default for path, option in FIELDS.items()}
    words = [
        f"{path} = {value_text(value)}" + (f" (paper {value_text(paper[path])})" if path in paper else "")
        for path, value in apart.items()
    ]
    conditions = "under the paper's settings" if not words else "with " + ", ".join(words)
    listed = ", ".join(map(str, seeds[:10])) + (", ..." if len(seeds) > 10 else "")
    return f"Run {conditions}; seed{'s' if len(seeds) > 1 else ''} {listed}."
