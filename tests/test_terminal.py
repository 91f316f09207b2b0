"""No accident of a terminal, a log, a disk or a machine ends training, hides, or ends in a traceback."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_spmc import command, compare, evaluate, experiment, metrics, run, startup, terminal
from fedjax_spmc.data import cache
from fedjax_spmc.data.__main__ import main as data
from fedjax_spmc.errors import ConfigError, WorkdirError
from fedjax_spmc.parity import walk
from fedjax_spmc.parity.__main__ import main as parity
from fedjax_spmc.record import checkpoint, plots, remarks
from fedjax_spmc.record.progress import Progress
from fedjax_spmc.record.tensorboard import TensorBoard
from fedjax_spmc.report.__main__ import main as report
from fedjax_spmc.sweep.__main__ import main as sweep
from tests import small

pytestmark = pytest.mark.pictures

ROOT = Path(__file__).resolve().parent.parent
FULL = OSError(errno.ENOSPC, "No space left on device")


class Stream(io.StringIO):
    """A stream that takes some lines and then fails."""

    def __init__(self, lines: int, error: Exception):
        super().__init__()
        self.left, self.error = lines, error

    def write(self, text: str) -> int:
        if self.left <= 0:
            raise self.error
        self.left -= text.count("\n")
        return super().write(text)


# Logs and pipes that are closed.


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize("error", [BrokenPipeError(), FULL, ValueError("I/O operation on closed file.")])
def test_training_goes_on_when_its_log_is_closed(error, finished_run):
    if error is not FULL:  # the line alone: the run is long
        progress = Progress(4, Stream(1, error))
        progress.note("one")
        progress.note("two")
        progress.update(small.lines(finished_run)[0] | {"round_seconds": 1.0, "eval_seconds": 1.0})
        progress.close()
        return
    stream = Stream(1, error)
    result = experiment.run(small.config(rounds=2), stream=stream)
    assert [small.without_times(line) for line in result.history] == small.lines(finished_run)[:2]
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("closed", [Stream(0, BrokenPipeError()), None])
def test_standard_error_that_is_closed_ends_nothing(closed, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stderr", closed)
    terminal.note("a notice")
    (tmp_path / "file").write_text("")
    assert cache.fetch("toy", "0" * 64, tmp_path / "file", lambda: {"x": np.arange(2)})["x"].tolist() == [0, 1]
    assert evaluate.main([]) == 2
    terminal.flush()


def test_a_reader_that_has_gone_ends_nothing(monkeypatch, capsys):
    """`data list | head -1`."""
    assert data(["list"]) == 0
    lines = capsys.readouterr().out.count("\n")
    stream = Stream(1, BrokenPipeError())
    monkeypatch.setattr(sys, "stdout", stream)
    assert data(["list"]) == 0
    assert stream.getvalue().count("\n") == 1 < lines
    assert run.main(["--help"]) == 0


def test_results_that_cannot_be_printed_are_no_success(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Stream(0, FULL))
    assert run.main(["--list"]) == 2
    assert "standard output cannot be read or written (No space left on device)" in capsys.readouterr().err


# Machines without what JAX was told to use, or without memory.


def no_device(*arguments, **named):
    raise RuntimeError("Unable to initialize backend 'cuda': not in the list. (set JAX_PLATFORMS='')")


@pytest.fixture
def without_device(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", no_device)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")


def test_a_platform_that_is_not_there_is_one_sentence(without_device, finished_run, tmp_path, capsys):
    swept = tmp_path / "swept.py"
    swept.write_text(
        "from fedjax_spmc.sweep import Sweep\nfrom tests import small\n\n\n"
        "def get_config(arg=''):\n    return Sweep(small.config())\n"
    )
    out = f"--workdir={tmp_path / 'out'}"
    for main, argv in (
        (run.main, small.arguments(tmp_path / "out")),
        (sweep, [f"--config={swept}", out]),
        (sweep, [f"--config={swept}", "--dry-run"]),
        (report, [str(finished_run), f"--out={tmp_path / 'out'}"]),
        (compare.main, [str(finished_run)]),
        (evaluate.main, [str(finished_run)]),
        (parity, [f"--golden={tmp_path}"]),
    ):
        assert main(argv) == 2, main.__module__
        assert capsys.readouterr().err == (
            "error: JAX_PLATFORMS = 'cuda' is not allowed: it must name platforms that JAX finds on this machine "
            "(Unable to initialize backend 'cuda': not in the list); without it JAX takes what there is.\n"
        )
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="JAX_PLATFORMS"):
        experiment.run(small.config())


def ending(error: Exception) -> int:
    """The exit code of a command that ends with an error."""

    def body(flags):
        raise error

    return command.run_command(command.Parser("run", ""), body, [])


def test_what_only_touches_jax_is_told_so_too(without_device, capsys):
    assert ending(AssertionError()) == 2
    assert "JAX_PLATFORMS = 'cuda'" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("a fault"), KeyError("x"), jax.errors.JaxRuntimeError("INTERNAL")])
def test_a_fault_of_the_program_is_no_users_error(error):
    with pytest.raises(type(error)):
        ending(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 8 PiB"), "not enough memory (Unable to allocate 8 PiB)"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "not enough memory (RESOURCE_EXHAUSTED"),
        (PermissionError(13, "Permission denied", "x"), "x cannot be read or written (Permission denied)"),
        (FULL, "a file cannot be read or written (No space left on device)"),
    ],
)
def test_errors_of_the_machine_are_one_sentence(error, words, capsys):
    assert ending(error) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("resumes", [True, False])
def test_only_who_goes_on_says_so(resumes, capsys):
    def body(flags):
        raise KeyboardInterrupt

    assert command.run_command(command.Parser("run", "", resumes=resumes), body, []) == startup.INTERRUPTED
    said = "interrupted: the same command goes on from the last finished chunk.\n" if resumes else "interrupted.\n"
    assert capsys.readouterr().err == said


STARTED = """
import builtins, os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["-m"]  # as Python has it while it looks for the module behind -m
imported = builtins.__import__
def importing(name, *rest, **named):
    if name == {at!r}:
        os.kill(os.getpid(), signal.SIGINT)
    return imported(name, *rest, **named)
builtins.__import__ = importing
runpy.run_module("fedjax_spmc.run", run_name="__main__", alter_sys=True)
"""


def test_an_interrupt_among_the_imports_is_one_line():
    """As soon as the package is there, in the middle of JAX's own imports."""
    done = subprocess.run(
        [sys.executable, "-c", STARTED.format(at="jax._src.core")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted.\n")


def test_a_setting_that_jax_refuses_is_one_sentence():
    done = subprocess.run(
        [sys.executable, "-m", "fedjax_spmc.compare"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": "maybe"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: JAX refuses a variable of the environment: ")
    assert "JAX_ENABLE_X64" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_package_as_a_library_leaves_the_process_alone():
    assert not startup.COMMAND
    assert sys.excepthook is not startup._tell


# Disks.


def test_events_that_cannot_be_written_end_nothing(tmp_path, monkeypatch):
    said = []
    board = TensorBoard(tmp_path, said.append)
    line = dict.fromkeys(metrics.SCALARS, 1.0) | {"round": 0, "confidence": 0.0}
    board.add(line)
    (path,) = (tmp_path / "tensorboard").iterdir()
    size = path.stat().st_size
    assert size > 0
    opened = Path.open

    def full(self, *arguments, **named):
        raise FULL if self == path else AssertionError

    monkeypatch.setattr(Path, "open", full)
    board.add(line)
    board.add(line)
    monkeypatch.setattr(Path, "open", opened)
    assert said == [f"no TensorBoard events from here on: {path} cannot be written (No space left on device)"]
    (tmp_path / "file").write_text("")
    TensorBoard(tmp_path / "file", said.append).add(line)
    assert len(said) == 2


@pytest.mark.parametrize("how", ["before Orbax begins", "in Orbax's storage"])
def test_a_checkpoint_on_a_full_disk(how, tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoint")
    state = {"model": jax.numpy.zeros(3)}
    checkpoints.save(1, state)
    if how == "before Orbax begins":
        usage = type(checkpoint.shutil.disk_usage(tmp_path))(100, 100, 0)
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    else:

        def save(rounds, **named):
            (tmp_path / "checkpoint" / f"{rounds}.orbax-checkpoint-tmp").mkdir()
            raise ValueError(f"RESOURCE_EXHAUSTED: Failed to write{'.' * 300} [os_error_code='{errno.ENOSPC}']")

        monkeypatch.setattr(checkpoints._manager, "save", save)
    with pytest.raises(WorkdirError, match=r"cannot be written \(No space left on device\): it needs more room, and"):
        checkpoints.save(2, state)
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["1", "manifest.json"]
    assert checkpoints.restore(1, state)["model"].tolist() == [0, 0, 0]
    checkpoints.close()


def test_an_interrupt_waits_for_the_checkpoint(tmp_path, monkeypatch):
    checkpoints, state = checkpoint.Checkpoints(tmp_path / "checkpoint"), {"model": jax.numpy.ones(3)}
    save = checkpoints._manager.save

    def interrupted(*arguments, **named):
        os.kill(os.getpid(), signal.SIGINT)
        return save(*arguments, **named)

    monkeypatch.setattr(checkpoints._manager, "save", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(1, state)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert checkpoints.restore(1, state)["model"].tolist() == [1, 1, 1]
    checkpoints.close()


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize(
    ("name", "before"), [("roster.json", "reading data: synthetic ...\n"), ("partition.png", " left\n")]
)
def test_a_full_disk_names_the_file(name, before, tmp_path, monkeypatch, capsys):
    """Before round 1, and behind it, where the picture of the partition is drawn."""
    whole = os.replace

    def replace(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device", source)
        whole(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert run.main(small.arguments(tmp_path / "run", rounds=1)) == 2
    err = capsys.readouterr().err
    assert err.endswith(
        f"{before}error: workdir = '{tmp_path / 'run'}' cannot be written ({name}: No space left on device): it needs "
        "more room, and the same command then goes on.\n"
    )
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(f".{name}")]


# Pictures, flags and progress.


def history(rounds: int) -> list[dict[str, object]]:
    return [{"round": index, **dict.fromkeys(plots.COLOURS, 50.0)} for index in range(rounds)]


def test_a_picture_of_many_runs_can_be_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    plots.curves({f"run {index}": history(2) for index in range(114)}, tmp_path / "x.png")
    plots.curves({"run": history(2)}, tmp_path / "x.png")
    many, one = drawn
    assert len(many.axes) == plots.MAX_PANELS
    assert max(many.get_size_inches() * 120) < 4000
    assert [axis.get_title() for axis in many.axes[:2]] == ["run 0", "run 1"]
    assert sum(axis.get_legend() is not None for axis in many.axes) == 1
    assert one.get_size_inches().tolist() == [4.8, 3.6]


def test_compare_says_which_runs_it_draws(finished_run, tmp_path, monkeypatch, capsys):
    result, drawn = experiment.load(finished_run), []
    monkeypatch.setattr(experiment, "load", lambda folder: result)
    monkeypatch.setattr(remarks, "of_folder", lambda folder, config, history: [])
    monkeypatch.setattr(plots, "curves", lambda runs, path: drawn.append(list(runs)))
    folders = [f"runs/{'long/' * 20}{index}" for index in range(30)]
    assert compare.main([*folders, "--png", str(tmp_path / "x.png")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"curves: {tmp_path / 'x.png'} (the first 24 of 30 runs)"
    assert len(drawn[0]) == 30
    assert max(len(line) for title in drawn[0] for line in title.split("\n")) == compare.LONGEST_NAME


@pytest.mark.parametrize("name", ["x.txt", "x", "x.pdf", "png"])
def test_a_picture_is_a_png(name, finished_run, tmp_path, capsys):
    assert compare.main([str(finished_run), f"--png={tmp_path / name}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        f"error: --png = '{tmp_path / name}' is not allowed: it must be a file name that ends in .png"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("main", "flag", "value", "word"),
    [
        (run.main, "--config", "no.py", "no.py"),
        (sweep, "--engine", "dask", "dask"),
        (compare.main, "--png", "x.txt", "x.txt"),
        (evaluate.main, "--data_dir", "/no/such", "0 run folders"),
        (report, "--details", "x", "'x'"),
        (parity, "--golden", "/no/such", "/no/such"),
        (data, "--data_dir", "/no/such", "nothing is given"),
    ],
)
def test_a_flag_is_written_with_a_blank_or_an_equals_sign(main, flag, value, word, capsys):
    said = []
    for argv in ([flag, value], [f"{flag}={value}"]):
        more = ["folder"] if main in (compare.main, report) else []
        assert main([*more, *argv]) == 2
        said.append(capsys.readouterr().err)
        assert word in said[-1]
    assert said[0] == said[1]


def test_parity_says_what_it_compares(tmp_path, capsys):
    for name in ("b", "a"):
        np.savez(tmp_path / f"unknown_{name}.npz", a=np.zeros(2))
    assert parity([f"--golden={tmp_path}"]) == 1
    out, err = capsys.readouterr()
    assert err.splitlines() == ["file 1 of 2: unknown_a.npz", "file 2 of 2: unknown_b.npz"]
    assert "file 1" not in out
    assert len(walk(tmp_path)) == 2
    assert capsys.readouterr().err == ""
