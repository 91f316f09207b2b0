"""The tables of all settings and all runs, and the facts at the top of the page."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from fedjax_spmc.config import belongs_to_method, is_averaging
from fedjax_spmc.record.judgement import HELD, LOST, averaging_beside, judgement, timing
from fedjax_spmc.report import read
from fedjax_spmc.report.anchor import anchor_tables
from fedjax_spmc.report.durable import added_part_table, durability_table, rejection_table
from fedjax_spmc.report.estimates import Estimate
from fedjax_spmc.report.history import DETECTION, MEAN_SCORES, THIRDS
from fedjax_spmc.report.rankings import rankings_tables
from fedjax_spmc.report.read import FoundRuns, Run
from fedjax_spmc.report.settings import (
    Setting,
    departures,
    differing_fields,
    labels,
    mean_of,
    method_of,
    num_seeds,
    parts_of_attack,
    rounds_played,
    value_text,
)
from fedjax_spmc.report.tables import INTERVALS, Cell, Row, Table
from fedjax_spmc.report.texts import next_token_table

KINDS = ("benign", "malicious")
MAIN_COLUMNS = ("A", "ASR", "V")
MAX_LISTED = 8
"""Values that a sentence lists, at most."""
SETTINGS_COLUMNS = ("A", "ASR", "R", "V", "R_all", "V_all")
DETECTION_COLUMNS = {"TPR": "tpr_run", "FPR": "fpr_run", "α benign": "alpha_benign", "α malicious": "alpha_malicious"}


MAX_REMARKS = 20
"""Remarks at the top of the page, at most."""


class Fact(NamedTuple):
    """A fact at the top of the page: a name, and values with the number of runs that have each."""

    name: str
    values: list[tuple[str, int]]


def tables(settings: Sequence[Setting]) -> list[Table]:
    """The tables "main", "settings", "runs" and, where there is anything in them, "durability", "durability_part",
    "rejection", "next_token", "detection", "anchor", "rankings"."""
    listed = [main_table(settings), settings_table(settings), durability_table(settings), added_part_table(settings)]
    listed += [*anchor_tables(settings), *rankings_tables(settings), rejection_table(settings)]
    listed += [next_token_table(settings), detection_table(settings), runs_table(settings)]
    return [one for one in listed if one.rows or one.name in ("main", "settings", "runs")]


def main_table(settings: Sequence[Setting]) -> Table:
    """The table that answers first: a line per setting with A, ASR, V and what they say, in a sentence."""
    rows = []
    for setting, label in zip(settings, labels(settings), strict=True):
        marks = setting.marks()
        cells = [Cell(setting.estimate(name), marks=marks, digits=1) for name in MAIN_COLUMNS]
        rows.append(Row("", (label,), [*cells, Cell(text=_judgement(setting, settings))]))
    notes = [
        INTERVALS,
        f"A backdoor is held back where ASR is at most {HELD:g} %, and gets through where it is at least {LOST:g} %.",
    ]
    columns = [*MAIN_COLUMNS, "what it says"]
    return Table("main", "What came out", notes, ("setting",), [("", len(columns))], columns, rows)


def _judgement(setting: Setting, settings: Sequence[Setting]) -> str:
    if not setting.counted:
        return "No run has finished."
    remarks = [remark for run in setting.counted for remark in run.remarks]
    same = _conditions(setting)
    plain = [one for one in settings if one is not setting and is_averaging(one.config)]
    others = [one for one in plain if _conditions(one) == same]
    averaging = averaging_beside([(one.config, one.estimate("A").mean) for one in others])
    accuracy, asr = (setting.estimate(name).mean for name in ("A", "ASR"))
    when = timing(setting.config, min(map(_evaluated, setting.counted), key=lambda rounds: rounds[-1:]))
    return judgement(accuracy, asr, remarks, averaging, when)


def _evaluated(run: Run) -> list[int]:
    """The rounds that a run evaluated; of a row of a sweep without its lines as the config has them."""
    if run.lines:
        return [line["round"] for line in run.lines]
    rounds, every = run.config["federation.rounds"], run.config["federation.eval_every"]
    return sorted({*range(every - 1, rounds, every), rounds - 1})


def _conditions(setting: Setting) -> dict[str, Any]:
    return {path: value for path, value in setting.config.items() if not belongs_to_method(path)}


def asked(settings: Sequence[Setting]) -> str:
    """What was asked, in a sentence: methods, data, attacks, clients, rounds, seeds."""

    def listed(values: Iterable[Any]) -> str:
        found = list(dict.fromkeys(map(value_text, values)))
        shown = found if len(found) <= MAX_LISTED else [*found[:MAX_LISTED], f"{len(found) - MAX_LISTED} more"]
        return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"

    def of(path: str) -> str:
        return listed(one.config[path] for one in settings)

    joined = [" + ".join(parts_of_attack(one.config)) for one in settings]
    attacks = listed("no attack" if name == "none" else name for name in joined)
    seeds = sorted({run.config["seed"] for one in settings for run in one.runs})
    return (
        f"{listed(method_of(one.config) for one in settings)} on {of('data.name')} under {attacks}: "
        f"{of('federation.num_clients')} clients, a share of {of('attack.malicious_fraction')} of them malicious, "
        f"{of('federation.rounds')} rounds, seed{'s' * (len(seeds) > 1)} {listed(seeds)}."
    )


def settings_table(settings: Sequence[Setting]) -> Table:
    """A line per setting: A, ASR, R, V and their `_all` forms, detection over the run, weights."""
    rows = []
    for setting, label in zip(settings, labels(settings), strict=True):
        marks = setting.marks()
        counted = Cell(text=f"{len(setting.counted)} of {len(setting.runs)}" if "x" in marks else num_seeds(setting))
        cells = [counted, Cell(text=rounds_played(setting)), Cell(text=mean_of(setting))]
        for name in SETTINGS_COLUMNS:
            cells.append(Cell(setting.estimate(name), marks=marks))
        for name in DETECTION_COLUMNS.values():
            cells.append(Cell(setting.estimate(name), digits=4 if name.startswith("alpha") else 2))
        rows.append(Row("", (label,), cells))
    notes = [
        INTERVALS,
        "R = 100 - ASR, V = (A + R) / 2; ASR leaves out test images whose true class is the target, _all keeps them.",
        "TPR and FPR: the flags of all evaluated rounds pooled; – for rules that never flag anybody. α: mean weight of"
        " a benign and of a malicious client over all evaluated rounds.",
    ]
    columns = ["seeds", "rounds", "mean of", *SETTINGS_COLUMNS, *DETECTION_COLUMNS]
    return Table("settings", "Every setting", notes, ("setting",), [("", len(columns))], columns, rows)


def detection_table(settings: Sequence[Setting]) -> Table:
    """A line per setting whose rule flagged any client: detection over the run and by thirds of it."""
    names = [f"{name}_{part}" for name in DETECTION for part in ("run", *THIRDS)]
    rows = []
    for setting, label in zip(settings, labels(settings), strict=True):
        flagging = any(run.numbers[name] > 0 for run in setting.counted for name in ("tpr_run", "fpr_run"))
        if flagging:
            marks = setting.marks()
            cells = [Cell(text=num_seeds(setting)), Cell(text=rounds_played(setting))]
            cells += [Cell(setting.estimate(name), marks=marks, digits=2 if "auc" in name else 1) for name in names]
            cells.append(Cell(setting.estimate("perfect_rounds"), marks=marks, digits=1))
            cells += [Cell(setting.estimate(name), marks=marks, digits=3) for name in MEAN_SCORES]
            rows.append(Row("", (label,), cells))
    columns = ["seeds", "rounds", *(part for _ in DETECTION for part in ("run", *THIRDS)), "perfect", *KINDS]
    groups = [("", 2), *((name.upper(), 1 + len(THIRDS)) for name in DETECTION), ("rounds", 1), ("score", len(KINDS))]
    notes = [
        "Flags pooled over all evaluated rounds of the run, and over each third of them, percent; AUC of the scores: "
        "mean over the rounds. Perfect: rounds in which exactly the malicious who took part were flagged. Score: mean "
        "over rounds and clients, on the rule's own scale, larger = more suspicious. In brackets the 95 % percentile "
        "bootstrap interval over seeds."
    ]
    return Table("detection", "Detection, by thirds of the run", notes, ("setting",), groups, columns, rows)


def runs_table(settings: Sequence[Setting]) -> Table:
    """A line per run: folder, numbers, status, time, device, commit."""
    rows = []
    for setting, label in zip(settings, labels(settings), strict=True):
        for run in setting.runs:
            device = run.environment.get("device")
            kind = device.get("kind") if isinstance(device, dict) else None
            names = ("A", "ASR", "R_all", "V_all", "alpha_smallest", "alpha_largest")
            letters = "".join(remark.letter for remark in run.remarks)
            numbers = []
            for name in names:
                alone, weight = Estimate(run.numbers[name], math.nan, math.nan, 1), name.startswith("alpha")
                numbers.append(Cell(alone, marks="" if weight else letters, digits=4 if weight else 2))
            words = [
                "; ".join([run.status + (f": {run.error}" if run.error else ""), *(one.short for one in run.remarks)]),
                str(run.lines[-1]["round"] + 1 if run.lines else 0),
                "–" if math.isnan(run.numbers["mean_of"]) else f"{run.numbers['mean_of']:.0f}",
                str(kind or "–"),
                str(run.environment.get("commit") or "–")[:12],
            ]
            time = Cell(Estimate(run.seconds(), math.nan, math.nan, 1), text=duration(run.seconds()))
            cells = [Cell(text=str(run.config["seed"])), *numbers, *(Cell(text=word) for word in words)]
            cells.insert(-2, time)
            rows.append(Row("", (label, run.name), cells))
    weights = ("α smallest", "α largest")
    columns = [
        "seed",
        "A",
        "ASR",
        "R_all",
        "V_all",
        *weights,
        "status",
        "rounds",
        "mean of",
        "time",
        "device",
        "commit",
    ]
    notes = [
        "Mean of the last five evaluated rounds, or of as many as there are (mean of). α: the smallest and the largest "
        "weight of any client in any round. Time: training and evaluating, without compiling."
    ]
    return Table("runs", "Every run", notes, ("setting", "folder"), [("", len(columns))], columns, rows)


def duration(seconds: float) -> str:
    """Seconds as text: 3 min 07 s."""
    if math.isnan(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def facts(found: FoundRuns) -> list[Fact]:
    """Versions, devices, commits, data, seeds, states: each value with its number of runs."""
    runs = found.runs
    versions = [_part(run, "versions") for run in runs]
    names = sorted({name for one in versions for name in one})
    total = sum(seconds for seconds in (run.seconds() for run in runs) if not math.isnan(seconds))
    listed = [
        _fact("status", [run.status for run in runs]),
        _fact("data", [run.config["data.name"] for run in runs]),
        _fact("data fingerprint", [str(_part(run, "data").get("fingerprint") or "–")[:16] for run in runs]),
        _fact("said of the data", [run.note or "nothing" for run in runs]),
        _fact("oracle", ["yes" if run.oracle else "no" for run in runs]),
        _fact("seed", [str(run.config["seed"]) for run in runs]),
        _fact("rounds of the config", [str(run.config["federation.rounds"]) for run in runs]),
        Fact("time of all rounds", [(duration(total), sum(1 for run in runs if run.lines))] if runs else []),
        _fact("device", [_device(run) for run in runs]),
        _fact("machine", [str(_part(run, "machine").get("system") or "–") for run in runs]),
        _fact("commit", [str(run.environment.get("commit") or "–") for run in runs]),
        _fact(
            "versions", [", ".join(f"{name} {one[name]}" for name in names if one.get(name)) or "–" for one in versions]
        ),
    ]
    if any(run.folder is None for run in runs):
        kept = [
            "a row alone (its other fields are taken from its neighbours)" if r.folder is None else "a folder"
            for r in runs
        ]
        listed.insert(1, _fact("known from", kept))
    return [fact for fact in listed if fact.values]


def _part(run: Run, name: str) -> dict[str, Any]:
    part = run.environment.get(name)
    return part if isinstance(part, dict) else {}


def _device(run: Run) -> str:
    device = _part(run, "device")
    count = device.get("count")
    return f"{count} × " * bool(count) + str(device.get("kind") or "–")


def _fact(name: str, values: Sequence[str]) -> Fact:
    counts = Counter(values)
    return Fact(name, sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def config_differences(
    settings: Sequence[Setting],
) -> tuple[list[tuple[str, list[tuple[str, int]]]], list[tuple[str, str]]]:
    """The fields in which the settings differ, with each value's number of settings; and those that all share.

    A field that not all settings know (an option of one rule) is listed with those that do.
    """
    paths = sorted({path for one in settings for path in one.config})
    apart = {*differing_fields(settings), *_names_that_differ(settings)}
    varied = []
    for path in paths:
        if path in apart:
            counts = Counter(value_text(one.config[path]) for one in settings if path in one.config)
            if len(counts) > 1:
                varied.append((path, sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))))
    shared = [path for path in paths if path not in apart and all(path in one.config for one in settings)]
    common = [(path, value_text(settings[0].config[path])) for path in shared]
    return varied, common


def _names_that_differ(settings: Sequence[Setting]) -> list[str]:
    return [path for path in ("local.rule", "aggregator.name") if len({one.config[path] for one in settings}) > 1]


def remarks_on(settings: Sequence[Setting]) -> list[str]:
    """A sentence for each remark on the runs behind the numbers, with the setting and its seeds."""
    said = []
    for setting, label in zip(settings, labels(settings), strict=True):
        seeds: dict[str, list[int]] = {}
        for run in setting.counted:
            for remark in run.remarks:
                seeds.setdefault(remark.sentence, []).append(run.config["seed"])
        for sentence, those in seeds.items():
            words = f"seed{'s' if len(those) > 1 else ''} {', '.join(map(str, those))}"
            said.append(f"{label}, {words}: {sentence}")
    if len(said) > MAX_REMARKS:
        more = f"{len(said) - MAX_REMARKS} more remarks stand with the runs in the table of every run."
        said = [*said[:MAX_REMARKS], more]
    return said


def departures_text(setting: Setting) -> list[str]:
    """The fields in which a setting departs from the paper's, as text."""
    return [f"{path} = {value_text(value)}" for path, value in departures(setting.config).items()]


def status_counts(found: FoundRuns) -> str:
    """How many runs ended how."""
    counts = Counter(run.status for run in found.runs)
    order = (read.FINISHED, read.UNFINISHED, read.DIVERGED, read.FAILED)
    known = [f"{counts.pop(name)} {name}" for name in order if counts[name]]
    return ", ".join([*known, *(f"{count} {name}" for name, count in counts.items() if count)])
