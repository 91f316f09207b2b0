"""How FLIP's clients search and harden: all settings of the local rule in one tuple, and its presets."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from fedjax_spmc.flip.inversion import COST, COST_SHORT, JITTER, Search
from fedjax_spmc.flip.starts import MaskStart
from fedjax_spmc.types import Array

Schedule = Literal["parallel", "reference"]
Preset = Literal["lite", "reference"]
PairKey = Literal["ordered", "reference"]
Storage = Literal["pairs", "targets", "none"]
Kind = Literal["inverted", "noise", "none"]

PRESETS: dict[str, dict[str, Any]] = {
    "reference": {"universal_steps": 400, "pair_steps": 200, "short_steps": 50, "pairs": 45},
    "lite": {"universal_steps": 50, "pair_steps": 30, "short_steps": 10, "pairs": 3},
}
"""Preset -> steps of a search and pairs of a round. Those of "reference" are the code's for MNIST; `pairs`, of the
parallel schedule alone, is how many pairs the code goes through in its 100 batches behind the first ten."""


class Options(NamedTuple):
    """See the local rule `flip`, whose options these are; nothing is None but `size_limit`."""

    schedule: Schedule = "parallel"
    universal_steps: int = 50
    pair_steps: int = 30
    short_steps: int = 10
    shorten_one_way: bool = False
    pairs: int = 3
    visits: int = 2
    universal_samples: int = 1
    pair_samples: int = 8
    threshold: Any = 0.9
    cost: float = COST
    cost_short: float = COST_SHORT
    growth: float = 1.5
    fall: float = 1.5**1.5
    patience: int = 10
    search_rate: float = 0.1
    search_beta1: float = 0.5
    search_beta2: float = 0.9
    jitter: float = JITTER
    margin: float = 1e-6
    rollback_other: bool = False
    mask_init: MaskStart = "uniform"
    oracle_mask_prior: bool = False
    more_than: int = 1
    fraction: float = 0.5
    size_limit: float | None = None
    random_pair: Any = 0.3
    max_batches: int = 110
    pair_key: PairKey = "ordered"
    storage: Storage = "pairs"
    half: bool = False
    also_train_clean: bool = False
    triggers: Kind = "inverted"
    noise_pixels: int = 16

    def search(self) -> Search:
        """How a search goes."""
        return Search(
            threshold=self.threshold,
            learning_rate=self.search_rate,
            beta1=self.search_beta1,
            beta2=self.search_beta2,
            growth=self.growth,
            fall=self.fall,
            patience=self.patience,
            margin=self.margin,
            rollback=self.rollback_other,
        )

    def limit(self, shape: tuple[int, ...]) -> float:
        """The largest sum of a mask over all channels with which a batch is hardened.

        The code: 98 for 28 x 28 grey, 768 for 32 x 32 in colour.
        """
        if self.size_limit is not None:
            return self.size_limit
        height, width, channels = shape
        return height * width / 8 if channels == 1 else height * width * channels / 4

    def stamped_of(self, count: Array, rows: int) -> Array:
        """How many of so many examples are stamped: the whole part of count * fraction, as Python has it.

        Args:
            count: int32 scalar.
            rows: the largest that it may be.
        """
        table = jnp.asarray([int(one * self.fraction) for one in range(rows + 1)], jnp.int32)
        return table[count]
