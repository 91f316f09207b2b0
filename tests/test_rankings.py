"""Rankings of methods under other settings of the clients' training, and the papers' tables as pictures."""

import itertools
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from fedjax_spmc.report import beside, page, published, rankings, read
from fedjax_spmc.report.settings import group
from fedjax_spmc.sweep import expand
from tests.kept_runs import make_run

METHODS = {"fedavg": 0, "krum": 10, "median": 20, "rfa": 30}
SWEEP = Path(__file__).parent.parent / "configs" / "sweeps" / "benign_settings.py"


def made(folder: Path, rates=(0.01, 0.05), epochs=(10, 1), methods=METHODS, seeds=(0, 1), **fields):
    """Runs whose V goes up by the method; with a rate of 0.05 down, but for the first two methods, which go up."""
    for rate, number, method, seed in itertools.product(rates, epochs, methods, seeds):
        place = METHODS[method]
        gain = place if rate == 0.01 or place <= 10 else -place
        own = {"local__learning_rate": rate, "local__epochs": number, "seed": seed, **fields}
        make_run(folder / f"{rate}_{number}_{method}_{seed}", method, 40.0 + seed + gain, 50.0 - gain, 3, **own)
    return group(read.read([folder]).runs)[0]


def test_kendalls_tau_by_hand():
    """Of six pairs of four methods five stand alike where one neighbouring pair is swapped."""
    assert rankings.kendall(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == pytest.approx(4 / 6)
    assert rankings.kendall(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])) == pytest.approx(-1)
    # tau-b: one of three pairs is tied in the second, the other two stand alike: 2 / sqrt(3 * 2).
    assert rankings.kendall(np.array([1.0, 2, 3]), np.array([1.0, 2, 2])) == pytest.approx(2 / 6**0.5)
    assert np.isnan(rankings.kendall(np.ones(3), np.arange(3.0)))


def test_seeds_are_drawn_in_pairs():
    """Seed 0 ranks alike in both, seed 1 the other way round; of both together the larger gaps of seed 0 decide."""
    first = np.array([[0.0, 10, 20], [2, 1, 0]])
    other = np.array([[0.0, 10, 20], [0, 1, 2]])
    found = rankings.agreement(first, other)
    assert (found.mean, found.low, found.high, found.seeds) == (1.0, -1.0, 1.0, 2)
    alone = rankings.agreement(first[1:], other[1:])
    assert alone.mean == -1.0
    assert not alone.interval


def test_it_stands_where_three_methods_share_two_settings(tmp_path):
    settings = made(tmp_path)
    (family,) = rankings.families(settings)
    assert family.methods == list(METHODS)
    assert family.conditions[0] == "epochs=10, learning_rate=0.01"  # the papers' own comes first
    assert len(family.conditions) == 4
    (table,) = rankings.rankings_tables(settings)
    taus = {row.labels[0]: row.cells[-1].estimate.mean for row in table.rows}
    assert np.isnan(taus.pop("epochs=10, learning_rate=0.01"))
    # V is 45.5 and more for 0.01; for 0.05 it is 45.5, 55.5, 25.5, 15.5: of six pairs only the first stands alike.
    expected = {"epochs=1, learning_rate=0.01": 1.0}
    expected |= dict.fromkeys(("epochs=10, learning_rate=0.05", "epochs=1, learning_rate=0.05"), (1 - 5) / 6)
    assert taus == pytest.approx(expected)
    v = [cell.estimate.mean for cell in table.rows[0].cells[1:-1]]
    assert v == pytest.approx([45.25, 55.25, 65.25, 75.25])
    # Pairs of lines: 0.01 with itself and 0.05 with itself rank alike, the other four by -2/3.
    assert "Mean τ of all 6 pairs of lines: −0.11." in table.notes


def test_other_conditions_and_methods_that_were_not_played_everywhere_are_kept_apart(tmp_path):
    settings = made(tmp_path / "a", methods=("fedavg", "krum"))
    assert rankings.families(settings) == []
    settings = made(tmp_path / "b", rates=(0.01,), epochs=(10,))
    settings += made(tmp_path / "c", rates=(0.05,), epochs=(10,), attack__malicious_fraction=0.2)
    assert rankings.families(settings) == []
    made(tmp_path / "d", epochs=(10,), methods=("fedavg", "krum", "median"))
    (family,) = rankings.families(made(tmp_path / "d", rates=(0.01,), epochs=(10,), methods=("rfa",)))
    assert family.methods == ["fedavg", "krum", "median"]


def test_seeds_that_some_have_not_count_in_no_correlation(tmp_path):
    made(tmp_path, epochs=(10,), methods=("fedavg", "krum"))
    (family,) = rankings.families(made(tmp_path, epochs=(10,), methods=("median",), seeds=(1, 2)))
    assert rankings.values_of(family).shape == (2, 1, 3)
    made(tmp_path / "none", epochs=(10,), methods=("fedavg", "krum"))
    settings = made(tmp_path / "none", epochs=(10,), methods=("median",), seeds=(5, 6))
    (family,) = rankings.families(settings)
    assert rankings.values_of(family).shape[1] == 0
    (table,) = rankings.rankings_tables(settings)
    assert not table.rows[1].cells[-1].estimate.known


def test_the_page_shows_them(tmp_path):
    made(tmp_path / "runs")
    text = page.build([tmp_path / "runs"], tmp_path / "out", details=0).read_text(encoding="utf-8")
    part = text[text.index('id="t-rankings"') :]
    assert 'aria-label="V of each method under 4 settings of the clients' in part
    assert "</svg> krum</li>" in part
    assert (tmp_path / "out" / "tables" / "rankings.csv").is_file()


def test_the_sweep_pins_what_the_attackers_do():
    sweep = runpy.run_path(str(SWEEP))["get_config"]()
    cells = expand(sweep)
    assert len(cells) == 144
    assert {cell.config.attack.local.epochs for cell in cells} == {10}
    assert {cell.config.attack.local.learning_rate for cell in cells} == {0.01}
    assert {(cell.config.local.batch_size, cell.config.local.epochs) for cell in cells} == {
        (batch, epochs) for batch in (32, 64) for epochs in (1, 2, 10)
    }


def test_a_papers_table_is_drawn_beside_what_it_prints(tmp_path):
    for method, accuracy, asr in (("fedavg", 55.0, 60.0), ("spmc", 54.0, 61.0), ("dnc", 50.0, 40.0)):
        for rounds in (50, 12):
            fields = {"data__name": "cifar10", "attack__malicious_fraction": 0.3, "seed": 0}
            make_run(tmp_path / "runs" / f"{method}_{rounds}", method, accuracy, asr, rounds, **fields)
    settings, _ = group(read.read([tmp_path / "runs"]).runs)
    first, second = published.tables(settings, ["spmc2"])[:2]
    (case,) = [one for one in beside._cases(first) if any(one[1].values())]
    title, lines = case
    assert title == "CIFAR-10, γ = 0.3, β = 0.5"
    assert [name for name, _ in lines["A"]] == ["fedavg", "dnc", "spmc (Ours)"]
    assert [cell.published for _, cell in lines["R"]] == [36.12, 63.35, 80.14]
    assert [cell.estimate.mean for _, cell in lines["R"]] == [39.0, 59.0, 38.0]
    (panel,) = beside.pictures(first)
    assert len(panel.pictures) == 2
    assert [label for label, _ in panel.legend] == ["here", "the paper"]
    text = page.build([tmp_path / "runs"], tmp_path / "out", ["spmc2"], details=0).read_text(encoding="utf-8")
    parts = [text.index(f'id="{name}"') for name in ("papers", f"t-{first.name}", f"t-{second.name}", "t-settings")]
    assert parts == sorted(parts)  # the table of the other conditions stands with the papers' too
    names = re.findall('aria-label="([^"]*accuracy A beside the paper[^"]*)"', text)
    assert len(names) == len(set(names)) == 3  # with FDCR's table, whose rows averaging and DnC are too
