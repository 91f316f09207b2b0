"""The commands of the papers' tables and figures, and of the studies, each at toy size."""

import csv
import shutil
import sys
from pathlib import Path

import pytest

from fedjax_spmc import config as configs
from fedjax_spmc.report import published

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))

import cells
import papers

TOY = (
    "--rounds=1", "--seeds=0", "--limit=120", "--data=synthetic", "--details=0", "--only=attack.malicious_fraction=0.3",
    "--config.model.name=mlp", "--config.local.epochs=1", "--config.local.batch_size=8",
    "--config.partition.min_size=1",
)  # fmt: skip
ONE_BETA = "--only=partition.beta=0.5"
FLAGS = {
    "spmc_table2": ("--methods=fedavg,spmc",),
    "spmc_fig6": ("--methods=fedavg",),
    "spmc_fig7": ("--methods=spmc", "--details=1"),
    "fdcr_table1": (ONE_BETA, "--only=aggregator.options.cluster=finch"),
    "fdcr_table2": (ONE_BETA, "--only=aggregator.options.importance=True"),
    "fdcr_table3": (
        ONE_BETA, "--only=aggregator.options.discrepancy=True", "--only=aggregator.options.rescale=minmax",
    ),
    "fdcr_table4": (ONE_BETA, "--methods=fedavg"),
}  # fmt: skip
TABLES = {"spmc_table2": "spmc2", "fdcr_table1": "fdcr1", "fdcr_table2": "fdcr2"}
TABLES |= {"fdcr_table3": "fdcr3", "fdcr_table4": "fdcr4"}
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_cache")]


def test_every_table_has_a_name():
    assert {name for name in papers.RESULTS_OF_PAPERS if "_table" in name} == set(TABLES)
    assert set(TABLES.values()) == set(published.LAYOUTS)
    assert papers.RESULTS_OF_PAPERS.keys() == FLAGS.keys()


def test_help_says_what_each_name_is(capsys):
    assert papers.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name} " in text and paper.title in text for name, paper in papers.RESULTS_OF_PAPERS.items())
    assert cells.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text and study.title in text for name, study in cells.STUDIES.items())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """One sweep for all names: they share cells, as the papers' tables do."""
    return tmp_path_factory.mktemp("papers") / "sweep"


@pytest.mark.parametrize("name", FLAGS)
def test_missing_cells_are_run_and_reported(name, workdir, tmp_path):
    out = tmp_path / "out"
    assert papers.main([name, *TOY, *FLAGS[name], f"--workdir={workdir}", f"--out={out}"]) == 0
    text = (out / "index.html").read_text()
    assert "accuracy A over the rounds" in text
    assert ("with the trigger</h3>" in text) == (name == "spmc_fig7")
    if name in TABLES:
        with (out / "tables" / f"{TABLES[name]}.csv").open() as stream:
            rows = [row for row in csv.DictReader(stream) if row["group"].startswith("synthetic")]
        table = TABLES[name]
        assert {row["method"] for row in rows} >= {
            published.row_label(table, row) for row in published.LAYOUTS[table].rows
        }
        assert any(row["mean"] for row in rows)


def test_kept_cells_are_not_run_again(workdir, tmp_path, capsys):
    toy = ["spmc_fig6", *TOY, "--methods=fedavg", f"--results={tmp_path / 'kept'}"]
    assert papers.main([*toy, f"--workdir={workdir}", f"--out={tmp_path / 'first'}", "--keep"]) == 0
    capsys.readouterr()
    assert papers.main([*toy, f"--workdir={tmp_path / 'second'}", f"--out={tmp_path / 'out'}"]) == 0
    assert "1 cells, 1 of them kept" in capsys.readouterr().err
    assert not (tmp_path / "second").exists()
    assert (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "NAME must be one of fdcr_table1, "),
        (["spmc_table3"], "NAME must be one of fdcr_table1, "),
        (["spmc_fig6", "--rounds=1", "--sedes=1"], "--sedes=1 is no flag of this command"),
        (["spmc_fig6", "--rounds", "0"], "--rounds = 0 is not allowed"),
        (["spmc_fig6", "--seeds", "0,x"], "--seeds = 0,x is not allowed: it must be whole numbers with commas"),
        (["spmc_fig6", "--only=attack.malicious_fraction"], "--only = attack.malicious_fraction is not allowed"),
        (["spmc_fig6", "--config.attack.trigger="], "attack.trigger"),
    ],
)
def test_bad_flags_are_one_sentence(arguments, reason, capsys):
    assert papers.main([*arguments, "--dry-run"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert reason in text
    assert text.count("\n") == 1


@pytest.mark.parametrize("name", cells.STUDIES)
def test_the_cells_of_a_study_are_configs_no_two_alike(name):
    seen: dict[str, str] = {}
    for cell, (preset, fields) in cells.STUDIES[name].cells.items():
        config = configs.resolve(cells.config_of(preset, fields, "cifar10"))
        text = str(sorted(configs.flatten(config).items()))
        assert seen.setdefault(text, cell) == cell


def test_a_study_runs_what_is_missing_and_prints_its_tables(tmp_path, monkeypatch, capsys):
    small = {
        "model.name": "mlp", "data.limit_train": 120, "data.limit_test": 60, "local.epochs": 1, "local.batch_size": 8,
        "partition.min_size": 1,
    }  # fmt: skip
    study = cells.Study("a toy", {"plain": ("fedavg", small), "median": ("median", small)}, "", ("settings",))
    monkeypatch.setitem(cells.STUDIES, "toy", study)
    kept, workdir = tmp_path / "kept", tmp_path / "work"
    flags = [
        "toy", "--data=synthetic", "--rounds=1", "--seeds", "0,1", f"--results={kept}", f"--workdir={workdir}",
    ]  # fmt: skip
    assert cells.main([*flags, "--cells=plain"]) == 0
    assert sorted(path.name for path in kept.glob("*/plain/*")) == ["seed0", "seed1"]
    assert not list(kept.glob("*/median"))
    assert "| fedavg | 2 | 1 |" in capsys.readouterr().out
    shutil.rmtree(workdir)
    assert cells.main([*flags, "--cells", "plain"]) == 0  # what is kept is not run again
    assert not workdir.exists()
    assert cells.main([*flags, "--cells=nothing"]) == 2
    assert "--cells = nothing names no cell: they are plain, median;" in capsys.readouterr().err
    assert cells.main(["spmc_half"]) == 2
    assert "NAME must be one of anchor, spmc_halves, spmc_question, fdcr_question" in capsys.readouterr().err
