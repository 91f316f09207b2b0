"""The parity walker: every golden file that has a check passes, and tampering is noticed."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fedjax_spmc.parity import walk
from fedjax_spmc.parity.__main__ import main
from fedjax_spmc.parity.walker import Outcome, exit_code

SMALL = ("spmc_server_toy_t0", "spmc_trigger", "spmc_metrics", "spmc_partition_d3", "spmc_backdoor_dataset")


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def by_name(outcomes):
    return {(one.source.removesuffix(".npz"), one.check): one for one in outcomes}


def copied(golden, tmp_path, *names):
    for name in names:
        shutil.copy(golden / f"{name}.npz", tmp_path)
    return tmp_path


def tamper(path, name, change):
    with np.load(path) as file:
        arrays = dict(file)
    arrays[name] = change(arrays[name])
    np.savez(path, **arrays)


@pytest.mark.slow
def test_every_golden_file_that_has_a_check_passes(golden):
    command = [sys.executable, "-W", "error", "-m", "fedjax_spmc.parity", f"--golden={golden}", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    outcomes = [Outcome(**row) for row in json.loads(run.stdout)["checks"]]
    assert [one for one in outcomes if one.verdict == "failed"] == []
    passed = {(one.check, one.source.removesuffix(".npz")) for one in outcomes if one.verdict == "passed"}
    files = {path.stem for path in golden.glob("*.npz")}
    for stem in files:
        if stem.startswith(("spmc_server_toy_t", "spmc_server_cnn_")):
            tags = ("Equal", "Weight", "SPMD", "SPMD_euc", "SPMD_was", "SPED", "MultiMetric")
            assert {(f"server {tag}", stem) for tag in tags} <= passed
        if stem.startswith("spmc_partition_"):
            assert ("partition", stem) in passed
    for pair in (
        ("local sgd", "spmc_local_runs"),
        ("aligned near", "spmc_local_runs"),
        ("aligned other 2epochs", "spmc_local_runs"),
        ("projection", "spmc_projection_p6"),
        ("forward and gradient", "spmc_local_runs"),
        ("rounds of fedavg", "spmc_rounds_fedavg_equal"),
        ("trigger", "spmc_trigger"),
        ("backdoor data set", "spmc_backdoor_dataset"),
        ("resize to 32x32", "spmc_preprocess"),
        ("normalisation", "spmc_preprocess"),
        ("metrics", "spmc_metrics"),
    ):
        assert pair in passed
    for one in outcomes:
        assert one.verdict != "skipped" or one.reason


def test_small_files_pass_and_print(golden, tmp_path, capsys):
    folder = copied(golden, tmp_path, *SMALL)
    assert main([f"--golden={folder}"]) == 0
    text = capsys.readouterr().out
    assert "server SPMD" in text
    assert " 0 failed" in text
    assert main([f"--golden={folder}", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["failed"] == 0
    assert {row["verdict"] for row in report["checks"]} == {"passed", "skipped"}


@pytest.mark.parametrize(
    ("name", "array", "check"),
    [
        ("spmc_server_toy_t0", "SPMD__global", "server SPMD"),
        ("spmc_server_toy_t0", "SPMD__weights", "server SPMD"),
        ("spmc_server_toy_t0", "SPMD__coalitions", "server SPMD"),
        ("spmc_server_toy_t0", "Equal__global", "server Equal"),
        ("spmc_server_toy_t0", "client_state", "server Weight"),
        ("spmc_metrics", "reported_A", "metrics"),
        ("spmc_trigger", "rate05__images", "trigger"),
        ("spmc_backdoor_dataset", "malicious_images", "backdoor data set"),
    ],
)
def test_a_changed_number_fails(golden, tmp_path, name, array, check):
    folder = copied(golden, tmp_path, name)

    def change(values):
        values = values.copy()
        values[(0,) * values.ndim] += 1e-3 if values.dtype != np.float16 else 2e-2
        return values

    tamper(folder / f"{name}.npz", array, change)
    outcomes = walk(folder)
    assert by_name(outcomes)[name, check].verdict == "failed"
    assert exit_code(outcomes) == 1


@pytest.mark.parametrize(
    "change",
    [lambda a: a * np.nan, lambda a: a[:-1], lambda a: np.where(np.arange(a.size) == 0, np.nan, a)],
    ids=["all nan", "shorter", "one nan"],
)
def test_a_damaged_array_never_passes(golden, tmp_path, change):
    folder = copied(golden, tmp_path, "spmc_server_toy_t0")
    tamper(folder / "spmc_server_toy_t0.npz", "SPMD__weights", change)
    one = by_name(walk(folder))["spmc_server_toy_t0", "server SPMD"]
    assert one.verdict == "failed"
    assert "weights" in one.reason


def test_where_the_reference_fails_ours_must_be_finite(golden, tmp_path):
    folder = copied(golden, tmp_path, "spmc_server_toy_t0")
    path = folder / "spmc_server_toy_t0.npz"
    for name in ("SPMD__weights", "SPMD__global"):
        tamper(path, name, lambda a: a * np.nan)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays, Weight__error=np.array("ValueError: made up"))
    outcomes = by_name(walk(folder))
    assert outcomes["spmc_server_toy_t0", "server SPMD"].verdict == "skipped"
    assert "ours is finite" in outcomes["spmc_server_toy_t0", "server SPMD"].reason
    assert "made up" in outcomes["spmc_server_toy_t0", "server Weight"].reason


def test_a_missing_array_and_an_unreadable_file_fail(golden, tmp_path):
    folder = copied(golden, tmp_path, "spmc_metrics", "spmc_partition_d3")
    with np.load(folder / "spmc_metrics.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "reported_R"}
    np.savez(folder / "spmc_metrics.npz", **arrays)
    partition = folder / "spmc_partition_d3.npz"
    partition.write_bytes(partition.read_bytes()[:400])
    outcomes = {one.source: one for one in walk(folder)}
    assert "reported_R" in outcomes["spmc_metrics.npz"].reason
    assert "cannot be read" in outcomes["spmc_partition_d3.npz"].reason
    assert {one.verdict for one in outcomes.values()} == {"failed"}


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "spmc_metrics.npz", accuracy_per_round=np.array([{"a": 1}], dtype=object))
    (one,) = walk(tmp_path)
    assert one.verdict == "failed"


def test_none_ran_is_a_failure_and_no_folder_is_bad_input(tmp_path, capsys):
    assert main([f"--golden={tmp_path}"]) == 1
    np.savez(tmp_path / "unknown_kind.npz", a=np.zeros(2))
    assert main([f"--golden={tmp_path}"]) == 1
    assert "skipped" in capsys.readouterr().out
    assert main([f"--golden={tmp_path / 'absent'}"]) == 2
    assert main(["--gold"]) == 2
