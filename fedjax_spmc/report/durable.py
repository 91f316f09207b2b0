"""The tables of what the fields of `evaluation` measure: how long a backdoor lives on, and what is rejected."""

import math
from collections.abc import Sequence

import numpy as np

from fedjax_spmc import durability
from fedjax_spmc.config import option_at
from fedjax_spmc.report.estimates import estimate, share
from fedjax_spmc.report.read import Run
from fedjax_spmc.report.settings import Setting, labels, num_seeds, parts_of_attack, rounds_played
from fedjax_spmc.report.tables import INTERVALS, Cell, Row, Table


def durability_table(settings: Sequence[Setting]) -> Table:
    """A line per setting whose attack has ended: ASR after its end, and for each threshold the lifespans."""
    thresholds = _thresholds(settings)
    rows = []
    for setting, label in zip(settings, labels(settings), strict=True):
        found = [run.durability(thresholds) for run in setting.counted]
        if not any(one["asr_after"] >= 0 for one in found):
            continue
        marks = setting.marks()
        cells = [Cell(text=num_seeds(setting)), Cell(text=rounds_played(setting))]
        steps = [one["lifespan_resolution"] for one in found if one["lifespan_resolution"] > 0]
        cells.append(Cell(text=f"{max(steps):.0f}" if steps else "–"))
        cells.append(Cell(estimate(one["asr_after"] for one in found), marks=marks))
        for theta in thresholds:
            values = {
                name: [one[durability.name_at(name, theta)] for one in found] for name in durability.PER_THRESHOLD
            }
            censored = sum(value > 0 for value in values["censored"])
            never_fell = any(_never_fell(run, theta) for run in setting.counted)
            for name in durability.WORDS:
                open_ended = never_fell if name == "lifespan_first_below" else bool(censored)
                cells.append(Cell(estimate(values[name]), marks=marks + "c" * open_ended, digits=1))
            cells.append(Cell(text=f"{censored} of {sum(not math.isnan(value) for value in values['censored'])}"))
        rows.append(Row("", (label,), cells))
    heads = [*durability.WORDS.values(), "censored"]
    columns = ["seeds", "rounds", "step", "ASR after", *(head for _ in thresholds for head in heads)]
    groups = [("", 4), *((f"ASR > {theta:g} %", len(heads)) for theta in thresholds)]
    notes = [
        "Rounds after the last round of the attack, of those that were evaluated. Last above: up to the last one with "
        "ASR above the threshold. First below: those before the first one at or below it. Smoothed: from the first to "
        "the last one at or above it, with ASR as its mean over the last ten rounds after the attack. ASR after: mean "
        "over the rounds after the attack, percent. Censored: seeds in which ASR is above the threshold in the last "
        "round. Step: rounds from one evaluation to the next; above 1, last above is the least that it can be and "
        "first below the most. In brackets the 95 % percentile bootstrap interval over seeds."
    ]
    return Table("durability", "How long the backdoor outlives the attack", notes, ("setting",), groups, columns, rows)


def _thresholds(settings: Sequence[Setting]) -> list[float]:
    given = [run.config["evaluation.lifespan_thresholds"] for one in settings for run in one.counted]
    return sorted({float(theta) for some in given for theta in some})


def added_part_table(settings: Sequence[Setting]) -> Table:
    """A line per setting whose attack is another one's and a part more, all else equal: its lifespans as shares.

    The seeds that both have are compared in pairs.
    """
    thresholds = _thresholds(settings)
    names = [durability.name_at(name, theta) for theta in thresholds for name in durability.WORDS]
    rows = []
    for setting, label in zip(settings, labels(settings), strict=True):
        for other in settings:
            part = _added_part(setting, other)
            seeds = sorted(
                {run.config["seed"] for run in setting.counted} & {run.config["seed"] for run in other.counted}
            )
            if part is None or not seeds:
                continue
            pairs = [
                [{run.config["seed"]: run.durability(thresholds) for run in one.counted}[seed] for seed in seeds]
                for one in (setting, other)
            ]
            if not all(one["asr_after"] >= 0 for some in pairs for one in some):
                continue
            cells = [Cell(text=part), Cell(text=str(len(seeds)))]
            for name in ("asr_after", *names):
                with_part, without = (np.array([one[name] for one in some], float) for some in pairs)
                cells.append(Cell(share(with_part, without), marks="c" * _open_ended(pairs, name)))
            rows.append(Row("", (label,), cells))
    groups = [("", 3), *((f"ASR > {theta:g} %", len(durability.WORDS)) for theta in thresholds)]
    notes = [
        "The mean over the seeds as a share of the mean of the same attack without the part: 2 is twice as long, 1 as "
        "long. In brackets the 95 % percentile bootstrap interval over seeds, drawn in pairs."
    ]
    columns = ["part", "seeds", "ASR after", *(head for _ in thresholds for head in durability.WORDS.values())]
    return Table(
        "durability_part", "What one part of the attack does to it", notes, ("setting",), groups, columns, rows
    )


def _added_part(setting: Setting, other: Setting) -> str | None:
    """The name of the part that the first attack has and the second lacks, all else equal; None where there is none."""
    parts, fewer = parts_of_attack(setting.config), parts_of_attack(other.config)
    added = [part for i, part in enumerate(parts) if parts[:i] + parts[i + 1 :] == fewer]
    own, rest = setting.config, other.config
    if not added or any(path not in own or own[path] != rest[path] for path in rest if path != "attack.name"):
        return None
    return added[0] if all(option_at(path)[0] == "attack" for path in own.keys() - rest.keys()) else None


def _open_ended(pairs: Sequence[Sequence[dict[str, float]]], name: str) -> bool:
    """Whether a lifespan may be longer in some run."""
    theta = name.rpartition("_")[2]
    return any(one.get(f"censored_{theta}", 0) > 0 for some in pairs for one in some)


def _never_fell(run: Run, threshold: float) -> bool:
    """Whether ASR was above a threshold in every evaluated round after the attack."""
    last = run.config["attack.schedule.last"]
    end = run.lines[-1]["round"] if run.lines else run.config["federation.rounds"] - 1
    name = durability.name_at("lifespan_first_below", threshold)
    return last is not None and run.durability([threshold])[name] == end - last


def rejection_table(settings: Sequence[Setting]) -> Table:
    """A line per setting in which predictions were rejected: A and ASR with and without, and how many were."""
    heads = {"A": "A", "A any": "A_without_rejection", "ASR": "ASR", "ASR any": "ASR_without_rejection"}
    heads |= {"clean": "rejected_clean", "triggered": "rejected_triggered"}
    rows = []
    for setting, label in zip(settings, labels(settings), strict=True):
        if setting.config["evaluation.confidence"] > 0:
            cells = [Cell(text=num_seeds(setting)), Cell(text=f"{setting.config['evaluation.confidence']:g}")]
            cells += [Cell(setting.estimate(name), marks=setting.marks()) for name in heads.values()]
            rows.append(Row("", (label,), cells))
    groups = [("", 2), ("accuracy", 2), ("attack success", 2), ("rejected", 2)]
    notes = [
        INTERVALS,
        "A prediction whose probability is below the confidence is rejected: wrong for A, failed for ASR. Any: "
        "whatever its probability. Rejected: percent of the clean and of the triggered predictions.",
    ]
    columns = ["seeds", "confidence", *heads]
    return Table("rejection", "Rejected predictions", notes, ("setting",), groups, columns, rows)
