"""Makes the generated blocks of pages in docs/ from the docstrings of registered parts and from the registries.

    python experiments/make_docs.py            # writes them anew
    python experiments/make_docs.py --check    # exit code 1 where a page is not what the code says

A block stands between `<!-- generated: NAME -->` and `<!-- end -->`; what stands around the blocks is written by hand.
`docstrings.py` has the form of the docstrings. Where one does not have it, the command says which part and which field.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import docstrings
import jax.numpy as jnp
from docstrings import DocstringError, cell, markdown

from fedjax_spmc.aggregators.guard import guarded
from fedjax_spmc.attacks.triggers import PRESETS
from fedjax_spmc.command import Parser, run_command
from fedjax_spmc.config import ATTACK_FIELDS
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.registry import Registry, aggregators, attacks, local_rules, preaggregators
from fedjax_spmc.terminal import show
from fedjax_spmc.types import Attack, AttackContext, Traits, Variables

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^(<!-- generated: ([^\n>]+) -->\n)(.*?)^(<!-- end -->)$", re.DOTALL | re.MULTILINE)
UPLOADS = (10, 100)
"""For so many uploads the options that a rule chooses are shown."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; nothing where there are no rows."""
    first, *others = (f"| {' | '.join(line)} |\n" for line in [head, *rows])
    return "".join([first, f"|{'---|' * len(head)}\n", *others]) if rows else ""


def option_name(option: str, value: Any) -> str:
    """An option with a value, as Python has it."""
    return f"`{option}={value!r}`".replace("'", '"')


def variants(kind: Registry, name: str) -> tuple[str, ...]:
    """The variants of a part; one without a name where it has no such option."""
    options = kind.options(name)
    return tuple(options["variant"].choices) if "variant" in options else ("",)


def variant(name: str) -> dict[str, str]:
    return {"variant": name} if name else {}


def by_variant(kind: Registry, name: str, what: Callable[[dict[str, str]], str]) -> str:
    """What holds for the variants of a part, once where it is the same for all."""
    found = {one: what(variant(one)) for one in variants(kind, name)}
    same = len(set(found.values())) == 1
    return next(iter(found.values())) if same else "; ".join(f"{one}: {text}" for one, text in found.items())


def takes(kind: Registry, name: str, **options: Any) -> bool:
    """Whether a part can be made so."""
    try:
        kind.make(name, **options)
    except ConfigError:
        return False
    return True


def settings(kind: Registry, name: str) -> Iterator[dict[str, Any]]:
    """The defaults of a part, then each other value of each of its options that has few, alone."""
    yield {}
    for option in kind.options(name).values():
        choices = (False, True) if option.kind is bool else option.choices or ()
        for value in choices:
            if value != option.default and takes(kind, name, **{option.name: value}):
                yield {option.name: value}


def lacking(kind: Registry, name: str) -> str:
    """The traits that a rule denies."""

    def of(options: dict[str, str]) -> str:
        traits = kind.make(name, **options).traits._asdict()
        return ", ".join(trait for trait, holds in traits.items() if not holds) or "-"

    return by_variant(kind, name, of)


def told_f(kind: Registry, name: str) -> str:
    """The options that tell a rule how many are malicious: their descriptions begin with f."""
    telling = [option for option, text in docstrings.part(kind, name).options.items() if re.match(r"f\b", text)]
    lowest = {option: kind.options(name)[option] for option in telling}

    def of(options: dict[str, str]) -> str:
        taken = [o for o, one in lowest.items() if takes(kind, name, **options, **{o: one.kind(one.range.low)})]
        return " or ".join(f"`{option}`" for option in taken) or "no"

    return by_variant(kind, name, of)


def fewest(kind: Registry, name: str) -> str:
    """The fewest usable uploads from which a rule makes a model, as a formula where it follows `attackers`."""

    def of(options: dict[str, str]) -> str:
        least = kind.make(name, **options).min_clients
        if "attackers" not in kind.options(name) or not takes(kind, name, **options, attackers=1):
            return str(least)
        one, two, three = (kind.make(name, **options, attackers=f).min_clients for f in (1, 2, 3))
        slope = two - one
        if three != one + 2 * slope:
            raise ValueError(f"{kind.kind} {name}: min_clients is no straight line in attackers.")
        return f"{'' if slope == 1 else f'{slope} '}f + {one - slope} with `attackers`, else {least}"

    return by_variant(kind, name, of)


def needed(name: str) -> str:
    """What an aggregator needs beside the uploaded models."""
    server = ["clean data", "network"] if aggregators.needs(name, "server") else []
    network = ["network"] if aggregators.needs(name, "network") else []
    return ", ".join([*server, *network, *(f"`{extra}`" for extra in aggregators.make(name).needs)]) or "-"


def senders(extra: str) -> str:
    rules = [f"`{name}`" for name in local_rules.names() if extra in local_rules.make(name).sends]
    return f"`{extra}`, which the local rule {' or '.join(rules)} sends"


def readers(extra: str) -> str:
    rules = [f"`{name}`" for name in aggregators.names() if extra in aggregators.make(name).needs]
    return f"`{extra}` for {' and '.join(rules)}"


def asks(name: str) -> str:
    """What a local rule asks of the aggregator."""
    if not local_rules.make(name).needs_linear:
        return "-"
    free = [
        option_name(option, value)
        for setting in settings(local_rules, name)
        for option, value in setting.items()
        if not local_rules.make(name, **setting).needs_linear
    ]
    return "linear" + (f", unless {' or '.join(free)}" if free else "")


def keeps_state(name: str) -> bool:
    if local_rules.needs(name, "network"):  # its state goes by the model's inputs
        return True
    state = local_rules.make(name).init(Variables({"w": jnp.zeros(1)}, {}), 2)
    return any(part != () for part in state)


def link(kind: Registry, name: str) -> str:
    return f"[`{name}`](#{kind.kind.replace(' ', '-')}-{name})"


def aggregator_table() -> str:
    rows = []
    for name in aggregators.names():
        part = docstrings.part(aggregators, name)
        facts = [told_f(aggregators, name), needed(name), cell(part.fields["Cost"])]
        ends = [fewest(aggregators, name), lacking(aggregators, name)]
        rows.append([link(aggregators, name), cell(part.idea), cell(part.fields["Assumes"]), *facts, *ends])
    return table(["rule", "idea", "assumes", "told f by", "needs", "cost", "fewest", "does not hold"], rows)


def lost_traits(name: str) -> str:
    """The traits of a rule that do not outlive a pre-aggregator in front of it."""
    part = preaggregators.make(name)
    lost = [trait for trait in ("linear", "consensus", "permutation") if not getattr(part, trait)]
    return ", ".join(lost) or "-"


def preaggregator_table() -> str:
    rows = []
    for name in preaggregators.names():
        part, made = docstrings.part(preaggregators, name), preaggregators.make(name)
        come_out = "K" if made.rows(10) == 10 else f"{made.rows(10)} of 10"
        facts = [cell(part.idea), cell(part.fields["Assumes"]), cell(part.fields["Cost"]), come_out]
        keeps = "any" if made.per_client else "without a state of every client, and reading models alone"
        rows.append([link(preaggregators, name), *facts, keeps, lost_traits(name)])
    return table(["pre-aggregator", "idea", "assumes", "cost", "rows that come out", "rules behind it", "loses"], rows)


def local_rule_table() -> str:
    rows = []
    for name in local_rules.names():
        part = docstrings.part(local_rules, name)
        facts = [cell(part.idea), cell(part.fields["Assumes"]), cell(part.fields["Cost"]), asks(name)]
        sent = ", ".join(readers(extra) for extra in local_rules.make(name).sends) or "-"
        rows.append([link(local_rules, name), *facts, sent, "yes" if keeps_state(name) else "no"])
    return table(["rule", "idea", "assumes", "cost", "asks of the aggregator", "sends", "state"], rows)


def slots_of(name: str) -> str:
    """The slots that an attack has."""
    attack = attacks.make(name)
    return ", ".join(f"`{slot}`" for slot in Attack._fields if getattr(attack, slot) is not None) or "none"


def has_backdoor(name: str) -> bool:
    return attacks.make(name).backdoor is not None


def attack_table() -> str:
    rows = []
    for name in attacks.names():
        part = docstrings.part(attacks, name)
        facts = [cell(part.fields[field]) for field in ("Knows", "Controls", "Cost")]
        ends = [slots_of(name), "yes" if has_backdoor(name) else "no"]
        rows.append([link(attacks, name), cell(part.idea), *facts, *ends])
    return table(["attack", "idea", "knows", "controls", "cost", "slots", "backdoor"], rows)


def span(numbers: Sequence[int]) -> str:
    """Whole numbers in few words: "0 to 5", "0, 2", "0 to 3, 6 to 9"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def trigger_table() -> str:
    """The published triggers."""
    rows = []
    for name, preset in PRESETS.items():
        places = [span(axis) for axis in zip(*preset.positions, strict=True)]
        rows.append([f"`{name}`", str(len(preset.positions)), *places, f"{preset.value:g}", preset.space])
    return table(["trigger", "values", "channels", "rows", "columns", "what is written", "space"], rows)


def attributes(kind: type) -> str:
    """What the attributes of a tuple are, by its docstring, as a list."""
    _, fields = docstrings.split(kind.__name__, inspect.getdoc(kind) or "", ("Attributes",))
    lines = re.sub(r"^(\w+(?:, \w+)+): ", lambda found: found[0].replace(", ", "__"), fields["Attributes"], flags=re.M)
    listed = docstrings.items(kind.__name__, lines).items()
    named = [("`" + "`, `".join(name.split("__")) + "`", text) for name, text in listed]
    return markdown("\n".join(f"* {name}: {text}" for name, text in named)) + "\n"


def section(kind: Registry, name: str) -> str:
    """All that is known of one part."""
    part = docstrings.part(kind, name)
    pieces = [f"### {kind.kind.capitalize()} `{name}`", markdown(part.about), markdown(part.text)]
    pieces.append(markdown(f"**Source:** {part.fields['Source']}"))
    if kind is attacks:
        pieces.append(markdown(f"**Knows:** {part.fields['Knows']}"))
        pieces.append(markdown(f"**Controls:** {part.fields['Controls']}"))
        pieces.append(markdown(f"**Cost:** {part.fields['Cost']}"))
        pieces.append(f"**Slots:** {slots_of(name)}. **Backdoor:** {'yes' if has_backdoor(name) else 'no'}.")
    if kind is aggregators and aggregators.make(name).needs:
        pieces.append(f"**Reads:** {', '.join(senders(extra) for extra in aggregators.make(name).needs)}.")
    if "Traits" in part.notes:
        pieces.append(markdown(f"**Traits:** {part.notes['Traits']}"))
    described = kind.describe(name)
    rows = []
    for option, text in part.options.items():
        facts = described[option]
        allowed = cell(facts["allowed"]) + (", array" if facts["array"] else "")
        path = option
        if kind is attacks:
            path = f"attack.{'' if option in ATTACK_FIELDS else 'options.'}{option}"
        elif kind is preaggregators:
            path = f"aggregator.pre_options.{name}.{option}"
        rows.append([f"`{path}`", f"`{facts['default']}`", allowed, cell(text)])
    pieces.append(table(["option", "default", "allowed", "what it is"], rows).strip())
    if part.refusals:
        pieces.append(markdown(f"**Refused:** {' '.join(part.refusals)}"))
    if "Reference" in part.notes:
        pieces.append(markdown(f"**Reference:**\n\n{part.notes['Reference']}"))
    if "Deviations" in part.fields:
        start = "\n\n" if part.fields["Deviations"].startswith("* ") else " "
        pieces.append(markdown(f"**Deviations:**{start}{part.fields['Deviations'].lstrip()}"))
    return "\n\n".join(piece for piece in pieces if piece) + "\n"


def sections(kind: Registry) -> str:
    return "\n".join(section(kind, name) for name in kind.names())


def chosen_text(by_uploads: Sequence[dict[str, Any]]) -> list[str]:
    return [", ".join(f"`{option}` {value:g}" for option, value in one.items()) for one in by_uploads]


def chosen_table() -> str:
    """The options that rules fill in, for a few numbers of uploads."""
    rows = []
    for name in preaggregators.names():
        by_uploads = [preaggregators.make(name).chosen(uploads) for uploads in UPLOADS]
        if by_uploads[0]:
            rows.append([f"`{name}`", "-", *chosen_text(by_uploads)])
    for name in aggregators.names():
        usual = set(aggregators.make(name).chosen(UPLOADS[0]))
        for setting in settings(aggregators, name):
            by_uploads = [aggregators.make(name, **setting).chosen(uploads) for uploads in UPLOADS]
            if set(by_uploads[0]) - (set() if "variant" in setting or not setting else usual):
                words = ", ".join(option_name(*one) for one in setting.items()) or "-"
                rows.append([f"`{name}`", words, *chosen_text(by_uploads)])
    return table(["rule", "with", *(f"of {uploads} uploads" for uploads in UPLOADS)], rows)


def traits() -> str:
    """What the traits mean."""
    text, fields = docstrings.split("Traits", inspect.getdoc(Traits) or "", ("Attributes",))
    meanings = docstrings.items("Traits", fields["Attributes"])
    listed = "\n".join(f"* {trait}: {meaning}" for trait, meaning in meanings.items())
    return f"{markdown(listed)}\n\n{markdown(text.partition(chr(10) * 2)[2])}\n"


def guard() -> str:
    """What the guard around every aggregator does."""
    text, _ = docstrings.split("guarded", inspect.getdoc(guarded) or "", ())
    return markdown(text.partition("\n\n")[2]) + "\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "traits": traits,
    "guard": guard,
    "table of aggregators": aggregator_table,
    "table of pre-aggregators": preaggregator_table,
    "table of local rules": local_rule_table,
    "chosen options": chosen_table,
    "aggregators": lambda: sections(aggregators),
    "pre-aggregators": lambda: sections(preaggregators),
    "local rules": lambda: sections(local_rules),
    "table of attacks": attack_table,
    "slots": lambda: attributes(Attack),
    "what an attack sees": lambda: attributes(AttackContext),
    "triggers": trigger_table,
    "attacks": lambda: sections(attacks),
}


def filled(text: str) -> str:
    """A page with its blocks made anew.

    Raises:
        DocstringError: a docstring that does not have the form, a block of an unknown name or without an end.
    """
    if len(re.findall(r"^<!-- generated:", text, re.MULTILINE)) != len(BLOCK.findall(text)):
        raise DocstringError(
            "A generated block has no end: each must be closed by <!-- end --> before the next begins."
        )

    def made(block: re.Match[str]) -> str:
        if block[2] not in BLOCKS:
            raise DocstringError(f"The block {block[2]!r} is unknown: it must be one of {', '.join(BLOCKS)}.")
        return f"{block[1]}\n{BLOCKS[block[2]]()}\n{block[4]}"

    return BLOCK.sub(made, text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.switch("--check", "writes nothing, and ends with 1 where a page is not what the code says")
    return run_command(parser, lambda flags: _make(flags["check"]), arguments)


def _make(check: bool) -> int:
    stale = False
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        try:
            anew = filled(text)
        except DocstringError as error:
            show(str(error))
            return 1
        if anew != text:
            stale = True
            show(f"docs/{page.name} is {'not what the code says' if check else 'written anew'}")
            if not check:
                page.write_text(anew, encoding="utf-8")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
