"""What data sets of a user's own share: their properties come from the pictures, not from a table."""

from typing import NamedTuple

import numpy as np

from fedjax_spmc.data.dataset import DatasetInfo, Source, Splits
from fedjax_spmc.errors import ConfigError, DataError

LISTED = 8
"""Names that a sentence lists, at most."""


class Augmented(NamedTuple):
    """Black pixels on each side before the random crop in training (0 = no crop), and whether pictures are mirrored."""

    crop: int
    flip: bool


def statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels / 255, to four decimals; a constant channel has 1.

    Args:
        pixels: [n, H, W, C] uint8.
    """
    # By grey level: exact, and no copy of the pictures in floats.
    counts = np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(pixels.shape[-1])])
    levels = np.arange(256) / 255
    means = counts @ levels / counts.sum(axis=1)
    squares = counts @ levels**2 / counts.sum(axis=1)
    deviations = np.sqrt(np.maximum(squares - means**2, 0))
    rounded = [round(float(one), 4) for one in deviations]
    return tuple(round(float(one), 4) for one in means), tuple(one if one > 0 else 1.0 for one in rounded)


def with_info(name: str, splits: Splits, augmented: Augmented, note: str = "") -> Splits:
    """The splits with the properties that their pictures [n, H, W, C] have.

    Raises:
        DataError: there are no training or no test pictures, or labels are not 0, 1, ...
    """
    labels = np.concatenate([splits.train_labels, splits.test_labels])
    for kind, own in (("training", splits.train_labels), ("test", splits.test_labels)):
        if not len(own):
            raise DataError(f"Data set {name} has no {kind} pictures: it must have some.")
    classes = int(labels.max()) + 1
    if labels.min() < 0 or classes < 2:
        raise DataError(
            f"Data set {name} has labels {labels.min()} to {labels.max()}: they must be 0, 1, ... of two or more."
        )
    mean, std = statistics(splits.train_inputs)
    shape = tuple(map(int, splits.train_inputs.shape[1:]))
    if 2 * augmented.crop >= min(shape[:2]):
        raise ConfigError(
            f"data.options.crop = {augmented.crop} is not allowed: of pictures of {shape[0]}x{shape[1]} it must be "
            f"below {-(-min(shape[:2]) // 2)}."
        )
    info = DatasetInfo(name, classes, shape, mean, std, augmented.crop, augmented.flip)
    return splits._replace(note=note, info=info)


def source(name: str, path: str | None, kind: str, read, check) -> Source:
    """The source of a user's own data set.

    Args:
        name: the registered name.
        path: as given.
        kind: what the path must be, in words.
        read: path -> Splits with their info.
        check: path -> what is wrong with it, or "".
    """

    def found() -> str:
        if path is None:
            raise DataError(f"Data set {name} needs data.options.path: it must be {kind}.")
        wrong = check(path)
        if wrong:
            raise DataError(f"data.options.path = {path!r} {wrong}: it must be {kind}.")
        return path

    # What is not known before the pictures are read is filled in by `read`.
    return Source(
        DatasetInfo(name, 0, (), None, None),
        read=lambda: read(found()),
        where=lambda: f"in {found()}",
        prepare=lambda: f"Data set {name} is in {found()}: there is nothing to prepare.",
    )


def listed(names: list[str]) -> str:
    """Names for a sentence, the first few."""
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
