"""Predictions below a confidence are rejected: off histograms, at any threshold of the grid, also afterwards."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import attacks, compare, evaluate, evaluation, experiment, metrics, run, sweep
from fedjax_spmc import config as configs
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.data.task import task_of
from fedjax_spmc.errors import ConfigError, WorkdirError
from fedjax_spmc.evaluation import BINS
from fedjax_spmc.record.lines import at_confidence
from fedjax_spmc.report import durable, history, read, settings
from fedjax_spmc.sweep.table import Outcome, Table
from fedjax_spmc.types import AttackContext, Examples, Model, Roster, Variables
from tests import small

pytestmark = pytest.mark.usefixtures("small_cache")

GRID = [index / BINS for index in range(BINS)]


def accepted(tops: np.ndarray, mask: np.ndarray, tau: float) -> int:
    """By comparison, in float32."""
    return int((mask & (tops >= np.float32(tau))).sum())


def binned(tops: np.ndarray, *masks: np.ndarray) -> list[np.ndarray]:
    return jax.device_get(jax.jit(evaluation.histograms)(jnp.asarray(tops), [jnp.asarray(mask) for mask in masks]))


def test_the_sum_from_a_bin_on_is_what_its_threshold_accepts():
    rng = np.random.default_rng(0)
    edges = np.array(GRID, np.float32)
    tops = np.concatenate([rng.random(2000), edges, np.nextafter(edges, 0), np.nextafter(edges, 1), [1.0]])
    tops = np.clip(tops, 0, 1).astype(np.float32)
    mask = rng.random(len(tops)) < 0.5
    everything, some = binned(tops, np.ones(len(tops), bool), mask)
    assert everything.shape == (BINS,)
    assert everything.dtype == np.int32
    for index, tau in enumerate(GRID):
        assert everything[index:].sum() == accepted(tops, np.ones(len(tops), bool), tau)
        assert some[index:].sum() == accepted(tops, mask, tau)


def test_a_probability_that_is_not_a_number_is_rejected_by_all_but_zero():
    logits = jnp.array([[jnp.inf, jnp.inf, 0.0], [jnp.nan, 0.0, 0.0], [0.0, 0.0, 0.0], [100.0, 0.0, 0.0]])
    (found,) = binned(jax.jit(evaluation.top_probability)(logits), np.ones(4, bool))
    assert {int(index): int(found[index]) for index in np.flatnonzero(found)} == {0: 2, 33: 1, 99: 1}


def test_the_authors_evaluation_with_rejection(shared):
    """FLIP's code on forty images: accuracy with tau, and how many are right whatever tau is."""
    with np.load(shared / "golden" / "flip_misc.npz") as golden:
        logits, labels = golden["reject/logits"], golden["reject/labels"]
        tops, predicted = np.asarray(jax.jit(evaluation.top_probability)(logits)), np.argmax(logits, axis=-1)
        masks = [np.ones(40, bool), predicted == labels, np.ones(40, bool), predicted == 2]
        masks += [masks[2] & (labels != 2), masks[3] & (labels != 2)]
        kept = dict(zip(evaluation.Histograms._fields, binned(tops, *masks), strict=True))
        for tau in (0.0, 0.2, 0.4, 0.9):
            values = metrics.judged(kept, tau, backdoor=True)
            for name, (percent, any_percent) in {
                "clean": (values["A"], values["A_without_rejection"]),
                "poison_target2": (values["ASR_all"], 100 * masks[3].sum() / 40),
            }.items():
                _, accuracy, ignoring, correct, total = golden[f"reject/tau{tau}/{name}"]
                assert percent == pytest.approx(accuracy)
                assert percent == pytest.approx(100 * correct / total)
                assert any_percent == pytest.approx(100 * ignoring / total)
            others = labels != 2
            hits = accepted(tops, masks[3] & others, tau)
            assert values["ASR"] == pytest.approx(100 * hits / others.sum())
            rejected = 40 - accepted(tops, masks[0], tau)
            assert values["rejected_clean"] == pytest.approx(100 * rejected / 40)


@pytest.fixture(scope="module")
def counted():
    """Counts of 777 images under a model that reads class and sureness off two pixels, and what they are by hand."""

    def apply(params, stats, images, train, key):
        shown = jnp.round(images[:, 5, 5, 0] * 3 + images[:, 0, 0, 0] * 9).astype(jnp.int32)
        return jax.nn.one_hot(shown, 4) * (4 * images[:, 7, 7, 1:2]), stats

    task = task_of(DatasetInfo("made up", 4, (8, 8, 3), (0.0,) * 3, (1.0,) * 3))
    model = Model(lambda key: Variables({}, {}), apply, (), 4, task.input)
    attack = attacks.make("badnets", positions=((0, 0, 0),), value=0.0, target_label=2)
    roster = Roster(jnp.zeros(1, bool), jnp.int32(0), jnp.int32(0), jnp.int32(0))
    own = attack.init(AttackContext(task=task, roster=roster), jax.random.key(0))
    rng = np.random.default_rng(0)
    labels, shown, sure = rng.integers(0, 4, 777), rng.integers(0, 4, 777), rng.integers(1, 256, 777)
    images = np.zeros((777, 8, 8, 3), np.uint8)
    images[:, 5, 5, 0], images[:, 7, 7, 1] = shown * 85, sure
    evaluate_model = evaluation.make_evaluate(model, attack, task)
    counts = evaluate_model(
        Variables({}, {}), Examples(jnp.asarray(images), jnp.asarray(labels, jnp.int32)), roster, own
    )
    tops = 1 / (1 + 3 * np.exp(-4 * sure / 255))
    return jax.device_get(counts), labels, shown, tops


def test_rates_at_every_threshold_by_hand(counted):
    counts, labels, shown, tops = counted
    kept = counts.histograms._asdict()
    for tau in GRID:
        if np.abs(tops - tau).min() < 1e-6:  # within rounding of the threshold
            continue
        values, sure, others = metrics.judged(kept, tau, backdoor=True), tops >= tau, labels != 2
        assert values["A"] == pytest.approx(100 * (sure & (shown == labels)).mean())
        assert values["ASR_all"] == pytest.approx(100 * (sure & (shown == 2)).mean())
        assert values["ASR"] == pytest.approx(100 * (sure & (shown == 2))[others].mean())
        assert values["rejected_clean"] == pytest.approx(100 * (~sure).mean())
        assert values["rejected_triggered"] == pytest.approx(100 * (~sure)[others].mean())
        assert values["V"] == pytest.approx((values["A"] + 100 - values["ASR"]) / 2)
        assert values["A_without_rejection"] == pytest.approx(100 * (shown == labels).mean())
        assert values["ASR_without_rejection"] == pytest.approx(100 * (shown == 2)[others].mean())


def test_zero_accepts_everything_exactly(counted):
    counts, *_ = counted
    bare = counts._replace(histograms=None)
    assert metrics.percentages(counts, True, 0.0) == metrics.percentages(bare, True)
    for name in ("triggered", "hits", "triggered_others", "hits_others"):
        assert getattr(counts.histograms, name).sum() == getattr(counts, name)
    assert counts.histograms.clean.sum() == counts.asked.sum()
    assert counts.histograms.correct.sum() == counts.correct.sum()


# Runs.


def test_another_confidence_on_a_finished_run(finished_run, tmp_path, capsys):
    """Lines, summary and evaluation follow; back at 0 everything is as it was."""
    folder = Path(shutil.copytree(finished_run, tmp_path / "copied", ignore=shutil.ignore_patterns("tensorboard")))
    before, summary = small.lines(folder), (folder / "summary.json").read_text()
    result = experiment.run(small.config(evaluation__confidence=0.13), folder)
    lines = small.lines(folder)
    assert [small.without_times(line) for line in result.history] == lines
    assert lines != before
    for line, old in zip(lines, before, strict=True):
        assert line == at_confidence(old, 0.13)
        assert line["A_without_rejection"] == old["A"]
        assert line["A"] == 100 * sum(old["histograms"]["correct"][13:]) / sum(old["histograms"]["clean"])
    found = json.loads((folder / "summary.json").read_text())
    assert found["A"] == pytest.approx(np.mean([line["A"] for line in lines]))
    assert found["rejected_clean_last"] == lines[-1]["rejected_clean"] > 0
    assert json.loads((folder / "config.json").read_text())["evaluation"]["confidence"] == 0.13
    assert "rejected below evaluation.confidence = 0.13: " in run.summary_text(folder)
    assert evaluate.main([str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {name: lines[-1][name] for name in printed}
    assert compare.main([str(folder)]) == 0
    assert "evaluation.confidence = 0.13, predictions below are rejected." in capsys.readouterr().out
    (one,) = settings.group(read.read([folder]).runs)[0]
    (row,) = durable.rejection_table([one]).rows
    assert row.cells[1].text == "0.13"
    assert row.cells[2].estimate.mean == pytest.approx(found["A"])
    experiment.run(small.config(), folder)
    assert small.lines(folder) == before
    assert (folder / "summary.json").read_text() == summary


def test_lines_without_histograms_keep_their_confidence(finished_run, tmp_path):
    folder = Path(shutil.copytree(finished_run, tmp_path / "copied", ignore=shutil.ignore_patterns("tensorboard")))
    later = {"confidence", "histograms", "unattacked_rounds", *metrics.REJECTION}
    lines = [
        {name: value for name, value in json.loads(text).items() if name not in later}
        for text in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match=r"evaluation.confidence = 0.2 .*must be 0.0"):
        experiment.run(small.config(evaluation__confidence=0.2), folder)
    experiment.run(small.config(), folder)
    assert json.loads((folder / "summary.json").read_text())["A_without_rejection"] is None
    (old,) = read.read([folder]).runs
    assert np.isnan(old.numbers["rejected_clean"])
    assert history.over_confidence(old.lines[-1]) == {}


@pytest.mark.parametrize("value", [0.125, 1.0, -0.01, True, float("nan")])
def test_a_confidence_off_the_grid_is_refused(value):
    with pytest.raises(ConfigError, match=r"evaluation.confidence = .*\[0, 0.99\] \(a multiple of 0.01"):
        configs.resolve(small.config(evaluation__confidence=value))
    for tau in (0, 0.07, 0.29, 0.57, 0.99):
        assert configs.resolve(small.config(evaluation__confidence=tau)).evaluation.confidence == tau


def test_rows_of_a_sweep_follow(finished_run, tmp_path):
    result, environment = experiment.load(finished_run), json.loads((finished_run / "environment.json").read_text())
    summary, roster = (json.loads((finished_run / f"{name}.json").read_text()) for name in ("summary", "roster"))
    made = sweep.Sweep(small.config())
    (cell,) = sweep.expand(made)
    table = Table(tmp_path / "sweep")
    table.begin()
    table.record(Outcome(cell, summary, environment, result.history, result.variables, roster))
    table.close()
    first = (tmp_path / "sweep" / "results.jsonl").read_text()
    assert sweep.run(made, tmp_path / "sweep") == [json.loads(first)]
    assert (tmp_path / "sweep" / "results.jsonl").read_text() == first
    other = sweep.Sweep(small.config(evaluation__confidence=0.13, evaluation__lifespan_thresholds=(10.0,)))
    (row,) = sweep.run(other, tmp_path / "sweep")
    assert (row["confidence"], row["lifespan_thresholds"], row["config_hash"]) == (0.13, [10.0], cell.id)
    assert "lifespan_last_above_10" in row
    assert "lifespan_last_above_50" not in row
    lines = [at_confidence(line, 0.13) for line in result.history]
    assert row["A"] == metrics.summarise(lines)["A"] < summary["A"]
    folder = tmp_path / "sweep" / row["folder"]
    assert experiment.load(folder).history == lines
    assert json.loads((folder / "summary.json").read_text())["A"] == row["A"]
    assert json.loads((tmp_path / "sweep" / "results.jsonl").read_text()) == row
    (again,) = sweep.run(made, tmp_path / "sweep")
    assert again == json.loads(first)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(WorkdirError, match=r"rows with evaluation.confidence = 0.0, but not the lines"):
        sweep.run(other, tmp_path / "sweep")


def test_a_sweep_over_what_may_change_afterwards_is_refused():
    with pytest.raises(ConfigError, match=r"evaluation.confidence may change on a finished run and cannot be swept"):
        sweep.expand(sweep.Sweep(small.config(), {"evaluation.confidence": [0.0, 0.4]}))


def test_all_thresholds_are_read_off_a_line(finished_run):
    line = experiment.load(finished_run).history[-1]
    found = history.over_confidence(line)
    assert found["A"][0] == line["A"]
    assert found["ASR"][0] == line["ASR"]
    assert (np.diff(found["A"]) <= 0).all()
    assert (np.diff(found["rejected_triggered"]) >= 0).all()
    assert found["confidence"].tolist() == GRID
