"""What a search for a trigger begins with, where no trigger of an earlier one is at hand."""

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_spmc.flip.inversion import Triggers
from fedjax_spmc.types import Array, PRNGKey

MaskStart = Literal["uniform", "uniform_small"]
SMALL = 0.1
BLOCK, BLOCK_OF_PAIR = (5, 14), (14, None)
"""Rows and columns, from the upper left corner, of the block that FLIP's CIFAR code begins with: it lies over the
trigger of its own attack. For both ways of a pair the code's line says the rows of all columns."""


def start_masks(draws: Array, kind: MaskStart = "uniform", prior: str = "") -> Array:
    """Masks to begin with.

    Args:
        draws: [..., H, W] uniform in [0, 1].
        kind: "uniform" in [0, 1], or "uniform_small" in [0, 0.1] (the CIFAR code).
        prior: "single" or "pair" sets the block of the CIFAR code's one-way or two-way search to 1, which tells the
            client where the trigger is; "" none.
    """
    masks = draws * (SMALL if kind == "uniform_small" else 1.0)
    if not prior:
        return masks
    rows, columns = BLOCK if prior == "single" else BLOCK_OF_PAIR
    return masks.at[..., :rows, :columns].set(1.0)


def random_start(
    key: PRNGKey, count: int, shape: tuple[int, ...], kind: MaskStart = "uniform", prior: str = ""
) -> Triggers:
    """Triggers to begin with: patterns uniform in [0, 1], masks as `start_masks`.

    Args:
        key: of the draws.
        count: how many.
        shape: (H, W, C).
        kind, prior: see `start_masks`.
    """
    of_masks, of_patterns = jax.random.split(key)
    masks = start_masks(jax.random.uniform(of_masks, (count, *shape[:2])), kind, prior)
    return Triggers(masks, jax.random.uniform(of_patterns, (count, *shape), jnp.float32))
