"""Pictures of a user's own, by class: PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or jpg, bmp, gif, webp."""

import os
from pathlib import Path
from typing import Annotated

import numpy as np

from fedjax_spmc.data import _own
from fedjax_spmc.data.dataset import Source, Splits
from fedjax_spmc.errors import DataError
from fedjax_spmc.options import Range
from fedjax_spmc.paths import expanded
from fedjax_spmc.reading import reason_of
from fedjax_spmc.registry import datasets

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm"}
KIND = "a folder with PATH/train/CLASS/*.png and PATH/test/CLASS/*.png"
GREY = {"1", "L", "I", "I;16", "LA"}
"""Pillow's modes without colours."""


@datasets.register("folder")
def folder(
    data_dir: object = None,
    cache_dir: object = None,
    order: str = "original",
    path: str | None = None,
    size: tuple[int, ...] = (),
    crop: Annotated[int, Range(0, 64)] = 0,
    flip: bool = False,
) -> Source:
    """Pictures in a folder for each class, read anew at every start; classes are numbered in the order of their names.

    Training pictures stand in an order of their own, always the same, so that no part of them is a single class. They
    are grey where all are, with one channel, else in colour with three. Normalisation is by the mean and the
    standard deviation of the training pictures. Both orders are the same.

    Args:
        path: the folder, with `train` and `test`, and in each a folder for each class.
        size: (height, width) to which all are resized (Pillow's bilinear filter); () = as they are, all alike.
        crop: black pixels on each side before the random crop in training; 0 = no crop.
        flip: whether training pictures are mirrored with probability one half.
    """
    del data_dir, cache_dir, order
    if size and (len(size) != 2 or not all(type(one) is int and one > 0 for one in size)):
        from fedjax_spmc.errors import ConfigError

        raise ConfigError(
            f"data.options.size = {size} is not allowed: it must be (height, width), both above 0, or ()."
        )
    augmented = _own.Augmented(crop, flip)
    return _own.source("folder", path, KIND, lambda given: read(given, tuple(size), augmented), _wrong)


def _wrong(given: str) -> str:
    place = expanded(given, "data.options.path")
    if not os.path.isdir(place):
        return "is no folder"
    lacking = [name for name in ("train", "test") if not os.path.isdir(place / name)]
    return f"has no folder {lacking[0]}" if lacking else ""


def read(given: str, size: tuple[int, ...], augmented: _own.Augmented) -> Splits:
    """All pictures [n, H, W, C] uint8 and labels [n] int32.

    Raises:
        DataError: a file is no picture, sizes differ, or a class of the test has no training pictures.
    """
    place = expanded(given, "data.options.path")
    classes = _folders(place / "train")
    foreign = [name for name in _folders(place / "test") if name not in classes]
    if foreign:
        raise DataError(
            f"{place / 'test'} has classes without training pictures ({_own.listed(foreign)}): it must not."
        )
    files = {part: [_pictures(place / part / name) for name in classes] for part in ("train", "test")}
    grey = all(_is_grey(path) for lists in files.values() for one in lists for path in one)
    first: list[tuple[Path, tuple[int, ...]]] = []

    def pixels(path: Path) -> np.ndarray:
        made = _pixels(path, grey, size)
        first.append((path, made.shape))
        if made.shape != first[0][1]:
            (one, shape), (here, other) = first[0], made.shape[:2]
            raise DataError(
                f"{one} is {shape[0]}x{shape[1]} and {path} is {here}x{other}: all pictures must have one size, or "
                "data.options.size must be (height, width)."
            )
        return made

    def split(part: str) -> tuple[np.ndarray, np.ndarray]:
        found = [pixels(path) for one in files[part] for path in one]
        labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(one) for one in files[part]])
        return np.stack(found) if found else np.zeros((0, 1, 1, 1), np.uint8), labels

    named = f"classes {', '.join(f'{i} = {name}' for i, name in enumerate(classes[: _own.LISTED]))}"
    return _own.with_info("folder", _shuffled(Splits(*split("train"), *split("test"))), augmented, named)


def _shuffled(splits: Splits) -> Splits:
    """Training pictures in an order of their own: the tail is for validation, and must not be a single class."""
    order = np.random.default_rng(0).permutation(len(splits.train_labels))
    return splits._replace(train_inputs=splits.train_inputs[order], train_labels=splits.train_labels[order])


def _folders(place: Path) -> list[str]:
    return sorted(one.name for one in place.iterdir() if one.is_dir() and not one.name.startswith("."))


def _pictures(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return sorted(one for one in place.iterdir() if one.suffix.lower() in ENDINGS and not one.name.startswith("."))


def _opened(path: Path):
    from PIL import Image

    try:
        image = Image.open(path)
        image.load()
    except Exception as error:  # what Pillow raises on damaged files is not documented
        raise DataError(f"{path} is no picture that can be read ({reason_of(error)}).") from None
    return image


def _is_grey(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:  # the head alone
            return image.mode in GREY
    except Exception as error:
        raise DataError(f"{path} is no picture that can be read ({reason_of(error)}).") from None


def _pixels(path: Path, grey: bool, size: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    with _opened(path) as image:
        if image.mode.startswith("I"):  # 16 bits: Pillow would cut at 255
            image = Image.fromarray((np.asarray(image).astype(np.int64) // 257).astype(np.uint8))
        image = image.convert("L" if grey else "RGB")
        if size:
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        made = np.asarray(image, np.uint8)
    return made[..., None] if grey else made
