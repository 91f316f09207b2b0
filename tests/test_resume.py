"""An interrupted run goes on with the same bits; nothing of a run that cannot go on is written over."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from fedjax_spmc import config as configs
from fedjax_spmc import experiment, run
from fedjax_spmc.errors import ConfigError, DivergedError, UserError, WorkdirError
from fedjax_spmc.record import checkpoint, plots
from fedjax_spmc.record.folder import RunFolder
from tests import small

pytestmark = pytest.mark.usefixtures("small_cache")


@pytest.fixture
def copied(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copied", ignore=shutil.ignore_patterns("tensorboard")))


# Interruptions.


class Interrupted(BaseException):
    """Stands for a signal: no handler of the package catches it."""


MOMENTS = {
    "before the config is there": (RunFolder, "write_start", 1),
    "between a line and its checkpoint": (checkpoint.Checkpoints, "save", 2),
    "between a checkpoint and its model": (RunFolder, "write_model", 2),
    "between the last checkpoint and its model": (RunFolder, "write_model", 4),
    "while the partition is drawn": (plots, "partition", 1),
    "while the curves are drawn": (plots, "curves", 1),
}


@pytest.mark.parametrize(
    "moment", [*list(MOMENTS)[:1], *[pytest.param(moment, marks=pytest.mark.slow) for moment in list(MOMENTS)[1:]]]
)
def test_an_interrupted_run_goes_on_with_the_same_bits(moment, finished_run, tmp_path):
    owner, name, call = MOMENTS[moment]
    original, calls = getattr(owner, name), []

    def interrupting(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            raise Interrupted
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupting)
        with pytest.raises(Interrupted):
            experiment.run(small.config(), tmp_path / "run")
    experiment.run(small.config(), tmp_path / "run")
    small.assert_same_run(tmp_path / "run", finished_run)


@pytest.mark.slow
def test_half_a_line_and_left_over_files_vanish(finished_run, tmp_path, capsys):
    folder = tmp_path / "run"
    experiment.run(small.config(rounds=2), folder)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"round": 2, "A": 1')
    (folder / ".model.npz-abcd").write_bytes(b"half")
    (folder / "checkpoint" / "3.orbax-checkpoint-tmp").mkdir()
    assert run.main(small.arguments(folder)) == 0
    assert "goes on after round 2 of 4" in capsys.readouterr().err
    small.assert_same_run(folder, finished_run)
    assert not list(folder.glob(".model*"))


KILLER = """
import json, os, signal, sys, time
from pathlib import Path
from fedjax_spmc import record, run
from fedjax_spmc.record import checkpoint
from fedjax_spmc.record.folder import RunFolder

moment, calls = sys.argv.pop(1), []

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def on_third(owner, name, act):
    original = getattr(owner, name)
    def patched(self, *arguments):
        calls.append(name)
        if len(calls) == 3:
            act(self, *arguments)
        return original(self, *arguments)
    setattr(owner, name, patched)

def half_a_line(folder, line):
    with (folder.path / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(line)[:40])
    die()

def while_saving(*_):
    # Orbax writes under another name and renames when all is there.
    os.rename = os.replace = lambda *_, **__: die()

if moment == "line":
    on_third(RunFolder, "append", half_a_line)
elif moment == "saving":
    on_third(checkpoint.Checkpoints, "save", while_saving)
elif moment == "wait":
    on_third(RunFolder, "append", lambda folder, _: ((folder.path / "waits").touch(), time.sleep(300)))
sys.exit(run.main())
"""


@pytest.mark.slow
def test_killed_processes_go_on_with_the_same_bits(finished_run, tmp_path, capsys):
    """SIGKILL at three moments: by itself in the middle of a write, and from outside."""
    moments = ("line", "saving", "wait")
    folders = {moment: tmp_path / moment for moment in moments}
    processes = {}
    for moment in moments:
        with (tmp_path / f"{moment}.err").open("w") as stream:
            processes[moment] = subprocess.Popen(
                [sys.executable, "-c", KILLER, moment, *small.arguments(folders[moment])],
                stderr=stream,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            )
    try:
        deadline = time.monotonic() + 300
        while not (folders["wait"] / "waits").exists():
            assert processes["wait"].poll() is None, (tmp_path / "wait.err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        before = small.contents(folders["wait"])
        small.refused(capsys, small.arguments(folders["wait"]), "workdir", str(folders["wait"]), "another process")
        assert small.contents(folders["wait"]) == before
        processes["wait"].kill()
        for moment, process in processes.items():
            process.wait(timeout=300)
            err = (tmp_path / f"{moment}.err").read_text()
            assert process.returncode == -signal.SIGKILL, (moment, err)
            assert all(line.startswith(small.PHASES) for line in err.splitlines()), err
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    assert list((folders["saving"] / "checkpoint").glob("3.orbax-checkpoint-tmp*/*"))
    for moment in moments:
        assert not (folders[moment] / "summary.json").exists()
        experiment.run(small.config(), folders[moment])
        small.assert_same_run(folders[moment], finished_run)


# Extension, and what may differ.


@pytest.mark.slow
@pytest.mark.parametrize(("first", "every"), [(3, 1), (2, 3)])
def test_more_rounds_extend_a_run(first, every, finished_run, tmp_path):
    folder = tmp_path / "run"
    experiment.run(small.config(rounds=first, checkpoint__every=every), folder)
    result = experiment.run(small.config(rounds=4), folder)
    small.assert_same_run(folder, finished_run)
    assert [small.without_times(line) for line in result.history] == small.lines(finished_run)


@pytest.mark.slow
def test_rounds_off_the_grid_of_evaluations_leave_no_trace(tmp_path):
    fields = {"federation__eval_every": 2}
    experiment.run(small.config(rounds=5, **fields), tmp_path / "straight")
    folder = tmp_path / "extended"
    experiment.run(small.config(rounds=3, checkpoint__every=3, **fields), folder)
    assert [line["round"] for line in small.lines(folder)] == [1, 2]
    before = small.contents(folder)
    experiment.run(small.config(rounds=3, checkpoint__every=3, **fields), folder)
    assert small.contents(folder) == before
    experiment.run(small.config(rounds=5, checkpoint__every=3, **fields), folder)
    assert [line["round"] for line in small.lines(folder)] == [1, 3, 4]
    small.assert_same_run(folder, tmp_path / "straight")


@pytest.mark.slow
def test_a_run_that_did_not_evaluate_its_last_round_cannot_end_there(tmp_path, capsys):
    folder, fields = tmp_path / "run", ("federation.eval_every=2",)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append", _raise_on_round(3))
        with pytest.raises(Interrupted):
            experiment.run(small.config(federation__eval_every=2), folder)
    before = small.contents(folder)
    small.refused(capsys, small.arguments(folder, *fields, rounds=3), "federation.rounds = 3", "at least 4")
    assert small.contents(folder) == before


def _raise_on_round(index):
    original = RunFolder.append

    def append(self, line):
        if line["round"] == index:
            raise Interrupted
        original(self, line)

    return append


def test_fields_that_touch_no_number_may_differ(copied, tmp_path):
    other = small.config(checkpoint__every=5, data__data_dir=str(tmp_path), sweep__experiment_batch=2)
    other.data.cache_dir = str(tmp_path / "cache")
    experiment.run(other, copied)
    assert json.loads((copied / "config.json").read_text())["checkpoint"]["every"] == 5


def test_a_finished_run_prints_its_summary_again(copied, capsys, monkeypatch, draw):
    monkeypatch.setattr("fedjax_spmc.record.plots._png", draw)
    before = small.contents(copied)
    assert run.main(small.arguments(copied)) == 0
    first = capsys.readouterr()
    assert first.err == "reading data: synthetic ...\n"
    assert "finished after 4 rounds." in first.out
    assert f"run folder: {copied}" in first.out
    assert small.contents(copied) == before


# Refusals.

OTHER = {
    "plugins": ("fedjax_spmc.keys",),
    "data.name": "digits",
    "partition.name": "iid",
    "model.name": "simple_cnn",
    "model.start": "other.npz",
    "attack.name": ("badnets", "none"),
    "attack.schedule.last": 5,
    "federation.clients_per_round": 3,
    "data.val_fraction": 0.2,
    "local.rule": "sgd",
    "local.schedule": "linear",
    "aggregator.name": "mean",
    "aggregator.pre": ("clip", "nnm"),
}
DEPENDENT: dict[str, dict[str, object]] = {
    "local.beta2": {"local.optimizer": "adam"},
    "local.schedule_rounds": {"local.schedule": "linear"},
    "local.schedule_offset": {"local.schedule": "linear"},
    "local.schedule_end": {"local.schedule": "linear"},
    "local.schedule_milestones": {"local.schedule": "step", "local.schedule_milestones": (2,)},
    "local.schedule_gamma": {"local.schedule": "step", "local.schedule_milestones": (2,)},
    "aggregator.pre": {"local.options.teacher_weights": "uniform", "aggregator.pre": ("nnm", "clip")},
    "server.optimizer": {"local.options.teacher_weights": "uniform"},
    "server.learning_rate": {"server.optimizer": "adam", "local.options.teacher_weights": "uniform"},
    "server.beta1": {"server.optimizer": "adam", "local.options.teacher_weights": "uniform"},
    "server.beta2": {"server.optimizer": "adam", "local.options.teacher_weights": "uniform"},
    "server.tau": {"server.optimizer": "adam", "local.options.teacher_weights": "uniform"},
}
"""Fields that may change only beside others: these."""
CHANGEABLE = [
    path
    for path, field in configs.FIELDS.items()
    if path not in configs.CHANGEABLE_FIELDS and (path in OTHER or field.choices is None or path != "sampling.name")
]


def _other(path, now):
    field = configs.FIELDS[path]
    if path in OTHER:
        return OTHER[path]
    if path == "attack.trigger":
        return "spmc_code"
    if field.choices is not None:
        choices = field.choices() if callable(field.choices) else field.choices
        return next(choice for choice in choices if choice != now)
    if field.kind is bool:
        return not now
    if field.kind is tuple:
        return (1,)
    return (now or 0.5) / 2 if field.kind is float else (now or 0) + 1


@pytest.mark.parametrize("path", DEPENDENT)
def test_a_field_that_depends_on_others_counts_too(path):
    base = {name.replace(".", "__"): value for name, value in DEPENDENT[path].items()}
    old = configs.resolve(small.config(**base))
    changed = configs.resolve(small.config(**base))
    configs.set_field(changed, path, _other(path, configs.flatten(changed)[path]))
    assert configs.differing_fields(old, configs.resolve(changed)) == [path]


@pytest.mark.parametrize("path", [path for path in CHANGEABLE if path not in DEPENDENT])
def test_any_other_changed_field_is_refused_with_its_name(path, finished_run):
    changed = configs.resolve(small.config())
    value = _other(path, configs.flatten(changed)[path])
    for section, (_, naming) in configs.PARTS.items():
        if path == naming:
            configs.set_field(changed, f"{section}.options", ConfigDict(type_safe=False))
    configs.set_field(changed, path, value)
    before = small.contents(finished_run)
    with pytest.raises(ConfigError) as caught:
        experiment.run(changed, finished_run)
    assert str(caught.value).startswith(f"{path} = {value!r} is not allowed in workdir = ")
    assert small.contents(finished_run) == before


def test_changed_options_are_refused_with_their_names(copied, capsys):
    before = small.contents(copied)
    for override in ("local.options.floor=0.5", "aggregator.options.temperature=2.0", "data.options.num_test=50"):
        name, value = override.split("=")
        small.refused(capsys, small.arguments(copied, override), f"{name} = {value} is not allowed in workdir")
    small.refused(capsys, small.arguments(copied, rounds=3), "federation.rounds = 3", "at least 4")
    assert small.contents(copied) == before


def test_other_data_under_the_same_name_is_refused(copied, capsys):
    path = copied / "environment.json"
    environment = json.loads(path.read_text())
    environment["data"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(environment))
    before = small.contents(copied)
    small.refused(capsys, small.arguments(copied), "other data", "000000000000")
    assert small.contents(copied) == before


def test_a_second_process_is_refused(copied, capsys):
    folder = RunFolder(copied, configs.resolve(small.config()))
    folder.begin(json.loads((copied / "environment.json").read_text()))
    before = small.contents(copied)
    small.refused(capsys, small.arguments(copied), f"workdir = '{copied}' is in use by another process")
    assert small.contents(copied) == before
    folder.close()
    assert run.main(small.arguments(copied)) == 0


# Damage.


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_half, _flip, Path.unlink], ids=["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_never_used(damage, copied, capsys):
    """Every file of the checkpoint in turn; the largest also by the command itself."""
    checkpoints = checkpoint.Checkpoints(copied / "checkpoint")
    files = [path for path in sorted((copied / "checkpoint" / "4").rglob("*")) if path.is_file()]
    assert len(files) > 5
    for path in files:
        kept = path.read_bytes()
        damage(path)
        with pytest.raises(WorkdirError, match=r"checkpoint .* is damaged \(4/.*\): remove the run folder"):
            checkpoints.restore(4, None)
        path.write_bytes(kept)
    checkpoints.close()
    largest = max(files, key=lambda path: path.stat().st_size)
    damage(largest)
    before = small.contents(copied)
    small.refused(capsys, small.arguments(copied), "checkpoint", "damaged", largest.name)
    assert small.contents(copied) == before


def test_a_missing_checkpoint_is_noticed(copied, capsys):
    shutil.rmtree(copied / "checkpoint" / "4")
    small.refused(capsys, small.arguments(copied), "checkpoint", "damaged", "there is none")
    shutil.rmtree(copied / "checkpoint")
    before = small.contents(copied)
    small.refused(capsys, small.arguments(copied), "checkpoint", "damaged", "there is none")
    assert set(small.contents(copied)) - {"checkpoint"} == set(before)
    (copied / "checkpoint").rmdir()
    (copied / "checkpoint").write_text("a file")
    small.refused(capsys, small.arguments(copied), "checkpoint", "damaged")


LINES_DAMAGED = {
    "no JSON": lambda text: text.replace('"A"', "A", 1),
    "no UTF-8": lambda text: text.encode()[:50] + b"\xff\xfe" + text.encode()[50:],
    "no object": lambda text: "3\n" + text,
    "a key is missing": lambda text: text.replace('"weights"', '"weight"', 1),
    "no round": lambda text: text.replace('"round": 0', '"round": null', 1),
    "a line is missing": lambda text: text.split("\n", 1)[1],
    "a line is there twice": lambda text: text.split("\n", 1)[0] + "\n" + text,
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
}


def test_a_checkpoint_of_another_structure_is_not_called_damaged(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoint")
    checkpoints.save(1, {"model": jnp.zeros(3), "clock": jnp.int32(1)})
    for like, words in (
        ({"model": jnp.zeros(4), "clock": jnp.int32(1)}, r"model is float32\[3\] there and float32\[4\] here"),
        ({"model": jnp.zeros(3)}, r"clock is int32\[\] there and None here"),
    ):
        with pytest.raises(WorkdirError, match=words) as caught:
            checkpoints.restore(1, like)
        assert "damaged" not in str(caught.value)
        assert "another version" in str(caught.value)
    checkpoints.close()


def test_absl_may_speak_again_after_a_checkpoint(tmp_path):
    import logging

    before = logging.getLogger("absl").level
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoint")
    checkpoints.save(1, {"model": jnp.zeros(3)})
    checkpoints.restore(1, {"model": jnp.zeros(3)})
    checkpoints.close()
    assert logging.getLogger("absl").level == before


@pytest.mark.parametrize("how", LINES_DAMAGED)
def test_damaged_metrics_are_refused(how, copied, capsys):
    path = copied / "metrics.jsonl"
    content = LINES_DAMAGED[how](path.read_text())
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = small.contents(copied)
    small.refused(capsys, small.arguments(copied), "metrics.jsonl is damaged")
    assert small.contents(copied) == before


@pytest.mark.parametrize("name", ["config.json", "environment.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"data": 3}', b'{"seed": "x"}'])
def test_damaged_json_is_refused(name, content, copied, capsys):
    (copied / name).write_bytes(content)
    before = small.contents(copied)
    small.refused(capsys, small.arguments(copied), name, "damaged")
    with pytest.raises(WorkdirError, match=name):
        experiment.load(copied)
    assert small.contents(copied) == before


def test_files_without_a_config_are_refused(copied, capsys):
    (copied / "config.json").unlink()
    before = small.contents(copied)
    small.refused(capsys, small.arguments(copied), "but no config.json")
    assert small.contents(copied) == before


MODEL_DAMAGED = {
    "cut off": lambda content: content[: len(content) // 2],
    "flipped": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "empty": lambda content: b"",
    "text": lambda content: b"hello",
    "another file of numpy": lambda content: b"\x93NUMPY\x01\x00" + content[:100],
}


@pytest.mark.parametrize("how", MODEL_DAMAGED)
def test_a_damaged_model_is_refused_by_load_and_made_anew_by_run(how, copied, finished_run, capsys):
    path = copied / "model.npz"
    path.write_bytes(MODEL_DAMAGED[how](path.read_bytes()))
    with pytest.raises(WorkdirError, match=r"model\.npz is damaged \(.+\)\.$"):
        experiment.load(copied)
    assert run.main(small.arguments(copied)) == 0
    assert path.read_bytes() == (finished_run / "model.npz").read_bytes()


def test_load_says_what_is_missing(copied, tmp_path):
    with pytest.raises(WorkdirError, match=r"holds no run: .*config\.json is missing\.$"):
        experiment.load(tmp_path / "nothing")
    np.savez(copied / "model.npz", other=np.zeros(3))
    with pytest.raises(WorkdirError, match=r"model\.npz is damaged \(entry 'fc1\.weight' is missing\)\.$"):
        experiment.load(copied)
    (copied / "model.npz").unlink()
    with pytest.raises(WorkdirError, match=r"model\.npz is missing"):
        experiment.load(copied)
    (copied / "environment.json").unlink()
    with pytest.raises(WorkdirError, match=r"environment\.json is missing\.$"):
        experiment.load(copied)


# Divergence.


@pytest.mark.slow
def test_divergence_stops_the_run_and_keeps_it(tmp_path, capsys):
    """Neither an evaluation nor a checkpoint is due in the round that is lost."""
    folder = tmp_path / "run"
    advice = ("A local.learning_rate below 1e+30, a local.clip_norm, or, against", "norm_clip")
    extra = ("local.learning_rate=1e30", "federation.eval_every=4", "checkpoint.every=5")
    said = small.refused(capsys, small.arguments(folder, *extra), "stopped: ", "in round 1", *advice, code=3)
    (line,) = small.lines(folder)
    assert line["round"] == 0
    assert line["train_loss"] is None
    assert (line["non_finite"], line["aggregation_failed"], sum(line["weights"])) == (4, 1, 0)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["diverged_round"]) == ("diverged", 0)
    with np.load(folder / "model.npz") as arrays:
        assert all(np.isfinite(arrays[name]).all() for name in arrays)
    assert {"curves.png", "partition.png", "checkpoint"} <= {path.name for path in folder.iterdir()}
    before = small.contents(folder)
    assert small.refused(capsys, small.arguments(folder, *extra), code=3) == said
    assert small.contents(folder) == before
    assert small.refused(capsys, small.arguments(folder, *extra, rounds=9), code=3) == said
    assert small.lines(folder) == [line]
    with pytest.raises(DivergedError) as caught:
        experiment.run(small.config(local__learning_rate=1e30, federation__eval_every=4, checkpoint__every=5), folder)
    assert caught.value.round == 0
    assert not isinstance(caught.value, UserError)
