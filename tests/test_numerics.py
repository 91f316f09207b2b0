"""The random generator and whatever else touches numbers is pinned in the code, or written down and compared."""

import ast
import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_spmc import evaluate as evaluating
from fedjax_spmc import experiment, keys, numerics, sweep
from fedjax_spmc.config import resolve
from fedjax_spmc.errors import UserError
from fedjax_spmc.record import environment as environments
from fedjax_spmc.record.files import read_arrays
from fedjax_spmc.sweep import __main__ as command
from fedjax_spmc.sweep import player
from tests import small

pytestmark = pytest.mark.pictures

PACKAGE = Path(numerics.__file__).parent
SETTINGS = {
    "generator": lambda: jax.default_prng_impl("rbg"),
    "partitionable": lambda: jax.threefry_partitionable(False),
    "64 bits": lambda: jax.enable_x64(True),
    "promotion": lambda: jax.numpy_dtype_promotion("strict"),
}


@pytest.fixture
def copied(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copied"))


def test_keys_are_made_in_one_place():
    """Elsewhere JAX's default generator would be taken, which is whatever the environment says."""
    made = {"key", "PRNGKey", "wrap_key_data", "seed_with_impl"}
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in made and ast.unparse(node.value).endswith("random")
    ]
    assert {place.partition(":")[0] for place in found} == {"keys.py"}
    assert len(found) == 2


def test_a_key_is_threefry_whatever_the_default():
    with jax.default_prng_impl("rbg"):
        key = keys.root_key(3)
        again = keys.key_of_numbers(jax.random.key_data(key))
    for one in (key, again):
        assert jax.random.key_impl(one) == keys.IMPLEMENTATION
        np.testing.assert_array_equal(jax.random.key_data(one), [0, 3])


@pytest.mark.parametrize("setting", SETTINGS)
def test_numbers_are_the_same_under_every_setting_of_jax(setting, finished_run, copied, small_cache):
    """A run of its own has the same lines, a run goes on with the same bits, and a model is evaluated alike."""
    with SETTINGS[setting]():
        result = experiment.run(small.config(rounds=1))
        assert small.without_times(json.loads(json.dumps(result.history[0]))) == small.lines(finished_run)[0]
        if setting == "generator":
            assert evaluating.evaluate(str(copied))["ASR"] == small.lines(finished_run)[-1]["ASR"]


@pytest.mark.slow
def test_a_run_goes_on_under_another_default_with_the_same_bits(finished_run, tmp_path, small_cache):
    experiment.run(small.config(rounds=2), tmp_path / "run")
    with contextlib.ExitStack() as stack:
        for enter in SETTINGS.values():
            stack.enter_context(enter())
        experiment.run(small.config(rounds=4), tmp_path / "run")
    small.assert_same_run(finished_run, tmp_path / "run")


def test_what_cannot_be_pinned_is_recorded(finished_run):
    recorded = json.loads((finished_run / "environment.json").read_text())["numerics"]
    assert recorded == numerics.facts("float32")
    assert recorded["generator"] == {"implementation": "threefry2x32", "partitionable": True}
    assert recorded["flags"]["jax_enable_x64"] is False
    assert recorded["flags"]["jax_default_matmul_precision"] == "float32"
    assert "xla_backend_optimization_level" in recorded["variables"]["XLA_FLAGS"]  # of the tests
    assert "device_count" not in recorded["variables"]["XLA_FLAGS"]


@pytest.mark.parametrize(
    ("variable", "value"), [("NVIDIA_TF32_OVERRIDE", "1"), ("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")]
)
def test_another_variable_at_the_resume_is_refused_by_name(variable, value, copied, capsys, monkeypatch):
    monkeypatch.setenv(variable, value)
    before = small.contents(copied)
    words = small.refused(
        capsys, small.arguments(copied, rounds=5), f"{variable} = '{value}' is not allowed in workdir"
    )
    assert "damaged" not in words
    assert small.contents(copied) == before


def test_another_flag_at_the_resume_is_refused_by_name(copied, capsys):
    path = copied / "environment.json"
    recorded = json.loads(path.read_text())
    recorded["numerics"]["flags"]["jax_random_seed_offset"] = 7
    path.write_text(json.dumps(recorded))
    small.refused(capsys, small.arguments(copied, rounds=5), "jax_random_seed_offset = 0", "was begun with 7")
    del recorded["numerics"]["flags"]["jax_random_seed_offset"]  # of a JAX that did not know it
    numerics.check_same(recorded["numerics"], numerics.facts("float32"), "here")
    numerics.check_same(None, numerics.facts("float32"), "here")


def test_what_touches_no_number_is_left_out(monkeypatch):
    """Memory, logs, other programs' variables, and what `devices.use_cores` sets: a run may go on in a notebook."""
    before = numerics.facts("float32")
    for name in ("XLA_PYTHON_CLIENT_PREALLOCATE", "TF_CPP_MIN_LOG_LEVEL", "TF_CLI_CONFIG_FILE", "JAX_LOG_COMPILES"):
        monkeypatch.setenv(name, "0")
    more = "--xla_force_host_platform_device_count=7 --xla_cpu_collective_call_warn_stuck_timeout_seconds=9"
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {more}")
    assert numerics.facts("float32") == before


def test_each_continuation_is_a_line(tmp_path, monkeypatch, small_cache, capsys):
    experiment.run(small.config(rounds=1), tmp_path)
    first = json.loads((tmp_path / "environment.json").read_text())
    assert first["continuations"] == []
    monkeypatch.setattr(environments, "_version", lambda package: "9.9" if package == "flax" else None)
    experiment.run(small.config(rounds=2), tmp_path, stream=sys.stderr)
    assert f"flax {first['versions']['flax']} -> 9.9" in capsys.readouterr().err
    experiment.run(small.config(rounds=2), tmp_path)  # nothing is left to play
    second = json.loads((tmp_path / "environment.json").read_text())
    (line,) = second.pop("continuations")
    assert second == {name: value for name, value in first.items() if name != "continuations"}
    assert (line["rounds_played"], line["versions"]["flax"]) == (1, "9.9")


def test_evaluate_refuses_other_data(copied, capsys):
    path = copied / "environment.json"
    recorded = json.loads(path.read_text())
    for name in ("held_sha256", "fingerprint"):
        recorded["data"][name] = "0" * 64
        path.write_text(json.dumps(recorded))
        capsys.readouterr()
        assert evaluating.main([str(copied)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "a run on other data" in err


def test_what_an_attack_holds_has_a_sum():
    one = environments.digest_of({"a": np.zeros(3), "b": np.ones((2, 2), np.uint8)})
    assert one != environments.digest_of({"a": np.zeros(3), "b": np.ones(4, np.uint8)})
    assert one != environments.digest_of({"a": np.zeros(3), "c": np.ones((2, 2), np.uint8)})
    assert environments.digest_of(()) is None


def test_the_partition_is_recorded(finished_run, small_cache):
    built = experiment.build(resolve(small.config()))
    arrays = read_arrays(finished_run / "partition.npz")
    np.testing.assert_array_equal(arrays["sizes"], [len(part) for part in built.parts])
    np.testing.assert_array_equal(arrays["counts"].sum(axis=1), arrays["sizes"])
    labels = built.dataset.train_labels
    np.testing.assert_array_equal(
        arrays["counts"].sum(axis=0), np.bincount(labels, minlength=arrays["counts"].shape[1])
    )


def test_a_sweep_does_not_go_on_under_other_flags(tmp_path, monkeypatch, capsys, small_cache):
    """Rows and programs in progress alike; what is damaged is played again, and said."""

    class Stopped(BaseException):
        pass

    def stop(self, *arguments):
        raise Stopped

    config = tmp_path / "swept.py"
    config.write_text(
        "from fedjax_spmc.sweep import Sweep\nfrom tests import small\n\n\n"
        "def get_config(arg=''):\n    return Sweep(small.config(2, 'fedavg'), {}, (0, 1))\n"
    )
    argv = [f"--config={config}", f"--workdir={tmp_path / 'sweep'}", "--config.sweep.experiment_batch=1"]
    with monkeypatch.context() as patch:
        patch.setattr(player.Player, "_outcomes", stop)
        with pytest.raises(Stopped):
            command.main(argv)
    (folder,) = (tmp_path / "sweep" / "work").iterdir()
    recorded = json.loads((folder / "environment.json").read_text())
    assert recorded["numerics"] == numerics.facts("float32")
    with monkeypatch.context() as patch:
        patch.setenv("NVIDIA_TF32_OVERRIDE", "1")
        capsys.readouterr()
        assert command.main(argv) == 2
        assert "NVIDIA_TF32_OVERRIDE = '1' is not allowed in" in capsys.readouterr().err
        assert folder.exists()
    assert command.main(argv) == 0
    (first, second) = (json.loads(line) for line in (tmp_path / "sweep" / "results.jsonl").read_text().splitlines())
    environment = json.loads((tmp_path / "sweep" / first["folder"] / "environment.json").read_text())
    assert [line["rounds_played"] for line in environment["continuations"]] == [1]
    assert read_arrays(tmp_path / "sweep" / second["folder"] / "partition.npz")["sizes"].shape == (4,)
    more = sweep.Sweep(small.config(2, "fedavg", sweep__experiment_batch=1), {}, (0, 1, 2))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with pytest.raises(UserError, match="NVIDIA_TF32_OVERRIDE = '1' is not allowed in workdir"):
        sweep.run(more, tmp_path / "sweep")
