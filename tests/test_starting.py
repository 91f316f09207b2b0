"""`model.start`: a run that begins with a saved model."""

import json
import shutil

import chex
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import evaluate, experiment, sweep
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.sweep import engine
from fedjax_spmc.sweep.table import Table
from tests import small

pytestmark = pytest.mark.usefixtures("small_cache")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run of one round."""
    folder = tmp_path_factory.mktemp("start") / "run"
    experiment.run(small.config(1, "fedavg"), folder)
    return folder


def begun(start, rounds=1, **fields):
    return small.config(rounds, "fedavg", model__start=str(start), seed=5, **fields)


@pytest.mark.parametrize("named", ["folder", "file"])
def test_the_global_model_begins_with_the_saved_one(named, saved):
    path = saved if named == "folder" else saved / "model.npz"
    state = experiment.build(configs.resolve(begun(path))).state
    chex.assert_trees_all_equal(state.variables, experiment.load(saved).variables)
    chex.assert_trees_all_equal(state.previous, state.variables)


@pytest.mark.slow
def test_a_run_records_the_file_and_goes_on_with_no_other(saved, tmp_path, capsys):
    start, folder = tmp_path / "start.npz", tmp_path / "run"
    shutil.copy(saved / "model.npz", start)
    fields = [f"model.start={start}"]
    experiment.run(begun(start), folder)
    assert len(json.loads((folder / "environment.json").read_text())["start_sha256"]) == 64
    assert json.loads((folder / "config.json").read_text())["model"]["start"] == str(start)
    with np.load(start) as arrays:
        np.savez(start, **{name: 2 * arrays[name] for name in arrays})
    before = small.contents(folder)
    argv = small.arguments(folder, *fields, "seed=5", rounds=2, presets="fedavg")
    small.refused(capsys, argv, f"model.start = {str(start)!r} is not allowed in workdir", "another file")
    assert small.contents(folder) == before
    start.unlink()
    small.refused(capsys, argv, f"model.start = {str(start)!r} cannot be read (No such file")
    assert evaluate.main([str(folder)]) == 0  # it has a model of its own by now


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing", "cannot be read (No such file or directory): it must be a model.npz"),
        ("empty folder", "cannot be read (No such file or directory): it must be a model.npz"),
        ("cut", "is damaged ("),
        ("text", "is damaged (it is no npz file): it must be a whole model.npz."),
        ("other", "holds another model than model.name = 'mlp' (entry 'fc1.weight' is missing)"),
        ("shape", "holds another model than model.name = 'mlp' (entry "),
        ("nan", "holds numbers that are not finite"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_one_sentence(case, words, saved, tmp_path, capsys):
    path = tmp_path / "model.npz"
    content = (saved / "model.npz").read_bytes()
    with np.load(saved / "model.npz") as arrays:
        named = dict(arrays)
    if case == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif case == "text":
        path.write_text("no model")
    elif case == "other":
        np.savez(path, x=np.zeros(3))
    elif case == "shape":
        np.savez(path, **{name: array[..., :1] for name, array in named.items()})
    elif case == "nan":
        np.savez(path, **{name: np.full_like(array, np.nan) for name, array in named.items()})
    start = tmp_path if case == "empty folder" else path
    argv = small.arguments(tmp_path / "run", f"model.start={start}", presets="fedavg")
    line = small.refused(capsys, argv, f"model.start = {str(start)!r} {words}")
    assert line.count(". ") == 0
    assert not (tmp_path / "run").exists()


# Sweeps.


def swept(saved, *others):
    base = small.config(1, "fedavg")
    return sweep.Sweep(base, {"model.start": [None, str(saved), *map(str, others)]}, (5,))


@pytest.mark.slow
def test_cells_of_several_starts_share_a_program_and_are_their_single_runs(saved, tmp_path):
    made = swept(saved)
    cells = sweep.expand(made)
    assert len(sweep.groups_of(cells)) == 1
    engine.play(made, cells, table := Table(tmp_path / "sweep"), None)
    for cell in cells:
        row = table.rows[cell.id]
        alone = experiment.run(cell.config)
        cell_run = experiment.load(table.path / row["folder"])
        chex.assert_trees_all_close(cell_run.variables, alone.variables, atol=1e-5)
        environment = json.loads((table.path / row["folder"] / "environment.json").read_text())
        assert (row["start_sha256"] is None) == (cell.config.model.start is None)
        assert environment["start_sha256"] == row["start_sha256"]


def test_a_sweep_refuses_a_start_that_is_not_there_before_anything_runs(saved, tmp_path):
    made = swept(saved, tmp_path / "no.npz")
    with pytest.raises(ConfigError, match=r"^model\.start = .*no\.npz' cannot be read"):
        engine.play(made, sweep.expand(made), Table(tmp_path / "sweep"), None)
    assert not (tmp_path / "sweep").exists()
