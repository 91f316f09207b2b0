"""The GPU bench, at a size for a CPU: what it prints, what it says that it left out, and when it refuses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments" / "bench"))

pytestmark = pytest.mark.slow
BENCH = ROOT / "experiments" / "bench" / "bench_gpu.py"
KEYS = {
    *("jax", "toy", "size", "ceilings", "step_costs", "rows", "goals", "forms", "deterministic", "torch", "skipped"),
    *("others", "seconds"),
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    # As in conftest.py: compiling takes most of the time.
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "xla")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    command = [sys.executable, str(BENCH), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


def test_a_toy_goes_through_all_sections(tmp_path):
    out = tmp_path / "gpu.json"
    done = run("--toy", "--json", "--seconds=3000", f"--out={out}")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found == json.loads(out.read_text())
    assert found.keys() == KEYS
    assert {row["section"] for row in found["rows"]} == {"experiments", "precision", "client_batch"}
    for row in found["rows"]:
        assert {"ms_per_sequential_step", "ms_per_client_step", "scaled_by", "share_of_copy_rate"} <= row.keys()
    assert [row["form"] for row in found["forms"]] == ["present", "grouped", "patches"]
    assert max(row["loss_differs_by"] for row in found["forms"]) < 1e-5
    assert found["deterministic"].keys() == {"as_usual", "deterministic"}
    for rows in found["deterministic"].values():
        assert all(row["repeats"] and row["resumes"] for row in rows.values())
    assert found["skipped"] == ["torch (a toy)"]
    kinds = {row["kind"]: row for row in found["others"]}
    assert set(kinds) == {"flip", "attack", "text", "network"}
    assert all(row["client_steps"] > 0 and row["seconds"] > 0 for row in kinds.values())


def test_every_other_case_has_a_config_and_kinds_of_all():
    """At its full size; what it plays is tried at toy size."""
    import gpu_others

    for one in gpu_others.OTHERS:
        config = gpu_others.config_of(one, 10, 64, toy=False)
        assert config.federation.client_batch == 10
    kinds = {one.kind for one in gpu_others.OTHERS}
    assert {one.kind for one in gpu_others.OTHERS if one.toy is not None} == kinds


ABSENT = ("ml_collections", "tensorflow_datasets", "tensorflow", "array_record", "torch", "tensorboardX")
ROUND = f"""
sys.path.insert(0, {str(BENCH.parent)!r})
from plain_config import stand_in
stand_in()
from fedjax_spmc import experiment
from tests import small
print(experiment.run(small.config(1)).history[0]["A"])
"""


def hidden(names: tuple[str, ...], *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The bench, or other code, in a process in which these cannot be imported."""
    code = code or f"import runpy; runpy.run_path({str(BENCH)!r}, run_name='__main__')"
    code = f"import sys; sys.modules |= dict.fromkeys({names}); sys.argv = {[str(BENCH), *arguments]}\n{code}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "xla")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


def test_what_does_not_fit_is_named_and_missing_libraries_are_not_missed():
    done = hidden(ABSENT, "--toy", "--seconds=0")
    assert done.returncode == 0, done.stderr
    skipped = [line for line in done.stdout.splitlines() if line.startswith("skipped: ")]
    for what in (
        "experiments: spmc x 2",
        "precision: ",
        "client_batch: ",
        "forms: grouped",
        "deterministic",
        "torch",
        "others: ",
    ):
        assert any(what in line for line in skipped), what


def test_a_round_is_played_where_libraries_are_missing():
    """With the stand-in that the bench takes, the round gives the numbers that it gives with ml_collections."""
    from fedjax_spmc import experiment
    from tests import small

    done = hidden(ABSENT, code=ROUND)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == experiment.run(small.config(1)).history[0]["A"]


def test_without_a_gpu_it_says_so():
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "needs a GPU" in done.stderr


def test_a_missing_library_is_one_sentence():
    done = hidden(("optax",))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: optax cannot be imported")
    assert done.stderr.count("\n") == 1


def test_sequential_steps_are_those_of_the_longest_in_each_group():
    import gpu_rounds

    steps = np.array([[5, 1, 2, 2], [1, 3, 4, 1]])
    assert gpu_rounds.step_counts(steps, 4) == (5, 19)
    assert gpu_rounds.step_counts(steps, 2) == (5 + 4, 19)
    assert gpu_rounds.step_counts(steps, 1) == (5 + 3 + 4 + 2, 19)
