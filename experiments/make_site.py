"""What `mkdocs build` (`make site`) adds to the pages in docs/: the first page, methods, API, notebooks.

A hook of MkDocs, named in mkdocs.yml. A method's page has the formula of its paper and ours (`docs/formulas/`), what
its docstrings say, and a link to its code; formulas become MathML here, so that the site needs no script for them.
"""

import base64
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]  # this checkout's package, and the scripts beside this one

from make_docs import section  # noqa: E402

from fedjax_spmc import registry  # noqa: E402
from fedjax_spmc.registry import Registry  # noqa: E402

KINDS: dict[str, Registry] = {
    "aggregators": registry.aggregators,
    "attacks": registry.attacks,
    "local_rules": registry.local_rules,
    "preaggregators": registry.preaggregators,
}
"""Name of a file in docs/formulas -> the parts that have a page each."""
TITLES = {
    "aggregators": "Aggregators",
    "attacks": "Attacks",
    "local_rules": "Local rules",
    "preaggregators": "Pre-aggregators",
}
GUIDES = ("design", "attacks", "aggregators", "text", "sweeps", "report", "performance")
RESULTS = ("reproduction", "matrix", "durability", "spmc", "fdcr", "flip")
"""Pages of docs/ in their order; those that are not there are left out, others stand behind the guides."""
DOCS_THERE = "https://github.com/fedjax-spmc/fedjax_spmc/blob/main/docs/"
"""Where README.md links to, as it is read in other places than this checkout too."""
PICTURE = "https://raw.githubusercontent.com/fedjax-spmc/fedjax_spmc/main/docs/"


class FormulaError(ValueError):
    """A file of formulas does not have its form; one sentence says where."""


class Formulas(NamedTuple):
    """Markdown with LaTeX between dollars."""

    paper: str
    here: str


def formulas(kind: str) -> dict[str, Formulas]:
    """The formulas of one file of docs/formulas, by the names of parts.

    Raises:
        FormulaError: a part without the two paragraphs.
    """
    text = (ROOT / "docs" / "formulas" / f"{kind}.md").read_text(encoding="utf-8")
    found: dict[str, Formulas] = {}
    for name, body in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE):
        parted = re.fullmatch(r"\s*\*\*Paper\.\*\*(.+?)^\*\*Here\.\*\*(.+)", body, re.DOTALL | re.MULTILINE)
        if parted is None:
            raise FormulaError(f"docs/formulas/{kind}.md, {name}: it must have **Paper.** and then **Here.**.")
        found[name] = Formulas(parted[1].strip(), parted[2].strip())
    return found


def with_mathml(text: str) -> str:
    """Markdown whose LaTeX has become MathML: `$$...$$` in a line of its own, `$...$` within one."""

    def made(latex: str, display: str) -> str:
        mathml = convert(" ".join(latex.split()), display=display)
        left = re.search(r"\\[a-zA-Z]+", mathml)
        if left:
            raise FormulaError(f"{left[0]} of the formula {latex.strip()!r} is unknown to latex2mathml.")
        return mathml.replace("*", "&#x2217;").replace("_", "&#x5f;")  # in which Markdown would see emphasis

    text = re.sub(
        r"\$\$(.+?)\$\$", lambda m: f'<div class="formula">{made(m[1], "block")}</div>', text, flags=re.DOTALL
    )
    # Within a span, as Markdown takes a line that begins with a formula for a block of its own.
    return re.sub(r"\$([^$\n]+)\$", lambda m: f"<span>{made(m[1], 'inline')}</span>", text)


def method_page(kind: str, name: str, known: Mapping[str, Formulas]) -> str:
    """The page of a part.

    Raises:
        FormulaError: it has no formulas.
    """
    if name not in known:
        raise FormulaError(f"docs/formulas/{kind}.md has no formulas of {name}.")
    parts = KINDS[kind]
    heading, _, rest = section(parts, name).partition("\n")
    module = parts.factory(name).__module__
    return "\n\n".join(
        [
            heading.replace("### ", "# ", 1),
            f"## The paper's formula\n\n{with_mathml(known[name].paper)}",
            f"## Ours\n\n{with_mathml(known[name].here)}",
            f"## What it says of itself\n\n{rest.strip()}",
            f"Code: [`{module}`](../../api/{module}.md)",
        ]
    )


def modules() -> list[str]:
    """The package's public modules by dotted name."""
    names = []
    for path in sorted((ROOT / "fedjax_spmc").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("_") for part in parts[:-1]) and not re.match(r"_(?!_init)", parts[-1]):
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def notebook_page(content: Mapping[str, Any]) -> str:
    """A notebook as Markdown: its cells, and what was printed and drawn."""
    pieces: list[str] = []
    for cell in content["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            pieces.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            pieces.append(f"```python\n{source}\n```")
            pieces += [shown for output in cell.get("outputs", ()) for shown in _shown(output)]
    return "\n\n".join(pieces) + "\n"


def _shown(output: Mapping[str, Any]) -> Iterator[str]:
    data = output.get("data", {})
    if "image/png" in data:
        image = "".join(data["image/png"]).replace("\n", "")
        base64.b64decode(image, validate=True)
        yield f"![output](data:image/png;base64,{image})"
        return
    text = "".join(output.get("text") or data.get("text/plain") or ())
    if text:
        yield f"```text\n{text.rstrip()}\n```"


def first_page() -> str:
    """README.md as the site's first page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace(PICTURE, "")
    return re.sub(rf"{re.escape(DOCS_THERE)}(\w+)\.(?:md|ipynb)", r"\1.md", text)  # pages of this site


def generated() -> dict[str, str]:
    """The pages that stand in no file: path below docs/ -> Markdown."""
    pages = {"index.md": first_page(), "methods/index.md": _table_of_methods()}
    for kind, parts in KINDS.items():
        known = formulas(kind)
        pages |= {f"methods/{kind}/{name}.md": method_page(kind, name, known) for name in parts.names()}
    pages |= {
        f"api/{name}.md": f"# `{name}`\n\n::: {name}\n    options:\n      show_root_heading: false\n"
        for name in modules()
    }
    for path in sorted((ROOT / "docs").glob("*.ipynb")):
        pages[f"{path.stem}.md"] = notebook_page(json.loads(path.read_text(encoding="utf-8")))
    return pages


def _table_of_methods() -> str:
    lines = ["# Methods", "", "Each with the formula of its paper, ours, options, and every deviation."]
    for kind, parts in KINDS.items():
        lines += ["", f"## {TITLES[kind]}", ""]
        lines += [f"* [`{name}`]({kind}/{name}.md): {_idea(parts, name)}" for name in parts.names()]
    return "\n".join(lines) + "\n"


def _idea(parts: Registry, name: str) -> str:
    return (parts.factory(name).__doc__ or "").strip().splitlines()[0].replace("_", r"\_").replace("*", r"\*")


def navigation(pages: Mapping[str, str]) -> list[Any]:
    """What stands in the site's menus."""
    written = {path.stem for path in (ROOT / "docs").glob("*.md")}
    notebooks = [path.stem for path in sorted((ROOT / "docs").glob("*.ipynb"))]
    others = sorted(written - set(GUIDES) - set(RESULTS))
    guides = [f"{name}.md" for name in (*notebooks, *GUIDES, *others) if name in written or name in notebooks]
    methods: list[Any] = ["methods/index.md"]
    for kind, parts in KINDS.items():
        methods.append({TITLES[kind]: [{name: f"methods/{kind}/{name}.md"} for name in parts.names()]})
    api = [{name.removeprefix("fedjax_spmc."): f"api/{name}.md"} for name in modules()]
    results = [f"{name}.md" for name in RESULTS if name in written]
    return [{"Start": "index.md"}, {"Guides": guides}, {"Methods": methods}, {"Results": results}, {"API": api}]


# What MkDocs calls.


def on_config(config: Any) -> Any:
    """Makes the pages, once."""
    config.extra["generated"] = generated()
    config.nav = navigation(config.extra["generated"])
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages."""
    for path, text in config.extra["generated"].items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Where a page names another as `docs/NAME.md`, that becomes a link."""
    del config
    up = "../" * page.file.src_uri.count("/")

    def link(found: re.Match[str]) -> str:
        known = files.get_file_from_path(found[1]) is not None and found[1] != page.file.src_uri
        return f"[{found[0]}]({up}{found[1]})" if known else found[0]

    pieces = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        piece if piece.startswith("```") else re.sub(r"(?<!\[)`docs/([\w/]+\.md)`", link, piece) for piece in pieces
    )
