"""Arrays of a user's own in one `.npz` file: pictures, labels, a test set, and who holds what."""

import os
from typing import Annotated

import numpy as np

from fedjax_spmc import reading
from fedjax_spmc.data import _own
from fedjax_spmc.data.dataset import Source, Splits
from fedjax_spmc.errors import DataError
from fedjax_spmc.options import Range
from fedjax_spmc.paths import expanded
from fedjax_spmc.registry import datasets

NAMES = {
    "train_inputs": ("train_inputs", "x_train"),
    "train_labels": ("train_labels", "y_train"),
    "test_inputs": ("test_inputs", "x_test"),
    "test_labels": ("test_labels", "y_test"),
}
"""Arrays, and the names under which they may stand."""
CLIENTS = "train_clients"
KIND = "an .npz file with train_inputs, train_labels, test_inputs, test_labels and, optional, train_clients"


@datasets.register("npz")
def npz(
    data_dir: object = None,
    cache_dir: object = None,
    order: str = "original",
    path: str | None = None,
    crop: Annotated[int, Range(0, 64)] = 0,
    flip: bool = False,
) -> Source:
    """Pictures [n, H, W] or [n, H, W, C] of whole numbers 0..255 and labels [n], in the order of the file.

    With `train_clients` [n], whole numbers or names, `partition.name=natural` makes each of them a client.
    Normalisation is by the mean and the standard deviation of the training pictures. Both orders are the same.

    Args:
        path: the file; `x_train`, `y_train`, `x_test`, `y_test` are known too.
        crop: black pixels on each side before the random crop in training; 0 = no crop.
        flip: whether training pictures are mirrored with probability one half.
    """
    del data_dir, cache_dir, order
    augmented = _own.Augmented(crop, flip)
    return _own.source("npz", path, KIND, lambda given: read(given, augmented), _wrong)


def _wrong(given: str) -> str:
    return "" if os.path.isfile(expanded(given, "data.options.path")) else "is no file"


def read(given: str, augmented: _own.Augmented) -> Splits:
    """The arrays of the file, checked.

    Raises:
        DataError: it is damaged, an array is missing or is not what it must be.
    """
    place = expanded(given, "data.options.path")
    try:
        found = reading.arrays(place)
    except (FileNotFoundError, reading.UnreadableError) as error:
        said = error if isinstance(error, reading.UnreadableError) else "is missing"
        raise DataError(f"{place} {said}: it must be {KIND}.") from None

    def array(name: str) -> np.ndarray:
        for one in NAMES[name]:
            if one in found:
                return found[one]
        have = _own.listed(sorted(found)) or "nothing"
        raise DataError(f"{place} has no {name} (it has {have}): it must be {KIND}.")

    train, test = (_pixels(place, name, array(name)) for name in ("train_inputs", "test_inputs"))
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{place} has training pictures {train.shape[1:]} and test pictures {test.shape[1:]}: both must be alike."
        )
    labels = [
        _whole(place, name, array(name), len(pictures))
        for name, pictures in (("train_labels", train), ("test_labels", test))
    ]
    owners, users = _owners(place, found.get(CLIENTS), len(train))
    splits = Splits(train, labels[0], test, labels[1], owners=owners, users=users)
    return _own.with_info("npz", splits, augmented)


def _pixels(place: object, name: str, given: np.ndarray) -> np.ndarray:
    """[n, H, W, C] uint8."""
    if given.ndim not in (3, 4) or 0 in given.shape[1:]:
        raise DataError(f"{name} in {place} has the shape {given.shape}: it must be [n, H, W] or [n, H, W, C].")
    if given.dtype.kind not in "iu" or (given.size and not (given.min() >= 0 and given.max() <= 255)):
        range_ = f", {given.min():g} to {given.max():g}" if given.size and given.dtype.kind in "iuf" else ""
        raise DataError(
            f"{name} in {place} is {given.dtype}{range_}: it must be whole numbers from 0 to 255; of numbers in [0, 1] "
            "numpy.rint(255 * x).astype('uint8')."
        )
    pixels = given.astype(np.uint8, copy=False)
    return pixels[..., None] if pixels.ndim == 3 else pixels


def _whole(place: object, name: str, given: np.ndarray, length: int) -> np.ndarray:
    """[n] int32."""
    flat = given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given  # as Keras has them
    if flat.shape != (length,) or flat.dtype.kind not in "iu":
        raise DataError(
            f"{name} in {place} is {given.dtype} {given.shape}: it must be {length} whole numbers, one a picture."
        )
    return flat.astype(np.int32)


def _owners(place: object, given: np.ndarray | None, length: int) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The client of each training picture as a place among their names."""
    if given is None:
        return None, ()
    if given.shape != (length,) or given.dtype.kind not in "iuU":
        raise DataError(
            f"{CLIENTS} in {place} is {given.dtype} {given.shape}: it must be {length} whole numbers or names."
        )
    names, places = np.unique(given, return_inverse=True)
    return places.astype(np.int32), tuple(map(str, names))
