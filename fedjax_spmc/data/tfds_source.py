"""Reading prepared data sets through tensorflow-datasets, without TensorFlow.

Records are read raw and decoded with protobuf and Pillow, which is three times as fast as decoding by TFDS.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fedjax_spmc.data import cache, prepare, tfds_layout
from fedjax_spmc.data.dataset import DatasetInfo, Source, Splits
from fedjax_spmc.data.preprocess import resize_grey
from fedjax_spmc.data.tfds_layout import Prepared, Shard
from fedjax_spmc.errors import DataError
from fedjax_spmc.reading import blames_content, reason_of

_CHUNK = 1000
T = TypeVar("T")
_FORMAT = 1  # of the arrays that `decode` returns; raised when they change, so that older cached copies are not read
_OF_A_LIBRARY = (AttributeError, TypeError)  # of versions that do not fit each other; no record has such
_JPEG = b"\xff\xd8\xff"


class Spec(NamedTuple):
    """The expected properties of a stored data set.

    Attributes:
        info: see `DatasetInfo`; its name is the name in TFDS.
        title: how results print it.
        stored_shape: of the stored images, (h, w) for grey ones.
        has_builder: whether TFDS itself can prepare it.
        has_own_order: whether its records stand in the authors' order; else TFDS has shuffled them by their index.
        note: what a reader of results must know of it, or "".
    """

    info: DatasetInfo
    title: str
    stored_shape: tuple[int, ...]
    has_builder: bool = True
    has_own_order: bool = False
    note: str = ""

    def keeps_its_size(self) -> bool:
        """Whether grey images stay as they are stored; else they become 32x32."""
        return self.info.input_shape == (*self.stored_shape, 1)


def source(spec: Spec, data_dir: str | Path | None, cache_dir: str | Path | None, order: str) -> Source:
    """The `Source` of a data set in TFDS layout."""
    name = spec.info.name
    return Source(
        spec.info,
        lambda: read(spec, data_dir, cache_dir, order),
        lambda: str(tfds_layout.require(name, data_dir, spec.has_builder).folder),
        lambda: prepare.prepare(name, data_dir, spec.has_builder),
    )


def read(spec: Spec, data_dir: str | Path | None, cache_dir: str | Path | None, order: str) -> Splits:
    """Reads both splits from the cache or from the records.

    Args:
        spec: what is expected.
        data_dir: see `tfds_layout.root`.
        cache_dir: see `cache.root`.
        order: "original" or "stored".

    Raises:
        DataError: absent, not prepared, incomplete, damaged, or not what `spec` says.
    """
    prepared = tfds_layout.require(spec.info.name, data_dir, spec.has_builder)
    key = f"{_FORMAT + 0x80 * spec.keeps_its_size():02x}{prepared.key}"
    arrays = cache.fetch(spec.info.name, key, cache_dir, lambda: decode(spec, prepared))
    columns: dict[str, Any] = {}
    for split in tfds_layout.SPLITS:
        rows = slice(None) if order == "original" else arrays[f"{split}_position"]
        columns[f"{split}_inputs"] = arrays[f"{split}_images"][rows]
        columns[f"{split}_labels"] = arrays[f"{split}_labels"][rows]
    notes = [spec.note] if spec.note else []
    return Splits(**columns, note="; ".join([*notes, *([f"{spec.title} decoded from JPEG"] if arrays["jpeg"] else [])]))


def decode(spec: Spec, prepared: Prepared) -> Mapping[str, np.ndarray]:
    """Decodes every record.

    Returns:
        For each split, in original order, `<split>_images` uint8: [n, 32, 32] (grey, resized), [n, h, w, 1] (grey, as
        stored) or [n, 32, 32, 3]; and `<split>_labels` [n] int32; and `<split>_position` [n] int32: the k-th stored
        example is example position[k] of the authors' files.
        And `jpeg`, a bool: whether any image is stored as JPEG.

    Raises:
        DataError: as `read`.
    """
    arrays: dict[str, np.ndarray] = {}
    jpeg = False
    decoded_splits = decoded(spec, prepared, lambda split: _decode_split(spec, prepared, split))
    for split, (images, labels, position, split_jpeg) in decoded_splits.items():
        rows = np.argsort(position)
        arrays |= {f"{split}_images": images[rows], f"{split}_labels": labels[rows], f"{split}_position": position}
        jpeg = jpeg or split_jpeg
    return arrays | {"jpeg": np.array(jpeg)}


def decoded(spec: Spec, prepared: Prepared, decode_split: Callable[[str], T]) -> dict[str, T]:
    """What `decode_split` makes of each split, by its name.

    Raises:
        DataError: it raised one, or anything that damaged data make it raise.
    """
    name = spec.info.name
    try:
        _import_readers()
    except Exception as error:  # protobuf, for one, raises a TypeError where its version does not fit
        reason = reason_of(error, named=True)
        raise DataError(
            f"data set {name} cannot be read: a library that reads it cannot be imported ({reason}): it must be "
            "installed, in the version that the others need, as by `pip install 'fedjax_spmc[tfds]'`."
        ) from None
    try:
        return {split: decode_split(split) for split in tfds_layout.SPLITS}
    except (DataError, MemoryError):
        raise
    except Exception as error:  # array_record, protobuf, Pillow and TFDS each raise their own for damaged data
        refused = _first_refusal(prepared)
        if refused is None and blames_content(error) and not isinstance(error, _OF_A_LIBRARY):
            raise _damaged(spec, prepared, reason_of(error, named=True).split(";", 1)[0]) from None
        reason = reason_of(error, named=True) if refused is None else f"{refused.filename}: {reason_of(refused)}"
        raise DataError(f"data set {name} in {prepared.folder} cannot be read ({reason}).") from None


def _import_readers() -> None:
    """Imports what reads records: a third of a second that a cached start need not pay."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module  # noqa: F401  # pyright: ignore[reportAttributeAccessIssue]
    from PIL import Image  # noqa: F401
    from tensorflow_datasets.proto import tf_example_pb2  # noqa: F401

    _ = tfds.builder_from_directory  # imported at its first use


def _first_refusal(prepared: Prepared) -> OSError | None:
    """The error with which the system refuses to read a shard to its end; None where all can be read."""
    for shards in prepared.shards.values():
        for shard in shards:
            try:
                with shard.path.open("rb") as file:
                    while file.read(2**20):
                        pass
            except OSError as error:
                return OSError(error.errno, reason_of(error), str(shard.path))
    return None


def _damaged(spec: Spec, prepared: Prepared, what: str) -> DataError:
    name = spec.info.name
    return DataError(
        f"data set {name} in {prepared.folder} is damaged ({what.rstrip('.')}): replace the folder, or"
        f" {tfds_layout.remedies(name, spec.has_builder, occupied=True)}."
    )


def records(spec: Spec, prepared: Prepared, split: str) -> Iterator[Any]:
    """The records of a split in stored order, each as its features by name (`tf.train.Features`).

    Raises:
        DataError: the files hold another number of records than they should.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    for shard in prepared.shards[split]:
        _check_count(spec, prepared, shard)
    stored = tfds.builder_from_directory(prepared.folder).as_data_source(
        split,  # pyright: ignore[reportCallIssue]
        deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
    )
    count = num_records(prepared, split)
    if len(stored) != count:
        raise _damaged(spec, prepared, f"split {split} has {len(stored)} records instead of {count}")
    for start in range(0, count, _CHUNK):
        for record in stored.__getitems__(range(start, min(start + _CHUNK, count))):
            yield tf_example_pb2.Example.FromString(record).features.feature  # pyright: ignore[reportAttributeAccessIssue]


def num_records(prepared: Prepared, split: str) -> int:
    """How many records a split must have."""
    return sum(shard.num_examples for shard in prepared.shards[split])


def _decode_split(spec: Spec, prepared: Prepared, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    from PIL import Image

    count = num_records(prepared, split)
    images = np.empty((count, *spec.stored_shape), np.uint8)
    labels = np.empty(count, np.int64)
    ids: list[bytes] = []
    jpeg = False
    for index, feature in enumerate(records(spec, prepared, split)):
        stored = feature["image"].bytes_list.value[0]
        jpeg = jpeg or stored.startswith(_JPEG)
        image = np.asarray(Image.open(io.BytesIO(stored)))
        if image.shape != spec.stored_shape or image.dtype != np.uint8:
            found = f"image {index} of split {split} has shape {image.shape} and type {image.dtype}"
            raise _damaged(spec, prepared, f"{found} instead of {spec.stored_shape} and uint8")
        images[index] = image
        labels[index] = feature["label"].int64_list.value[0]
        if "id" in feature:
            ids.append(feature["id"].bytes_list.value[0])
    if labels.min() < 0 or labels.max() >= spec.info.num_classes:
        found = f"split {split} has labels {labels.min()}..{labels.max()}"
        raise _damaged(spec, prepared, f"{found}, and only 0..{spec.info.num_classes - 1} exist")
    if spec.has_own_order:
        position = np.arange(count, dtype=np.int32)
    else:
        position = positions_from_ids(ids) if ids else positions_from_hashes(split, count)
    if len(position) != count or not np.array_equal(np.sort(position), np.arange(count)):
        raise _damaged(spec, prepared, f"the ids of split {split} are not those of {count} examples, each once")
    if images.ndim == 3:
        images = images[..., None] if spec.keeps_its_size() else resize_grey(images)
    return images, labels.astype(np.int32), position, jpeg


def _check_count(spec: Spec, prepared: Prepared, shard: Shard) -> None:
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    # TFDS itself believes dataset_info.json and would quietly leave out what a longer file holds.
    reader = array_record_module.ArrayRecordReader(str(shard.path), "readahead_buffer_size:0,max_parallelism:0")
    try:
        count = reader.num_records()
    finally:
        reader.close()
    if count != shard.num_examples:
        found = f"{shard.path.name} holds {count} records"
        raise _damaged(spec, prepared, f"{found}, and dataset_info.json says {shard.num_examples}")


def positions_from_ids(ids: list[bytes]) -> np.ndarray:
    """Original positions [n] int32 from ids such as b"train_00042"; -1 where an id does not end in a number."""
    numbers = [re.search(rb"(\d{1,9})$", one) for one in ids]
    return np.array([int(number[1]) if number else -1 for number in numbers], np.int32)


def positions_from_hashes(split: str, count: int) -> np.ndarray:
    """Original positions [count] int32 of examples whose key was their index: TFDS stores them sorted by its hash."""
    from tensorflow_datasets.core import hashing

    return np.array(sorted(range(count), key=hashing.Hasher(split).hash_key), np.int32)
