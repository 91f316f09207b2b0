"""Small files of a sweep's ended cells, experiments/keep.py."""

import json
import sys

import pytest

from fedjax_spmc.report import overview, read
from fedjax_spmc.report.settings import group
from tests import small
from tests.conftest import ROOT
from tests.kept_runs import make_run

sys.path.insert(0, str(ROOT / "experiments"))
import keep

REJECTED = {"confidence": 0.4, "A_without_rejection": 71.5, "histograms": {"clean": [1], "correct": [1]}}
"""Of lines of a run that rejects predictions."""


@pytest.fixture
def sweep(tmp_path):
    """Cells that ended, in which somebody was flagged, nobody can be, and nobody was; and one that failed."""
    rows = []
    for index, status in enumerate(("finished", "failed", "diverged", "finished")):
        folder = make_run(tmp_path / "sweep" / "cells" / f"c{index}", seed=index, attack__malicious_fraction=0.3)
        rows.append({"config_hash": f"c{index}", "status": status, "folder": f"cells/c{index}", "seed": index})
        if index >= 2:
            rate = None if index == 2 else 0.0
            nobody = {"flagged": [False] * 10, "tpr": rate, "fpr": rate}
            nobody |= REJECTED if index == 3 else {}
            text = "".join(json.dumps(line | nobody) + "\n" for line in small.lines(folder))
            (folder / "metrics.jsonl").write_text(text)
    (tmp_path / "sweep" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "sweep"


def numbers(folder) -> list[list[str]]:
    settings, _ = group([run for run in read.read([folder]).runs if run.config["seed"] != 1])
    return [[cell.value() for cell in row.cells] for row in overview.settings_table(settings).rows]


def test_kept_cells_give_the_same_table(sweep, tmp_path, capsys):
    target = tmp_path / "kept"
    assert keep.main([str(sweep), str(target)]) == 0
    assert sorted(path.name for path in (target / "cells").iterdir()) == ["c0", "c2", "c3"]
    kept, whole = numbers(target), numbers(sweep)
    assert [row[:8] for row in kept] == [row[:8] for row in whole]
    assert all("weights" not in line and "scores" not in line for line in small.lines(target / "cells" / "c0"))
    assert "flagged" in small.lines(target / "cells" / "c0")[0]
    assert "flagged" not in small.lines(target / "cells" / "c2")[0]
    assert small.lines(target / "cells" / "c3")[0]["flagged"] == [False] * 10, "a rule that flagged nobody this time"
    first, *_, last = small.lines(target / "cells" / "c3")
    assert first["A_without_rejection"] == 71.5
    assert "histograms" not in first
    assert last["histograms"] == REJECTED["histograms"]
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert keep.main([str(sweep), str(target)]) == 0
    assert "0 cells kept" in capsys.readouterr().out.splitlines()[-1]
    assert before == {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    again = tmp_path / "again"  # of a copy with which a sweep went on
    assert keep.main([str(target), str(again)]) == 0
    assert before == {
        target / path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("folders", [[], ["a"], ["a", "b", "c"]])
def test_two_folders_are_needed(folders, capsys):
    assert keep.main(folders) == 2
    assert "SWEEP and TARGET are needed" in capsys.readouterr().err


def test_a_folder_without_a_table(tmp_path, capsys):
    assert keep.main([str(tmp_path), str(tmp_path / "kept")]) == 2
    assert "results.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()
