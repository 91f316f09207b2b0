"""The learning rate over global rounds: factors on `local.learning_rate`, one for each round, made on the host.

Source: linear, cosine and step are torch's LinearLR (from 1), CosineAnnealingLR and MultiStepLR, a round in place of an
    epoch; neurotoxin_cifar and neurotoxin_emnist are `lr_scheduler` of the code of Zhang, Panda, Song, Yang, Mahoney,
    Gonzalez, Ramchandran, Mittal, "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022, for CIFAR and for
    EMNIST-byClass; its EMNIST digits have a constant rate of 1e-4.
Deviations: cosine stays at its end, where torch's rises again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

TAKES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "linear": ("schedule_offset", "schedule_rounds", "schedule_end"),
    "cosine": ("schedule_offset", "schedule_rounds", "schedule_end"),
    "step": ("schedule_offset", "schedule_milestones", "schedule_gamma"),
    "neurotoxin_cifar": ("schedule_offset",),
    "neurotoxin_emnist": ("schedule_offset",),
}
"""Schedule -> the fields of `local` that it has a use for."""

NEUROTOXIN_START = {"neurotoxin_cifar": 0.001, "neurotoxin_emnist": 0.01}
"""Schedule of Neurotoxin's code -> its learning rate in the first round."""


def factors(
    name: str,
    rounds: int,
    learning_rate: float = 0.2,
    schedule_offset: int = 0,
    schedule_rounds: int | None = None,
    schedule_end: float = 0.0,
    schedule_milestones: Sequence[int] = (),
    schedule_gamma: float = 0.1,
) -> np.ndarray:
    """The factors of a schedule: [rounds] float64.

    Args:
        name: a key of `TAKES`.
        rounds: how many; round r of the run, from 0, has the factor [r].
        learning_rate: what the factors are multiplied with. Neurotoxin's schedules begin at a rate of their own, reach
            this one in their round 500, and fall to one of their own.
        schedule_offset: rounds of the schedule that lie before the run: it begins in round `schedule_offset` of it.
        schedule_rounds: T; linear and cosine begin at 1 and are at their end in round T of the schedule and after it;
            None = `schedule_offset + rounds`.
        schedule_end: factor at that end.
        schedule_milestones: rounds of the schedule, from 0, at whose start step multiplies with `schedule_gamma`.
        schedule_gamma: see there.
    """
    index = schedule_offset + np.arange(rounds)
    share = np.minimum(index / (schedule_rounds or schedule_offset + rounds), 1.0)
    if name == "linear":
        return 1 + share * (schedule_end - 1)
    if name == "cosine":
        return schedule_end + (1 - schedule_end) * (1 + np.cos(np.pi * share)) / 2
    if name == "step":
        return schedule_gamma ** (index[:, None] >= np.asarray(schedule_milestones)).sum(axis=1)
    if name in NEUROTOXIN_START:
        return neurotoxin_rate(index + 1, NEUROTOXIN_START[name], learning_rate) / learning_rate
    return np.ones(rounds)


def neurotoxin_rate(number: Any, start: float, target: float) -> np.ndarray:
    """Benign learning rate of Neurotoxin's code in round `number`, counted from 1 as there; float64.

    From `start` in round 1 straight to `target` in round 500, then straight towards 0 in round 2000, at least 1e-4.
    """
    number = np.asarray(number)
    rising = start + (number - 1) * (target - start) / 499
    return np.where(number <= 500, rising, np.maximum(target * (4 / 3 - number / 1500), 1e-4))
