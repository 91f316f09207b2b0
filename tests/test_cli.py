"""`python -m fedjax_spmc.run`, `.evaluate` and `.compare`: exit codes, one sentence for bad input, overrides, lists."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from fedjax_spmc import compare, evaluate, experiment, run
from fedjax_spmc import config as configs
from fedjax_spmc.config import presets
from fedjax_spmc.config.files import use_compilation_cache
from fedjax_spmc.config.listing import PART_KINDS
from fedjax_spmc.errors import DataError
from fedjax_spmc.record.progress import Progress
from tests import small

pytestmark = [pytest.mark.usefixtures("small_cache"), pytest.mark.pictures]

ROOT = Path(__file__).parent.parent


# Lists and help.


def test_list_names_every_part_with_its_options(capsys):
    assert run.main(["--list"]) == 0
    out = capsys.readouterr().out
    for _, kind in PART_KINDS:
        for name in kind.names():
            assert re.search(rf"^  {name}\b", out, re.MULTILINE)
            for option, facts in kind.describe(name).items():
                assert f"      {option} = {facts['default']}   ({facts['allowed']}" in out
    for name in presets.descriptions():
        assert re.search(rf"^  {name} ", out, re.MULTILINE)
    for field in configs.FIELDS.values():
        assert f"  {field.name} = {field.default}   ({field.allowed()})" in out


@pytest.mark.parametrize("main", [run.main, evaluate.main, compare.main])
def test_help(main, capsys):
    assert main(["--help"]) == 0
    assert "python -m fedjax_spmc " in capsys.readouterr().out


# Bad input.


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ("--config is missing", "--config=digits:fedavg")),
        (["--bogus"], ("--bogus", "usage")),
        (["word"], ("word", "usage")),
        (["--config"], ("--config needs a value",)),
        (["--config="], ("--config needs a value",)),
        (["--config=x", "--workdir="], ("--workdir needs a value",)),
        (["--config.seed", "--list"], ("--config.seed needs a value",)),
        (["--config=/nowhere/x.py"], ("/nowhere/x.py", "config file")),
        (["--config=" + "x" * 5000], ("config file", "5002 characters")),
        (["--config=configs"], ("'configs'", "config file")),
        (["--config=configs/cifar10.py:bogus"], ("'bogus'", "fedjax-spmc list presets")),
        (["--config=configs/cifar10.py:fedavg,spmc"], ("fedavg, spmc", "exclude")),
    ],
)
def test_flags_that_cannot_be_read(argv, words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    small.refused(capsys, argv, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(\n", ("SyntaxError",)),
        ("x = 1\n", ("was not executed", "get_config")),
        ("import no_such_module as get_config\n", ("ModuleNotFoundError",)),
        ("def get_config(arg=''): raise RuntimeError('one\\ntwo')\n", ("RuntimeError: one two",)),
        ("import sys\nget_config = sys.exit(7)\n", ("SystemExit: 7",)),
        ("def get_config(arg=''): return None\n", ("None", "ConfigDict")),
        ("def get_config(arg=''): return {'local': {'learning_rate': True}}\n", ("local.learning_rate = True",)),
        ("def get_config(arg=''): return {'seed': {}}\n", ("seed = {}", "[0, 4294967295]")),
        ("def get_config(arg=''): return {'federation': 3}\n", ("federation is no field",)),
        ("\0", ("Error",)),
    ],
)
def test_a_config_file_that_cannot_be_used(text, words, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(text)
    small.refused(capsys, [f"--config={path}", f"--workdir={tmp_path / 'run'}"], *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.name=bogus", ("'bogus'", "fedjax-spmc list data")),
        ("model.name=bogus", ("'bogus'", "mlp, mnist_net, resnet10, resnet18, resnet18_thin, resnet9, simple_cnn")),
        ("aggregator.name=bogus", ("'bogus'", "fedjax-spmc list aggregators")),
        ("local.rule=bogus", ("'bogus'", "sgd")),
        ("attack.name=bogus", ("'bogus'", "fedjax-spmc list attacks")),
        ("attack.name=badnets,bogus", ("'bogus'", "fedjax-spmc list attacks")),
        ("partition.name=bogus", ("'bogus'", "dirichlet")),
        ("bogus=3", ("no field",)),
        ("local.bogus=3", ("no field", "local.epochs")),
        ("=3", ("no field",)),
        ("aggregator.options.bogus=3", ("no option", "temperature")),
        ("local.learning_rate=nan", ("nan", "(0, 1e+38]")),
        ("local.learning_rate=abc", ("'abc'", "finite number")),
        ("seed={[]: 1}", ("{[]: 1}", "whole number")),
        ("partition.beta=nan", ("nan", "(0, 1e+06]")),
        ("federation.clients_per_round=5", ("at most", "4")),
        ("local.batch_size=5000", ("at most", "largest client")),
        ("attack.malicious_fraction=1.5", ("1.5", "[0, 1]")),
        ("attack.target_label=10", ("10", "0 to 9")),
        ("attack.trigger=bogus", ("'bogus'", "fdcr_paper")),
        ("attack.options.positions=((0, 0, 99),)", ("(0, 0, 99)", "3 x 32 x 32")),
        ("attack.options.positions=5", ("5", "(channel, row, column)")),
        ("partition.min_size=1000", ("1000", "at most")),
        ("data.limit_train=1", ("data.val_fraction", "data.limit_train")),
        ("plugins=no_such_module", ("'no_such_module'", "cannot be imported")),
    ],
)
def test_a_value_that_cannot_be_used(override, words, tmp_path, capsys):
    argv = small.arguments(tmp_path / "run", override)
    small.refused(capsys, argv, override.split("=")[0], *words)
    assert not (tmp_path / "run").exists()


def test_a_data_set_that_is_not_prepared(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = ["--config=configs/cifar10.py", f"--config.data.data_dir={tmp_path}", f"--workdir={tmp_path / 'run'}"]
    small.refused(capsys, argv, "cifar10", str(tmp_path))
    assert not (tmp_path / "run").exists()
    assert issubclass(DataError, ValueError)


def test_a_workdir_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    small.refused(capsys, small.arguments(tmp_path / "file"), "workdir", "it is no folder")
    small.refused(capsys, small.arguments(tmp_path / "file" / "below"), "workdir", "is no folder")
    small.refused(capsys, small.arguments(tmp_path / ("x" * 300)), "workdir", "name too long")
    if Path("/proc").is_dir():
        small.refused(capsys, small.arguments("/proc"), "workdir = '/proc' cannot be written")
        small.refused(capsys, small.arguments("/proc/below"), "workdir = '/proc/below' cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "model.npz").write_text("mine")
    small.refused(capsys, small.arguments(tmp_path), "holds model.npz but no config.json")
    assert {path.name for path in tmp_path.iterdir()} == {"model.npz"}


def test_a_file_that_fails_while_it_runs_is_told_in_one_sentence(finished_run, tmp_path, capsys):
    folder = Path(shutil.copytree(finished_run, tmp_path / "copied"))
    (folder / "curves.png").unlink()
    (folder / "curves.png").mkdir()
    small.refused(capsys, small.arguments(folder), "curves.png", "Is a directory")


# What works.


def test_overrides_presets_and_notices(tmp_path, capsys, monkeypatch):
    """`--flag value`, a preset with options, another aggregator on it, and the default workdir."""
    seen = {}

    def fake(config, workdir, stream):
        seen.update(config=config, workdir=workdir)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", fake)
    monkeypatch.chdir(tmp_path)
    argv = [f"--config={small.CONFIG}:fedavg, reference", "--config.aggregator.name=spmc", "--config.seed", "3"]
    assert run.main(argv) == 130
    err = capsys.readouterr().err
    assert err.splitlines() == [
        "aggregator.name is now spmc: dropped aggregator.options {'weights': 'uniform'} of the preset.",
        "interrupted: the same command goes on from the last finished chunk.",
    ]
    config = seen["config"]
    assert (config.seed, config.local.rule, config.aggregator.name, config.local.epochs) == (3, "sgd", "spmc", 1)
    assert re.fullmatch(r"runs/synthetic-fedavg-reference-[0-9a-f]{8}", str(seen["workdir"]))
    first = seen["workdir"]
    run.main([*argv, "--config.federation.rounds=9", "--config.checkpoint.every=2"])
    assert seen["workdir"] == first
    run.main([*argv, "--config.local.epochs=9"])
    assert seen["workdir"] != first
    assert list(tmp_path.iterdir()) == []


def test_an_unusable_cache_costs_nothing_but_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    before = jax.config.jax_compilation_cache_dir
    use_compilation_cache(configs.resolve(small.config(data__cache_dir=str(tmp_path / "file"))))
    assert jax.config.jax_compilation_cache_dir == before


LINE = {"round": 8, "A": 100.0, "ASR": None, "R": None, "V": None, "round_seconds": 60.0, "eval_seconds": 2.0}


def test_plain_lines_where_the_output_is_no_terminal():
    stream = io.StringIO()
    progress = Progress(100, stream)
    progress.update(LINE)  # it compiled: its time is no measure
    progress.update({**LINE, "round": 9, "round_seconds": 1.0})
    progress.close()
    expected = "round   9/100  A 100.00  ASR     -  R     -  V     -   60.00 s/round\n"
    expected += "round  10/100  A 100.00  ASR     -  R     -  V     -    1.00 s/round  4:30 left\n"
    assert stream.getvalue() == expected


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_a_live_line_that_never_wraps():
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(theirs, "w") as stream:
        progress = Progress(100, stream)
        progress.update(LINE)
        progress.update({**LINE, "round": 9})
        progress.note("a note")
        progress.close()
        written = ""
        while not written.endswith("a note\r\n\r\n"):
            written += os.read(ours, 10_000).decode()
    os.close(ours)
    pieces = written.split("\r\x1b[K")
    assert [len(piece) for piece in pieces] == [0, 39, 39, len("a note\r\n\r\n")]
    assert pieces[2].startswith("round  10/100  A 100.00")


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(finished_run, tmp_path):
    """Standard error holds the progress and nothing else; Ctrl-C ends with 130 and the run goes on."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # A shell that starts the suite in the background has it ignore Ctrl-C, and children inherit that.
    start = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('fedjax_spmc.run', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", start, *small.arguments(tmp_path / "run", rounds=10_000)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stderr is not None
        first = [process.stderr.readline() for _ in range(3)]  # to the first round's line
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [*first, *rest.splitlines(keepends=True)]
    shape = (
        r"round +\d+/10000  (at chance  )?A +[\d.]+  ASR +[\d.]+  R +[\d.]+  V +[\d.]+ +[\d.]+ s/round"
        r"(  [\d:]+ left)?\n"
    )
    assert lines[:2] == ["reading data: synthetic ...\n", "compiling ...\n"]
    assert all(re.fullmatch(shape, line) for line in lines[2:-1]), lines
    assert lines[-1].startswith("interrupted: ")
    assert out == ""
    played = small.lines(tmp_path / "run")
    known = small.lines(finished_run)
    assert played[: len(known)] == known[: len(played)]


# The other commands.


def test_evaluate_and_compare_refuse_in_one_sentence(finished_run, tmp_path, capsys):
    nothing = str(tmp_path / "nothing")
    cases = [
        (evaluate.main, [], "one is needed"),
        (evaluate.main, ["a", "b"], "one is needed"),
        (evaluate.main, [nothing], "holds no run"),
        (evaluate.main, [nothing, "--bogus"], "--bogus"),
        (compare.main, [], "no run folder"),
        (compare.main, [nothing], "holds no run"),
        (compare.main, [nothing, "--png"], "--png"),
        (compare.main, [str(finished_run), f"--png={tmp_path}/no/x.png"], "x.png"),
    ]
    for main, argv, word in cases:
        capsys.readouterr()
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert word in err


def test_compare_prints_a_row_for_each_run(finished_run, tmp_path, capsys):
    twice = shutil.copytree(finished_run, tmp_path / "twice")
    assert compare.main([str(finished_run), str(twice), f"--png={tmp_path / 'curves.png'}"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == [
        "mean",
        "method",
        "spmc",
        "spmc",
        *[f"{one}:" for one in (finished_run, twice)],
        "curves:",
    ]
    assert rows[2].endswith(str(finished_run))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
