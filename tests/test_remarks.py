"""What must be known of a run stands wherever its numbers do, with counts that are exact over all rounds."""

import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import compare, experiment, registry, run, setup, sweep
from fedjax_spmc import config as configs
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.record import remarks
from fedjax_spmc.record.remarks import Facts, facts_of, remarks_of
from fedjax_spmc.registry import samplings
from fedjax_spmc.report import __main__ as report
from fedjax_spmc.report import overview, published, read, settings
from fedjax_spmc.types import Aggregator, Traits, Verdict
from tests import small
from tests.kept_runs import make_run

FAILING: dict[str, Any] = {
    "aggregator__name": "trusts_nobody",
    "local__rule": "sgd",
    "federation__clients_per_round": 2,
    "federation__eval_every": 2,
    "attack__malicious_fraction": 0.5,
}
FAILED_ALL = (
    "the aggregation failed in 5 of 5 rounds, in which the global model was kept: the model is the one that the run "
    "began with, and R and V show no defence."
)
GUESSES = "in the last evaluated round the model is hardly better than guessing: R and V show no defence."
BAD = np.array([False, False, False, True])
NONE_IDLE = np.zeros(4, bool)


def fields(**changed: Any) -> dict[str, Any]:
    """The small config, flat; other fields by path with `__` for the dot."""
    return configs.flatten(configs.resolve(small.config(rounds=6, **changed)))


def line(index: int, failed: int = 0, rejected: int = 0, unattacked: int | None = 0, **other: Any) -> dict[str, Any]:
    counts = {"aggregation_failed": failed, "non_finite": rejected}
    counts |= {} if unattacked is None else {"unattacked_rounds": unattacked}
    return {"round": index, "client_ids": [0, 1, 2, 3], "participating": [True] * 4, **counts, **other}


def letters(made: list[remarks.Remark]) -> str:
    return "".join(remark.letter for remark in made)


# The sentences.


def test_counts_are_summed_over_all_lines():
    lines = [line(1, 1, 3), line(3, 2, 0), line(5, 0, 4)]
    facts = facts_of(fields(), lines, BAD, np.array([True, False, False, True]))
    assert facts == Facts(6, 3, 7, 1, 2, 1, 6, 0)
    failed, rejected, idle = remarks_of(fields(), facts)
    assert failed.sentence == "the aggregation failed in 3 of 6 rounds, in which the global model was kept."
    assert rejected.sentence == "7 uploads were not finite and rejected."
    assert idle.sentence == (
        "2 of 4 clients never train, 1 of them malicious: they have fewer examples than local.batch_size = 8, with "
        "local.drop_last = True."
    )
    assert [one.ranked for one in (failed, rejected, idle)] == [False, True, True]
    (alone,) = remarks_of(fields(), facts_of(fields(), [line(5, 1)], BAD, NONE_IDLE))
    assert (alone.short, alone.ranked) == ("1 of 6 aggregations failed", True)
    assert remarks_of(fields(), facts_of(fields(), [line(5)], BAD, NONE_IDLE)) == []


def test_clients_whose_examples_make_no_batch_never_train():
    parts = [np.arange(length) for length in (9, 8, 7, 0)]
    resolved = configs.resolve(small.config())
    assert setup.idle_clients(resolved, parts).tolist() == [False, False, True, True]
    resolved.local.drop_last = False
    assert setup.idle_clients(resolved, parts).tolist() == [False, False, False, True]
    (remark,) = remarks_of(fields(local__drop_last=False), Facts(rounds_played=1, idle_clients=1))
    assert remark.sentence == "1 of 4 clients never trains: it has no examples."


THREE = {"federation__num_clients": 3, "federation__clients_per_round": 3}
DRAWN = {"federation__clients_per_round": 2}
FORCED = DRAWN | {"sampling__options__attackers": "forced"}
TWICE = {"attack__schedule__first": 1, "attack__schedule__last": 4, "attack__schedule__every": 2}
"""Rounds 1 and 3 are attack rounds."""


@pytest.mark.parametrize(
    ("changed", "malicious", "unattacked", "words", "ranked"),
    [
        (THREE, 0, 0, "attack.malicious_fraction = 0.25 makes none of 3 clients malicious: nobody", False),
        ({"attack__malicious_fraction": 0.0}, 0, 0, None, True),
        ({"attack__name": "none"}, 0, 0, None, True),
        ({"attack__schedule__first": 6}, 1, 0, "rounds is an attack round (attack.schedule.first = 6): nobody", False),
        ({}, 1, 0, None, True),
        ({}, 1, 1, "no attacker took part in 1 of 6 attack rounds.", True),
        ({}, 1, 6, "no attacker took part in 6 of 6 attack rounds: nobody attacks", False),
        (DRAWN, 1, 2, None, True),
        (DRAWN, 1, 3, "in 3 of 6 attack rounds.", True),
        (FORCED, 1, 1, "in 1 of 6 attack rounds.", True),
        (TWICE, 1, 0, None, True),
        (TWICE, 1, 1, "in 1 of 2 attack rounds.", True),
    ],
)
def test_an_attack_in_which_nobody_takes_part(changed, malicious, unattacked, words, ranked):
    flat = fields(**changed)
    facts = facts_of(flat, [line(5, unattacked=unattacked)], np.arange(4) < malicious, NONE_IDLE)
    found = remarks_of(flat, facts)
    assert letters(found) == ("" if words is None else "n")
    if words is not None:
        assert words in found[0].sentence
        assert found[0].ranked == ranked


def test_what_lines_of_older_versions_do_not_say_is_not_made_up():
    here = {"attacking": [False, False, False, True]}
    old = [line(index, unattacked=None, **here) for index in range(2)]
    old[1]["participating"] = [False, True, True, False]
    facts = facts_of(fields(), old, BAD)
    assert (facts.unattacked_rounds, facts.idle_clients) == (1, 0)
    assert facts_of(fields(federation__eval_every=2), [line(1, unattacked=None, **here)], BAD).unattacked_rounds is None
    never = [one | {"participating": [False, True, True, True]} for one in old]
    assert facts_of(fields(), never, BAD).idle_clients == 1
    bare = [{"round": 0, "A": 1.0}]
    assert facts_of(fields(), bare, BAD) == Facts(1, None, None, 1, None, None, 1, None)
    assert remarks_of(fields(), facts_of(fields(), bare, BAD)) == []
    assert remarks.facts_of_summary({"A": 1.0}) == Facts()
    assert remarks.remarks_in({"A": 1.0}) == remarks_of(fields(), Facts()) == []


def test_remarks_that_are_known_before_the_first_round_are_told_then():
    made = configs.resolve(small.config(federation__num_clients=3, federation__clients_per_round=3))
    ahead = remarks.remarks_ahead(made, np.zeros(3, bool), np.array([True, False, False]))
    assert letters(ahead) == "tn"
    assert letters(remarks.remarks_ahead(made, np.array([True, False, False]), np.zeros(3, bool))) == ""


def test_a_model_at_chance():
    """Classes count equally: one that always answers the same is at chance however many examples that class has."""
    always_the_first = [100.0, *[0.0] * 9]
    for rates, expected in (
        (always_the_first, 1),
        ([19.0] * 10, 1),
        ([19.1] * 10, 0),
        ([*[None] * 8, 54.0, 56.0], 1),
        ([55.0, 56.0], 0),
        ([2.0] * 100, 1),
        ([2.1] * 100, 0),
        ([], None),
        (None, None),
    ):
        assert remarks.at_chance({"per_class": rates}) == expected, rates
    facts = facts_of(fields(), [line(0, per_class=[90.0] * 10), line(5, per_class=always_the_first)], BAD, NONE_IDLE)
    (remark,) = remarks_of(fields(), facts)
    assert remark == ("g", "at chance", GUESSES, False)
    assert remarks.in_progress(3, 0, 0, 1) == "at chance"
    kept = remarks.with_stated(facts_of(fields(), [line(5)], BAD, NONE_IDLE), {"at_chance": 1})
    assert letters(remarks_of(fields(), kept)) == "g"


# A run in which every aggregation fails.


def trusts_nobody() -> Aggregator:
    """Filters every upload, as a threshold may that is too low."""

    def aggregate(upload, state, key):
        nothing = jnp.zeros(len(upload.participating))
        return upload.global_params, Verdict(nothing, nothing, upload.participating), state

    return Aggregator(lambda params, num_clients: (), aggregate, Traits(True, True, True, True, True))


@pytest.fixture(scope="module")
def rule():
    with registry.aggregators.temporary("trusts_nobody", trusts_nobody):
        yield


@pytest.fixture(scope="module")
def failed(rule, cache_folder, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run that went on after its third round, and what was printed meanwhile."""
    stream, folder = io.StringIO(), tmp_path_factory.mktemp("runs") / "failed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDJAX_SPMC_CACHE", str(cache_folder))
        small.share_compiled(cache_folder)
        experiment.run(small.config(rounds=3, **FAILING), folder, stream)
        experiment.run(small.config(rounds=5, **FAILING), folder, stream)
    return folder, stream.getvalue()


def test_every_round_counts_once_where_a_run_is_extended(failed):
    """The line of round 2, off the grid of evaluations, was replaced: its counts are in the next one."""
    counts = [(one["round"], one["aggregation_failed"], one["unattacked_rounds"]) for one in small.lines(failed[0])]
    made = configs.resolve(small.config(rounds=5, **FAILING))
    key = jax.random.key(made.seed)
    roster, draw = setup.roster(made, key), samplings.make("uniform")(4, 2)
    drawn = [draw(purpose_key(key, "sampling", jnp.int32(index)), roster) for index in range(5)]
    missed = [not roster.malicious[ids].any() for ids in drawn]
    assert counts == [(1, 2, sum(missed[:2])), (3, 2, sum(missed[2:4])), (4, 1, missed[4])]
    assert sum(missed) == 1
    summary = json.loads((failed[0] / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert remarks.facts_of_summary(summary) == Facts(5, 5, 0, 2, 0, 0, 5, 1, 1)
    assert [remark.sentence for remark in remarks.remarks_in(summary)] == [FAILED_ALL, GUESSES]


def test_progress_the_end_of_a_run_and_compare_say_so(failed, finished_run, capsys):
    folder, printed = failed
    assert [text.partition("  A ")[0] for text in printed.splitlines() if text.startswith("round ")] == [
        "round 2/3  2 of 2 aggregations failed, at chance",
        "round 3/3  3 of 3 aggregations failed, at chance",
        "round 4/5  4 of 4 aggregations failed, at chance",
        "round 5/5  5 of 5 aggregations failed, at chance",
    ]
    assert f"note: {FAILED_ALL}" in run.summary_text(folder).splitlines()
    assert "note: " not in run.summary_text(finished_run)
    assert compare.main([str(folder), str(finished_run)]) == 0
    _, _, bad, good, note, guesses, *_ = capsys.readouterr().out.splitlines()
    assert bad.split()[-4:] == ["5", "3", "kg", str(folder)]  # three evaluated rounds
    assert good.split()[-3:] == ["4", "4", str(finished_run)]
    assert note == f"k  {folder}: {FAILED_ALL}"
    assert guesses == f"g  {folder}: {GUESSES}"


def test_a_cell_of_a_sweep_says_the_same(failed, small_cache, tmp_path, capsys):
    stream = io.StringIO()
    (row,) = sweep.run(sweep.Sweep(small.config(rounds=5, **FAILING)), tmp_path / "sweep", stream)
    summary = json.loads((failed[0] / "summary.json").read_text())
    for name in (*Facts._fields, "remarks"):
        assert row[name] == summary[name], name
    assert f"note: {FAILED_ALL}" in stream.getvalue()
    # A row is as good as its folder, and as the single run.
    (tmp_path / "row").mkdir()
    (tmp_path / "row" / "results.jsonl").write_text(json.dumps(row | {"folder": None}) + "\n")
    runs = read.read([failed[0], tmp_path / "sweep", tmp_path / "row"]).runs
    assert [letters(one.remarks) for one in runs] == ["kg"] * 3
    assert report.main([str(tmp_path / "sweep"), f"--out={tmp_path / 'page'}"]) == 0
    capsys.readouterr()
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count(FAILED_ALL) == 4  # at the top, with the run, and in the table, which sorts by it
    assert "finished; 5 of 5 aggregations failed; at chance" in page
    assert "<sup>smkg</sup>" in page


# Tables.


def rewrite(folder: Path, **counts: int) -> None:
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one | counts) + "\n" for one in lines))


def test_a_run_that_failed_in_every_round_is_never_best(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"average{seed}", "fedavg", 60.0, seed=seed, rounds=50)
        rewrite(make_run(tmp_path / f"kept{seed}", "sageflow", 99.0, 0.0, seed=seed, rounds=50), aggregation_failed=1)
    for seed in (0, 1):
        rewrite(make_run(tmp_path / f"long{seed}", "dnc", 70.0, 30.0, seed=seed, rounds=50), non_finite=seed)
    grouped, _ = settings.group(read.read([tmp_path]).runs)
    table = next(one for one in published.tables(grouped) if one.name == "spmc2")
    shown = {row.labels[0]: row.cells for row in table.rows}
    assert [(cell.rank, cell.marks) for cell in shown["sageflow"]] == [(0, "k")] * 3
    assert [(cell.rank, cell.marks) for cell in shown["dnc"]] == [(1, "r")] * 3
    assert [(cell.rank, cell.marks) for cell in shown["fedavg"]] == [(2, "")] * 3
    assert [line.partition(":")[0] for line in table.legend()] == ["k", "r"]
    said = overview.remarks_on(grouped)
    assert said == [
        "dnc, seed 1: 50 uploads were not finite and rejected.",
        f"sageflow, seeds 0, 1: {FAILED_ALL.replace('5 of 5', '50 of 50')}",
    ]
