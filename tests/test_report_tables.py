"""The report's tables as a reader takes them: LaTeX that compiles, a wide CSV, columns, spreads, the first screen."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedjax_spmc import config as configs
from fedjax_spmc.config import make_config
from fedjax_spmc.record.judgement import Timing, judgement, timing
from fedjax_spmc.record.remarks import Remark
from fedjax_spmc.report import __main__ as report
from fedjax_spmc.report import latex, overview, page, read, tables
from fedjax_spmc.report.estimates import estimate
from fedjax_spmc.report.settings import group, method_of
from tests.kept_runs import make_run

PDFLATEX = shutil.which("pdflatex")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two methods with two seeds under two attacks, one of them collapsed, and names that LaTeX does not like."""
    folder = tmp_path_factory.mktemp("runs")
    for attack in ("badnets", "dba"):
        for method, accuracy, asr in (("fedavg", 60.0, 90.0), ("krum", 50.0, 10.0)):
            for seed in (0, 1):
                make_run(
                    folder / attack / f"{method}_{seed}",
                    method,
                    accuracy + seed,
                    asr,
                    3,
                    seed=seed,
                    attack__name=attack,
                )
    collapsed = make_run(folder / "[odd] é_中 α & 100%", "median", 10.0, 100.0, 6, seed=0)
    assert json.loads((collapsed / "config.json").read_text())
    return folder


@pytest.fixture(scope="module")
def out(runs, tmp_path_factory) -> Path:
    return page.build([runs], tmp_path_factory.mktemp("report") / "out", details=1).parent


def test_latex_has_no_sign_that_pdflatex_does_not_know(out):
    names = {path.name for path in (out / "tables").glob("*.tex")}
    assert {"main.tex", "settings.tex", "runs.tex", "all.tex", "matrix_asr_later.tex"} <= names
    for name in names - {"all.tex"}:
        text = (out / "tables" / name).read_text(encoding="utf-8")
        assert text.isascii(), name
        assert rf"\label{{tab:{name.removesuffix('.tex')}}}" in text
        assert text.count(r"\caption{") == 1
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
        body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
        assert not re.search(r"\\\\\n\s*\[", body)  # it would be the option of the line's end
        for line in body.splitlines():
            assert not re.search(r"(?<!\\)[%#_]", line), line
    assert latex.text("é 中 α −1 ≥ <x> a_b") == r"\'{e} U+4E2D $\alpha$ $-$1 $\geq$ \textless{}x\textgreater{} a\_b"


@pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex: apt-get install texlive-latex-base")
def test_pdflatex_compiles_all_tables(out, tmp_path):
    shutil.copytree(out / "tables", tmp_path / "tables")
    command = [str(PDFLATEX), "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    made = subprocess.run(command, cwd=tmp_path / "tables", capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout[-2000:]
    assert (tmp_path / "tables" / "all.pdf").stat().st_size > 1000


def test_a_wide_csv_has_a_line_for_each_row(out):
    rows = list(csv.DictReader((out / "tables" / "main.wide.csv").read_text(encoding="utf-8").splitlines()))
    by_name = {row["setting"]: row for row in rows}
    assert len(rows) == 5
    fedavg = next(row for name, row in by_name.items() if name.startswith("fedavg") and "dba" in name)
    assert float(fedavg["A"]) == 60.5
    assert (float(fedavg["A low"]), float(fedavg["A high"])) == (60.0, 61.0)
    assert float(fedavg["A std"]) == pytest.approx(0.5**0.5)
    assert fedavg["what it says"].startswith("Does not hold the backdoor back: ASR is 90 %")
    assert fedavg["marks"] == "m"  # three rounds
    krum = next(row for name, row in by_name.items() if name.startswith("krum") and "dba" in name)
    assert krum["what it says"] == "Holds the backdoor back: ASR is 10 %, at 50 % accuracy, 10 points below averaging."
    median = next(row for name, row in by_name.items() if name.startswith("median"))
    assert "hardly better than guessing" in median["what it says"]


def test_columns_and_spread(runs, tmp_path, capsys):
    flags = ["--columns=A,ASR", "--spread=std", "--details=0", f"--out={tmp_path / 'out'}"]
    assert report.main([str(runs), *flags]) == 0
    head, _, row, *_ = (tmp_path / "out" / "tables" / "settings.md").read_text().split("\n\n")[1].splitlines()
    assert head == "| setting | A | ASR |"
    assert "60.50<sup>m</sup> ± 0.71" in row
    notes = (tmp_path / "out" / "tables" / "settings.md").read_text()
    assert "± the standard deviation over seeds (n - 1)" in notes
    assert "bootstrap" not in notes
    assert "fedavg" in (tmp_path / "out" / "tables" / "matrix_asr_later.md").read_text()  # it has neither
    capsys.readouterr()
    assert report.main([str(runs), "--columns=AS", f"--out={tmp_path / 'other'}"]) == 2
    assert "--columns = AS is not allowed: did you mean ASR? It must be a column" in capsys.readouterr().err
    alone = tables.Cell(estimate([3.0]), spread=tables.STD)
    assert alone.beside() == ""


class Outline(HTMLParser):
    """Headings, tables without a caption, and the names of pictures."""

    def __init__(self):
        super().__init__()
        self.levels: list[int] = []
        self.names: list[str] = []
        self.order: list[str] = []
        self.tables = self.captions = 0

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if known.get("id"):
            self.order.append(str(known["id"]))
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if tag == "img" or known.get("role") == "img":
            self.names.append(str(known.get("alt") or known.get("aria-label") or ""))


def test_the_page_answers_first_and_can_be_read_aloud(out):
    text = (out / "index.html").read_text(encoding="utf-8")
    found = Outline()
    found.feed(text)
    assert found.levels[0] == 1
    assert all(after - before <= 1 for before, after in zip(found.levels, found.levels[1:], strict=False))
    assert found.tables == found.captions
    assert all(found.names)
    assert len(set(found.names)) == len(found.names)
    written = sorted(path.stem for path in (out / "tables").glob("*.md"))
    assert sorted(one.removeprefix("t-") for one in found.order if one.startswith("t-")) == written
    parts = [one for one in found.order if one in ("t-main", "t-settings", "t-runs", "run", "curves")]
    assert parts == ["t-main", "t-settings", "curves", "t-runs", "run"]
    first = text[text.index("<main>") : text.index('id="t-settings"')]
    assert "fedavg, krum and median on cifar10 under badnets and dba: 10 clients" in first
    assert first.count("<svg") >= 1
    assert "hardly better than guessing" in first


def test_judgements():
    kept = Remark("k", "", "the aggregation failed in 2 of 3 rounds.", ranked=False)
    assert judgement(60.0, 10.0, [kept]) == "No judgement: the aggregation failed in 2 of 3 rounds."
    assert judgement(60.0, 30.0) == "Holds the backdoor back in part: ASR is 30 %, at 60 % accuracy."
    assert judgement(60.0, None) == "No backdoor was put in: accuracy is 60 %."
    assert judgement(60.0, 96.0, averaging=61.0) == "Does not hold the backdoor back: ASR is 96 %, at 60 % accuracy."


@pytest.mark.parametrize(
    ("asr", "said"), [(10.0, "gone"), (30.0, "left in part"), (90.0, "still there")]
)  # fmt: skip
def test_after_the_attack_the_numbers_say_whether_the_backdoor_lasted(asr, said):
    start = f"The backdoor is {said} 3 to 7 rounds after the attack: ASR is {asr:.0f} %, at 60 % accuracy"
    assert judgement(60.0, asr, when=Timing(after=(3, 7))) == f"{start}."
    assert judgement(60.0, asr, averaging=70.0, when=Timing(after=(3, 7))) == f"{start}, 10 points below averaging."


def test_where_nobody_attacks_nothing_is_held_back():
    assert judgement(60.0, 5.0, when=Timing(nobody=True)) == "No client is malicious: accuracy is 60 %."
    late = "No judgement: the attack began after some of the rounds that the means are over."
    assert judgement(60.0, 5.0, when=Timing(before=True)) == late


def test_how_the_rounds_lie_to_the_attack():
    def of(evaluated, **fields):
        config = configs.flatten(configs.resolve(make_config("fedavg", **fields)))
        return timing(config, evaluated)

    twelve, sparse = range(12), [0, 4, 8, 12, 16, 20, 24]
    assert of(twelve) == Timing()
    assert of(twelve, attack__schedule__last=6) == Timing(after=(1, 5))  # 7 to 11 are meant
    assert of(twelve, attack__schedule__last=7) == Timing()
    assert of(twelve, attack__schedule__last=40) == Timing()
    assert of(sparse, attack__schedule__last=7) == Timing(after=(1, 17))
    assert of(twelve, attack__schedule__every=100) == Timing(after=(7, 11))  # round 0 alone
    assert of(twelve, attack__schedule__every=3, attack__schedule__last=8) == Timing(after=(1, 5))  # 6 is the last
    assert of(twelve, attack__schedule__first=11) == Timing(before=True)
    assert of(twelve, attack__schedule__first=7) == Timing()
    assert of(twelve, attack__malicious_fraction=0.0) == Timing(nobody=True)
    assert of([], attack__schedule__last=3) == Timing()


def test_the_report_says_so(tmp_path):
    for name, last in (("lasting", None), ("ended", 3)):
        make_run(tmp_path / name, "fedavg", 60.0, 90.0, 12, attack__schedule__last=last, seed=0)
    settings, _ = group(read.read([tmp_path]).runs)
    said = {row.cells[-1].text for row in overview.main_table(settings).rows}
    assert said == {
        "Does not hold the backdoor back: ASR is 90 %, at 60 % accuracy.",
        "The backdoor is still there 4 to 8 rounds after the attack: ASR is 90 %, at 60 % accuracy.",
    }


def test_a_sweeps_row_without_its_folder_says_so_too(tmp_path):
    folder = tmp_path / "cells" / "a"
    make_run(folder, "fedavg", 60.0, 10.0, 12, attack__schedule__last=3, seed=0)
    (run,) = read.read([folder]).runs
    alone = run._replace(lines=[], remarks=[])
    (setting,), _ = group([alone])
    assert "is gone 4 to 8 rounds after" in overview.main_table([setting]).rows[0].cells[-1].text


def test_others_are_measured_against_plain_averaging_and_not_against_an_oracle(tmp_path):
    runs = {"plain": (61.0, {}), "told": (66.0, {"oracle_weights": True}), "uniform": (64.0, {"weights": "uniform"})}
    for name, (accuracy, options) in runs.items():
        fields = {f"aggregator__options__{option}": value for option, value in options.items()}
        make_run(tmp_path / name, "fedavg", accuracy, 60.0, 12, seed=0, **fields)
    make_run(tmp_path / "krum", "krum", 50.0, 10.0, 12, seed=0)
    settings, _ = group(read.read([tmp_path]).runs)
    said = {row.labels[0]: row.cells[-1].text for row in overview.main_table(settings).rows}
    assert said["krum"].endswith("50 % accuracy, 11 points below averaging.")
    only = [one for one in settings if method_of(one.config) == "krum" or one.runs[0].oracle]
    said = {row.labels[0]: row.cells[-1].text for row in overview.main_table(only).rows}
    assert said["krum"].endswith("at 50 % accuracy.")
    flat = {name: json.loads((tmp_path / name / "config.json").read_text()) for name in runs}
    plain = {name: configs.is_averaging(configs.flatten(configs.resolve(one))) for name, one in flat.items()}
    assert plain == {"plain": True, "told": False, "uniform": True}
