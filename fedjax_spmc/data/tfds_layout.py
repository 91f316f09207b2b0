"""Finding prepared data sets of tensorflow-datasets on disk: plain JSON and file names, nothing heavy is imported.

The layout is <data_dir>/<name>/<version>/ with dataset_info.json, features.json and the shards of each split,
<name>-<split>.array_record-00000-of-00001.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_spmc import reading
from fedjax_spmc.errors import DataError
from fedjax_spmc.paths import NoHomeError, expanded

SPLITS = ("train", "test")
DEFAULT_ROOT = "~/tensorflow_datasets"
FILE_FORMAT = "array_record"
_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_POINTER_FILES = {b"version https://git-lfs": "git-lfs", b"/annex/objects/": "git-annex"}


class Shard(NamedTuple):
    """One file of a split and how many examples it must hold."""

    path: Path
    num_examples: int


class Prepared(NamedTuple):
    """A prepared data set whose files are all there (their contents are not read yet).

    Attributes:
        folder: the folder of the version.
        shards: split -> its files, in order.
        key: sha256 in hex over the metadata, and over path, size and time of every shard.
    """

    folder: Path
    shards: Mapping[str, tuple[Shard, ...]]
    key: str


def root(data_dir: str | Path | None = None) -> Path:
    """The folder of data sets: the argument, else $TFDS_DATA_DIR, else ~/tensorflow_datasets as in TFDS itself.

    Raises:
        DataError: it begins with `~`, and nothing says where that is.
    """
    given = {"data.data_dir": data_dir, "TFDS_DATA_DIR": os.environ.get("TFDS_DATA_DIR")}
    label, chosen = next(((name, value) for name, value in given.items() if value), ("TFDS_DATA_DIR", DEFAULT_ROOT))
    try:
        return Path(os.path.abspath(expanded(chosen, label)))
    except NoHomeError as error:
        raise DataError(str(error)) from None


def remedies(name: str, has_builder: bool, occupied: bool = False) -> str:
    """Remedies for a data set that cannot be read, as the end of a sentence.

    Args:
        name: the name in tensorflow-datasets.
        has_builder: whether tensorflow-datasets can prepare it.
        occupied: whether something unusable lies in its place; TFDS would not write over it.
    """
    elsewhere = "set data.data_dir or TFDS_DATA_DIR to a folder that holds it"
    if has_builder:
        command = f"python -m fedjax_spmc.data prepare {name}"
        run = f"`{command} --data_dir=DIR` with another folder" if occupied else f"`{command}`"
        return f"{elsewhere}, or run {run}"
    return f"{elsewhere}; tensorflow-datasets has no builder for it, so it must be put there by hand"


def find(name: str, data_dir: str | Path | None = None, has_builder: bool = True, config: str = "") -> Prepared | None:
    """Finds the newest prepared version of `name` and checks that its files are there.

    Args:
        name: the name in tensorflow-datasets.
        data_dir: see `root`.
        has_builder: whether tensorflow-datasets can prepare it (for the advice in errors).
        config: name of the variant, a folder between the data set's and the version's; "" where there is none.

    Returns:
        None if nothing is prepared.

    Raises:
        DataError: something is there that cannot be used.
    """
    try:
        folder = _newest_version(root(data_dir) / name / config)
        return _check(name, folder) if folder else None
    except DataError as error:
        raise DataError(f"{error}; {remedies(name, has_builder, occupied=True)}.") from None
    except OSError as error:
        where, why = error.filename or root(data_dir), error.strerror or error
        raise DataError(f"data set {name} cannot be read: {where}: {why}; {remedies(name, has_builder)}.") from None


def require(name: str, data_dir: str | Path | None = None, has_builder: bool = True, config: str = "") -> Prepared:
    """Like `find`, but a data set that is not prepared is an error too."""
    found = find(name, data_dir, has_builder, config)
    if found is None:
        where = root(data_dir)
        raise DataError(
            f"data set {name} is not prepared in {where} (there is no"
            f" {where / name / config}/<version>/dataset_info.json);"
            f" {remedies(name, has_builder)}."
        )
    return found


def _newest_version(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    versions = [
        (tuple(map(int, path.name.split("."))), path)
        for path in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").is_file()
    ]
    return max(versions)[1] if versions else None


def _check(name: str, folder: Path) -> Prepared:
    info = _read_json(name, folder / "dataset_info.json")
    _read_json(name, folder / "features.json")
    file_format = info.get("fileFormat", "tfrecord")  # TFDS leaves the field out for its default
    if file_format != FILE_FORMAT:
        raise DataError(
            f"data set {name} in {folder} is stored as {file_format}, and only {FILE_FORMAT} can be read without"
            " TensorFlow (a second format must go to a folder of its own)"
        )
    try:
        lengths = {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}
        templates = {split["name"]: split.get("filepathTemplate") or _DEFAULT_TEMPLATE for split in info["splits"]}
        shards = {split: _shards(name, folder, split, templates[split], lengths[split]) for split in SPLITS}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"data set {name} in {folder} has a dataset_info.json that does not describe the splits train and test"
            f" ({type(error).__name__}: {error})"
        ) from None
    digest = hashlib.sha256()
    for metadata in ("dataset_info.json", "features.json"):
        digest.update((folder / metadata).read_bytes())
    for split in SPLITS:
        for shard in shards[split]:
            status = shard.path.stat()
            digest.update(f"{shard.path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return Prepared(folder, shards, digest.hexdigest())


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        return reading.json_object(path)
    except FileNotFoundError:
        raise DataError(f"data set {name} is incomplete: {path} is missing") from None
    except reading.UnreadableError as error:
        raise DataError(f"data set {name} cannot be used: {path} {error}") from None


def _shards(name: str, folder: Path, split: str, template: str, lengths: list[int]) -> tuple[Shard, ...]:
    if not lengths or min(lengths) < 0 or sum(lengths) == 0:
        raise DataError(f"data set {name} in {folder} has no examples in its split {split}")
    shards = []
    for index, length in enumerate(lengths):
        words = {
            "DATASET": name,
            "SPLIT": split,
            "FILEFORMAT": FILE_FORMAT,
            "SHARD_INDEX": f"{index:05d}",
            "NUM_SHARDS": f"{len(lengths):05d}",
            "SHARD_X_OF_Y": f"{index:05d}-of-{len(lengths):05d}",
        }
        path = folder / re.sub(r"\{(\w+)\}", lambda match, words=words: words[match[1]], template)
        if not path.is_file():
            raise DataError(f"data set {name} is incomplete: {path} is missing")
        with path.open("rb") as file:
            start = file.read(64)
        for mark, tool in _POINTER_FILES.items():
            if start.startswith(mark):
                raise DataError(f"data set {name} is incomplete: {path} is a {tool} pointer and not the data itself")
        if not start:
            raise DataError(f"data set {name} is damaged: {path} is empty")
        shards.append(Shard(path, length))
    return tuple(shards)
