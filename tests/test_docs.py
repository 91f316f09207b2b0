"""The docs: generated pages, tables of results and code are what the code and the kept files say."""

import os
import re
import subprocess
import sys

import pytest

from fedjax_spmc import server
from fedjax_spmc.registry import aggregators, attacks, local_rules
from fedjax_spmc.types import Attack
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments"))

import docstrings
import make_docs

PAGE = ROOT / "docs" / "aggregators.md"
DESIGN = ROOT / "docs" / "design.md"
ATTACKS = ROOT / "docs" / "attacks.md"


def parts(text: str, level: int) -> dict[str, str]:
    """Heading of a level -> the text below it."""
    pieces = re.split(rf"^{'#' * level} (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def section(title: str) -> str:
    return parts(PAGE.read_text(encoding="utf-8"), 2)[title]


def rows(text: str) -> list[dict[str, str]]:
    """The rows of the first table, column -> cell."""
    table = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert table
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()]
    head, body = cells[0], cells[2:]
    return [dict(zip(head, row, strict=True)) for row in body]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


@pytest.mark.parametrize("kind", [aggregators, local_rules], ids=lambda kind: kind.kind)
def test_every_rule_says_its_source_what_it_assumes_and_what_it_costs(kind):
    for name in kind.names():
        part = docstrings.part(kind, name)
        assert all(part.fields[field] for field in ("Source", "Assumes", "Cost")), name


@pytest.mark.parametrize("name", attacks.names())
def test_every_attack_says_its_source_what_it_knows_and_controls_and_what_it_costs(name):
    part = docstrings.part(attacks, name)
    assert tuple(part.fields) == ("Source", "Knows", "Controls", "Cost", "Deviations")
    assert all(part.fields.values())
    assert part.idea


def test_generated_pages_are_current():
    script = ROOT / "experiments" / "make_docs.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, script, "--check"]
    checked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_generated_block_is_on_the_page():
    pages = PAGE.read_text(encoding="utf-8") + ATTACKS.read_text(encoding="utf-8")
    marked = re.findall(r"^<!-- generated: (.+) -->$", pages, flags=re.MULTILINE)
    assert sorted(marked) == sorted(make_docs.BLOCKS)


def test_every_attack_has_a_section_and_a_line():
    text = ATTACKS.read_text(encoding="utf-8")
    assert [names_in(row["attack"]) for row in rows(text)] == [[name] for name in attacks.names()]
    assert list(parts(text, 3))[-len(attacks.names()) :] == [f"Attack `{name}`" for name in attacks.names()]


def test_every_slot_of_an_attack_stands_in_the_order_of_a_round():
    order = parts(ATTACKS.read_text(encoding="utf-8"), 3)["The order of the slots, and their fences"]
    assert sorted(names_in(row["slot"])[0] for row in rows(order)) == sorted(Attack._fields)


def test_the_attack_that_is_shown_is_the_plug_in():
    shown = re.findall(r"^```python\n(.*?)^```$", DESIGN.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert shown == [(ROOT / "tests" / "plugins" / "scaled.py").read_text(encoding="utf-8")]


def test_every_plug_in_is_named_with_its_slots():
    """By its source: imported here it would stay registered."""
    table = rows_with(DESIGN.read_text(encoding="utf-8"), "slots")
    files = {path.name: path for path in (ROOT / "tests" / "plugins").glob("*.py") if path.name != "__init__.py"}
    assert {row["file"].strip("`") for row in table} == files.keys()
    for row in table:
        made = files[row["file"].strip("`")].read_text(encoding="utf-8").partition("return Attack(")[2]
        assert set(names_in(row["slots"])) == {slot for slot in Attack._fields if re.search(rf"\b{slot}=", made)}


def test_a_stale_page_is_named_and_written_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_docs, "DOCS", tmp_path)
    page = tmp_path / "some.md"
    page.write_text(
        "By hand.\n\n<!-- generated: guard -->\nstale words\n<!-- end -->\n\nBy hand too.\n", encoding="utf-8"
    )
    assert make_docs.main(["--check"]) == 1
    assert make_docs.main(["--chekc"]) == 2  # it must not be taken for none, and write
    assert "docs/some.md" in capsys.readouterr().out
    assert "stale words" in page.read_text(encoding="utf-8")
    assert make_docs.main([]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("By hand.\n\n<!-- generated: guard -->\n\n* ")
    assert text.endswith("<!-- end -->\n\nBy hand too.\n")
    assert "stale words" not in text
    assert make_docs.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- generated: nothing -->\n<!-- end -->\n", "block 'nothing' is unknown"),
        ("<!-- generated: guard -->\n<!-- generated: traits -->\n<!-- end -->\n", "has no end"),
    ],
)
def test_a_block_that_cannot_be_made_is_an_error(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.setattr(make_docs, "DOCS", tmp_path)
    (tmp_path / "some.md").write_text(text, encoding="utf-8")
    assert make_docs.main([]) == 1
    assert message in capsys.readouterr().out


def test_columns_that_come_from_the_code():
    told = {name: make_docs.told_f(aggregators, name) for name in ("krum", "dnc", "rlr", "multi_krum", "median")}
    assert told == {
        "krum": "paper: `attackers`; reference: no",
        "dnc": "`attackers`",
        "rlr": "`threshold`",
        "multi_krum": "paper: `attackers`; reference: no",
        "median": "no",
    }
    assert make_docs.fewest(aggregators, "bulyan") == "paper: 4 f + 3 with `attackers`, else 3; reference: 5"
    assert make_docs.fewest(aggregators, "flame") == "2"
    assert make_docs.lacking(aggregators, "krum") == "paper: -; reference: linear, consensus, stateless"
    assert [make_docs.needed(name) for name in ("sageflow", "deepsight", "fdcr", "mean")] == [
        "clean data, network",
        "network",
        "`fisher`",
        "-",
    ]
    assert make_docs.asks("spmc") == 'linear, unless `teacher_weights="uniform"`'
    assert [name for name in local_rules.names() if make_docs.keeps_state(name)] == ["flip", "scaffold", "spmc"]
    assert [make_docs.slots_of(name) for name in ("badnets", "none")] == ["`init`, `poison`, `backdoor`", "none"]
    assert [make_docs.has_backdoor(name) for name in ("dba", "none")] == [True, False]
    assert [make_docs.span(numbers) for numbers in ([0, 2, 1, 1], [0, 1], [3, 5, 4, 7])] == [
        "0 to 2",
        "0, 1",
        "3 to 5, 7",
    ]


MODULE = """Rule: does something.

More.

Source: somebody,
    somewhere.
Assumes: nothing.
Cost: O(K D).
Deviations:
    * One
      thing.
    * Another.
"""
FACTORY = """New model = g.

Scores are none.

Reference:
    * Other.

Traits: not linear, because
    of this.

Args:
    variant: which.
    keep: m; None
        is all.
    server: given.

Raises:
    ConfigError: too many.
"""


def parsed(module=MODULE, factory=FACTORY, options=("variant", "keep")):
    return docstrings.read("aggregator rule", "rule", module, factory, options, given=("server",))


def test_docstrings_are_read():
    part = parsed()
    assert (part.idea, part.about, part.text) == ("does something", "More.", "New model = g.\n\nScores are none.")
    assert part.fields == {
        "Source": "somebody,\nsomewhere.",
        "Assumes": "nothing.",
        "Cost": "O(K D).",
        "Deviations": "* One\n  thing.\n* Another.",
    }
    assert part.notes == {"Reference": "* Other.", "Traits": "not linear, because\nof this."}
    assert part.options == {"variant": "which.", "keep": "m; None is all."}
    assert part.refusals == ("too many.",)


@pytest.mark.parametrize(
    ("where", "old", "new", "message"),
    [
        ("module", "Rule: does something.", "Does something.", "does not begin with 'NAME: what it does.'"),
        ("module", "Cost: O(K D).\n", "", "'Cost' is missing"),
        ("module", "Assumes: nothing.", "Assumes:", "'Assumes' is missing"),
        ("module", "Cost:", "Costs:", "'Costs' is unknown: it must be one of Source, Assumes, Cost, Deviations"),
        ("module", "Cost: O(K D).", "Cost: O(K D).\nand more", "'and more' belongs to no field"),
        ("module", "Assumes: nothing.\nCost: O(K D).", "Cost: O(K D).\nAssumes: nothing.", "'Assumes' must stand once"),
        ("module", "Cost: O(K D).", "Cost: O(K D).\nCost: more.", "'Cost' must stand once"),
        ("factory", "New model = g.\n\nScores are none.\n", "", "no sentence stands before the fields"),
        ("factory", "Traits:", "Properties:", "'Properties' is unknown"),
        ("factory", "Reference:\n    * Other.\n", "", "'Reference' is missing"),
        ("factory", "    * Other.", "    Other.", "'Reference' is not a list"),
        ("factory", "    keep: m; None\n        is all.\n", "", "'Args' lacks the option 'keep'"),
        ("factory", "    keep: m;", "    kept: n.\n    keep: m;", "'Args' names 'kept', which is no option"),
        ("factory", "    keep: m;", "    what else\n    keep: m;", "'what else' is not 'name: description'"),
    ],
)
def test_a_docstring_without_the_form_is_refused_with_the_rule_and_the_field(where, old, new, message):
    texts = {"module": MODULE, "factory": FACTORY}
    assert old in texts[where]
    texts[where] = texts[where].replace(old, new)
    with pytest.raises(docstrings.DocstringError, match=re.escape(message)) as caught:
        parsed(**texts)
    assert str(caught.value).startswith("aggregator rule")


@pytest.mark.parametrize("field", docstrings.ATTACK)
def test_an_attacks_docstring_has_all_its_fields(field):
    module = "Name: does something.\n\n" + "".join(f"{one}: none.\n" for one in docstrings.ATTACK if one != field)
    with pytest.raises(docstrings.DocstringError, match=f"attack x: the field '{field}' is missing"):
        docstrings.read("attack x", "x", module, "Text.", (), (), docstrings.ATTACK, docstrings.ATTACK)


def test_a_list_of_differences_needs_a_variant():
    with pytest.raises(docstrings.DocstringError, match="'Reference' has no use without an option 'variant'"):
        parsed(factory=FACTORY.replace("    variant: which.\n", ""), options=("keep",))


def test_texts_become_markdown():
    text = "Where x'_i < y and\nmore:\n    a | b\n      c\nthen\n* one\n  thing\n* two <b `x_ *y`"
    made = "Where x'\\_i < y and more:\n\n```\na | b\n  c\n```\n\nthen\n\n* one thing\n* two \\<b `x_ *y`"
    assert docstrings.markdown(text) == made
    assert docstrings.cell("a | b\n  and c.") == r"a \| b and c"


def test_no_wrapped_line_begins_a_list():
    words = "word " * 23
    lines = docstrings.markdown(f"{words}a - b + c * d = e > f").splitlines()
    assert len(lines) == 2
    assert not re.match(r"[-+*=>]", lines[1])


def test_every_server_optimiser_has_a_row():
    table = rows(section("Server optimisers"))
    assert {name for row in table for name in names_in(row["optimizer"])} == server.TAKES.keys()


def test_tables_of_results_are_what_the_kept_files_say():
    script = ROOT / "experiments" / "reproduction.py"
    checked = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_claim_has_a_verdict_and_a_command():
    text = (PAGE.parent / "reproduction.md").read_text(encoding="utf-8")
    claims = [row for title in ("SPMC", "FDCR") for row in rows_with(parts(text, 2)[title], "claim")]
    assert len(claims) >= 14
    known = ("**reproduced**", "**partly**", "**not reproduced**", "**not yet run**")
    for row in claims:
        assert row["verdict"].startswith(known), row
        assert row["command"] == "the same" or re.search(r"`experiments/\w+\.py", row["command"]), row
        for script in re.findall(r"`(experiments/\w+\.py)", row["command"]):
            assert (ROOT / script).is_file()


def rows_with(text: str, column: str) -> list[dict[str, str]]:
    """The rows of the first table that has the column."""
    tables = [rows(table) for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)]
    return next(table for table in tables if table and column in table[0])
