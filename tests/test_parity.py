"""The parity walker: every golden file that has a check passes, and tampering is noticed."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_spmc import numerics
from fedjax_spmc.parity import walk
from fedjax_spmc.parity.__main__ import main
from fedjax_spmc.parity.comparison import exit_code

SMALL = ("spmc_server_toy_t0", "spmc_trigger", "spmc_metrics", "spmc_partition_d3", "spmc_backdoor_dataset")
SOME_TAGS = ("SPMD", "Equal", "Weight")


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def by_name(outcomes):
    return {(one.source.removesuffix(".npz"), one.check): one for one in outcomes}


def copied(golden, tmp_path, *names):
    """Files of the golden folder in one of their own; of the server rules only some tags, to save time."""
    for name in names:
        shutil.copy(golden / f"{name}.npz", tmp_path)
        if name.startswith("spmc_server_"):
            path = tmp_path / f"{name}.npz"
            with np.load(path) as file:
                kept = [key for key in file.files if "__" not in key or key.split("__")[0] in SOME_TAGS]
                arrays = {key: file[key] for key in kept}
            np.savez(path, **arrays)
    return tmp_path


def tamper(path, name, change):
    with np.load(path) as file:
        arrays = dict(file)
    arrays[name] = change(arrays[name])
    np.savez(path, **arrays)


def walked(*arguments: str, first: str = "", **environment: str) -> list[dict]:
    """The rows of the command in a process of its own, where warnings are errors; it must succeed.

    Args:
        arguments: of the command.
        first: code that the process runs before it.
        environment: variables of the process.
    """
    code = f"{first}\nimport sys\nfrom fedjax_spmc.parity.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-W", "error", "-c", code, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["checks"]


FAMILIES = ("attacks_", "defences_", "fdcr_", "flip_", "neurotoxin_", "spmc_server_cnn_", "spmc_server_toy_", "")
"""Beginnings of the files' names, walked one after another so that two workers share them; the last has the rest."""
TAGS = ("Equal", "Weight", "SPMD", "SPMD_euc", "SPMD_was", "SPED", "MultiMetric")
EDGE_CASES = ("blackbox", "pgd_loose", "pgd_linf", "prox")
PAIRS = (
    ("local sgd", "spmc_local_runs"),
    ("4 steps of sgd", "spmc_resnet10_narrow"),
    ("4 steps of spmc", "spmc_resnet10_narrow"),
    ("aligned near", "spmc_local_runs"),
    ("aligned other 2epochs", "spmc_local_runs"),
    ("local fedprox", "spmc_local_runs"),
    ("local fedprox 2epochs", "spmc_local_runs"),
    ("local scaffold", "spmc_local_runs"),
    ("projection", "spmc_projection_p6"),
    ("forward and gradient", "spmc_local_runs"),
    ("rounds of fedavg", "spmc_rounds_fedavg_equal"),
    ("trigger", "spmc_trigger"),
    ("backdoor data set", "spmc_backdoor_dataset"),
    ("label flip", "spmc_label_flip_matrices"),
    ("replacement dba/trigger mnist", "attacks_replacement"),
    ("replacement dba/single_shot", "attacks_replacement"),
    ("replacement dba/loan", "attacks_replacement"),
    ("resize to 32x32", "spmc_preprocess"),
    ("normalisation", "spmc_preprocess"),
    ("metrics", "spmc_metrics"),
    *((f"lp {case}{part}", "attacks_lp") for case in ("b", "none", "half") for part in ("", ", lists", ", upload")),
    *((f"edge case {case}{part}", "attacks_edge_case") for case in EDGE_CASES for part in ("", ", upload")),
)
"""Check, file: among those that must have passed."""


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.rstrip("_") or "rest")
def test_every_golden_file_that_has_a_check_passes(golden, tmp_path, family):
    """In this process, where the programs of many small checks compile faster; warnings are errors here too."""
    paths = {path.stem: path for path in golden.glob("*.npz")}
    assert {stem for _, stem in PAIRS} <= paths.keys()
    files = {stem for stem in paths if next(one for one in FAMILIES if stem.startswith(one)) == family}
    assert files
    for stem in files:
        (tmp_path / f"{stem}.npz").symlink_to(paths[stem])
    with numerics.pinned(), jax.numpy_rank_promotion("allow"):  # as the command has it
        outcomes = walk(tmp_path)
    assert {f"{stem}.npz" for stem in files} <= {one.source for one in outcomes}
    assert [one for one in outcomes if one.verdict == "failed"] == []
    passed = {(one.check, one.source.removesuffix(".npz")) for one in outcomes if one.verdict == "passed"}
    for stem in files:
        if stem.startswith(("spmc_server_toy_t", "spmc_server_cnn_")):
            assert {(f"server {tag}", stem) for tag in TAGS} <= passed
        if stem.startswith("spmc_partition_"):
            assert ("partition", stem) in passed
    for pair in PAIRS:
        assert pair in passed or pair[1] not in files
    for one in outcomes:
        assert one.verdict != "skipped" or one.reason
        assert "no rule of ours yet" not in one.reason


@pytest.mark.slow
def test_small_files_pass_and_print(golden, tmp_path, capsys):
    folder = copied(golden, tmp_path, *SMALL)
    assert main([f"--golden={folder}"]) == 0
    text = capsys.readouterr().out
    assert "server SPMD" in text
    assert " 0 failed" in text
    assert {row["verdict"] for row in walked(f"--golden={folder}")} == {"passed"}


@pytest.mark.parametrize(
    ("name", "array", "check"),
    [
        ("spmc_server_toy_t0", "SPMD__global", "server SPMD"),
        ("spmc_server_toy_t0", "SPMD__weights", "server SPMD"),
        ("spmc_server_toy_t0", "SPMD__coalitions", "server SPMD"),
        ("spmc_server_toy_t0", "Equal__global", "server Equal"),
        ("spmc_server_toy_t0", "client_state", "server Weight"),
        ("spmc_metrics", "reported_A", "metrics"),
        ("spmc_projection_p0", "projected_gradient/conv_weight", "projection"),
        ("spmc_trigger", "rate05__images", "trigger"),
        ("spmc_backdoor_dataset", "malicious_images", "backdoor data set"),
        ("spmc_label_flip_matrices", "SymFlip_classes4_rate03", "label flip"),
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
    assert "is damaged" in outcomes["spmc_partition_d3.npz"].reason
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


@pytest.mark.slow
def test_recorded_training_that_was_changed_fails(golden, tmp_path):
    folder = copied(golden, tmp_path, "spmc_resnet10_narrow")

    def change(values):
        values = values.copy()
        values[100] += 1e-3
        return values

    tamper(folder / "spmc_resnet10_narrow.npz", "aligned_parameters_after_4_steps", change)
    verdicts = {one.check: one.verdict for one in walk(folder)}
    assert verdicts.pop("4 steps of spmc") == "failed"
    assert set(verdicts.values()) == {"passed"}


SHORTER = "from fedjax_spmc.parity import torch_rounds; torch_rounds.ROUNDS = 2"
"""Each round is held against torch's from the same models, so that two say of the code what the command's five do."""


@pytest.mark.slow
def test_beside_torch():
    """In a process of its own, compiled as usual: training takes most of the time here."""
    pytest.importorskip("torch")
    rows = {row["check"]: row for row in walked("--torch", first=SHORTER, XLA_FLAGS="")}
    for method in ("fedavg", "spmc"):
        assert rows[f"{method}, 2 rounds"]["error"] <= 1e-5
        assert rows[f"{method}, A and ASR"]["error"] <= 1e-9
        assert rows[f"{method}, one round in float64"]["error"] <= 1e-9
        assert rows[f"{method}, free-running"]["verdict"] == "not judged"


@pytest.fixture(scope="module")
def both_sides():
    """What both sides of a method are made of, with its programs, made once for the tests below."""
    pytest.importorskip("torch")
    from fedjax_spmc.parity import torch_rounds

    return functools.cache(torch_rounds.BothSides)


@pytest.fixture
def one_round_of_averaging(monkeypatch, both_sides):
    """`--torch` cut to one round of averaging, one replaced at most; gives the module of the torch side."""
    from fedjax_spmc.parity import torch_rounds, torch_side

    parts = {"METHODS": ("fedavg",), "ROUNDS": 1, "MAX_REPLACED_ROUNDS": 1, "WARM_UP": 0, "BothSides": both_sides}
    for name, value in parts.items():
        monkeypatch.setattr(torch_rounds, name, value)
    return torch_side


@pytest.mark.slow
def test_a_fault_on_the_torch_side_is_noticed(one_round_of_averaging, monkeypatch, capsys):
    """A weight decay that one side alone has: the float64 round sees it, and the exit code says so."""
    loops = one_round_of_averaging.torch_reference()
    local = loops.make_optimizer
    monkeypatch.setattr(loops, "make_optimizer", lambda model, lr, momentum, decay: local(model, lr, momentum, 0))
    assert main(["--torch", "--json"]) == 1
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)["checks"]}
    assert rows["fedavg, one round in float64"]["verdict"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(("faulty", "verdict"), [(1, "passed"), (2, "failed")])
def test_rounds_off_in_float32_alone_are_replaced_so_often_and_no_more(
    one_round_of_averaging, monkeypatch, capsys, faulty, verdict
):
    """The first rounds of the torch side are off by 1e-4 in float32 and right in float64."""
    side, left = one_round_of_averaging.TorchSide, [faulty]
    honest = side.play

    def play(self, state, teachers, taken):
        played = honest(self, state, teachers, taken)
        is_wide = any(str(tensor.dtype) == "torch.float64" for tensor in played.state.values())
        if is_wide or not left[0]:
            return played
        left[0] -= 1
        return played._replace(state={name: tensor + 1e-4 for name, tensor in played.state.items()})

    monkeypatch.setattr(side, "play", play)
    assert main(["--torch", "--json"]) == (0 if verdict == "passed" else 1)
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)["checks"]}
    assert rows["fedavg, 1 rounds"]["verdict"] == verdict
    exact = rows["fedavg, one round in float64"]
    assert (exact["cases"], exact["verdict"]) == (4, "passed")
    if verdict == "passed":
        assert rows["fedavg, 1 rounds"]["reason"] == "replaced, judged in float64: round 0 (1.0e-04)"


@pytest.mark.slow
def test_beside_a_clone(capsys):
    """Runs where FEDJAX_SPMC_CLONE names a clone of the authors' repository."""
    folder = os.environ.get("FEDJAX_SPMC_CLONE")
    if not folder:
        pytest.skip("FEDJAX_SPMC_CLONE does not name a clone of WenddHe0119/SPMC")
    here = Path.cwd()
    assert main([f"--reference={folder}"]) == 0
    assert " 0 failed, 0 skipped" in capsys.readouterr().out
    assert Path.cwd() == here


def test_what_is_no_clone_is_refused(tmp_path, capsys):
    """A folder without the modules, and one whose module needs a library that is not there."""
    assert main([f"--reference={tmp_path}"]) == 2
    assert "it must be a clone of github.com/WenddHe0119/SPMC" in capsys.readouterr().err
    pytest.importorskip("torch")
    from fedjax_spmc.parity.clone import RULES

    for name in ("Server", "Optims", "Backbones"):
        (tmp_path / name).mkdir()
    for name in [*(f"Server/{rule}" for rule in RULES), "Optims/AlignedGradient", "Backbones/SimpleCNN"]:
        (tmp_path / f"{name}.py").write_text("import a_library_that_is_not_there\n")
    before = dict(sys.modules)
    assert main([f"--reference={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "No module named 'a_library_that_is_not_there'" in error
    assert error.count("\n") == 1
    assert {name for name in sys.modules if name.split(".")[0] in ("Server", "Optims", "Backbones")} <= set(before)
