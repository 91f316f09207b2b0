"""The scripts of the papers' tables and figures, each at toy size."""

import csv
import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from fedjax_spmc.report import published

ROOT = Path(__file__).resolve().parent.parent
TOY = (
    "--rounds=1", "--seeds=0", "--limit=120", "--data=synthetic", "--details=0", "--only=attack.malicious_fraction=0.3",
    "--config.model.name=mlp", "--config.local.epochs=1", "--config.local.batch_size=8",
    "--config.partition.min_size=1",
)  # fmt: skip
ONE_BETA = "--only=partition.beta=0.5"
SCRIPTS = {
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


def play(monkeypatch, name: str, *arguments: str) -> int:
    """Runs a script in this process, so that it shares the session's compiled programs; returns its exit code."""
    path = ROOT / "experiments" / f"{name}.py"
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    spec = importlib.util.spec_from_file_location("__main__", path)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(SystemExit) as ended:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_every_table_has_a_script():
    assert {path.stem for path in (ROOT / "experiments").glob("*_table?.py")} == set(TABLES)
    assert set(TABLES.values()) == set(published.LAYOUTS)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """One sweep for all scripts: they share cells, as the papers' tables do."""
    return tmp_path_factory.mktemp("papers") / "sweep"


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_plays_and_reports(name, workdir, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert play(monkeypatch, name, *TOY, *SCRIPTS[name], f"--workdir={workdir}", f"--out={out}") == 0
    text = (out / "index.html").read_text()
    assert "accuracy A over the rounds" in text
    assert ("with the trigger</h4>" in text) == (name == "spmc_fig7")
    if name in TABLES:
        with (out / "tables" / f"{TABLES[name]}.csv").open() as stream:
            rows = [row for row in csv.DictReader(stream) if row["group"].startswith("synthetic")]
        assert {row["method"] for row in rows} >= set(published.LAYOUTS[TABLES[name]].rows)
        assert any(row["mean"] for row in rows)


def test_kept_cells_are_not_played_again(workdir, tmp_path, monkeypatch, capsys):
    toy = [*TOY, "--methods=fedavg", f"--results={tmp_path / 'kept'}"]
    assert play(monkeypatch, "spmc_fig6", *toy, f"--workdir={workdir}", f"--out={tmp_path / 'first'}", "--keep") == 0
    capsys.readouterr()
    again = (f"--workdir={tmp_path / 'second'}", f"--out={tmp_path / 'out'}")
    assert play(monkeypatch, "spmc_fig6", *toy, *again) == 0
    assert "1 cells, 1 of them kept" in capsys.readouterr().err
    assert not (tmp_path / "second").exists()
    assert (tmp_path / "out" / "index.html").exists()


def test_bad_flags_are_one_sentence(monkeypatch, capsys):
    assert play(monkeypatch, "spmc_fig6", "--rounds=1", "--sedes=1") == 2
    assert capsys.readouterr().err == "error: --sedes=1 is no flag of this command; see --help.\n"


def test_a_study_plays_what_is_missing_and_prints_its_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import cells

    small = {
        "model.name": "mlp", "data.limit_train": 120, "data.limit_test": 60, "local.epochs": 1, "local.batch_size": 8,
        "partition.min_size": 1,
    }  # fmt: skip
    study = {"plain": ("fedavg", small), "median": ("median", small)}
    kept, workdir = tmp_path / "kept", tmp_path / "work"
    flags = [
        "study", "--data=synthetic", "--rounds=1", "--seeds=0,1", f"--results={kept}", f"--workdir={workdir}",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [*flags, "--cells=plain"])
    cells.study("", "toy", study, "", ("settings",))
    assert sorted(path.name for path in kept.glob("*/plain/*")) == ["seed0", "seed1"]
    assert not list(kept.glob("*/median"))
    assert "| fedavg | 2 | 1 |" in capsys.readouterr().out
    shutil.rmtree(workdir)
    cells.study("", "toy", study, "", ("settings",))  # what is kept is not played again
    assert not workdir.exists()
    monkeypatch.setattr(sys, "argv", [*flags, "--cells=nothing"])
    with pytest.raises(SystemExit) as ended:
        cells.study("", "toy", study, "", ("settings",))
    assert ended.value.code == 2
    assert "'nothing' names no cell: they are plain, median." in capsys.readouterr().err
