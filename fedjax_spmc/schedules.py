"""The learning rate over global rounds: factors on `local.learning_rate`, one for each round, made on the host.

Source: linear, cosine and step are torch's LinearLR (from 1), CosineAnnealingLR and MultiStepLR, a round in place of an
    epoch; neurotoxin_cifar is `lr_scheduler` of the code of Zhang, Panda, Song, Yang, Mahoney, Gonzalez, Ramchandran,
    Mittal, "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022, with its defaults for CIFAR-10.
Deviations: cosine stays at its end, where torch's rises again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

TAKES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "linear": ("schedule_rounds", "schedule_end"),
    "cosine": ("schedule_rounds", "schedule_end"),
    "step": ("schedule_milestones", "schedule_gamma"),
    "neurotoxin_cifar": (),
}
"""Schedule -> the fields of `local` that it has a use for."""


def factors(
    name: str,
    rounds: int,
    schedule_rounds: int | None = None,
    schedule_end: float = 0.0,
    schedule_milestones: Sequence[int] = (),
    schedule_gamma: float = 0.1,
) -> np.ndarray:
    """The factors of a schedule: [rounds] float64.

    Args:
        name: a key of `TAKES`.
        rounds: how many; round r, from 0, has the factor [r].
        schedule_rounds: T; linear and cosine begin at 1 and are at their end in round T and after it; None = `rounds`.
        schedule_end: factor at that end.
        schedule_milestones: rounds, from 0, at whose start step multiplies with `schedule_gamma`.
        schedule_gamma: see there.
    """
    index = np.arange(rounds)
    share = np.minimum(index / (schedule_rounds or rounds), 1.0)
    if name == "linear":
        return 1 + share * (schedule_end - 1)
    if name == "cosine":
        return schedule_end + (1 - schedule_end) * (1 + np.cos(np.pi * share)) / 2
    if name == "step":
        return schedule_gamma ** (index[:, None] >= np.asarray(schedule_milestones)).sum(axis=1)
    if name == "neurotoxin_cifar":
        return neurotoxin_rate(index + 1, start=0.001, target=0.2) / 0.2
    return np.ones(rounds)


def neurotoxin_rate(number: Any, start: float, target: float) -> np.ndarray:
    """Benign learning rate of Neurotoxin's code in round `number`, counted from 1 as there; float64.

    From `start` in round 1 straight to `target` in round 500, then straight towards 0 in round 2000, at least 1e-4.
    """
    number = np.asarray(number)
    rising = start + (number - 1) * (target - start) / 499
    return np.where(number <= 500, rising, np.maximum(target * (4 / 3 - number / 1500), 1e-4))
