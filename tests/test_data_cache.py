"""The decoded copy: used only when whole, rebuilt when not, and never in the way."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fedjax_spmc import data
from fedjax_spmc.data import cache
from fedjax_spmc.errors import DataError
from tests.test_data_tfds import write_cifar100

KEY = "0123456789abcdef" * 4
ARRAYS = {"images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "labels": np.array([3, 4], np.int32)}


class Build:
    """Counts how often the arrays had to be built."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return ARRAYS


@pytest.fixture
def build():
    return Build()


def check(arrays):
    assert set(arrays) == set(ARRAYS)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name], strict=True)


def test_the_second_fetch_reads(tmp_path, build, capsys):
    for _ in range(3):
        check(cache.fetch("toy", KEY, tmp_path, build))
    assert build.calls == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == [f"toy-{KEY[:16]}"]
    assert capsys.readouterr().err == ""


def test_another_key_is_another_entry(tmp_path, build):
    cache.fetch("toy", KEY, tmp_path, build)
    cache.fetch("toy", KEY[::-1], tmp_path, build)
    cache.fetch("toy", KEY[:16] + "0" * 48, tmp_path, build)  # the same folder, but the manifest knows
    assert build.calls == 3


def _flip(path: Path, offset: int):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "pixel": lambda f: _flip(f / "images.npy", -1),
    "header": lambda f: _flip(f / "images.npy", 60),
    "cut off": lambda f: (f / "labels.npy").write_bytes((f / "labels.npy").read_bytes()[:-1]),
    "array missing": lambda f: (f / "labels.npy").unlink(),
    "manifest missing": lambda f: (f / "manifest.json").unlink(),
    "manifest cut off": lambda f: (f / "manifest.json").write_text('{"key'),
    "manifest empty": lambda f: (f / "manifest.json").write_text("{}"),
    "manifest is a list": lambda f: (f / "manifest.json").write_text("[]"),
    "manifest has no sums": lambda f: (f / "manifest.json").write_text(json.dumps({"key": KEY, "sha256": 3})),
    "a file": lambda f: (f.rename(f.parent / "away"), f.write_text("")),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_entry_is_rebuilt_and_says_so(tmp_path, build, capsys, case):
    cache.fetch("toy", KEY, tmp_path, build)
    DAMAGE[case](cache.entry("toy", KEY, tmp_path))
    check(cache.fetch("toy", KEY, tmp_path, build))
    assert build.calls == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "is damaged" in message
    check(cache.fetch("toy", KEY, tmp_path, build))
    assert build.calls == 2, "the entry was not mended"
    assert capsys.readouterr().err == ""


def test_an_unwritable_cache_costs_one_line(tmp_path, build, capsys):
    (tmp_path / "file").write_text("")  # a file where a folder is needed: refused to root too
    check(cache.fetch("toy", KEY, tmp_path / "file", build))
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "no cached copy could be written" in message


def test_a_full_disk_leaves_nothing_behind(tmp_path, build, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    check(cache.fetch("toy", KEY, tmp_path, build))
    assert "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []


def test_two_writers_at_once(tmp_path, build, capsys):
    def slower():
        cache.fetch("toy", KEY, tmp_path, build)  # another process finishes first
        return build()

    check(cache.fetch("toy", KEY, tmp_path, slower))
    check(cache.fetch("toy", KEY, tmp_path, build))
    assert build.calls == 2
    assert capsys.readouterr().err == ""


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX_SPMC_CACHE", str(tmp_path / "a"))
    assert cache.root() == tmp_path / "a"
    assert cache.root(tmp_path / "b") == tmp_path / "b"
    monkeypatch.delenv("FEDJAX_SPMC_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.root() == tmp_path / ".cache" / "fedjax_spmc"


def test_a_source_that_changed_is_read_again(tmp_path):
    folder = write_cifar100(tmp_path / "data")
    first = data.load("cifar100", tmp_path / "data", tmp_path / "cache")
    shard = folder / "cifar100-test.array_record-00000-of-00001"
    os.utime(shard, ns=(1, 1))
    assert data.load("cifar100", tmp_path / "data", tmp_path / "cache").fingerprint == first.fingerprint
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 2


def test_absent_sources_are_not_replaced_by_the_cache(tmp_path):
    folder = write_cifar100(tmp_path / "data")
    data.load("cifar100", tmp_path / "data", tmp_path / "cache")
    (folder / "cifar100-test.array_record-00000-of-00001").unlink()
    with pytest.raises(DataError, match="is missing"):
        data.load("cifar100", tmp_path / "data", tmp_path / "cache")
