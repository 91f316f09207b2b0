"""The site: it is built as `make site` builds it, each method has a page with its paper's formula and ours."""

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("latex2mathml")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

make_site = importlib.import_module("make_site")


@pytest.mark.parametrize("kind", make_site.KINDS)
def test_every_method_has_the_formula_of_its_paper_and_ours(kind):
    """A formula each, all of whose signs a browser is given."""
    found = make_site.formulas(kind)
    for name in make_site.KINDS[kind].names():
        assert name in found, f"docs/formulas/{kind}.md needs a part `## {name}`"
        for text in found[name] if name != "none" else ():
            assert "$$" in text, name
            assert "<math" in make_site.with_mathml(text)


def test_a_formula_that_cannot_be_shown_is_refused():
    with pytest.raises(make_site.FormulaError, match=r"\\unknown"):
        make_site.with_mathml(r"$\unknown{x}$")
    with pytest.raises(make_site.FormulaError, match="no formulas of krum"):
        make_site.method_page("aggregators", "krum", {})


def test_a_notebook_becomes_a_page():
    image = {"output_type": "display_data", "data": {"image/png": "aGVsbG8=", "text/plain": "<Figure>"}}
    cells = [
        {"cell_type": "markdown", "source": ["# First\n", "words"]},
        {"cell_type": "code", "source": "1 + 1", "outputs": [{"data": {"text/plain": ["2"]}}, image]},
        {"cell_type": "code", "source": " ", "outputs": []},
        {"cell_type": "code", "source": "print(3)", "outputs": [{"output_type": "stream", "text": ["3\n"]}]},
    ]
    assert make_site.notebook_page({"cells": cells}) == (
        "# First\nwords\n\n```python\n1 + 1\n```\n\n```text\n2\n```\n\n![output](data:image/png;base64,aGVsbG8=)\n\n"
        "```python\nprint(3)\n```\n\n```text\n3\n```\n"
    )


def test_what_is_in_the_menus():
    named = str(make_site.navigation({}))
    for path in (ROOT / "docs").glob("*.md"):
        assert f"'{path.name}'" in named, "a page that nobody finds"
    for path in (ROOT / "docs").glob("*.ipynb"):
        assert f"'{path.stem}.md'" in named
    for name in ("experiment", "types", "attacks.badnets", "config.presets"):
        assert f"'api/fedjax_spmc.{name}.md'" in named
    assert "_" not in {module.rpartition(".")[2][:1] for module in make_site.modules()}


class Links(HTMLParser):
    """What a page loads when it is opened, and the words of its formulas."""

    def __init__(self):
        super().__init__()
        self.loaded: list[str] = []
        self.formulas = 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        loads = tag in ("script", "img", "iframe") or (tag == "link" and given.get("rel") != "canonical")
        self.loaded += [given[name] for name in ("src", "href") if loads and given.get(name)]
        self.formulas += tag == "math"


@pytest.mark.slow
def test_the_site_is_built(tmp_path):
    """Strictly: a link that leads nowhere fails it. A page that is opened loads nothing from elsewhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if path.name != "404.html"}
    for path, text in pages.items():
        links = Links()
        links.feed(text)
        assert not [link for link in links.loaded if re.match(r"(https?:)?//", link)], path
        if path.parent.parent.name == "methods" and path.stem != "none":
            assert links.formulas >= 2, path
    for kind, parts in make_site.KINDS.items():
        assert all(site / "methods" / kind / f"{name}.html" in pages for name in parts.names())
    experiment = pages[site / "api" / "fedjax_spmc.experiment.html"]
    assert 'id="fedjax_spmc.experiment.run"' in experiment
    assert "training stopped being finite" in experiment
    assert 'href="../reproduction.html"' in pages[site / "methods" / "index.html"]
    assert 'href="reproduction.html"' in pages[site / "index.html"], "a page named in the README is a link"
