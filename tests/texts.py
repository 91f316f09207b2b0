"""Made-up texts for the tests: prepared folders of every data set of texts, as tensorflow-datasets lays them out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CLASSES = "tensorflow_datasets.core.features"
TEXT = {"pythonClassName": f"{_CLASSES}.text_feature.Text", "text": {}}
LABEL = {"classLabel": {"numClasses": "2"}, "pythonClassName": f"{_CLASSES}.class_label_feature.ClassLabel"}
NUMBER = {
    "pythonClassName": f"{_CLASSES}.tensor_feature.Tensor",
    "tensor": {"dtype": "int32", "encoding": "none", "shape": {}},
}
Record = Mapping[str, str | int | Sequence[str] | Sequence[int]]


def many(feature: Mapping[str, Any]) -> dict[str, Any]:
    """The feature that is a list of such."""
    name = f"{_CLASSES}.sequence_feature.Sequence"
    return {"pythonClassName": name, "sequence": {"feature": feature, "length": "-1"}}


FEATURES: dict[str, dict[str, Any]] = {
    "tiny_shakespeare": {"text": TEXT},
    "leaf_shakespeare": {"user": TEXT, "play": TEXT, "role": TEXT, "text": many(TEXT)},
    "ubuntu_irc": {"user": TEXT, "time": many(TEXT), "text": many(TEXT)},
    "reddit_top": {"user": TEXT, "title": many(TEXT), "text": many(TEXT)},
    "imdb_reviews": {"text": TEXT, "label": LABEL},
    "sentiment140_30k": {"text": many(TEXT), "polarity": many(NUMBER)},
    "greek_director": {"text": TEXT},
}
VARIANTS = {"imdb_reviews": "plain_text"}


def write(name: str, data_dir: Path, train: Sequence[Record], test: Sequence[Record]) -> Path:
    """Writes a data set; returns the folder of its version."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = data_dir / name / VARIANTS.get(name, "") / "1.0.0"
    folder.mkdir(parents=True)
    splits = []
    for split, records in (("train", train), ("test", test)):
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for record in records:
            example = tf_example_pb2.Example()
            for field, value in record.items():
                values = [value] if isinstance(value, (str, int)) else value
                feature = example.features.feature[field]
                for one in values:
                    if isinstance(one, str):
                        feature.bytes_list.value.append(one.encode())
                    else:
                        feature.int64_list.value.append(one)
            writer.write(example.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        lengths = [str(len(records))]
        splits.append({"filepathTemplate": template, "name": split, "numBytes": "1", "shardLengths": lengths})
    info = {"fileFormat": "array_record", "name": name, "splits": splits, "version": "1.0.0"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features = {"featuresDict": {"features": FEATURES[name]}}
    features["pythonClassName"] = f"{_CLASSES}.features_dict.FeaturesDict"
    (folder / "features.json").write_text(json.dumps(features))
    return folder


def role(name: str, *lines: str) -> Record:
    """A record of `leaf_shakespeare`."""
    return {"user": name, "play": "A PLAY", "role": name, "text": lines}
