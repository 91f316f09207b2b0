"""Lifespans: worked by hand, against slow statements of the definitions, and in a report."""

import json
import math

import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import durability
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.report import durable, figures, read, settings
from tests import small
from tests.kept_runs import make_run

AFTER = [80.0, 60.0, 50.0, 40.0, 55.0, 30.0]
"""ASR in rounds 5 to 10; the attack's last round is 4."""


def measure(rates, thresholds=(50.0,), last=4, first_round=5):
    return durability.measure(range(first_round, first_round + len(rates)), rates, last, thresholds)


def test_lifespans_by_hand():
    assert measure(AFTER) == {
        "asr_after": 52.5,
        "lifespan_resolution": 1,
        "lifespan_last_above_50": 5,  # round 9; 50.0 itself is not above
        "lifespan_first_below_50": 2,  # rounds 5 and 6
        "lifespan_smoothed_50": 6,  # means 80, 70, 63.3, 57.5, 57, 52.5
        "censored_50": False,
    }
    assert list(measure(AFTER, (50.0, 33.5))) == durability.names((50.0, 33.5))
    during = durability.measure(range(11), [100.0] * 5 + AFTER, 4, (50.0,))
    assert during == measure(AFTER)  # what was during the attack does not count, nor is it in the mean


@pytest.mark.parametrize(
    ("rates", "values"),
    [
        ([10.0, 20.0], (0, 0, 0, False)),
        ([50.0, 50.0], (0, 0, 2, False)),
        ([90.0, 80.0, 70.0], (3, 3, 3, True)),
        ([90.0, 10.0, 70.0], (3, 1, 3, True)),
        ([10.0, 90.0, 50.0], (2, 0, 2, False)),  # means 10, 50, 50
        ([51.0], (1, 1, 1, True)),
    ],
)
def test_edges(rates, values):
    found = measure(rates)
    assert tuple(found[f"{name}_50"] for name in durability.PER_THRESHOLD) == values


@pytest.mark.parametrize(
    ("rounds", "rates", "last"),
    [
        ([0, 1, 2], [60.0, 60.0, 60.0], None),  # the attack has no end
        ([0, 1, 2], [60.0, 60.0, 60.0], 2),  # nothing was evaluated after it
        ([0, 1, 2], [60.0, 60.0, 60.0], 7),  # the run ends before it
        ([0, 1, 2], [None, None, None], 0),  # there is no ASR
        ([], [], 0),
    ],
)
def test_undefined_is_none(rounds, rates, last):
    found = durability.measure(rounds, rates, last, (50.0, 10.0))
    assert found == dict.fromkeys(durability.names((50.0, 10.0)))


def test_definitions_on_random_curves():
    rng = np.random.default_rng(0)
    for _ in range(60):
        count, last, threshold = rng.integers(1, 40), int(rng.integers(0, 5)), float(rng.integers(0, 101))
        rates = np.round(np.clip(np.cumsum(rng.normal(0, 20, count)) + 60, 0, 100), 1)
        rounds = np.arange(last + 1, last + 1 + count)
        found = durability.measure(rounds.tolist(), rates.tolist(), last, (threshold,))
        above = [r - last for r, rate in zip(rounds, rates, strict=True) if rate > threshold]
        below = [r - last - 1 for r, rate in zip(rounds, rates, strict=True) if rate <= threshold]
        means = [math.fsum(rates[max(0, i - 9) : i + 1]) / min(i + 1, 10) for i in range(count)]
        high = [r for r, mean in zip(rounds, means, strict=True) if mean >= threshold]
        assert found[durability.name_at("lifespan_last_above", threshold)] == max(above, default=0)
        assert found[durability.name_at("lifespan_first_below", threshold)] == min(below, default=count)
        assert found[durability.name_at("lifespan_smoothed", threshold)] == (high[-1] - high[0] + 1 if high else 0)
        assert found[durability.name_at("censored", threshold)] == (rates[-1] > threshold)
        # Fewer looks: the last above is at most, the first below at least, what all rounds say.
        looks = [i for i in range(count) if (rounds[i] + 1) % 3 == 0 or i == count - 1]
        fewer = durability.measure(rounds[looks].tolist(), rates[looks].tolist(), last, (threshold,))
        assert fewer[durability.name_at("lifespan_last_above", threshold)] <= max(above, default=0)
        if (rates[looks] <= threshold).any():
            assert fewer[durability.name_at("lifespan_first_below", threshold)] >= min(below)
        assert fewer["lifespan_resolution"] == max(np.diff([last, *rounds[looks]]))


@pytest.mark.parametrize("value", [(101.0,), (-1,), ("fifty",), (True,), (50, 50.0), (float("nan"),)])
def test_thresholds_that_are_no_percents_are_refused(value):
    with pytest.raises(ConfigError, match=r"evaluation.lifespan_thresholds = .* each once"):
        configs.resolve(small.config(evaluation__lifespan_thresholds=value))


def test_thresholds_become_floats():
    resolved = configs.resolve(small.config(evaluation__lifespan_thresholds=[10, np.float32(12.5)]))
    assert resolved.evaluation.lifespan_thresholds == (10.0, 12.5)
    assert configs.resolve(small.config(evaluation__lifespan_thresholds=())).evaluation.lifespan_thresholds == ()


# In a report.


def decaying(folder, rates, **fields):
    """A run whose attack ends with round 2, counted from 0."""
    make_run(folder, "fedavg", rounds=len(rates), attack__schedule__last=2, **fields)
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    changed = [line | {"ASR": rate} for line, rate in zip(lines, rates, strict=True)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))


@pytest.fixture
def grouped(tmp_path):
    """Two seeds, of which one is still above 50 % in the last round; and a setting whose attack has no end."""
    decaying(tmp_path / "a", [0.0, 90.0, 90.0, 80.0, 60.0, 40.0], seed=0)
    thresholds = {"evaluation__lifespan_thresholds": (50.0, 70.0)}
    decaying(tmp_path / "b", [0.0, 90.0, 90.0, 80.0, 80.0, 60.0], seed=1, **thresholds)
    make_run(tmp_path / "c", "krum")
    return settings.group(read.read([tmp_path]).runs)[0]


def test_a_table_of_lifespans_over_seeds(grouped):
    """Runs with other thresholds are one setting: lifespans are told for the thresholds of all."""
    table = durable.durability_table(grouped)
    (row,) = table.rows
    assert row.labels == ("fedavg, last=2",)
    found = {(table.group_of(i), name): row.cells[i] for i, name in enumerate(table.columns)}
    assert found["", "ASR after"].estimate.mean == pytest.approx((60 + 220 / 3) / 2)
    assert found["", "step"].text == "1"
    fifty, seventy = ([found[f"ASR > {theta} %", name] for name in durability.WORDS.values()] for theta in (50, 70))
    assert [(cell.estimate.mean, cell.estimate.seeds, cell.marks) for cell in fifty] == [
        (2.5, 2, "c"), (2.5, 2, "c"), (3.0, 2, "c"),
    ]  # fmt: skip
    assert [(cell.estimate.mean, cell.marks) for cell in seventy] == [(1.5, ""), (1.5, ""), (2.5, "")]
    assert [found[f"ASR > {theta} %", "censored"].text for theta in (50, 70)] == ["1 of 2", "0 of 2"]
    assert [line[0] for line in table.legend()] == ["c"]


def test_a_part_more_is_told_as_a_share_over_the_seeds_of_both(tmp_path):
    """BadNets with Neurotoxin's mask beside BadNets alone; a mask of another ratio is a line, and named, too."""
    short, long = [0.0, 90.0, 90.0, 80.0, 40.0, 40.0], [0.0, 90.0, 90.0, 80.0, 60.0, 60.0]
    for seed in (0, 1, 2):
        decaying(tmp_path / f"plain{seed}", short, seed=seed)
    for seed in (0, 1):
        both = {"attack__name": ("badnets", "neurotoxin"), "seed": seed}
        decaying(tmp_path / f"mask{seed}", long, **both)
        decaying(tmp_path / f"other{seed}", short, **both, attack__options__ratio=0.5)
    decaying(tmp_path / "elsewhere", long, attack__name=("badnets", "neurotoxin"), seed=0, local__learning_rate=0.5)
    table = durable.added_part_table(settings.group(read.read([tmp_path]).runs)[0])
    found = {row.labels[0]: row.cells for row in table.rows}
    assert len(found) == len(table.rows) == 2
    (half,) = [label for label in found if label.endswith("ratio=0.5")]
    (whole,) = [label for label in found if label.endswith("ratio=0.95")]
    for label, ratio in ((whole, 3.0), (half, 1.0)):
        assert [cell.text for cell in found[label][:2]] == ["neurotoxin", "2"]
        last_above = found[label][table.columns.index(durability.WORDS["lifespan_last_above"])]
        assert last_above.estimate[:4] == pytest.approx((ratio, ratio, ratio, 2))
        assert last_above.marks == "c" * (label == whole)


def test_a_row_without_a_folder_keeps_its_lifespans(grouped, tmp_path):
    run = grouped[0].runs[0]
    known = durability.measure(range(6), [0.0, 90.0, 90.0, 80.0, 60.0, 40.0], 2, (50.0,))
    row = {"method": "fedavg", "attack.schedule.last": 2, "status": "finished", "config_hash": "x", "seed": 0}
    row |= {"data": "cifar10", "lifespan_thresholds": [50.0], **known}
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "results.jsonl").write_text(json.dumps(row) + "\n")
    (alone,) = read.read([tmp_path / "rows"]).runs
    assert alone.durability([50.0]) == run.durability([50.0])
    assert math.isnan(alone.durability([70.0])["lifespan_last_above_70"])


def test_curves_of_asr_show_where_the_attack_ends(grouped):
    panels, _ = figures.curves(grouped)
    captions = {panel.title: [picture.caption for picture in panel.pictures] for panel in panels}
    ended = next(found for title, found in captions.items() if "last = 2" in title)
    endless = next(found for title, found in captions.items() if "last = 2" not in title)
    assert [caption for caption in ended if "last round of the attack (3)" in caption and "ASR" in caption]
    assert not [caption for caption in endless if "ASR" in caption]
    (picture,) = [one for panel in panels for one in panel.pictures if "ASR" in one.caption]
    assert picture.markup.count(figures.END_OF_ATTACK) == 1
