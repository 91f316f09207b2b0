"""Pixel triggers: which pixels are overwritten, with what, and in which space."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import Array

Positions = Sequence[Sequence[int]]
"""Pixels as (channel, row, column)."""


class Trigger(NamedTuple):
    """A pattern to stamp on images.

    Attributes:
        mask: [H, W, C] float32 in [0, 1]: 1 overwrites a value, 0 leaves it, between them blends.
        value: [H, W, C] float32: what is written.
        space: "raw" (pixel values 0..1) or "normalized" (after subtracting the mean and dividing by the std).
    """

    mask: Array
    value: Array
    space: str = "raw"


class Preset(NamedTuple):
    """A published trigger: pixels (channel, row, column), the value written, and its space."""

    positions: tuple[tuple[int, int, int], ...]
    value: float
    space: str


class Bars(NamedTuple):
    """Four equal bars, two beside two, as DBA's code has them; each of the three is (rows, columns).

    Attributes:
        size: of a bar.
        gap: between the bars, below and beside each other.
        corner: row and column at which the first one begins.
    """

    size: tuple[int, int]
    gap: tuple[int, int]
    corner: tuple[int, int] = (0, 0)

    def reach(self) -> tuple[int, int]:
        """(rows, columns) that an image must have."""
        (height, width), (down, right), (top, left) = self
        return top + 2 * height + down, left + 2 * width + right

    def places(self) -> list[list[tuple[int, int]]]:
        """(row, column) of the pixels of each bar: left, right, then those below."""
        (height, width), (down, right), (top, left) = self
        starts = [(top + i * (height + down), left + j * (width + right)) for i in (0, 1) for j in (0, 1)]
        return [[(row + r, column + c) for r in range(height) for c in range(width)] for row, column in starts]

    def positions(self, channels: int) -> tuple[tuple[int, int, int], ...]:
        """(channel, row, column) of all their values, bar by bar."""
        return tuple((k, row, column) for bar in self.places() for k in range(channels) for row, column in bar)


BARS = {
    # DBA code: its parameters of MNIST, CIFAR-10 and Tiny ImageNet; 1 in all channels of pixels in [0, 1].
    "dba_mnist": Bars((1, 4), (2, 2)),
    "dba_cifar": Bars((1, 6), (3, 3)),
    "dba_tiny": Bars((2, 10), (2, 2)),
}
PRESETS = {
    # FDCR, NeurIPS 2024, section 4.1: "2 x 6 ... in the top-left corner"; the value is not stated: white here.
    "fdcr_paper": Preset(tuple((c, r, x) for c in range(3) for r in (0, 1) for x in range(6)), 1.0, "raw"),
    # SPMC code, base_backdoor: 12 values on channel 0, rows 0 and 2, written after normalisation.
    "spmc_code": Preset(tuple((0, r, x) for r in (0, 2) for x in (0, 1, 2, 4, 5, 6)), 1.0, "normalized"),
    # FDCR code: the same two broken bars on all three channels.
    "fdcr_code": Preset(
        tuple((c, r, x) for c in range(3) for r in (0, 2) for x in (0, 1, 2, 4, 5, 6)), 1.0, "normalized"
    ),
} | {name: Preset(bars.positions(3), 1.0, "raw") for name, bars in BARS.items()}
TriggerName = Literal["fdcr_paper", "spmc_code", "fdcr_code", "dba_mnist", "dba_cifar", "dba_tiny"]


def from_positions(
    positions: Positions, value: float | Sequence[float], space: str, image_shape: tuple[int, int, int]
) -> Trigger:
    """A trigger that overwrites single values.

    Args:
        positions: pixels as (channel, row, column).
        value: what is written, one number or one for each position.
        space: "raw" or "normalized".
        image_shape: (H, W, C).

    Raises:
        ConfigError: there is no position, or one lies outside the image or is not three whole numbers.
    """
    check_positions(positions)
    height, width, channels = image_shape
    mask = np.zeros(image_shape, np.float32)
    values = np.zeros(image_shape, np.float32)
    for position, written in zip(positions, np.broadcast_to(value, (len(positions),)), strict=True):
        if not all(0 <= i < n for i, n in zip(position, (channels, height, width), strict=True)):
            raise ConfigError(
                f"attack.options.positions: {position!r} is not allowed: it must be (channel, row, column) "
                f"inside an image of {channels} x {height} x {width}."
            )
        channel, row, column = position
        mask[row, column, channel] = 1.0
        values[row, column, channel] = written
    return Trigger(jnp.asarray(mask), jnp.asarray(values), space)


def check_positions(positions: Positions | None) -> None:
    """Refuses positions that can be none in any image; None stands for a preset's.

    Raises:
        ConfigError: there is none, or one is not three whole numbers.
    """
    if positions is None:
        return
    if not len(positions):
        raise ConfigError(
            f"attack.options.positions = {positions!r} is not allowed: a trigger must have at least one pixel "
            "(channel, row, column); None stands for those of attack.trigger."
        )
    for position in positions:
        triple = isinstance(position, Sequence) and len(position) == 3
        if not triple or not all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in position):
            raise ConfigError(
                f"attack.options.positions: {position!r} is not allowed: it must be (channel, row, column), three "
                "whole numbers."
            )


def listed(preset: str, positions: Positions | None, image_shape: tuple[int, ...]) -> Positions:
    """The pixels given, or those of a preset that lie on channels which the images have."""
    if positions is not None:
        return positions
    return tuple(one for one in PRESETS[preset].positions if one[0] < image_shape[-1])


def require_images(preset: str, image_shape: tuple[int, ...]) -> None:
    """Refuses inputs that are no images.

    Raises:
        ConfigError: their shape is not (H, W, C).
    """
    if len(image_shape) != 3:
        raise ConfigError(
            f"attack.trigger = {preset!r} is not allowed: inputs of shape {image_shape} take no pixel trigger."
        )


def chosen(
    preset: str, positions: Positions | None, value: float | None, space: str | None, image_shape: tuple[int, ...]
) -> Trigger:
    """A preset's trigger with what is given in place of its own; on grey images, its part on the first channel.

    Raises:
        ConfigError: a position that is not allowed, or inputs that are no images.
    """
    known = PRESETS[preset]
    require_images(preset, image_shape)
    return from_positions(
        listed(preset, positions, image_shape),
        known.value if value is None else value,
        known.space if space is None else space,
        (image_shape[0], image_shape[1], image_shape[2]),
    )


def normalized(trigger: Trigger, mean: Array, std: Array) -> Trigger:
    """The trigger as it looks on normalised images; stamping commutes with the normalisation.

    Args:
        trigger: in either space.
        mean, std: [C] float32, of pixel values in [0, 1].
    """
    if trigger.space == "normalized":
        return trigger
    value = (trigger.value - mean[None, None, :]) / std[None, None, :]
    return Trigger(trigger.mask, value, "normalized")


def stamp(images: Array, trigger: Trigger) -> Array:
    """Writes the trigger on images [..., H, W, C] that are in the trigger's own space; same shape and dtype."""
    lead = (1,) * (images.ndim - 3)
    mask = jnp.reshape(trigger.mask, lead + trigger.mask.shape)
    value = jnp.reshape(trigger.value, lead + trigger.value.shape)
    return jnp.where(mask > 0, (1 - mask) * images + mask * value, images).astype(images.dtype)
