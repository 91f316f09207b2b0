"""Reading prepared folders: a small CIFAR-100 written here, the shared USPS, and every way to break one."""

import errno
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedjax_spmc import data
from fedjax_spmc.data import preprocess, tfds_datasets, tfds_layout, tfds_source
from fedjax_spmc.errors import DataError
from tests.test_data_load import check_contract

NUM_TRAIN, NUM_TEST = 24, 10
_CLASSES = "tensorflow_datasets.core.features"


def _features() -> dict:
    def label(count):
        return {
            "classLabel": {"numClasses": str(count)},
            "pythonClassName": f"{_CLASSES}.class_label_feature.ClassLabel",
        }

    image = {"dtype": "uint8", "shape": {"dimensions": ["32", "32", "3"]}}
    features = {
        "id": {"pythonClassName": f"{_CLASSES}.text_feature.Text", "text": {}},
        "image": {"image": image, "pythonClassName": f"{_CLASSES}.image_feature.Image"},
        "label": label(100),
        "coarse_label": label(20),
    }
    name = f"{_CLASSES}.features_dict.FeaturesDict"
    return {"featuresDict": {"features": features}, "pythonClassName": name}


def images_of(split: str) -> np.ndarray:
    """The images that `write_cifar100` stores, in original order."""
    count = NUM_TRAIN if split == "train" else NUM_TEST
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)


def labels_of(split: str) -> np.ndarray:
    """Their fine labels."""
    return (np.arange(len(images_of(split))) * 37 + 5) % 100


def write_cifar100(
    data_dir: Path, image_format: str = "PNG", shards: int = 1, ids: str = "{split}_{index:05d}", **extra
):
    """Writes a tiny CIFAR-100 as TFDS does, in an order of its own; returns the folder of the version.

    `extra` may hold `label` (added to every label) and `image` (replaces the bytes of each image).
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = data_dir / "cifar100" / "3.0.2"
    folder.mkdir(parents=True)
    splits = []
    for split in ("train", "test"):
        images, labels = images_of(split), labels_of(split) + extra.get("label", 0)
        order = np.random.default_rng(1).permutation(len(images))
        lengths = []
        for shard, rows in enumerate(np.array_split(order, shards)):
            path = folder / f"cifar100-{split}.array_record-{shard:05d}-of-{shards:05d}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for index in rows:
                encoded = io.BytesIO()
                Image.fromarray(images[index]).save(encoded, image_format)
                example = tf_example_pb2.Example()
                feature = example.features.feature
                feature["id"].bytes_list.value.append(ids.format(split=split, index=index).encode())
                feature["image"].bytes_list.value.append(extra.get("image", encoded.getvalue()))
                feature["label"].int64_list.value.append(int(labels[index]))
                feature["coarse_label"].int64_list.value.append(int(labels[index]) // 5)
                writer.write(example.SerializeToString())
            writer.close()
            lengths.append(str(len(rows)))
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"filepathTemplate": template, "name": split, "numBytes": "1", "shardLengths": lengths})
    info = {
        "fileFormat": "array_record",
        "moduleName": "cifar",
        "name": "cifar100",
        "splits": splits,
        "version": "3.0.2",
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(_features()))
    return folder


@pytest.fixture
def load(tmp_path):
    """Reads the data set under tmp_path / "data" with a cache of its own."""
    return lambda name="cifar100", **options: data.load(
        name, data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", **options
    )


@pytest.mark.parametrize("shards", [1, 3])
def test_cifar100(tmp_path, load, shards):
    write_cifar100(tmp_path / "data", shards=shards)
    loaded = load()
    check_contract(loaded)
    np.testing.assert_array_equal(np.concatenate([loaded.train_inputs, loaded.val_inputs]), images_of("train"))
    np.testing.assert_array_equal(np.concatenate([loaded.train_labels, loaded.val_labels]), labels_of("train"))
    np.testing.assert_array_equal(loaded.test_inputs, images_of("test"))
    assert len(loaded.val_labels) == NUM_TRAIN - int(0.9 * NUM_TRAIN)
    assert loaded.info.note == ""

    order = np.random.default_rng(1).permutation(NUM_TRAIN)
    stored = load(order="stored", val_fraction=0.0)
    np.testing.assert_array_equal(stored.train_inputs, images_of("train")[order])
    np.testing.assert_array_equal(stored.train_labels, labels_of("train")[order])
    assert stored.fingerprint != load(val_fraction=0.0).fingerprint


def test_jpeg_is_noted_from_the_bytes(tmp_path, load):
    write_cifar100(tmp_path / "data", "JPEG")
    assert load().info.note == "CIFAR-100 decoded from JPEG"
    assert load().info.note == "CIFAR-100 decoded from JPEG", "the cached copy lost the note"


def test_data_dir_comes_from_the_environment(tmp_path, monkeypatch):
    folder = write_cifar100(tmp_path / "data")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    assert tfds_layout.require("cifar100").folder == folder
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tfds_layout.root() == tmp_path / "tensorflow_datasets"


def test_the_newest_version_is_read(tmp_path):
    folder = write_cifar100(tmp_path)
    shutil.copytree(folder, folder.parent / "3.0.10")
    shutil.copytree(folder, folder.parent / "9.0.0.incompleteABC")
    (folder.parent / "10.0.0").mkdir()
    assert tfds_layout.require("cifar100", tmp_path).folder.name == "3.0.10"


def test_usps_has_the_published_checksums_and_original_order(shared, tmp_path):
    spec = next(spec for spec in tfds_datasets.SPECS if spec.info.name == "usps")
    arrays = tfds_source.decode(spec, tfds_layout.require("usps", shared / "data", False))
    labels = arrays["train_labels"][arrays["train_position"]]
    digest = hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest()
    assert digest == "e3d82ac5126c022d341b012f18667a1e04cc84263b2c6b58ce69ea261f6671c2"

    loaded = data.load("usps", shared / "data", tmp_path)
    check_contract(loaded)
    np.testing.assert_array_equal(loaded.train_labels[:5], [6, 5, 4, 7, 3])  # as in the file of LeCun's group
    assert [len(x) for x in (loaded.train_labels, loaded.val_labels, loaded.test_labels)] == [6561, 730, 2007]
    assert np.ptp(loaded.train_inputs, axis=-1).max() == 0
    stored = data.load("usps", shared / "data", tmp_path, order="stored", val_fraction=0.0)
    np.testing.assert_array_equal(stored.train_labels, labels)
    assert data.load("usps", shared / "data", tmp_path).fingerprint == loaded.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first"),
    [("cifar10", [6, 9, 9, 4, 1])],
)
def test_shared_data_sets(shared, tmp_path, name, first):
    loaded = data.load(name, shared / "data", tmp_path)
    check_contract(loaded)
    np.testing.assert_array_equal(loaded.train_labels[:5], first)
    assert loaded.info.note == ("CIFAR-10 decoded from JPEG" if name == "cifar10" else "")
    assert data.load(name, shared / "data", tmp_path).fingerprint == loaded.fingerprint


@pytest.mark.parametrize(
    ("name", "shape", "classes", "digests"),
    [
        ("southwest", (32, 32, 3), 10, ("2edd7fcabb6cc9ff", "342bf7aeb7563a92")),
        pytest.param("ardis", (28, 28, 1), 10, ("460b95d16332952d", "0594db891df74985"), marks=pytest.mark.slow),
        pytest.param(
            "emnist_byclass_part", (28, 28, 1), 62, ("406e281535ca540d", "4e78d2c174a6102d"), marks=pytest.mark.slow
        ),
    ],
)
def test_sets_in_the_authors_own_order(shared, tmp_path, name, shape, classes, digests):
    """Pixels as they are stored, to the bit; a grey set keeps its size and one channel, or is resized as any other."""
    options = {"resize": False} if "resize" in data.describe(name) else {}
    loaded = data.load(name, shared / "data", tmp_path, val_fraction=0.0, **options)
    assert (loaded.info.input_shape, loaded.info.num_classes, loaded.train_inputs.shape[1:]) == (shape, classes, shape)
    assert len(loaded.info.mean) == len(loaded.info.std) == shape[2]
    for pixels, digest in zip((loaded.train_inputs, loaded.test_inputs), digests, strict=True):
        assert hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()[:16] == digest
    stored = data.load(name, shared / "data", tmp_path, order="stored", val_fraction=0.0, **options)
    assert stored.fingerprint == loaded.fingerprint
    if options:
        assert loaded.info.crop_padding == 2
        resized = data.load(name, shared / "data", tmp_path, resize=True)
        check_contract(resized)
        expected = preprocess.to_rgb(preprocess.resize_grey(loaded.test_inputs[..., 0]))
        np.testing.assert_array_equal(resized.test_inputs, expected)
    assert data.describe(name).get("resize", {}).get("default") == {"ardis": True, "emnist_byclass_part": False}.get(
        name
    )


def test_tfds_hashes_undo_its_shuffling(shared):
    """CIFAR-10 carries ids and keys that are the index: both ways must give the same order."""
    spec = next(spec for spec in tfds_datasets.SPECS if spec.info.name == "cifar10")
    prepared = tfds_layout.require("cifar10", shared / "data")
    _, labels, position, jpeg = tfds_source._decode_split(spec, prepared, "test")
    assert jpeg
    np.testing.assert_array_equal(position, tfds_source.positions_from_hashes("test", 10_000))
    np.testing.assert_array_equal(labels[np.argsort(position)][:5], [3, 8, 8, 0, 6])


def _shard(folder: Path) -> Path:
    return folder / "cifar100-train.array_record-00000-of-00001"


def _edit_info(folder: Path, change) -> None:
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


def _set_lengths(lengths):
    return lambda info: info["splits"][0].update(shardLengths=lengths)


BROKEN = {
    "absent": (lambda f: shutil.rmtree(f.parent), "is not prepared in"),
    "empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "is not prepared in"),
    "no dataset_info.json": (lambda f: (f / "dataset_info.json").unlink(), "is not prepared in"),
    "no features.json": (lambda f: (f / "features.json").unlink(), "features.json is missing"),
    "metadata cut off": (lambda f: (f / "dataset_info.json").write_text('{"name": '), "is damaged (not valid JSON"),
    "metadata no object": (lambda f: (f / "features.json").write_text("[]"), "is damaged (not valid JSON"),
    "metadata binary": (lambda f: (f / "dataset_info.json").write_bytes(b"\xff\xfe"), "is damaged (not valid JSON"),
    "no splits": (lambda f: _edit_info(f, lambda i: i.pop("splits")), "does not describe the splits"),
    "one split": (lambda f: _edit_info(f, lambda i: i["splits"].pop()), "does not describe the splits"),
    "no examples": (lambda f: _edit_info(f, _set_lengths([])), "no examples in its split train"),
    "tfrecord": (lambda f: _edit_info(f, lambda i: i.update(fileFormat="tfrecord")), "is stored as tfrecord"),
    "unsaid format": (lambda f: _edit_info(f, lambda i: i.pop("fileFormat")), "is stored as tfrecord"),
    "shard missing": (lambda f: _shard(f).unlink(), "00000-of-00001 is missing"),
    "shard empty": (lambda f: _shard(f).write_bytes(b""), "is empty"),
    "shard cut off": (lambda f: _shard(f).write_bytes(_shard(f).read_bytes()[:70_000]), "is damaged"),
    "shard short": (lambda f: _shard(f).write_bytes(_shard(f).read_bytes()[:100]), "is damaged"),
    "shard is noise": (lambda f: _shard(f).write_bytes(np.random.default_rng(0).bytes(131_072)), "is damaged"),
    "git-lfs": (lambda f: _shard(f).write_text("version https://git-lfs.github.com/spec/v1"), "git-lfs pointer"),
    "git-annex": (lambda f: _shard(f).write_text("/annex/objects/SHA256E-s9--0"), "git-annex pointer"),
    "byte flipped in an image": (lambda f: _flip(_shard(f), 40_000), "is damaged"),
    "fewer records": (lambda f: _edit_info(f, _set_lengths(["25"])), "holds 24 records, and dataset_info.json says 25"),
    "more records": (lambda f: _edit_info(f, _set_lengths(["23"])), "holds 24 records, and dataset_info.json says 23"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_clear_sentence_at_once(tmp_path, load, case, capfd):
    break_it, expected = BROKEN[case]
    folder = write_cifar100(tmp_path / "data")
    break_it(folder)
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        load()
    assert time.monotonic() - start < 2
    message = str(caught.value)
    assert expected in message, message
    assert "\n" not in message
    assert message.startswith("data set cifar100 ")
    assert message.endswith(".")
    assert str(tmp_path / "data") in message
    assert "data.data_dir or TFDS_DATA_DIR" in message
    assert "python -m fedjax_spmc.data prepare cifar100" in message
    # preparing would find the place taken and do nothing
    assert ("--data_dir=DIR` with another folder" in message) == (expected != "is not prepared in")
    assert not (tmp_path / "cache").exists(), "a broken folder must leave no cached copy"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"label": 50}, "only 0..99 exist"),
        ({"ids": "{split}_00000"}, "ids of split train"),
        ({"ids": "nothing"}, "ids of split train"),
        ({"image": b"\x89PNG\r\n\x1a\n cut off"}, "UnidentifiedImageError"),
    ],
)
def test_records_that_are_not_cifar100(tmp_path, load, options, expected):
    write_cifar100(tmp_path / "data", **options)
    with pytest.raises(DataError, match="is damaged") as caught:
        load()
    assert expected in str(caught.value)


def test_images_of_another_size(tmp_path, load):
    encoded = io.BytesIO()
    Image.new("RGB", (28, 28)).save(encoded, "PNG")
    write_cifar100(tmp_path / "data", image=encoded.getvalue())
    with pytest.raises(DataError, match=r"shape \(28, 28, 3\)"):
        load()


def test_no_byte_of_an_image_can_change_unnoticed(tmp_path, load):
    folder = write_cifar100(tmp_path / "data")
    whole = load(val_fraction=0.0)
    content = _shard(folder).read_bytes()
    for offset in np.linspace(0, len(content) - 1, 41).astype(int):
        _shard(folder).write_bytes(content)
        _flip(_shard(folder), int(offset))
        try:
            assert load(val_fraction=0.0).fingerprint == whole.fingerprint, offset  # padding or file header
        except DataError:
            continue


def test_usps_cannot_be_prepared_and_says_so(tmp_path, load):
    with pytest.raises(DataError, match="no builder for it, so it must be put there by hand") as caught:
        load("usps")
    assert "prepare usps" not in str(caught.value)


def test_a_file_in_place_of_the_folder(tmp_path, load):
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="is not prepared in"):
        load()


def test_reading_imports_no_tensorflow_and_a_cached_start_no_tfds(tmp_path):
    write_cifar100(tmp_path)
    code = (
        "import sys; from fedjax_spmc import data;"
        f"data.load('cifar100', {str(tmp_path)!r}, {str(tmp_path / 'cache')!r});"
        "print('tensorflow' in sys.modules, 'tensorflow_datasets' in sys.modules)"
    )
    root = Path(__file__).resolve().parent.parent
    outputs = [subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True) for _ in range(2)]
    assert [(done.stdout, done.stderr) for done in outputs] == [("False True\n", ""), ("False False\n", "")]


# What is no damage.


def test_a_library_that_cannot_be_imported_is_named(tmp_path, load, monkeypatch):
    write_cifar100(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "array_record.python", None)  # as if it were not installed
    with pytest.raises(DataError, match=r"cannot be imported \(ModuleNotFoundError: .*array_record") as caught:
        load()
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("kind", [TypeError, AttributeError])
def test_a_library_of_another_version_is_named(kind, tmp_path, load, monkeypatch):
    """protobuf raises one or the other where its version does not fit the generated code."""
    write_cifar100(tmp_path / "data")
    from array_record.python import array_record_module

    def reader(*arguments):
        raise kind("Descriptors cannot be created directly.\nIf this call came from a _pb2.py file, ...")

    monkeypatch.setattr(array_record_module, "ArrayRecordReader", reader)
    with pytest.raises(DataError, match=rf"cannot be read \({kind.__name__}: Descriptors cannot be created") as caught:
        load()
    assert "damaged" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("number", "words"), [(errno.EACCES, "Permission denied"), (errno.EIO, "Input/output error")])
def test_what_the_system_refuses_is_no_damage(tmp_path, load, monkeypatch, number, words):
    """Also where the library that reads says something else of it."""
    folder = write_cifar100(tmp_path / "data")
    from array_record.python import array_record_module

    opened = Path.open

    def refusing(path, *arguments, **named):
        if path == _shard(folder) and reads > 1:
            raise OSError(number, words)
        return opened(path, *arguments, **named)

    def reader(*arguments):
        nonlocal reads
        reads += 2
        raise RuntimeError("INTERNAL: something")

    reads = 0
    monkeypatch.setattr(array_record_module, "ArrayRecordReader", reader)
    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(DataError, match=rf"cannot be read \({re.escape(str(_shard(folder)))}: {words}\)") as caught:
        load()
    assert "damaged" not in str(caught.value)
    with pytest.raises(DataError, match=f"cannot be read: .*{words}"):  # before the library is asked
        load()


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_metadata_that_cannot_be_read_are_not_called_damaged(tmp_path, load, monkeypatch, name):
    write_cifar100(tmp_path / "data")
    read_bytes = Path.read_bytes

    def refusing(path):
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    with pytest.raises(DataError, match=rf"{name} cannot be read \(Permission denied\); ") as caught:
        load()
    assert "damaged" not in str(caught.value)
