"""The report: what it finds, its numbers, the papers' layouts, what it refuses."""

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedjax_spmc.report import __main__ as command
from fedjax_spmc.report import anchor, fields, figures, matrix, overview, published, read, settings, tables
from fedjax_spmc.report.estimates import RESAMPLES, Estimate, bootstrap, estimate, share
from fedjax_spmc.report.tables import BEST, SECOND
from tests.kept_runs import config_of, line_of, make_run

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "experiments" / "results"


def report(capsys, *arguments: str, code: int = 0) -> str:
    """Runs the command; returns what it said, on a refusal the one sentence."""
    capsys.readouterr()
    assert command.main(list(arguments)) == code
    out, err = capsys.readouterr()
    if code:
        assert out == ""
        assert len(err.splitlines()) == 1, err
        assert err.rstrip().endswith(".")
        return err
    assert err == ""
    return out


def grouped(*folders: Path) -> list[settings.Setting]:
    return settings.group(read.read(list(folders)).runs)[0]


def page_of(folder: Path) -> str:
    return (folder / "index.html").read_text()


def cells(folder: Path, table: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """(method, group, column) -> the row of the CSV."""
    with (folder / "tables" / f"{table}.csv").open() as stream:
        return {(row["method"], row["group"], row["column"]): row for row in csv.DictReader(stream)}


# Numbers.


def test_an_interval_is_the_percentile_bootstrap_of_the_mean():
    values = np.random.default_rng(1).normal(50, 5, size=(20, 2))
    low, high = bootstrap(values)
    draws = np.random.default_rng(0).integers(20, size=(RESAMPLES, 20))
    expected = np.quantile(values[draws].mean(axis=1), (0.025, 0.975), axis=0)
    np.testing.assert_allclose([low, high], expected)
    assert estimate([3.0, math.nan]) == pytest.approx(Estimate(3.0, math.nan, math.nan, 1), nan_ok=True)
    assert not estimate([]).known


def test_a_share_of_another_mean_is_drawn_in_pairs_of_seeds():
    values, others = np.array([2.0, 8.0, 3.0]), np.array([1.0, 4.0, 1.5])
    assert share(values, others)[:4] == pytest.approx((2.0, 2.0, 2.0, 3))
    found = share(values, others[::-1])
    draws = np.random.default_rng(0).integers(3, size=(RESAMPLES, 3))
    ratios = values[draws].mean(axis=1) / others[::-1][draws].mean(axis=1)
    assert found[:3] == pytest.approx((2.0, *np.quantile(ratios, (0.025, 0.975))))
    assert not share(values, np.zeros(3)).known
    assert not share(np.array([1.0, math.nan]), np.ones(2)).known
    assert share(values, np.array([0.0, 1.0, 1.0])).mean == pytest.approx(6.5)
    assert not share(values, np.array([0.0, 1.0, 1.0])).interval


def test_best_are_all_whose_intervals_overlap_the_best_one():
    def cell(mean: float, half: float, allowed: bool = True) -> tuple[Estimate, bool]:
        return Estimate(mean, mean - half, mean + half, 3), allowed

    single = (Estimate(99.0, math.nan, math.nan, 1), True)
    column = [cell(80, 3), cell(75, 3), cell(70, 1), cell(68.5, 1), cell(60, 1), cell(90, 1, allowed=False), single]
    assert tables.ranks(column) == [BEST, BEST, SECOND, SECOND, 0, 0, 0]
    assert tables.ranks([cell(80, 3), single]) == [0, 0]


def test_means_are_over_seeds_and_the_last_five_rounds(tmp_path):
    for seed, accuracy in enumerate((50.0, 60.0, 70.0)):
        make_run(tmp_path / f"s{seed}", accuracy=accuracy, seed=seed)
    lines = (tmp_path / "s0" / "metrics.jsonl").read_text().splitlines()
    lines[0] = json.dumps(line_of(0, 0.0, 0.0))  # before the last five
    (tmp_path / "s0" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (one,) = grouped(tmp_path)
    assert one.estimate("A").mean == 60
    assert one.estimate("A").seeds == 3
    assert (one.estimate("A").low, one.estimate("A").high) == (50, 70)
    assert one.estimate("tpr_run").mean == 50
    assert one.estimate("fpr_run").mean == 0
    assert one.marks() == ""
    rounds, mean, low, _ = one.curve("A")
    assert list(rounds) == [1, 2, 3, 4, 5, 6]
    assert mean[0] == pytest.approx(130 / 3)
    assert low[0] == 0


def test_unfinished_runs_count_only_where_nothing_else_does(tmp_path):
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1, accuracy=10.0, played=3)
    make_run(tmp_path / "c", "krum", seed=0, accuracy=30.0, played=2)
    make_run(tmp_path / "d", "median", seed=0, summary={"status": "diverged", "diverged_round": 3})
    fedavg, krum, median = sorted(grouped(tmp_path), key=lambda one: settings.method_of(one.config))
    assert (fedavg.estimate("A").mean, fedavg.marks()) == (60, "sx")
    assert (krum.estimate("A").mean, krum.marks()) == (30, "su")
    assert (median.estimate("A").known, median.marks()) == (False, "f")
    assert overview.rounds_played(krum) == "2 of 6"


def test_a_run_that_was_found_twice_counts_once(tmp_path):
    make_run(tmp_path / "whole", seed=0)
    make_run(tmp_path / "part", seed=0, played=2, accuracy=1.0)
    found = read.read([tmp_path, tmp_path / "whole"])
    assert len(found.runs) == 2
    (one,), (note,) = settings.group(found.runs)
    assert [run.folder for run in one.runs] == [tmp_path / "whole"]
    assert "same experiment" in note


def test_attacks_against_methods_are_a_heat_map(tmp_path):
    """A line per attack, a column per method; conditions of its own make no part of it, nor does a lone attack."""
    under = {"attack__malicious_fraction": 0.3, "attack__schedule__last": 3}
    for attack in ("badnets", "dba"):
        for method, asr in (("fedavg", 80.0), ("spmc", 20.0)):
            for seed in (0, 1):
                folder = tmp_path / attack / f"{method}{seed}"
                make_run(folder, method, asr=asr + 10 * seed, attack__name=attack, seed=seed, **under)
    make_run(tmp_path / "alone", "fedavg", attack__name="alie", partition__beta=0.1, **under)
    ends = tmp_path / "dba" / "fedavg0" / "metrics.jsonl"
    lines = [json.loads(line) for line in ends.read_text().splitlines()]
    lines[3]["ASR"], lines[5]["ASR"] = 60.0, 10.0
    ends.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = {one.name: one for one in matrix.matrix_tables(grouped(tmp_path))}
    assert list(made) == [f"matrix_{name}" for name in matrix.QUANTITIES]
    asr = made["matrix_asr_end"]
    assert asr.columns == ["fedavg", "spmc"]
    assert [row.labels for row in asr.rows] == [("badnets",), ("dba",)]
    assert [[cell.estimate.mean for cell in row.cells] for row in asr.rows] == [[85, 25], [75, 25]]
    heats = [[cell.heat for cell in row.cells] for row in asr.rows]
    assert heats == [[1, 0], [pytest.approx(5 / 6), 0]]  # over the range of the table
    assert asr.rows[0].cells[0].interval() == "[80.0, 90.0]"
    assert made["matrix_asr_later"].rows[1].cells[0].estimate.mean == 50
    assert made["matrix_tpr"].rows[0].cells[0].estimate.mean == 50


def test_a_matrix_names_options_that_differ(tmp_path):
    for attack in ("badnets", "dba"):
        for fraction in (0.1, 0.5):
            for method in ("fedavg", "krum"):
                folder = tmp_path / f"{attack}{fraction}{method}"
                make_run(folder, method, attack__name=attack, attack__poison_fraction=fraction)
    shutil.rmtree(tmp_path / "dba0.1fedavg")
    (found,) = matrix.matrices(grouped(tmp_path))
    assert found.attacks == [f"{name}, poison_fraction={f}" for name in ("badnets", "dba") for f in (0.1, 0.5)]
    table = matrix.matrix_tables(grouped(tmp_path))[0]
    assert not table.rows[2].cells[found.methods.index("fedavg")].estimate.known


def test_detection_is_told_by_thirds_of_the_run(tmp_path):
    folder = make_run(tmp_path / "flags")
    lines = [line_of(index, 60.0, 40.0) for index in range(6)]
    flags = {0: range(7, 10), 1: range(7, 10), 2: [], 3: [0, 9], 4: range(7), 5: range(7)}
    for index, line in enumerate(lines):
        line["flagged"] = [k in flags[index] for k in range(10)]
        line["auc"] = index / 5
    lines[5]["participating"] = [k > 0 for k in range(10)]  # who did not take part does not count
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    nobody = make_run(tmp_path / "nobody", "krum")
    quiet = [line | {"flagged": [False] * 10} for line in lines]
    (nobody / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in quiet))
    table = overview.detection_table(grouped(tmp_path))
    (row,) = table.rows
    found = {
        (table.group_of(i), name): cell.estimate.mean
        for i, (name, cell) in enumerate(zip(table.columns, row.cells, strict=True))
    }
    expected = {
        "TPR": (100 * 7 / 18, 100, 100 / 6, 0),
        "FPR": (100 * 14 / 41, 0, 100 / 14, 100),
        "AUC": (0.5, 0.1, 0.5, 0.9),
    }
    for group, values in expected.items():
        for name, value in zip(("run", "first", "middle", "last"), values, strict=True):
            assert found[group, name] == pytest.approx(value), (group, name)
    assert found["rounds", "perfect"] == pytest.approx(100 / 3)
    assert [one.name for one in overview.tables(grouped(nobody))] == ["main", "settings", "runs"]
    never = make_run(tmp_path / "never" / "run", "rfa")  # an old run of it flagged nobody, as it never does
    (never / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in quiet))
    for folder, shown in ((nobody, "0.00"), (never, "–")):
        table = overview.settings_table(grouped(folder))
        assert table.columns[-4:-2] == ["TPR", "FPR"]
        assert [cell.value() for cell in table.rows[0].cells[-4:-2]] == [shown] * 2


# What is found.


def test_lines_of_older_versions_and_half_written_ones_are_read(tmp_path):
    folder = make_run(tmp_path / "old", old=True)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('\nnull\n{"round": "x"}\n{"round": 7, "client_ids": [99]}\n{"round": 6, "A": 6')
    (run,) = read.read([folder]).runs
    assert len(run.lines) == 6
    assert run.numbers["tpr_run"] == 50
    assert math.isnan(run.numbers["auc"])


def test_broken_folders_are_named_and_the_rest_is_shown(tmp_path, capsys):
    make_run(tmp_path / "runs" / "good")
    for name, content in (("text", "{"), ("list", "[]"), ("field", '{"federation": {"num_clients": "many"}}')):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "config.json").write_text(content)
    report(capsys, str(tmp_path / "runs"), f"--out={tmp_path / 'out'}")
    text = page_of(tmp_path / "out")
    assert "1 run in 1 setting" in text
    assert all(f"{name}/config.json is damaged" in text for name in ("text", "list", "field"))


def test_an_empty_run_and_a_sweep_without_rows_give_a_page(tmp_path, capsys):
    make_run(tmp_path / "runs" / "started", played=0)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "results.jsonl").write_text("")
    report(capsys, str(tmp_path / "runs"), str(tmp_path / "sweep"), f"--out={tmp_path / 'out'}")
    assert "1 run in 1 setting: 1 unfinished" in page_of(tmp_path / "out")
    assert "0 of 6" in page_of(tmp_path / "out")
    assert "holds no run yet" in page_of(tmp_path / "out")
    report(capsys, str(tmp_path / "sweep"), f"--out={tmp_path / 'out'}")
    assert "No run has left anything yet" in page_of(tmp_path / "out")


def test_rows_of_a_sweep_stand_for_cells_that_have_no_folder(tmp_path):
    sweep = tmp_path / "sweep"
    make_run(sweep / "cells" / "aa", "krum", attack__malicious_fraction=0.2)
    common = {"data": "cifar10", "seed": 0, "commit": None, "versions": {}, "fingerprint": "f", "rounds": 6}
    rows = [
        {"method": "krum", "attack.malicious_fraction": 0.2, "status": "finished", "config_hash": "aa"}
        | common
        | {"folder": "cells/aa", "A": 1.0},
        {"method": "spmc", "attack.malicious_fraction": 0.3, "status": "failed", "error": "no memory"}
        | common
        | {"config_hash": "bb", "folder": None},
        {"method": "fedavg", "attack.malicious_fraction": 0.3, "status": "finished", "A": 12.5, "R_all": 50.0}
        | common
        | {"config_hash": "cc", "folder": "cells/gone"},
    ]
    (sweep / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"half')
    by_method = {settings.method_of(run.config): run for run in read.read([sweep]).runs}
    assert by_method["krum"].numbers["A"] == 60
    assert (by_method["spmc"].status, by_method["spmc"].error) == ("failed", "no memory")
    assert by_method["spmc"].config["attack.poison_fraction"] == 0.5
    assert by_method["fedavg"].numbers["A"] == 12.5
    assert by_method["fedavg"].config["attack.malicious_fraction"] == 0.3


def test_who_was_malicious_is_read_and_not_drawn_anew(tmp_path):
    folder = make_run(tmp_path / "run", attack__placement="random", seed=5)
    content = json.loads((folder / "roster.json").read_text())
    (folder / "roster.json").write_text(json.dumps(content | {"malicious": [1, 4, 6]}))
    (run,) = read.read([folder]).runs
    assert np.flatnonzero(run.malicious).tolist() == [1, 4, 6]
    (folder / "roster.json").unlink()
    other = make_run(tmp_path / "other")
    (run,) = read.read([folder, other]).runs
    assert run.folder == other


# The papers' tables.


def test_published_figures_have_a_row_in_every_layout():
    for name, layout in published.LAYOUTS.items():
        assert {row for row, _ in published.published_numbers(name)} == set(layout.rows)
    assert published.published_numbers("spmc2")["Ours (SPMC)", ("cifar10", 0.5, 0.3)] == (65.83, 80.14, 72.98)
    assert published.published_numbers("fdcr4")["FDCR", ("usps", 0.3, 0.2)] == (95.63, 90.51, 93.07)
    assert sum(len(published.published_numbers(name)) for name in published.LAYOUTS) == 266


def test_every_row_of_every_table_is_what_its_sweep_plays():
    from fedjax_spmc.config.files import call_config
    from fedjax_spmc.sweep import expand

    files = {"spmc2": ["spmc_table2"], "fdcr1": ["fdcr_table1"], "fdcr2": ["fdcr_table2"]}
    files |= {"fdcr3": ["fdcr_table3", "fdcr_table3.py:fedavg"], "fdcr4": ["fdcr_table4"]}
    for name, texts in files.items():
        seen = set()
        for text in texts:
            path = f"{ROOT}/configs/sweeps/{text}" + ("" if ".py" in text else ".py")
            made = call_config(path)[0]
            narrow = {"data.name": made.grid["data.name"][:1], "attack.malicious_fraction": [0.3]}
            narrow |= {"partition.beta": [0.5]} if "partition.beta" in made.grid else {}
            for cell in expand(made._replace(grid={**made.grid, **narrow}, seeds=(0,))):
                from fedjax_spmc import config as configs

                config = fields.with_defaults(configs.to_plain(configs.with_chosen_options(cell.config)))
                assert published.conditions_of(config) == {}
                row = published.row_of(name, config)
                assert row is not None, cell.fields
                assert (row, published.case_of(config)) in published.published_numbers(name)
                seen.add(row)
        assert seen == set(published.LAYOUTS[name].rows)


def test_a_papers_table_shows_what_was_run_beside_the_published_figures(tmp_path, capsys):
    for seed in (0, 1):
        make_run(tmp_path / "runs" / f"avg{seed}", "fedavg", 60.0 + seed, seed=seed, rounds=50)
        make_run(tmp_path / "runs" / f"spmc{seed}", "spmc", 70.0 + seed, seed=seed, rounds=50, note="decoded from JPEG")
    make_run(tmp_path / "runs" / "dnc", "dnc", 99.0, rounds=50)
    leak = {"aggregator__options__oracle_fisher_noise": True}
    make_run(tmp_path / "runs" / "leak", "fdcr", 98.0, rounds=50, **leak)
    make_run(tmp_path / "runs" / "short", "rfa", 97.0, rounds=49)
    report(capsys, str(tmp_path / "runs"), f"--out={tmp_path / 'out'}", "--tables=fdcr4")
    found = cells(tmp_path / "out", "spmc2")
    ours = found["spmc (Ours)", "CIFAR-10", "A"]
    assert (float(ours["mean"]), float(ours["published"])) == (70.5, 65.83)
    assert float(ours["difference"]) == pytest.approx(4.67)
    assert (ours["marks"], ours["rank"], ours["seeds"]) == ("j", "1", "2")
    assert found["fedavg", "CIFAR-10", "A"]["rank"] == "2"
    assert (found["dnc", "CIFAR-10", "A"]["rank"], found["dnc", "CIFAR-10", "A"]["marks"]) == ("", "s")
    assert found["rfa", "CIFAR-10", "A"]["mean"] == ""  # one round fewer than the paper's is another setting
    assert ("spmc (Ours)", "MNIST", "A") not in found
    assert not any("oracle" in row for row, *_ in found)
    (beside,) = (tmp_path / "out" / "tables").glob("fdcr4_2.md")
    assert beside.read_text().startswith("## FDCR, Table 4, beside runs under other settings")
    assert not list((tmp_path / "out" / "tables").glob("spmc2_*"))
    leaked = next(row for key, row in cells(tmp_path / "out", "fdcr4").items() if "oracle" in key[0] and key[2] == "A")
    assert set(leaked["marks"]) == set("os")
    assert leaked["published"] == ""
    text = (tmp_path / "out" / "tables" / "spmc2.md").read_text()
    assert "Run under the paper's settings; seeds 0, 1." in text
    assert "**70.50**<sup>j</sup> [70.00, 71.00] (paper 65.83, +4.67)" in text
    latex = (tmp_path / "out" / "tables" / "spmc2.tex").read_text()
    assert latex.count(r"\begin{") == latex.count(r"\end{")
    assert r"\textbf{70.50}\textsuperscript{j}" in latex
    assert not re.search(r"(?<!\\)[_%&#](?![^\n]*\\\\)[a-z]", latex.split(r"\midrule")[1].split(r"\bottomrule")[0])


def test_other_conditions_and_variants_are_told_apart():
    plain = fields.with_defaults(config_of("spmc", federation__rounds=12))
    assert published.conditions_of(plain) == {"federation.rounds": 12}
    assert published.row_of("spmc2", plain) == "Ours (SPMC)"
    variant = fields.with_defaults(config_of("spmc", local__options__align="benign"))
    assert published.row_of("spmc2", variant) is None
    reference = fields.with_defaults(config_of("fedavg,reference"))
    assert settings.variant_of(reference) == "reference"
    assert "local.epochs" not in published.conditions_of(reference)  # one epoch is the code's averaging
    dnc = fields.with_defaults(config_of("dnc,reference"))
    assert published.conditions_of(reference) == published.conditions_of(dnc)
    assert published.row_of("spmc2", reference) == "FedAvg"
    halves = fields.with_defaults(config_of("spmc", aggregator__name="mean", aggregator__options={}))
    assert settings.method_of(halves) == "spmc + mean"
    other = fields.with_defaults(config_of("fedavg", attack__name="dba", attack__options={}))
    assert published.row_of("spmc2", other) is None


# What is refused.


def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    out = f"--out={tmp_path / 'out'}"
    assert "no folder is given" in report(capsys, out, code=2)
    assert "missing" in report(capsys, str(tmp_path / "missing"), out, code=2)
    assert "holds no run" in report(capsys, str(tmp_path / "nothing"), out, code=2)
    assert "no flag" in report(capsys, str(run), "--format=pdf", code=2)
    assert "needs a value" in report(capsys, str(run), "--out=", code=2)
    assert "--details" in report(capsys, str(run), "--details=few", code=2)
    assert "spmc2" in report(capsys, str(run), "--tables=spmc7", code=2)
    assert "no report" in report(capsys, str(run), f"--out={tmp_path / 'mine'}", code=2)
    assert "no report" in report(capsys, str(run), f"--out={run}", code=2)
    assert "no folder" in report(capsys, str(run), f"--out={tmp_path / 'file'}", code=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine", "nothing", "run"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_report_is_replaced_and_its_old_tables_go(tmp_path, capsys):
    make_run(tmp_path / "a" / "run", "spmc", rounds=50)
    make_run(tmp_path / "b" / "run", data__name="digits")
    out = tmp_path / "out"
    report(capsys, str(tmp_path / "a"), f"--out={out}")
    assert (out / "tables" / "spmc2.csv").exists()
    (out / "tables" / "mine.txt").write_text("kept")
    report(capsys, str(tmp_path / "b"), f"--out={out}")
    names = [
        f"{name}.{end}"
        for name in ("detection", "main", "runs", "settings")
        for end in ("csv", "md", "tex", "wide.csv")
    ]
    assert sorted(path.name for path in (out / "tables").iterdir()) == sorted([*names, "all.tex", "mine.txt"])


# The whole.


def test_two_reports_of_the_same_runs_are_alike_but_for_the_time(tmp_path, capsys):
    for out in ("one", "two"):
        report(capsys, str(KEPT / "fdcr_question"), f"--out={tmp_path / out}", "--details=1")
    first, second = (re.sub(r"Written .* UTC", "", page_of(tmp_path / out)) for out in ("one", "two"))
    assert first == second


def test_a_picture_that_stands_on_the_page_twice_has_ids_of_its_own():
    picture = figures.draw(lambda axis: axis.plot([0, 1], [0, 1], "o"), "a line").markup
    once, twice = (re.findall(r' id="([^"]+)"', figures.with_unique_ids(picture * count)) for count in (1, 2))
    assert once
    assert len(set(twice)) == len(twice) == 2 * len(once)
    assert figures.with_unique_ids(picture) == picture
    links = re.findall(r'(?:url\(#|href="#)([^)"]+)', figures.with_unique_ids(picture * 2))
    assert set(links) == set(twice)


def test_the_page_needs_nothing_else(tmp_path, capsys):
    kept = (str(KEPT / name) for name in ("spmc_halves", "flip_fashion_mnist", "neurotoxin_small"))
    report(capsys, *kept, f"--out={tmp_path / 'out'}", "--details=2")
    text = page_of(tmp_path / "out")
    assert not re.findall(r"(?:src|href)=\"(?!data:|#|tables/)[^\"]*", text)
    assert "@import" not in text
    for link in set(re.findall(r'href="(tables/[^"]+)"', text)):
        assert (tmp_path / "out" / link).is_file()
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(ids)


@pytest.mark.slow
def test_five_hundred_cells_of_fifty_rounds(tmp_path, capsys):
    lines = [json.dumps(line_of(i, 60.0, 40.0)) + "\n" for i in range(50)]
    one = make_run(tmp_path / "one", rounds=50)
    rows = ("fedavg", "dnc", "sageflow", "bulyan", "rfa", "rlr", "crfl", "foolsgold", "rsa", "finetuning", "spmc")
    count = 0
    for preset in rows:
        for data in ("fashion_mnist", "cifar10", "mnist"):
            for fraction in (0.2, 0.3):
                config = config_of(preset, data__name=data, attack__malicious_fraction=fraction)
                for seed in range(8):
                    folder = tmp_path / "sweep" / "cells" / str(count)
                    shutil.copytree(one, folder)
                    (folder / "config.json").write_text(json.dumps(config | {"seed": seed}))
                    (folder / "metrics.jsonl").write_text("".join(lines))
                    count += 1
    assert count == 528
    report(capsys, str(tmp_path / "sweep"), f"--out={tmp_path / 'out'}")
    assert "528 runs in 66 settings" in page_of(tmp_path / "out")
    assert len(cells(tmp_path / "out", "spmc2")) == 11 * 9


def test_averaging_is_held_beside_the_published_averaging_rows(tmp_path):
    """The nearest setting first; two settings are no search, nor is a case that no paper prints."""
    cases = {"near": (64.8, 63.9), "far": (30.0, 10.0), "between": (64.1, 30.0)}
    for index, (name, (accuracy, asr)) in enumerate(cases.items()):
        for seed in (0, 1):
            fields = {"attack__malicious_fraction": 0.3, "attack__poison_fraction": 0.1 * (index + 1)}
            make_run(tmp_path / f"{name}{seed}", seed=seed, accuracy=accuracy, asr=asr, data__name="cifar10", **fields)
            other = {"partition__beta": 0.05, "attack__poison_fraction": 0.1 * (index + 1)}
            make_run(tmp_path / f"{name}{seed}x", seed=seed, data__name="cifar10", **other)
    found = grouped(tmp_path)
    (table,) = anchor.anchor_tables(found)
    (members,) = anchor.searches(found).values()
    published = anchor.published_rows(("cifar10", 0.5, 0.3))
    assert {paper: tuple(map(round, one)) for paper, one in published.items()} == {"SPMC": (65, 36), "FDCR": (64, 41)}
    mean, seeds = anchor.distances(members[0], published["SPMC"])
    row = members[0].estimate("A").mean, members[0].estimate("R_all").mean
    assert mean == pytest.approx(((row[0] - published["SPMC"][0]) ** 2 + (row[1] - published["SPMC"][1]) ** 2) ** 0.5)
    assert len(seeds) == 2
    apart = [float(one.cells[4].text.split()[0]) for one in table.rows]
    nearest = [min(float(one.cells[i].text.split()[0]) for i in (4, 5)) for one in table.rows]
    assert nearest == sorted(nearest)
    assert apart[0] == pytest.approx(mean, abs=0.05)
    assert f"SPMC prints A {published['SPMC'][0]:g}, R_all" in table.notes[-1]
    (panel,) = anchor.anchor_pictures(found)
    assert [key for _, key in panel.legend] == ["<b>1</b>", "<b>2</b>", "<b>3</b>"]
    assert panel.pictures[0].markup.count("SPMC") == 1
    assert anchor.anchor_tables([one for one in found if one is not members[0]]) == []
