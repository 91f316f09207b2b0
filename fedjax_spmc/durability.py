"""How long a backdoor outlives the attack: lifespans and what else is told of the rounds after its end.

Rounds are counted from 0; T0 is the last round of the attack (`attack.schedule.last`), r a later one, theta a threshold
in percent. Sources:
    * last above, the last r with ASR > theta: Zhang et al., "Neurotoxin: Durable Backdoors in Federated Learning", ICML
      2022. Its code logs ASR alone and computes no lifespan; 50 percent and the last round above are one reading of it.
    * first below, the first r with ASR <= theta: the other reading.
    * smoothed: Lachnit and Karame, CCS 2025 (arXiv 2509.05192). Deviation: the mean trails over the last ten rounds,
      where their code's is centred and has ten rounds to either side. In both no round of the attack is in it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

SMOOTHED_ROUNDS = 10
WORDS = {
    "lifespan_last_above": "last above",
    "lifespan_first_below": "first below",
    "lifespan_smoothed": "smoothed",
}
"""The lifespans, and how they are called in tables."""
PER_THRESHOLD = (*WORDS, "censored")


class Looks(NamedTuple):
    """The evaluated rounds after the attack: rounds r - T0, from 1, and ASR in percent."""

    after: list[int]
    rates: list[float]


def measure(
    rounds: Sequence[int], rates: Sequence[float | None], last: int | None, thresholds: Sequence[float]
) -> dict[str, float | int | bool | None]:
    """The metrics of durability of one run.

    They speak of evaluated rounds. Where not every round is (`lifespan_resolution` above 1), a backdoor may have been
    above or below between two looks: `lifespan_last_above` is then the least that it can be and `lifespan_first_below`,
    where a look was below, the most.

    Args:
        rounds: that were evaluated, from 0, increasing.
        rates: ASR in percent in each; None = undefined.
        last: T0; None = the attack has no end.
        thresholds: theta, percent.

    Returns:
        asr_after: mean ASR of the rounds after T0, percent.
        lifespan_resolution: rounds from one look to the next at most, from T0 on; 1 = every round.
        For each theta, as `name_theta` (lifespan_last_above_50):
        lifespan_last_above: r - T0 of the last r with ASR > theta, else 0.
        lifespan_first_below: r - T0 - 1 of the first r with ASR <= theta; where there is none, all rounds so far.
        lifespan_smoothed: with ASR as its mean over the last ten rounds (of those after T0), the last r at or above
        theta minus the first, plus 1; else 0.
        censored: ASR is above theta in the last round: `lifespan_last_above`, and `lifespan_first_below` where it never
        fell, may be longer.
        All are None where they are undefined: the attack has no end, no round after it was evaluated, or there is no
        ASR.
    """
    looks = Looks([], [])
    for index, rate in zip(rounds, rates, strict=True):
        if last is not None and index > last and rate is not None:
            looks.after.append(index - last)
            looks.rates.append(rate)
    if not looks.after:
        return dict.fromkeys(names(thresholds))
    gaps = [now - before for before, now in zip([0, *looks.after], looks.after, strict=False)]
    found: dict[str, float | int | bool | None] = {
        "asr_after": math.fsum(looks.rates) / len(looks.rates),
        "lifespan_resolution": max(gaps),
    }
    for threshold in thresholds:
        values = _last_above(looks, threshold), _first_below(looks, threshold), _smoothed(looks, threshold)
        censored = looks.rates[-1] > threshold
        named = zip(PER_THRESHOLD, (*values, censored), strict=True)
        found |= {name_at(name, threshold): value for name, value in named}
    return found


def names(thresholds: Sequence[float]) -> list[str]:
    """The names that `measure` returns, in order."""
    return ["asr_after", "lifespan_resolution", *(name_at(n, theta) for theta in thresholds for n in PER_THRESHOLD)]


def name_at(name: str, threshold: float) -> str:
    """A metric's name with its threshold in percent: lifespan_last_above_50."""
    return f"{name}_{threshold:g}"


def _last_above(looks: Looks, threshold: float) -> int:
    return max((after for after, rate in zip(*looks, strict=True) if rate > threshold), default=0)


def _first_below(looks: Looks, threshold: float) -> int:
    below = (after - 1 for after, rate in zip(*looks, strict=True) if rate <= threshold)
    return next(below, looks.after[-1])


def _smoothed(looks: Looks, threshold: float) -> int:
    above, first = [], 0
    for index, now in enumerate(looks.after):
        while looks.after[first] <= now - SMOOTHED_ROUNDS:
            first += 1
        window = looks.rates[first : index + 1]
        if math.fsum(window) / len(window) >= threshold:
            above.append(now)
    return above[-1] - above[0] + 1 if above else 0
