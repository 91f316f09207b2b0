"""The report in a browser: no errors, no network, all pictures, sorting, wide and narrow, light and dark."""

import json
import os
import shutil
from pathlib import Path

import pytest

from fedjax_spmc.report import page
from tests.kept_runs import make_run

pytestmark = pytest.mark.slow
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium, driven by playwright, which downloads no browser of its own."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory, finished_run) -> Path:
    """A page of made-up runs, a real run with its model, and an unfinished one whose folder is named like markup."""
    folder = tmp_path_factory.mktemp("report")
    for seed in (0, 1, 2):
        for preset, accuracy in (("fedavg", 60.0), ("spmc", 66.0), ("dnc", 50.0)):
            make_run(folder / "runs" / f"{preset}{seed}", preset, accuracy + seed, 30.0 + seed, seed=seed, rounds=50)
    make_run(folder / "runs" / "<b>&amp;\"'", "krum", played=2)
    return page.build([folder / "runs", finished_run], folder / "out")


def opened(browser, path: Path, width: int, scheme: str):
    """(page, console messages, requests other than the page itself)."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    return tab, said, [url for url in asked if not url.startswith("data:") and url != path.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_page_loads_alone_and_fits(browser, report, width, scheme):
    tab, said, asked = opened(browser, report, width, scheme)
    assert said == []
    assert asked == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    images = tab.evaluate("[...document.images].map((one) => one.complete && one.naturalWidth > 0)")
    assert images.count(True) == len(images) == 12  # six images, clean and triggered, of a run without convolutions
    drawn = tab.evaluate(
        "[...document.querySelectorAll('details')].map((one) => one.open = true) &&"
        " [...document.querySelectorAll('figure > svg')].map((one) => one.getBoundingClientRect().width)"
    )
    assert len(drawn) >= 10
    assert all(100 < one <= width for one in drawn)
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    ink = tab.evaluate("getComputedStyle(document.querySelector('figure > svg text')).fill")
    assert ink == tab.evaluate("getComputedStyle(document.body).color")
    missing = tab.evaluate(
        "[...document.querySelectorAll('svg [*|href], svg [clip-path]')].filter((one) => { const name ="
        " (one.getAttribute('xlink:href') ?? one.getAttribute('clip-path')).replace(/^url\\(|[)#]/g, '');"
        " return document.getElementById(name.replace('#', '')) === null && !name.startsWith('data:'); }).length"
    )
    assert missing == 0
    if folder := os.environ.get("REPORT_SHOTS"):
        tab.screenshot(path=Path(folder) / f"{scheme}_{width}.png", full_page=True)
    tab.context.close()


def test_tables_are_sorted_by_a_click(browser, report):
    tab, said, _ = opened(browser, report, 1280, "light")

    def column(index: int) -> list[str]:
        return tab.evaluate(
            "(i) => [...document.querySelectorAll('#t-settings tbody tr')].map((row) => row.cells[i].dataset.sort ??"
            " row.cells[i].textContent.trim())",
            index,
        )

    heads = tab.locator("#t-settings thead th button")
    names = heads.all_text_contents()
    accuracy = names.index("A")
    before = column(accuracy)
    heads.nth(accuracy).click()
    numbers = [float(one) for one in column(accuracy)]
    assert numbers == sorted(numbers, reverse=True)
    heads.nth(accuracy).click()
    assert [float(one) for one in column(accuracy)] == sorted(map(float, before))
    heads.nth(0).click()
    methods = [one.split(",")[0] for one in column(0)]
    assert methods == sorted(methods)
    assert tab.locator("#t-settings th[aria-sort]").count() == 1
    # A table in sections keeps its sections.
    tab.locator("#t-spmc2 thead tr:last-child th button").nth(1).click()
    first = tab.evaluate("document.querySelector('#t-spmc2 tbody tr').className")
    assert first == "section"
    best = tab.evaluate("document.querySelector('#t-spmc2 tbody tr:nth-child(2) th').textContent")
    assert best == "spmc (Ours)"
    assert said == []
    tab.context.close()


def test_page_prints_with_everything_open(browser, report, tmp_path):
    tab, said, _ = opened(browser, report, 1280, "dark")
    content = tab.pdf(path=tmp_path / "report.pdf", format="A4")
    assert content.startswith(b"%PDF")
    assert tab.evaluate("[...document.querySelectorAll('details')].every((one) => one.open)")
    assert said == []
    tab.context.close()


@pytest.mark.parametrize(("millimetres", "tables"), [(186, "table:not(.broad)"), (277, "table.broad")])
def test_a4_loses_no_column(browser, report, millimetres, tables):
    """Upright within its margins, and on its side for tables of many columns."""
    width = int(millimetres / 25.4 * 96)
    tab, _, _ = opened(browser, report, width, "light")
    tab.emulate_media(media="print")
    tab.evaluate("for (const one of document.querySelectorAll('details')) one.open = true;")
    edges = tab.evaluate(
        f"[...document.querySelectorAll('main {tables}')].map((one) => Math.max(...[...one.querySelectorAll('th, td')]"
        ".map((cell) => cell.getBoundingClientRect().right)))"
    )
    assert edges
    assert max(edges) <= width + 1
    tab.context.close()


def test_the_answer_is_on_the_first_screen_and_wide_tables_say_so(browser, report):
    tab, _, _ = opened(browser, report, 1280, "light")
    assert tab.evaluate("document.querySelector('#t-main tbody tr:last-child').getBoundingClientRect().bottom") < 900
    assert tab.evaluate("document.querySelector('.headline svg').getBoundingClientRect().bottom") < 1000
    tab.set_viewport_size({"width": 400, "height": 900})
    shown = tab.evaluate(
        "[...document.querySelectorAll('section.table')].map((one) => [one.querySelector('.scroll').scrollWidth >"
        " one.querySelector('.scroll').clientWidth + 1, !one.querySelector('.hint').hidden])"
    )
    assert all(wider == hint for wider, hint in shown)
    assert any(hint for _, hint in shown)
    tab.context.close()


def test_a_report_of_the_kept_results_is_recorded(report):
    assert json.loads((report.parent / page.MARKER).read_text())["files"]
