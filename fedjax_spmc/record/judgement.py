"""What a run's numbers say of its method, in one sentence: does it hold the backdoor back, and at what price.

Demo, `compare` and report say it with these words, of the mean of the last five evaluated rounds. A remark that speaks
against a run comes first: then nothing is said of a defence. Nor is it where these rounds came before or after the
attack, or where nobody is malicious.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc.metrics import LAST_ROUNDS
from fedjax_spmc.record.remarks import Remark, on_schedule

HELD, LOST = 25.0, 50.0
"""A backdoor is held back where ASR is at most the first, and gets through where it is at least the second, percent."""
PRICE = 2.0
"""Points of accuracy below plain averaging, under the same attack, from which they are named."""


class Timing(NamedTuple):
    """How the rounds that the means are over lie to the attack's.

    Attributes:
        nobody: no client is malicious.
        before: some of them came before the first attack round.
        after: where all came after the last attack round: rounds from it to the first and to the last of them.
    """

    nobody: bool = False
    before: bool = False
    after: tuple[int, int] | None = None


def timing(config: Mapping[str, Any], evaluated: Sequence[int]) -> Timing:
    """The timing of a run.

    Args:
        config: fields by dotted path.
        evaluated: the rounds that were evaluated, from 0, in their order.
    """
    nobody = config["attack.malicious_fraction"] == 0
    meant = list(evaluated)[-LAST_ROUNDS:]
    attacked = np.flatnonzero(on_schedule(config, np.arange(meant[-1] + 1))).tolist() if meant else []
    if not attacked:  # a remark says that there was no attack round
        return Timing(nobody)
    first, last = attacked[0], attacked[-1]
    return Timing(nobody, meant[0] < first, (meant[0] - last, meant[-1] - last) if meant[0] > last else None)


def judgement(
    accuracy: float | None,
    asr: float | None,
    remarks: Sequence[Remark] = (),
    averaging: float | None = None,
    when: Timing = Timing(),
) -> str:
    """The sentence.

    Args:
        accuracy, asr: A and ASR in percent; None or NaN = undefined.
        remarks: on the run.
        averaging: A of plain averaging under the same conditions; None = not known, or this is it.
        when: from `timing`.
    """
    against = [remark for remark in remarks if not remark.ranked]
    if against:
        return f"No judgement: {against[0].sentence}"
    if accuracy is None or math.isnan(accuracy):
        return "No round was evaluated."
    if asr is None or math.isnan(asr):
        return f"No backdoor was put in: accuracy is {accuracy:.0f} %."
    if when.nobody:
        return f"No client is malicious: accuracy is {accuracy:.0f} %."
    if when.before:
        return "No judgement: the attack began after some of the rounds that the means are over."
    while_attacked = ("Holds the backdoor back", "Holds the backdoor back in part", "Does not hold the backdoor back")
    behind = ("The backdoor is gone", "The backdoor is left in part", "The backdoor is still there")
    found = 0 if asr <= HELD else 1 if asr < LOST else 2
    said = while_attacked[found] if when.after is None else f"{behind[found]} {_rounds(*when.after)} after the attack"
    said = f"{said}: ASR is {asr:.0f} %, at {accuracy:.0f} % accuracy"
    if averaging is None or math.isnan(averaging) or averaging - accuracy < PRICE:
        return said + "."
    return f"{said}, {averaging - accuracy:.0f} points below averaging."


def _rounds(least: int, most: int) -> str:
    return f"{least} to {most} rounds" if least < most else "a round" if most == 1 else f"{most} rounds"


def averaging_beside(others: Sequence[tuple[Mapping[str, Any], float | None]]) -> float | None:
    """A of the one of several runs of averaging that is meant; None where there is none, or nothing to choose by.

    Of several it is the one that weights clients by their examples, as the papers do.

    Args:
        others: (fields by dotted path, A) of each run that `is_averaging`, under the same conditions.
    """
    plain = [one for one in others if one[1] is not None and not math.isnan(one[1])]
    by_size = [one for one in plain if one[0].get("aggregator.options.weights", "size") == "size"]
    chosen = plain if len(plain) == 1 else by_size
    return chosen[0][1] if len(chosen) == 1 else None
