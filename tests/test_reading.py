"""What is wrong with a file is said as it is: damaged where its content is to blame, else why it cannot be read."""

import errno
import json
import shutil
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import UnidentifiedImageError

from fedjax_spmc import evaluate, experiment, numerics, reading
from fedjax_spmc.errors import DamagedError, WorkdirError
from fedjax_spmc.record import checkpoint, files
from fedjax_spmc.record.environment import CONTINUATION
from fedjax_spmc.record.lines import NONE_UNREPORTED
from fedjax_spmc.record.resume import Snapshot
from fedjax_spmc.report import read
from fedjax_spmc.starting import start_model
from fedjax_spmc.sweep.scratch import ProgramCells, Scratch
from fedjax_spmc.sweep.table import Table
from tests import small

pytestmark = pytest.mark.usefixtures("small_cache")

DENIED = PermissionError(errno.EACCES, "Permission denied")
BROKEN_DISK = OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("cause", "damaged", "words"),
    [
        (DENIED, False, "cannot be read (Permission denied)"),
        (BROKEN_DISK, False, "cannot be read (Input/output error)"),
        (MemoryError(), False, "cannot be read (MemoryError)"),
        (ModuleNotFoundError("No module named 'x'"), False, "cannot be read (No module named 'x')"),
        (UnidentifiedImageError("no image."), True, "is damaged (no image)"),  # an OSError without a number
        (zipfile.BadZipFile("File is not a zip file"), True, "is damaged (File is not a zip file)"),
        (ValueError("one\n  two: "), True, "is damaged (one two)"),
        (EOFError(), True, "is damaged (EOFError)"),
        (KeyError("entry 'x' is missing"), True, "is damaged (entry 'x' is missing)"),
        ("it has changed", True, "is damaged (it has changed)"),
    ],
)
def test_only_content_is_called_damaged(cause, damaged, words):
    error = reading.UnreadableError(cause)
    assert (error.damaged, str(error)) == (damaged, words)


def test_a_reason_is_short_and_one_line():
    assert len(reading.reason_of("word " * 500)) <= reading.LONGEST_REASON
    assert reading.reason_of(ValueError("x\ny"), named=True) == "ValueError: x y"
    assert reading.reason_of("") == "no reason given"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"3", b"[" * 100_000])
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(reading.UnreadableError, match=r"^is damaged \(not valid JSON"):
        reading.json_object(tmp_path / "x.json")


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([{}], dtype=object))
    with pytest.raises(reading.UnreadableError, match=r"damaged.*allow_pickle"):
        reading.arrays(tmp_path / "x.npz")


@pytest.fixture
def refuse(monkeypatch):
    """Lets the system refuse to read every file of a name; root may read all."""
    names: dict[str, OSError] = {}
    whole = Path.read_bytes

    def read_bytes(path):
        if path.name in names:
            raise names[path.name]
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    return names


@pytest.mark.parametrize("error", [DENIED, BROKEN_DISK], ids=["denied", "disk"])
@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.jsonl", "model.npz"])
def test_a_run_that_cannot_be_read_is_not_called_damaged(finished_run, refuse, name, error):
    refuse[name] = error
    with pytest.raises(WorkdirError, match=rf"{name} cannot be read \({error.strerror}\)\.$") as caught:
        experiment.load(finished_run)
    assert not isinstance(caught.value, DamagedError)
    assert "missing" not in str(caught.value)


@pytest.mark.parametrize("name", ["roster.json", "attack.npz"])
def test_evaluate_says_what_it_cannot_read(finished_run, refuse, name, capsys):
    refuse[name] = DENIED
    assert evaluate.main([str(finished_run)]) == 2
    assert capsys.readouterr().err == f"error: {finished_run / name} cannot be read (Permission denied).\n"


def test_a_plug_in_that_is_not_here_is_no_damage(finished_run, tmp_path):
    folder = Path(shutil.copytree(finished_run, tmp_path / "copied"))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"plugins": ["no_such_module"]}))
    with pytest.raises(WorkdirError, match=r"cannot be used here: plugins = 'no_such_module' cannot be imp") as caught:
        experiment.load(folder)
    assert "damaged" not in str(caught.value)


def test_a_report_tells_denied_from_damaged(finished_run, refuse):
    refuse["roster.json"] = DENIED
    with pytest.raises(WorkdirError, match=r"roster\.json cannot be read \(Permission denied\): the run is left out"):
        read.read([finished_run])
    refuse["config.json"] = BROKEN_DISK
    with pytest.raises(WorkdirError, match=r"config\.json cannot be read \(Input/output error\): the run is left out"):
        read.read([finished_run])


def test_a_start_without_memory_is_not_called_damaged(finished_run, monkeypatch):
    def without_memory(*arguments, **named):
        raise MemoryError("Unable to allocate 8 PiB")

    monkeypatch.setattr(np, "load", without_memory)
    with pytest.raises(ValueError, match=r"^model\.start = .* cannot be read \(Unable to allocate 8 PiB\)"):
        start_model(small.config(model__start=str(finished_run)), None)  # pyright: ignore[reportArgumentType]


def test_a_table_that_cannot_be_read(tmp_path, refuse):
    (tmp_path / "results.jsonl").write_text("{}\n")
    refuse["results.jsonl"] = DENIED
    with pytest.raises(WorkdirError, match=r"results\.jsonl cannot be read \(Permission denied\)"):
        Table(tmp_path)


# Checkpoints.

STATE = Snapshot({"model": jnp.arange(3.0)}, NONE_UNREPORTED)  # pyright: ignore[reportArgumentType]


def test_a_whole_checkpoint_that_cannot_be_restored_is_not_called_damaged(tmp_path, monkeypatch, refuse):
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoint")
    checkpoints.save(1, STATE)

    def without_memory(*arguments, **named):
        raise MemoryError("Unable to allocate")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "restore", without_memory)
        with pytest.raises(WorkdirError, match=r"^checkpoint .* cannot be read \(Unable to allocate\)\.$") as caught:
            checkpoints.restore(1, STATE)
    assert not isinstance(caught.value, DamagedError)
    refuse[checkpoint.MANIFEST] = DENIED
    with pytest.raises(WorkdirError, match=r"manifest\.json cannot be read \(Permission denied\)\.$") as caught:
        checkpoints.restore(1, STATE)
    assert not isinstance(caught.value, DamagedError)
    checkpoints.close()


def test_a_sweep_throws_damaged_rounds_away_and_no_others(tmp_path, refuse):
    cells, said = ProgramCells("group", ("a",), "experiments", 1, 1, "data", None, (None,)), []
    now = {"numerics": numerics.facts("float32")} | dict.fromkeys(CONTINUATION[:-1])
    scratch = Scratch(tmp_path, cells, now, said.append)
    scratch.resume(STATE)
    scratch.save(1, STATE)
    scratch.close()
    refuse[checkpoint.MANIFEST] = BROKEN_DISK
    with pytest.raises(WorkdirError, match="Input/output error"):
        scratch.resume(STATE)
    scratch.close()
    refuse.clear()
    done, _, _ = scratch.resume(STATE)
    assert done == 1
    scratch.close()
    (next(tmp_path.iterdir()) / "checkpoint" / checkpoint.MANIFEST).write_text("{")
    assert said == []
    done, _, _ = scratch.resume(STATE)
    assert done == 0
    assert "manifest.json" in said[0]
    scratch.close()


# Writing.


def test_what_cannot_be_written_names_the_file_and_leaves_no_half(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for write in (
        lambda: files.replace(tmp_path / "a" / "model.npz", b"x"),
        lambda: files.append_line(tmp_path / "a" / "metrics.jsonl", {}),
    ):
        with pytest.raises(OSError, match="No such file or directory"):
            write()
        (tmp_path / "a").mkdir(exist_ok=True)
        with pytest.raises(OSError, match="No space left on device") as caught:
            write()
        text = str(files.unwritable("workdir = 'a'", tmp_path, caught.value))
        assert text.startswith(f"workdir = 'a' cannot be written (a/{Path(caught.value.filename).name}: No space left")
        assert "more room" in text
        assert [path.name for path in (tmp_path / "a").iterdir() if path.name.startswith(".")] == []
        shutil.rmtree(tmp_path / "a")
    assert "(File exists): it must be a folder" in str(
        files.unwritable("x", tmp_path, FileExistsError(17, "File exists", str(tmp_path)))
    )
