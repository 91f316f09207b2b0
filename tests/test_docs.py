"""The docs: aggregators.md names every rule, and tables of results are what the kept files say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_spmc import registry
from fedjax_spmc.registry import aggregators, local_rules
from tests.uploads import labels_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "aggregators.md"
KINDS = {"Aggregators": aggregators, "Local rules": local_rules}
REFERENCES = {"Paper and reference: aggregators": aggregators, "Paper and reference: local rules": local_rules}


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


def variants(kind: registry.Registry, name: str) -> list[str]:
    """The variants of a rule other than "paper"; none where it has no such option."""
    return [label.partition("-")[2] for label in labels_of(kind.describe(name), name)[1:]]


def lacking(name: str, **options) -> str:
    traits = aggregators.make(name, **options).traits._asdict()
    return ", ".join(trait for trait, holds in traits.items() if not holds) or "-"


@pytest.mark.parametrize("title", KINDS)
def test_every_rule_has_one_full_row(title):
    table = rows(section(title))
    assert sorted(row["rule"] for row in table) == sorted(f"`{name}`" for name in KINDS[title].names())
    assert all(all(row.values()) for row in table)


@pytest.mark.parametrize("title", REFERENCES)
def test_every_rule_with_a_variant_has_a_list_of_differences(title):
    kind = REFERENCES[title]
    lists = parts(section(title), 3)
    assert sorted(lists) == sorted(f"`{name}`" for name in kind.names() if variants(kind, name))
    assert all("\n* " in text for text in lists.values())


@pytest.mark.parametrize("name", aggregators.names())
def test_the_traits_that_a_row_denies_are_those_that_the_rule_denies(name):
    row = next(row for row in rows(section("Aggregators")) if row["rule"] == f"`{name}`")
    others = variants(aggregators, name)
    said = lacking(name)
    if others:
        said = "; ".join([f"paper: {said}", *(f"{v}: {lacking(name, variant=v)}" for v in others)])
    assert row["does not hold"] == said


@pytest.mark.parametrize("name", aggregators.names())
def test_every_option_that_a_rule_chooses_is_in_the_table_of_defaults(name):
    chosen = set(aggregators.make(name).chosen(9))
    if name == "mean":
        chosen |= set(aggregators.make(name, optimizer="adam").chosen(9))
    table = rows(section("Defaults that the rules choose"))
    listed = {option for row in table if row["rule"] == f"`{name}`" for option in names_in(row["option"])}
    assert listed == chosen


def test_every_server_optimiser_has_a_row():
    allowed = aggregators.describe("mean")["optimizer"]["allowed"].removeprefix("one of ").split(", ")
    table = rows(section("Server optimisers of `mean`"))
    assert sorted(name for row in table for name in names_in(row["optimizer"])) == sorted(allowed)


def test_tables_of_results_are_what_the_kept_files_say():
    script = PAGE.parent.parent / "experiments" / "reproduction.py"
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
            assert (PAGE.parent.parent / script).is_file()


def rows_with(text: str, column: str) -> list[dict[str, str]]:
    """The rows of the first table that has the column."""
    tables = [rows(table) for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)]
    return next(table for table in tables if table and column in table[0])
