"""The types of data sets, and `load`, which reads one, cuts it to its limits and splits off the validation images."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from fedjax_spmc.data import tokens
from fedjax_spmc.data.preprocess import to_rgb
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import Option, Range
from fedjax_spmc.registry import datasets

Order = Literal["original", "stored"]
"""original: as in the authors' files, which the published partitions count by; stored: as the source keeps them."""

IMAGE_SHAPE = (32, 32, 3)

_Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_ORDER = Option("data.order", str, "original", choices=get_args(Order))
_LIMIT_TRAIN = Option("data.limit_train", int, None, optional=True, range=Range(low=1))
_LIMIT_TEST = Option("data.limit_test", int, None, optional=True, range=Range(low=1))
_VAL_FRACTION = Option("data.val_fraction", float, 0.1, range=Range(0, 1, high_open=True))


class DatasetInfo(NamedTuple):
    """The properties of a data set besides its examples.

    Attributes:
        name: the registered name.
        num_classes: labels are 0..num_classes-1.
        input_shape: of every example: (H, W, C) of images, (T,) of sequences of tokens.
        mean, std: per channel, of pixel values in [0, 1]; an image is normalised as (x / 255 - mean) / std. None for
            tokens.
        crop_padding: black pixels on each side before the random crop in training; 0 = no crop.
        flip: whether training images are mirrored with probability one half.
        note: what a reader of results must know of the examples, or "".
        vocabulary: number of different tokens; 0 for images.
        tokenizer: how texts become tokens; None for images and for tokens that were no texts.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    crop_padding: int = 0
    flip: bool = False
    note: str = ""
    vocabulary: int = 0
    tokenizer: tokens.Tokenizer | None = None


class Vocabulary(NamedTuple):
    """How the words of a vocabulary are chosen.

    Attributes:
        kind: of `tokens.KINDS`.
        size: tokens at most, the special ones among them.
        min_count: how often a word must occur.
        ask_unknown: of next tokens: whether a word that the vocabulary lacks is asked, as `tokens.UNKNOWN`.
    """

    kind: str
    size: int
    min_count: int = 1
    ask_unknown: bool = False


class Splits(NamedTuple):
    """The examples of a source, and a note or "".

    Images are [n, H, W] (grey, to be replicated to three channels) or [n, H, W, C] uint8, tokens [n, T] of any other
    whole numbers; labels are [n] or [n, T] int32.

    Attributes:
        owners: [n] int32, the user of each training example, a place in `users`; None where there are none.
        users: their names.
        words: of texts: what the tokens stand for; the vocabulary is chosen by `load`, from training examples alone.
        vocabulary: how it is chosen; None where tokens are as they are.
        info: properties that only the files tell, in place of the source's; None = those of the source.
    """

    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    note: str = ""
    owners: np.ndarray | None = None
    users: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None
    info: DatasetInfo | None = None


class Source(NamedTuple):
    """A data set that can be read; making one reads nothing.

    Attributes:
        info: see `DatasetInfo`; its note, and all that depends on a vocabulary, are filled in by `load`.
        read: () -> Splits in the order asked for; raises DataError.
        where: () -> where the data set is, in words; raises DataError if it is not there.
        prepare: () -> a sentence that says what was done; raises DataError or `prepare.DownloadError`.
    """

    info: DatasetInfo
    read: Callable[[], Splits]
    where: Callable[[], str]
    prepare: Callable[[], str]


class Dataset(NamedTuple):
    """Images [n, H, W, C] uint8 or tokens [n, T] int32, and labels [n] or [n, T] int32, as numpy arrays.

    Attributes:
        info: see `DatasetInfo`.
        train_inputs, train_labels: the training pool, which the partition divides among the clients.
        val_inputs, val_labels: the tail of the training examples, which no client holds.
        test_inputs, test_labels: the test split.
        fingerprint: sha256 in hex of the six arrays, shapes and order included (see `fingerprint_of`); of texts also
            of the vocabulary and of who the users are.
        owners: [n] int32, the user of each example of the training pool, a place in `users`; None where there are none.
        users: their names.
    """

    info: DatasetInfo
    train_inputs: np.ndarray
    train_labels: np.ndarray
    val_inputs: np.ndarray
    val_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    fingerprint: str
    owners: np.ndarray | None = None
    users: tuple[str, ...] = ()


def built_in(info: DatasetInfo, read: Callable[[], Splits], where: str) -> Source:
    """The source of a data set that needs no files."""
    return Source(info, read, lambda: where, lambda: f"Data set {info.name} is {where}: there is nothing to prepare.")


def num_train(num_examples: int, val_fraction: float) -> int:
    """How many of `num_examples` are trained on; the rest, at the tail, are for validation.

    For `val_fraction` = 0.1 this is int(0.9 * n), as the reference counts (Python floats included).
    """
    # 1 - 0.9 is 0.09999999999999998, which would cost one example; the rounding restores the number that was meant.
    return int(round(1.0 - val_fraction, 12) * num_examples)


def fingerprint_of(*arrays: np.ndarray) -> str:
    """sha256 in hex over the arrays' dtypes, shapes and bytes (C order), one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        if array.size:  # an empty memoryview cannot be cast
            digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()


def load(
    name: str,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    order: str = "original",
    limit_train: int | None = None,
    limit_test: int | None = None,
    val_fraction: float = 0.1,
    like: tokens.Tokenizer | None = None,
    **options: Any,
) -> Dataset:
    """Reads a data set; never goes to the network.

    The vocabulary of texts is that of the training pool: neither the test set nor the validation examples add to it.

    Args:
        name: one of `names()`.
        data_dir: folder with prepared data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets.
        cache_dir: folder for decoded copies; default $FEDJAX_SPMC_CACHE, then ~/.cache/fedjax_spmc.
        order: "original" or "stored", see `Order`.
        limit_train, limit_test: use at most so many examples, the first ones; applied before the split.
        val_fraction: share of the training examples, taken from their tail, that is kept for validation.
        like: of texts: the vocabulary to use, another data set's, in place of one of their own.
        options: options of the data set, see `describe(name)`.

    Raises:
        ConfigError: a value that is not allowed, with the field named.
        DataError: the data set is absent, not prepared or corrupt.
    """
    _ORDER.check(order)
    limit_train, limit_test = _LIMIT_TRAIN.check(limit_train), _LIMIT_TEST.check(limit_test)
    val_fraction = _VAL_FRACTION.check(val_fraction)
    if like is not None:
        options["tokenizer"] = like.kind
    source: Source = datasets.make(name, data_dir=data_dir or None, cache_dir=cache_dir or None, order=order, **options)
    examples = source.read()

    inputs, labels = as_stored(examples.train_inputs[:limit_train]), examples.train_labels[:limit_train]
    cut = num_train(len(labels), val_fraction)
    if cut == 0:
        raise ConfigError(
            f"data.val_fraction = {val_fraction} leaves nothing of {len(labels)} examples to train on:"
            f" it must be at most {1 - 1 / max(1, len(labels)):g}, or data.limit_train at least"
            f" {math.ceil(1 / (1 - val_fraction))}."
        )
    arrays = (
        inputs[:cut],
        labels[:cut],
        inputs[cut:],
        labels[cut:],
        as_stored(examples.test_inputs[:limit_test]),
        examples.test_labels[:limit_test],
    )
    info = (examples.info or source.info)._replace(note=examples.note)
    owners = None if examples.owners is None else examples.owners[:limit_train][:cut]
    if examples.vocabulary is None:
        return Dataset(info, *arrays, fingerprint_of(*arrays), owners, examples.users)
    tokenizer, arrays = _in_vocabulary(arrays, examples.words, examples.vocabulary, like)
    size = len(tokenizer.words)
    classes = size if labels.ndim > 1 else info.num_classes
    info = info._replace(num_classes=classes, vocabulary=size, tokenizer=tokenizer)
    named = [np.frombuffer("\0".join(names).encode(), np.uint8) for names in (tokenizer.words, examples.users)]
    owned = [] if owners is None else [owners]
    return Dataset(info, *arrays, fingerprint_of(*arrays, *named, *owned), owners, examples.users)


def _in_vocabulary(
    arrays: _Arrays, words: tuple[str, ...], wanted: Vocabulary, known: tokens.Tokenizer | None
) -> tuple[tokens.Tokenizer, _Arrays]:
    """The vocabulary of the training inputs, or a known one, and all arrays with its ids."""
    tokenizer = known or tokens.fitted(wanted.kind, arrays[0], words, wanted.size, wanted.min_count)
    ids = tokens.renumbering(words, tokenizer)

    def asked(labels: np.ndarray) -> np.ndarray:
        if labels.ndim == 1:
            return labels
        new = np.where(labels >= 0, ids[labels], -1)
        return new if wanted.ask_unknown else np.where(new == tokens.UNKNOWN, -1, new)

    train, train_labels, val, val_labels, test, test_labels = arrays
    return tokenizer, (ids[train], asked(train_labels), ids[val], asked(val_labels), ids[test], asked(test_labels))


def as_stored(inputs: np.ndarray) -> np.ndarray:
    """Inputs as they lie on the device: images [n, H, W, C] uint8, those without channels get three equal ones; tokens
    [n, T] int32."""
    return to_rgb(inputs) if inputs.dtype == np.uint8 else inputs.astype(np.int32, copy=False)
