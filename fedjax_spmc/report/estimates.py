"""Means over seeds with their bootstrap intervals."""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval and the standard deviation (n - 1); neither below two seeds, NaN where
    undefined."""

    mean: float
    low: float
    high: float
    seeds: int
    std: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there is a mean."""
        return not math.isnan(self.mean)

    @property
    def interval(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)


UNDEFINED = Estimate(math.nan, math.nan, math.nan, 0)


def bootstrap(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile intervals of the mean over the rows.

    Args:
        values: [seeds, columns], finite.

    Returns:
        low, high: [columns]; NaN below two rows. The draws are always the same.
    """
    count, columns = values.shape
    if count < 2 or not columns:
        return np.full(columns, np.nan), np.full(columns, np.nan)
    means = (resampling_weights(count) @ values.reshape(count, -1)).reshape(RESAMPLES, columns)
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return low, high


@functools.cache
def resampling_weights(count: int) -> np.ndarray:
    """[RESAMPLES, count]: the weight of each of `count` seeds in each resampled mean."""
    draws = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    return (draws[:, :, None] == np.arange(count)).mean(axis=1)


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and interval of the values that are defined."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return UNDEFINED
    low, high = bootstrap(known[:, None])
    std = float(known.std(ddof=1)) if len(known) > 1 else math.nan
    return Estimate(float(known.mean()), float(low[0]), float(high[0]), len(known), std)


def share(values: np.ndarray, others: np.ndarray) -> Estimate:
    """Mean of the values over the mean of the others, both [seeds], with the interval of seeds drawn in pairs.

    Undefined where a value is, or where all of the others are 0; without an interval where one of them is.
    """
    if np.isnan(values).any() or np.isnan(others).any() or others.mean() == 0:
        return UNDEFINED
    mean, low, high = values.mean() / others.mean(), math.nan, math.nan
    if len(values) > 1 and (others > 0).all():
        weights = resampling_weights(len(values))
        low, high = (float(x) for x in np.quantile((weights @ values) / (weights @ others), (0.025, 0.975)))
    return Estimate(float(mean), low, high, len(values))
