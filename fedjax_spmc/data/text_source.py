"""Reading prepared data sets of texts through tensorflow-datasets, without TensorFlow."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc.data import cache, corpus, prepare, tfds_layout, tfds_source
from fedjax_spmc.data.corpus import Form, Texts
from fedjax_spmc.data.dataset import DatasetInfo, Source, Splits
from fedjax_spmc.data.tfds_layout import Prepared
from fedjax_spmc.errors import DataError

_FORMAT = 1  # of the arrays that `decode` returns; raised when they change, so that older cached copies are not read

Record = Mapping[str, Sequence[Any]]
"""Feature -> its values: bytes, or whole numbers."""


class TextSpec(NamedTuple):
    """The expected properties of a stored data set.

    Attributes:
        stored: name, title and note; see `tfds_source.Spec`.
        texts: a record -> its texts, each with its class (None where the next token is asked).
        user: the feature that names whose record it is; None where there is none.
        config: TFDS's name of the variant, which is a folder of its own; "" where there is none.
    """

    stored: tfds_source.Spec
    texts: Callable[[Record], list[tuple[str, int | None]]]
    user: str | None = None
    config: str = ""


def source(spec: TextSpec, form: Form, data_dir: str | Path | None, cache_dir: str | Path | None) -> Source:
    """The `Source` of a data set of texts in TFDS layout; its order is the stored one."""
    name, has_builder = spec.stored.info.name, spec.stored.has_builder
    return Source(
        DatasetInfo(name, spec.stored.info.num_classes, (form.length,), None, None),
        lambda: read(spec, form, data_dir, cache_dir),
        lambda: str(tfds_layout.require(name, data_dir, has_builder, spec.config).folder),
        lambda: prepare.prepare(name, data_dir, has_builder, spec.config),
    )


def read(spec: TextSpec, form: Form, data_dir: str | Path | None, cache_dir: str | Path | None) -> Splits:
    """Reads both splits from the cache or from the records.

    Args:
        spec: what is expected.
        form: how texts become rows.
        data_dir: see `tfds_layout.root`.
        cache_dir: see `cache.root`.

    Raises:
        DataError: absent, not prepared, incomplete, damaged, or not what `spec` says.
    """
    name = spec.stored.info.name
    prepared = tfds_layout.require(name, data_dir, spec.stored.has_builder, spec.config)
    key = f"{_FORMAT:02x}{hashlib.sha256(f'{form.kind} {prepared.key}'.encode()).hexdigest()}"
    arrays = cache.fetch(name, key, cache_dir, lambda: decode(spec, form.kind, prepared))
    return corpus.splits_of(arrays, form)._replace(note=spec.stored.note)


def decode(spec: TextSpec, kind: str, prepared: Prepared) -> dict[str, np.ndarray]:
    """The tokens of every text, see `corpus.tokenised`.

    Raises:
        DataError: as `read`.
    """
    splits = tfds_source.decoded(spec.stored, prepared, lambda split: _texts(spec, prepared, split))
    return corpus.tokenised(kind, *(splits[split] for split in tfds_layout.SPLITS))


def _texts(spec: TextSpec, prepared: Prepared, split: str) -> Texts:
    found: list[tuple[str, int | None]] = []
    users: list[str] = []
    for record in _records(spec, prepared, split):
        of_record = spec.texts(record)
        found += of_record
        if spec.user is not None:
            users += [text_of(record[spec.user][0])] * len(of_record)
    if not found:
        raise DataError(f"data set {spec.stored.info.name} in {prepared.folder} has no texts in its split {split}.")
    labels = [label for _, label in found if label is not None]
    return Texts([text for text, _ in found], labels or None, None if spec.user is None else users)


def _records(spec: TextSpec, prepared: Prepared, split: str) -> Iterator[Record]:
    for feature in tfds_source.records(spec.stored, prepared, split):
        # A feature holds values of one type; a list without any has none of either.
        yield {
            name: list(feature[name].bytes_list.value) or list(feature[name].int64_list.value) for name in list(feature)
        }


def text_of(value: bytes) -> str:
    """A stored text; what is no UTF-8 becomes a replacement sign."""
    return value.decode(errors="replace")
