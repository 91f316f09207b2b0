"""What a run's numbers say of its method, in one sentence: does it hold the backdoor back, and at what price.

Demo, `compare` and report say it with these words, of the mean of the last five evaluated rounds. A remark that speaks
against a run comes first: then nothing is said of a defence.
"""

import math
from collections.abc import Sequence

from fedjax_spmc.metrics import LAST_ROUNDS
from fedjax_spmc.record.remarks import Remark

HELD, LOST = 25.0, 50.0
"""A backdoor is held back where ASR is at most the first, and gets through where it is at least the second, percent."""
PRICE = 2.0
"""Points of accuracy below plain averaging, under the same attack, from which they are named."""


def judgement(
    accuracy: float | None,
    asr: float | None,
    remarks: Sequence[Remark] = (),
    averaging: float | None = None,
    ended: int = 0,
) -> str:
    """The sentence.

    Args:
        accuracy, asr: A and ASR in percent; None or NaN = undefined.
        remarks: on the run.
        averaging: A of plain averaging under the same conditions; None = not known, or this is it.
        ended: from `rounds_after`; where it is not 0 the numbers say whether a backdoor lasted, not who kept it out.
    """
    against = [remark for remark in remarks if not remark.ranked]
    if against:
        return f"No judgement: {against[0].sentence}"
    if accuracy is None or math.isnan(accuracy):
        return "No round was evaluated."
    if asr is None or math.isnan(asr):
        return f"No backdoor was put in: accuracy is {accuracy:.0f} %."
    while_attacked = ("Holds the backdoor back", "Holds the backdoor back in part", "Does not hold the backdoor back")
    behind = ("The backdoor is gone", "The backdoor is left in part", "The backdoor is still there")
    found = 0 if asr <= HELD else 1 if asr < LOST else 2
    after = f"{ended} round{'s' * (ended > 1)} after the attack"
    said = f"{behind[found]} {after}" if ended else while_attacked[found]
    said = f"{said}: ASR is {asr:.0f} %, at {accuracy:.0f} % accuracy"
    if averaging is None or math.isnan(averaging) or averaging - accuracy < PRICE:
        return said + "."
    return f"{said}, {averaging - accuracy:.0f} points below averaging."


def rounds_after(last: int | None, evaluated: Sequence[int]) -> int:
    """Rounds from the attack's last to the run's last, where all that the means are over came after it; else 0.

    Args:
        last: `attack.schedule.last`.
        evaluated: the rounds that were evaluated, from 0, in their order.
    """
    meant = evaluated[-LAST_ROUNDS:]
    return meant[-1] - last if last is not None and meant and meant[0] > last else 0
