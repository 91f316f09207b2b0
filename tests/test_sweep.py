"""Sweeps: the plan, what shares a program, equality with single runs, and what a table survives."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from filelock import FileLock

from fedjax_spmc import config as configs
from fedjax_spmc import experiment, numerics, registry, setup, sweep
from fedjax_spmc.config.files import call_config
from fedjax_spmc.experiment import build
from fedjax_spmc.sweep import __main__ as command
from fedjax_spmc.sweep import engine, player, program
from fedjax_spmc.sweep.plan import program_key
from fedjax_spmc.types import Aggregator, Traits
from tests import small

pytestmark = pytest.mark.usefixtures("small_cache")
ROOT = Path(__file__).resolve().parent.parent
DIGITS = str(ROOT / "configs" / "sweeps" / "digits.py")
TABLE_2 = str(ROOT / "configs" / "sweeps" / "spmc_table2.py")
ARRAYS = {
    "attack.malicious_fraction": [0.25, 0.5],
    "partition.beta": [0.5, 5.0],
    "local.learning_rate": [0.01, 0.05],
}


def small_sweep(rounds=2, seeds=(0,), fields=None, leave_out=(), **grid) -> sweep.Sweep:
    """Averaging on the small config; grid fields by path with `__` for the dot."""
    base = small.config(rounds=rounds, presets="fedavg", **(fields or {}))
    return sweep.Sweep(base, {name.replace("__", "."): values for name, values in grid.items()}, seeds, leave_out)


def config_file(folder: Path, grid: str, rounds: int = 2, seeds: str = "(0,)", more: str = "") -> str:
    """A sweep's config file around the small config; returns its path."""
    path = folder / "swept.py"
    path.write_text(
        "from fedjax_spmc.sweep import Sweep\nfrom tests import small\n\n\n"
        f"def get_config(arg=''):\n    return Sweep(small.config({rounds}, 'fedavg'), {grid}, {seeds}{more})\n"
    )
    return str(path)


def rows_of(folder: Path) -> list[dict]:
    text = (folder / "results.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def curve(folder: Path, row: dict) -> list[dict]:
    return small.lines(folder / row["folder"])


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


# The plan.


def test_cells_stand_in_the_order_of_the_grid_and_some_are_left_out():
    def rules(fields):
        return fields["local.learning_rate"] == 0.05 and fields["method"] == "krum"

    made = small_sweep(
        seeds=(3, 4),
        leave_out=[{"method": "spmc", "local.learning_rate": [0.01]}, rules],
        method=["fedavg", "krum", "spmc"],
        local__learning_rate=[0.01, 0.05],
    )
    cells = sweep.expand(made)
    named = [(cell.fields["method"], cell.fields["local.learning_rate"], cell.config.seed) for cell in cells]
    kept = [("fedavg", 0.01), ("fedavg", 0.05), ("krum", 0.01), ("spmc", 0.05)]
    assert named == [(*setting, seed) for setting in kept for seed in (3, 4)]
    assert cells[0].config.local.rule == "sgd"
    assert cells[-1].config.local.rule == cells[-1].config.aggregator.name == "spmc"
    assert len({cell.id for cell in cells}) == len(cells)


def test_a_grid_of_numpy_is_the_grid_of_plain_numbers():
    """Rows are JSON: what NumPy counts and draws must have become numbers before anything is played."""
    grid = {"local.epochs": np.arange(1, 3), "data.augment": [np.bool_(True)], "local.momentum": (np.float32(0.5),)}
    base = small.config(2, "fedavg", local__batch_size=np.int64(8))
    made = sweep.Sweep(base, grid, np.arange(2), [{"local.epochs": np.int64(2), "local.momentum": np.array([0.5])}])
    grid = {"local.epochs": range(1, 3), "data.augment": [True], "local.momentum": [0.5]}
    plain = sweep.Sweep(small.config(2, "fedavg"), grid, [0, 1], [{"local.epochs": 2, "local.momentum": 0.5}])
    cells, same = (sweep.expand(sweep.as_sweep(one)) for one in (made, plain))
    assert [cell.id for cell in cells] == [cell.id for cell in same]
    assert [cell.fields for cell in cells] == [cell.fields for cell in same]
    assert json.dumps([cell.fields | configs.flatten(cell.config) for cell in cells])
    assert [cell.title() for cell in cells][:1] == ["local.epochs=1 data.augment=True local.momentum=0.5 seed=0"]
    assert json.dumps([cell.fields for cell in sweep.expand(made)])  # not checked by `as_sweep`


def test_a_group_holds_cells_that_differ_only_in_arrays():
    host = {"partition__name": ["iid", "dirichlet"], "attack__placement": ["last", "random"]}
    one = small_sweep(seeds=(0, 1), **{name.replace(".", "__"): values for name, values in ARRAYS.items()}, **host)
    (group,) = sweep.groups_of(sweep.expand(one))
    assert len(group.cells) == 2 * 2**5
    for path, values in {
        "attack.poison_fraction": [0.1, 0.9],
        "attack.schedule.last": [1, 7],
    }.items():
        assert len(sweep.groups_of(sweep.expand(small_sweep(**{path: values})))) == 1, path
    options = small_sweep(
        **{"method": ["spmc"], "aggregator.options.temperature": [0.5, 2.0], "local.options.strength": [0.5]}
    )
    assert len(sweep.groups_of(sweep.expand(options))) == 1
    stepping = small_sweep(
        fields={"server__optimizer": "adam"}, **{"server.learning_rate": [0.1, 0.2], "server.tau": [1.0]}
    )
    assert len(sweep.groups_of(sweep.expand(stepping))) == 1
    for path, values in {
        "federation.num_clients": [4, 5],
        "federation.rounds": [1, 2],
        "local.epochs": [1, 2],
        "local.batch_size": [4, 8],
        "model.name": ["mlp", "simple_cnn"],
        "data.options.num_train": [160, 200],
        "server.optimizer": ["adam", "yogi"],
        "attack.trigger": ["fdcr_paper", "spmc_code"],
        "attack.target_label": [1, 2],
        "method": ["fedavg", "spmc"],
    }.items():
        assert len(sweep.groups_of(sweep.expand(small_sweep(**{path: values})))) == 2, path


def test_an_option_left_to_the_rule_is_another_program_than_a_number():
    keys = [
        program_key(configs.resolve(small.config(presets="norm_clip", aggregator__options__threshold=value)))
        for value in (None, 1.0, 2.0)
    ]
    assert len({keys[1], keys[2]}) == 1 != len(set(keys))


@pytest.mark.parametrize("kind", [registry.aggregators, registry.local_rules, registry.attacks], ids=lambda k: k.kind)
def test_every_array_option_of_a_factory_may_be_traced(kind):
    for name in kind.names():
        given = {option: 0.3 for option, known in kind.options(name).items() if known.traced and known.kind is float}
        if given:
            jax.eval_shape(lambda values, name=name: kind.make(name, **values) and 0, given)


def test_the_plan_of_table_2_needs_no_data(monkeypatch, capsys):
    def no_data(config):
        raise AssertionError(f"{config.data.name} was read")

    monkeypatch.setattr(setup, "load_data", no_data)
    assert command.main([f"--config={TABLE_2}", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("198 cells (66 settings x 3 seeds) in 33 groups, one program each")
    assert len(out.splitlines()) == 34
    assert all("  6 cells  " in line and "per program  data.name=" in line for line in out.splitlines()[1:])


def test_the_plan_of_the_small_sweep_can_be_changed_from_the_command_line(capsys):
    assert command.main([f"--config={DIGITS}", "--dry-run", "--config.sweep.experiment_batch=3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("8 cells (4 settings x 2 seeds) in 2 groups")
    assert [line.split("per program  ")[1] for line in out[1:]] == ["method=fedavg", "method=spmc"]
    assert all("4 cells  4 experiments per program" in line for line in out[1:])  # two on each of two devices


def test_table_2_has_the_rows_of_the_paper(shared):
    import csv

    with (shared / "papers" / "spmc_table2.csv").open() as stream:
        printed = {(row["dataset"], row["malicious_ratio"], row["method"]) for row in csv.DictReader(stream)}
    cells = sweep.expand(call_config(TABLE_2)[0])

    def plain(text):
        return text.lower().replace("-", "").replace("_", "").replace("ours (spmc)", "spmc")

    ours = {tuple(plain(str(value)) for value in cell.fields.values()) for cell in cells}
    assert ours == {(plain(data), plain(method), ratio) for data, ratio, method in printed}


@pytest.mark.slow
def test_the_estimate_tells_memory_and_time(tmp_path, capsys):
    path = config_file(tmp_path, "{'method': ['fedavg']}", seeds="(0, 1)")
    assert command.main([f"--config={path}", "--dry-run", "--estimate"]) == 0
    _, line, total = capsys.readouterr().out.splitlines()
    assert " MiB a device  about " in line
    assert total.startswith("about ")
    assert not (tmp_path / "sweeps").exists()


# Bad input.


def refused(capsys, argv: list[str], *words: str) -> None:
    capsys.readouterr()
    assert command.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert err.endswith((".\n", ".)\n"))
    for word in words:
        assert word in err, (word, err)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("{'local.batch_size': [8, 0]}", ("cell local.batch_size=0 seed=0 is refused", "local.batch_size = 0", "[1, ")),
        ("{'method': ['spmc', 'spcm']}", ("cell method=spcm seed=0", "'spcm' is unknown", "fedavg")),
        ("{'local.no_such': [1]}", ("local.no_such is no field",)),
        ("{'aggregator.options.f': [1]}", ("aggregator.options.f is no option of", "temperature")),
        ("{'federation.clients_per_round': [4, 9, 10]}", ("clients_per_round=9", "2 cells of the grid are refused")),
        ("{'seed': [1]}", ("grid.seed", "seeds")),
        ("{'method': 'spmc'}", ("grid.method = 'spmc'", "list")),
        ("{'method': ['spmc']}, leave_out=[{'mehtod': 'spmc'}]", ("leave_out", "mehtod")),
        ("{'method': ['spmc']}, leave_out=[{'method': 'spmc'}]", ("at least one cell",)),
        ("{'method': ['spmc']}, leave_out=[lambda cell: cell['no']]", ("leave_out fails with KeyError: no",)),
        ("{'method': ['spmc']}, leave_out=3", ("leave_out = 3", "a list of rules")),
        ("{'method': ['spmc']}, keep_models='no'", ("keep_models = 'no'", "True or False")),
        ("{'local.learning_rate': [0.1, 0.1]}", ("are the same experiment",)),
    ],
)
def test_a_bad_cell_is_reported_before_anything_runs(grid, words, tmp_path, capsys):
    path = tmp_path / "swept.py"
    path.write_text(
        "from fedjax_spmc.sweep import Sweep\nfrom tests import small\n\n\n"
        f"def get_config(arg=''):\n    return Sweep(small.config(), {grid})\n"
    )
    refused(capsys, [f"--config={path}", f"--workdir={tmp_path / 'out'}"], *words)
    refused(capsys, [f"--config={path}", "--dry-run"], *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.local.learning_rate=0.1"], ("local.learning_rate", "is swept")),
        (["--config.aggregator.name=krum"], ("aggregator.name", "method is swept")),
        (["--config.seed=1"], ("seeds is swept",)),
        (["--config.local.epochs=0"], ("local.epochs = 0",)),
        (["--engine=dask"], ("--engine", "dask", "local", "ray")),
        (["--estimate"], ("--estimate", "--dry-run")),
        (["--workdirs=x"], ("--workdirs=x is no flag",)),
        (["--config=no_such.py"], ("no_such.py",)),
        (["--config.data.name=cifar10", "--config.data.data_dir=/no/such"], ("cifar10",)),
    ],
)
def test_bad_flags(flags, words, tmp_path, capsys):
    path = config_file(tmp_path, "{'method': ['spmc'], 'local.learning_rate': [0.1, 0.2]}")
    if "cifar10" in flags[0]:  # the options of the base belong to another data set
        text = Path(path).read_text().replace("small.config(2, 'fedavg')", "make_config()")
        Path(path).write_text(f"from fedjax_spmc.config import make_config\n{text}")
    refused(capsys, [f"--config={path}", f"--workdir={tmp_path / 'out'}", *flags], *words)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_sweeps_are_left_alone(tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()
    (run / "config.json").write_text("{}")
    (other / "results.jsonl").write_text('{"a": 1}\n')
    path = config_file(tmp_path, "{'method': ['spmc']}")
    for folder, words in ((run, "holds a single run"), (other, "line 1")):
        before = small.contents(folder)
        refused(capsys, [f"--config={path}", f"--workdir={folder}"], str(folder), words)
        assert small.contents(folder) == before


def test_a_second_process_is_refused(tmp_path, capsys):
    path = config_file(tmp_path, "{'method': ['spmc']}")
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        refused(capsys, [f"--config={path}", f"--workdir={tmp_path / 'out'}"], "in use by another process")


# Equality with single runs.


@pytest.fixture(scope="module")
def arrays_sweep():
    """SPMC, eight cells."""
    return sweep.Sweep(
        small.config(rounds=2),
        ARRAYS,
        (0, 7),
        [lambda cell: cell["partition.beta"] * cell["local.learning_rate"] in (0.005, 0.25)],
    )


def test_a_cell_starts_from_the_bits_of_its_single_run(arrays_sweep):
    """Index lists, who is malicious and initial weights, whatever the group; padding alone differs."""
    cells = sweep.expand(arrays_sweep)
    (group,) = sweep.groups_of(cells)
    dataset = setup.load_data(cells[0].config)
    built = player.Player(group, dataset)
    widths = set()
    for cell in (cells[0], cells[5], cells[-1]):
        state, lane = built.start(cell)
        alone = build(cell.config, dataset)
        np.testing.assert_array_equal(jax.random.key_data(lane.key), jax.random.key_data(alone.key))
        np.testing.assert_array_equal(state.roster.malicious, alone.malicious)
        assert state.attack["badnets"].fraction == alone.state.attack["badnets"].fraction
        np.testing.assert_array_equal(
            jax.random.key_data(state.attack["badnets"].key), jax.random.key_data(alone.state.attack["badnets"].key)
        )
        for client, part in enumerate(alone.parts):
            assert int(lane.indices.sizes[client]) == len(part)
            np.testing.assert_array_equal(lane.indices.rows[client, : len(part)], part)
        for ours, theirs in zip(leaves(state.variables), leaves(alone.state.variables), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        widths.add(lane.indices.rows.shape[1])
    assert len(widths) == 1


@pytest.fixture(scope="module")
def played(arrays_sweep, cache_folder, tmp_path_factory):
    """The folder of a finished sweep of eight cells, two on each of two devices, its rows and what was compiled."""
    traces = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDJAX_SPMC_CACHE", str(cache_folder))
        original = program.play_round

        def counted(*arguments):
            traces.append(1)
            return original(*arguments)

        patch.setattr(program, "play_round", counted)
        folder = tmp_path_factory.mktemp("sweeps") / "arrays"
        arrays_sweep.base.sweep.experiment_batch = 2
        rows = sweep.run(arrays_sweep, folder)
    return folder, rows, len(traces)


@pytest.mark.slow
def test_there_are_no_more_programs_than_groups(played):
    folder, rows, traces = played
    assert len(rows) == 8
    assert traces == 1
    assert not (folder / "work").exists()


@pytest.mark.slow
def test_the_table_has_a_row_for_every_cell(played, arrays_sweep):
    folder, rows, _ = played
    assert rows_of(folder) == rows
    cells = sweep.expand(arrays_sweep)
    summary = json.loads((folder / rows[0]["folder"] / "summary.json").read_text())
    for cell, row in zip(cells, rows, strict=True):
        assert {name: row[name] for name in ARRAYS} == cell.fields
        assert (row["seed"], row["status"], row["error"], row["oracle"]) == (cell.config.seed, "finished", None, False)
        assert row["config_hash"] == cell.id
        assert summary.keys() <= row.keys()
        assert [line["round"] for line in curve(folder, row)] == [0, 1]
        for name in ("commit", "platform", "device", "versions", "data", "fingerprint", "seconds"):
            assert name in row
    assert len({row["train_loss"] for row in rows}) == 8


@pytest.mark.slow
def test_pandas_reads_the_table_in_one_line(played):
    pandas = pytest.importorskip("pandas")
    folder, rows, _ = played
    frame = pandas.read_json(folder / "results.jsonl", lines=True)
    assert list(frame["config_hash"]) == [row["config_hash"] for row in rows]
    assert frame.groupby(list(ARRAYS))["V"].count().tolist() == [2] * 4
    curves = pandas.concat(pandas.read_json(folder / row["folder"] / "metrics.jsonl", lines=True) for row in rows)
    assert len(curves) == 16


@pytest.mark.slow
@pytest.mark.parametrize("index", [6, 1])
def test_a_cell_is_its_single_run_within_30_steps(index, played, arrays_sweep):
    """Two rounds of about five steps a client; a cell's folder is read like a run's."""
    folder, rows, _ = played
    cell = sweep.expand(arrays_sweep)[index]
    alone = experiment.run(cell.config)
    ours = experiment.load(folder / rows[index]["folder"])
    assert configs.flatten(ours.config) == configs.flatten(configs.with_chosen_options(cell.config))
    for mine, theirs in zip(leaves(ours.variables), leaves(alone.variables), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    for line, other in zip(ours.history, alone.history, strict=True):
        assert list(line) == list(other)
        assert line["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        for name in ("round", "client_ids", "flagged", "A", "ASR", "tpr", "fpr", "non_finite", "aggregation_failed"):
            assert line[name] == other[name], name


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["fedprox", "fltrust"])
def test_array_options_have_the_effect_that_they_have_in_a_single_run(preset, tmp_path):
    option, values = {
        "fedprox": ("local.options.mu", [0.01, 1.0]),
        "fltrust": ("aggregator.options.server_rate", [0.5, 1.0]),
    }[preset]
    made = sweep.Sweep(small.config(rounds=2, presets=preset, data__val_fraction=0.2), {option: values})
    (_,) = sweep.groups_of(sweep.expand(made))
    rows = sweep.run(made, tmp_path)
    found = [experiment.load(tmp_path / row["folder"]).variables for row in rows]
    alone = experiment.run(sweep.expand(made)[1].config).variables
    for mine, theirs in zip(leaves(found[1]), leaves(alone), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert not np.allclose(leaves(found[0])[0], leaves(found[1])[0], atol=1e-5)


# What a table survives.


@pytest.mark.slow
def test_finished_cells_are_left_alone_and_new_ones_join(tmp_path, monkeypatch):
    made = small_sweep(rounds=1, local__learning_rate=[0.01])
    first = sweep.run(made, tmp_path)
    content = (tmp_path / "results.jsonl").read_text()
    with (tmp_path / "results.jsonl").open("a") as stream:
        stream.write('{"config_hash": "half a r')
    with monkeypatch.context() as patch:
        patch.setattr(engine, "play_group", None)  # nothing is left to play
        assert sweep.run(made, tmp_path) == first
    assert (tmp_path / "results.jsonl").read_text() == content
    more = sweep.run(small_sweep(rounds=1, local__learning_rate=[0.01, 0.02]), tmp_path)
    assert more[0] == first[0]
    assert (tmp_path / "results.jsonl").read_text().startswith(content)
    assert len(rows_of(tmp_path)) == 2


def test_other_data_are_refused(tmp_path):
    made = small_sweep(rounds=1, local__learning_rate=[0.01, 0.02])
    sweep.run(made._replace(grid={"local.learning_rate": [0.01]}), tmp_path)
    row = rows_of(tmp_path)[0]
    (tmp_path / "results.jsonl").write_text(json.dumps(row | {"fingerprint": "0" * 64}) + "\n")
    with pytest.raises(ValueError, match="rows on other data"):
        sweep.run(made, tmp_path)


def broken() -> Aggregator:
    """Fails as soon as it is to aggregate."""

    def aggregate(upload, state, key):
        raise RuntimeError("no idea how")

    return Aggregator(lambda params, num_clients: (), aggregate, Traits(True, True, True, True, True))


def test_a_failed_cell_is_a_row_that_says_why_and_the_sweep_goes_on(tmp_path, capsys):
    path = config_file(tmp_path, "{'aggregator.name': ['broken', 'mean'], 'local.rule': ['sgd']}", rounds=1)
    argv = [f"--config={path}", f"--workdir={tmp_path / 'out'}"]
    with registry.aggregators.temporary("broken", broken):
        assert command.main(argv) == 1
        first, second = rows_of(tmp_path / "out")
        assert (first["aggregator.name"], first["status"], first["A"], first["folder"]) == (
            "broken",
            "failed",
            None,
            None,
        )
        assert first["error"] == "RuntimeError: no idea how"
        assert second["status"] == "finished"
        assert first.keys() == second.keys()
        assert "1 failed, 1 finished" in capsys.readouterr().out
        # It is tried again, and has one row.
        assert command.main(argv) == 1
        assert sorted(row["status"] for row in rows_of(tmp_path / "out")) == ["failed", "finished"]
    capsys.readouterr()


@pytest.mark.slow
def test_a_cell_that_diverges_says_so_and_leaves_the_others_alone(tmp_path):
    """In one program with a sound cell: the same line as in a single run, and the sound one plays to its end."""
    fields = {"federation__eval_every": 2, "local__rule": "sgd", "aggregator__name": "mean"}
    made = small_sweep(rounds=3, fields=fields, local__learning_rate=[1e30, 0.01])
    lost, sound = sweep.run(made, tmp_path)
    assert (lost["status"], sound["status"]) == ("diverged", "finished")
    assert f"in round {lost['diverged_round'] + 1}:" in lost["error"]
    assert [line["round"] for line in curve(tmp_path, sound)] == [1, 2]
    alone = small.config(rounds=3, local__learning_rate=1e30, **fields)
    with pytest.raises(RuntimeError, match="stopped being finite"):
        experiment.run(alone, tmp_path / "alone")
    assert curve(tmp_path, lost) == small.lines(tmp_path / "alone")


@pytest.mark.slow
def test_a_group_whose_program_cannot_be_made_is_tried_once(tmp_path, monkeypatch):
    compiling, original = [], player.Player.program

    def compiled(self, layout, like):
        compiling.append(layout)
        return original(self, layout, like)

    monkeypatch.setattr(player.Player, "program", compiled)
    made = small_sweep(rounds=1, seeds=range(5), fields={"sweep__experiment_batch": 1, "aggregator__name": "broken"})
    with registry.aggregators.temporary("broken", broken):
        rows = sweep.run(made, tmp_path)
    assert [row["status"] for row in rows] == ["failed"] * 5
    assert len(compiling) == 1


def test_a_partition_that_cannot_be_made_fails_alone(tmp_path):
    bad, good = sweep.run(small_sweep(rounds=1, partition__min_size=[39, 8]), tmp_path)
    assert (bad["status"], good["status"]) == ("failed", "finished")
    assert "partition.min_size = 39" in bad["error"]


@pytest.mark.slow
def test_a_program_without_memory_is_halved(tmp_path, monkeypatch):
    original, batches = player.Player.play, []

    def play(self, cells, layout, scratch, on_round=None):
        batches.append(layout.batch)
        if layout.batch > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
        return original(self, cells, layout, scratch, on_round)

    monkeypatch.setattr(player.Player, "play", play)
    fields = {"sweep__experiment_batch": 2}
    rows = sweep.run(small_sweep(rounds=1, seeds=range(4), fields=fields), tmp_path)
    assert [row["status"] for row in rows] == ["finished"] * 4
    assert batches == [2, 1, 1]


def test_the_batch_is_sized_by_what_a_program_needs():
    assert program.largest_batch(needed=1000, batch=9, shared=100, usable=500) == 4
    assert program.largest_batch(needed=1000, batch=9, shared=100, usable=1500) == 9
    assert program.largest_batch(needed=1000, batch=9, shared=100, usable=50) == 1
    assert not numerics.is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))


@pytest.mark.slow
def test_a_program_that_needs_too_much_is_made_smaller(monkeypatch):
    cells = sweep.expand(small_sweep(rounds=1, seeds=range(8), fields={"sweep__experiment_batch": 4}))
    (group,) = sweep.groups_of(cells)
    built = player.Player(group, setup.load_data(cells[0].config))
    wanted = program.layout_of(cells[0].config, 8, jax.local_devices()[:1])
    needed = built.memory(wanted, cells[0])
    assert needed is not None
    monkeypatch.setattr(program, "bytes_usable", lambda device: needed - 1)
    fitted = built.fit_to_memory(wanted, cells[0])
    assert fitted == wanted._replace(batch=3)
    assert built.compiled == 2
    smaller = built.memory(fitted, cells[0])
    assert smaller is not None
    assert smaller < needed


KILLER = """
import os, signal, sys
from fedjax_spmc.record import checkpoint
from fedjax_spmc.sweep import __main__, table

moment, calls = sys.argv.pop(1), []
owner, name = {"chunk": (checkpoint.Checkpoints, "save"), "row": (table.Table, "_append")}[moment]
original = getattr(owner, name)

def patched(self, *arguments):
    calls.append(name)
    if moment == "row" and len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, *arguments)
    if moment == "chunk" and len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, name, patched)
sys.exit(__main__.main())
"""

COUNTER = """
import json, sys
from fedjax_spmc.sweep import __main__, player

rounds, original = [], player.Player._metrics_lines

def lines(self, outcome, due, histories, malicious, index, seconds):
    rounds.append(index)
    return original(self, outcome, due, histories, malicious, index, seconds)

player.Player._metrics_lines = lines
code = __main__.main()
print(json.dumps(rounds))
sys.exit(code)
"""


def in_process_of_its_own(program: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program, *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["chunk", "row"])
def test_a_killed_sweep_loses_at_most_a_chunk(moment, tmp_path, capsys):
    path = config_file(tmp_path, "{'local.learning_rate': [0.01, 0.02]}", rounds=4)
    argv = [f"--config={path}", f"--workdir={tmp_path / 'killed'}", "--config.sweep.experiment_batch=1"]
    process = in_process_of_its_own(KILLER, moment, *argv)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len((tmp_path / "killed" / "results.jsonl").read_text().splitlines()) == {"chunk": 0, "row": 1}[moment]
    process = in_process_of_its_own(COUNTER, *argv)
    assert process.returncode == 0, (process.returncode, process.stderr)
    assert json.loads(process.stdout.splitlines()[-1]) == {"chunk": [2, 3], "row": [3]}[moment]
    again = [f"--config={path}", f"--workdir={tmp_path / 'whole'}", "--config.sweep.experiment_batch=1"]
    assert command.main(again) == 0
    capsys.readouterr()
    for row, other in zip(rows_of(tmp_path / "killed"), rows_of(tmp_path / "whole"), strict=True):
        assert row["config_hash"] == other["config_hash"]
        assert curve(tmp_path / "killed", row) == curve(tmp_path / "whole", other)
        models = [tmp_path / name / row["folder"] / "model.npz" for name in ("killed", "whole")]
        assert models[0].read_bytes() == models[1].read_bytes()
    assert not (tmp_path / "killed" / "work").exists()
