"""The tables of what the fields of `evaluation` measure: how long a backdoor lives on, and what is rejected."""

import math
from collections.abc import Sequence

from fedjax_spmc import durability
from fedjax_spmc.report.read import Run
from fedjax_spmc.report.settings import Setting, estimate, labels, num_seeds, rounds_played
from fedjax_spmc.report.tables import INTERVALS, Cell, Row, Table


def durability_table(settings: Sequence[Setting]) -> Table:
    """A line per setting whose attack has ended: ASR after its end, and for each threshold the lifespans."""
    given = [run.config["evaluation.lifespan_thresholds"] for one in settings for run in one.counted]
    thresholds = sorted({float(theta) for some in given for theta in some})
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
