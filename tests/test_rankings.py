"""Rankings of methods under other settings of the clients' training, and the papers' tables as pictures."""

import itertools
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from fedjax_spmc.report import beside, page, published, rankings, read
from fedjax_spmc.report.estimates import resampling_weights
from fedjax_spmc.report.settings import group
from fedjax_spmc.sweep import expand
from tests.kept_runs import make_run

METHODS = {"fedavg": 0, "krum": 10, "median": 20, "rfa": 30}
OTHERS = {"dnc": 40}
SWEEP = Path(__file__).parent.parent / "configs" / "sweeps" / "benign_settings.py"


def made(folder: Path, rates=(0.01, 0.05), epochs=(10, 1), methods=METHODS, seeds=(0, 1), **fields):
    """Runs whose V goes up by the method; with a rate of 0.05 down, but for the first two methods, which go up."""
    for rate, number, method, seed in itertools.product(rates, epochs, methods, seeds):
        place = (METHODS | OTHERS)[method]
        gain = place if rate == 0.01 or place <= 10 else -place
        own = {"local__learning_rate": rate, "local__epochs": number, "seed": seed, **fields}
        make_run(folder / f"{rate}_{number}_{method}_{seed}", method, 60.0 + seed + gain, 50.0 - gain, 3, **own)
    return group(read.read([folder]).runs)[0]


def tau(ours, others) -> float:
    return float(rankings.kendall(np.array([ours], float), np.array([others], float))[0])


def test_kendalls_tau_by_hand():
    """Of six pairs of four methods five stand alike where one neighbouring pair is swapped."""
    assert tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    assert tau([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # tau-b: one of three pairs is tied in the second, the other two stand alike: 2 / sqrt(3 * 2).
    assert tau([1, 2, 3], [1, 2, 2]) == pytest.approx(2 / 6**0.5)
    assert np.isnan(tau([1, 1, 1], [0, 1, 2]))


def test_kendalls_tau_is_scipys():
    draws = np.random.default_rng(0).integers(0, 5, size=(2, 40, 6)).astype(float)
    expected = [kendalltau(ours, others).statistic for ours, others in zip(*draws, strict=True)]
    np.testing.assert_allclose(rankings.kendall(*draws), expected, atol=1e-12)


def test_seeds_are_drawn_in_pairs():
    """Both rank one way round with seed 0 and the other way with seed 1: in every draw of seeds they agree."""
    first = np.array([[0.0, 10, 20], [2, 1, 0]])
    other = np.array([[0.0, 30, 60], [6, 3, 0]])
    assert rankings.agreement(first, other)[:4] == (1.0, 1.0, 1.0, 2)
    turned = other[::-1]
    assert rankings.agreement(first, turned)[1:3] == (-1.0, 1.0)  # each seed alone says the opposite
    alone = rankings.agreement(first[1:], other[1:])
    assert alone.mean == 1.0
    assert not alone.interval


def test_methods_that_are_alike_to_the_bit_are_tied_in_every_draw():
    values = np.random.default_rng(1).normal(50, 10, size=(10, 6))
    values[:, 4] = values[:, 1]
    found = rankings.agreement(values, np.tile(np.arange(6.0), (10, 1)))
    draws = rankings.kendall(resampling_weights(10) @ values, np.tile(np.arange(6.0), (2000, 1)))
    assert set(np.round(draws * np.sqrt(14 * 15)).astype(int) % 2) == {0}  # 14 pairs that are not tied, an even sum
    assert found.interval


def test_it_stands_where_three_methods_share_two_settings(tmp_path):
    settings = made(tmp_path)
    (family,) = rankings.families(settings)
    assert family.methods == list(METHODS)
    assert family.conditions[0] == "epochs=10, learning_rate=0.01"  # the papers' own comes first
    assert len(family.conditions) == 4
    (table,) = rankings.rankings_tables(settings)
    taus = {row.labels[0]: row.cells[-1].estimate.mean for row in table.rows}
    assert np.isnan(taus.pop("epochs=10, learning_rate=0.01"))
    # V goes up with 0.01; with 0.05 it is 55.25, 65.25, 35.25, 25.25: of six pairs only the first stands alike.
    expected = {"epochs=1, learning_rate=0.01": 1.0}
    expected |= dict.fromkeys(("epochs=10, learning_rate=0.05", "epochs=1, learning_rate=0.05"), (1 - 5) / 6)
    assert taus == pytest.approx(expected)
    v = [cell.estimate.mean for cell in table.rows[0].cells[1:-1]]
    assert v == pytest.approx([55.25, 65.25, 75.25, 85.25])
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


def test_a_line_with_too_few_methods_is_left_out(tmp_path):
    made(tmp_path, epochs=(10,))
    (family,) = rankings.families(made(tmp_path, rates=(0.01,), epochs=(5,), methods=("fedavg", "krum")))
    assert (family.methods, len(family.conditions)) == (list(METHODS), 2)


def test_what_is_never_ranked_ranks_nobody(tmp_path):
    """An oracle's averaging, and a run at chance whose R is 100."""
    made(tmp_path, methods=("krum", "median", "rfa"), epochs=(10,))
    made(tmp_path, methods=("fedavg",), epochs=(10,), aggregator__options__oracle_weights=True)
    made(tmp_path / "more", methods=("dnc",), epochs=(10,))
    for path in (tmp_path / "more").glob("*/metrics.jsonl"):
        lines = [json.loads(line) | {"per_class": [10.0] * 10} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = group(read.read([tmp_path]).runs)[0]
    (family,) = rankings.families(settings)
    assert family.methods == ["krum", "median", "rfa"]


def test_families_are_told_apart(tmp_path):
    for index, fraction in enumerate((0.2, 0.3)):
        made(tmp_path / "runs" / str(index), epochs=(10,), attack__malicious_fraction=fraction)
    text = page.build([tmp_path / "runs"], tmp_path / "out", details=0).read_text(encoding="utf-8")
    tables = [text.index(f'id="t-rankings{number}"') for number in ("", "2")]
    pictures = [found.start() for found in re.finditer('aria-label="V of each method', text)]
    assert tables[0] < pictures[0] < tables[1] < pictures[1]
    for fraction in (0.2, 0.3):
        assert len(re.findall(f"<p>All with data=[^<]*γ={fraction}[^<]*</p>", text)) == 1
        assert len(re.findall(f'aria-label="V of each method[^"]*γ={fraction}', text)) == 1


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
