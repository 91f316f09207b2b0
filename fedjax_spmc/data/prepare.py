"""The one step that goes to the network: tensorflow-datasets downloads a data set and writes it as array_record."""

import importlib.util
from pathlib import Path
from typing import Any

from fedjax_spmc.data import tfds_layout
from fedjax_spmc.errors import DataError
from fedjax_spmc.reading import reason_of


class DownloadError(RuntimeError):
    """A data set could not be downloaded or written; `str(error)` is the one sentence to show (exit code 1)."""


def make_builder(name: str, folder: Path) -> Any:
    """The builder of tensorflow-datasets for `name` that writes array_record under `folder`."""
    import tensorflow_datasets as tfds

    return tfds.builder(name, data_dir=folder, file_format=tfds_layout.FILE_FORMAT)


def has_tensorflow() -> bool:
    """Whether TensorFlow, which preparing needs (reading does not), is installed; it is not imported."""
    return importlib.util.find_spec("tensorflow") is not None


def prepare(name: str, data_dir: str | Path | None = None, has_builder: bool = True, config: str = "") -> str:
    """Prepares a data set unless it is prepared already.

    Args:
        name: the name in tensorflow-datasets.
        data_dir: see `tfds_layout.root`.
        has_builder: whether tensorflow-datasets knows it.
        config: name of the variant; "" where there is none.

    Returns:
        A sentence that says where it is.

    Raises:
        DataError: it cannot be prepared here, or something unusable lies in its place.
        DownloadError: no network, no space, or a source that has changed.
    """
    folder = tfds_layout.root(data_dir)
    found = tfds_layout.find(name, folder, has_builder, config)
    if found is not None:
        return f"Data set {name} is already prepared in {found.folder}."
    if not has_builder:
        raise DataError(
            f"data set {name} cannot be prepared: tensorflow-datasets has no builder for it, so it must be put as"
            f" array_record into {folder / name / config}/<version>/ by hand."
        )
    if not has_tensorflow():
        raise DataError(
            f"data set {name} cannot be prepared: that needs TensorFlow, which reading does not;"
            " install it with `pip install 'fedjax_spmc[prepare]'`, or copy a prepared folder into"
            f" {folder} or one that data.data_dir or TFDS_DATA_DIR names."
        )
    try:
        make_builder(f"{name}/{config}" if config else name, folder).download_and_prepare()
    except Exception as error:  # requests, the file system, TFDS and TensorFlow each raise their own
        reason = reason_of(error, named=True)
        raise DownloadError(f"data set {name} could not be downloaded and prepared in {folder}: {reason}.") from error
    return f"Data set {name} is prepared in {tfds_layout.require(name, folder, config=config).folder}."
