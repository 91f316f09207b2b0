"""Reads the docstrings of registered parts, which have a fixed form, so that pages of docs/ can be made of them.

The docstring of a part's module:

    NAME: what it does, in one sentence.

    More, if anything.

    Source: the publication, its section or algorithm; further lines are indented by four.
    Assumes: what must be true for it to work.
    Cost: in time and memory.
    Deviations: from the paper; left out where there are none.

That of an attack has in place of Assumes, and must have Deviations ("none" where there are none):

    Knows: what the attacker knows of the others, the model and the defence.
    Controls: what it can change: its data, its training, its upload.

The docstring of its factory:

    One sentence or equation.

    More, if anything.

    Reference:
        * How `variant="reference"` differs from the paper, item by item; where the factory has this option.

    Traits: which do not hold, and why.

    Args:
        option: what it is, and what None stands for.

    Raises:
        ConfigError: when the factory refuses its options.

These words begin a field at the start of a line, in this order. In a text, lines that begin with "* " are the items of
a list, and lines indented by four more are equations, shown as they are. Where a rule must be told f, the number of
malicious clients, the description of the option that tells it begins with "f".

Whatever is missing or unknown raises a `DocstringError` that names the part and the field.
"""

import inspect
import re
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from fedjax_spmc.registry import Registry, attacks

MODULE = ("Source", "Assumes", "Cost", "Deviations")
REQUIRED = ("Source", "Assumes", "Cost")
ATTACK = ("Source", "Knows", "Controls", "Cost", "Deviations")
FACTORY = ("Reference", "Traits", "Args", "Raises")
WIDTH = 120


class DocstringError(ValueError):
    """A docstring that does not have the form; one sentence that names the part and the field."""


class Part(NamedTuple):
    """What the docstrings of a registered part say.

    Attributes:
        name: under which it is registered.
        idea: the sentence behind the module's name, without its full stop.
        about: of the module, what stands before its fields.
        fields: of the module, field -> text.
        text: of the factory, what stands before its fields.
        notes: of the factory, "Reference" and "Traits" -> text, where there.
        options: option -> description.
        refusals: when the factory refuses its options.
    """

    name: str
    idea: str
    about: str
    fields: dict[str, str]
    text: str
    notes: dict[str, str]
    options: dict[str, str]
    refusals: tuple[str, ...]


def part(kind: Registry, name: str) -> Part:
    """Reads a part's docstrings.

    Args:
        kind, name: which part.

    Raises:
        DocstringError: one of them does not have the form.
    """
    factory = kind.factory(name)
    options = kind.options(name)
    module, own = inspect.getdoc(inspect.getmodule(factory)) or "", inspect.getdoc(factory) or ""
    known, required = (ATTACK, ATTACK) if kind is attacks else (MODULE, REQUIRED)
    return read(f"{kind.kind} {name}", name, module, own, tuple(options), kind.given, known, required)


def read(
    where: str,
    name: str,
    module: str,
    factory: str,
    options: Sequence[str],
    given: Sequence[str] = (),
    known: Sequence[str] = MODULE,
    required: Sequence[str] = REQUIRED,
) -> Part:
    """Reads the two docstrings of a part.

    Args:
        where: the part as an error names it.
        name: under which it is registered.
        module, factory: the docstrings, without indentation.
        options: what the factory takes.
        given: further parameters, which the simulator fills in.
        known: the fields that the module may have, in their order.
        required: those that it must have.

    Raises:
        DocstringError: one of them does not have the form.
    """
    first, _, rest = module.partition("\n")
    title = re.fullmatch(r"\w[^:]*: (.+)\.", first)
    if title is None:
        raise DocstringError(f"{where}: the module's docstring does not begin with 'NAME: what it does.' on one line.")
    about, fields = split(f"{where}, module", rest, known)
    text, found = split(f"{where}, factory", factory, FACTORY)
    if not text:
        raise DocstringError(f"{where}, factory: no sentence stands before the fields.")
    wanted = [*required, *(["Reference"] if "variant" in options else [])]
    for field in wanted:
        if not (fields | found).get(field):
            raise DocstringError(f"{where}: the field {field!r} is missing.")
    if "Reference" in found and "variant" not in options:
        raise DocstringError(f"{where}: the field 'Reference' has no use without an option 'variant'.")
    if not found.get("Reference", "* ").startswith("* "):
        raise DocstringError(f"{where}: the field 'Reference' is not a list of items that begin with '* '.")
    described = items(f"{where}, Args", found.get("Args", ""))
    for option in options:
        if option not in described:
            raise DocstringError(f"{where}: the field 'Args' lacks the option {option!r}.")
    for option in described:
        if option not in (*options, *given):
            raise DocstringError(f"{where}: the field 'Args' names {option!r}, which is no option.")
    return Part(
        name=name,
        idea=title[1],
        about=about,
        fields=fields,
        text=text,
        notes={field: found[field] for field in ("Reference", "Traits") if field in found},
        options={option: described[option] for option in options},
        refusals=tuple(items(f"{where}, Raises", found.get("Raises", "")).values()),
    )


def split(where: str, text: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What stands before the fields, and field -> its text without indentation.

    Raises:
        DocstringError: a field that is unknown, stands twice or in the wrong order, or a line that belongs to none.
    """
    before: list[str] = []
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        begun = re.fullmatch(r"([A-Z][A-Za-z]*):(?: (.*))?", line)
        if begun:
            field = begun[1]
            if field not in known:
                raise DocstringError(f"{where}: the field {field!r} is unknown: it must be one of {', '.join(known)}.")
            if any(known.index(field) <= known.index(other) for other in fields):
                raise DocstringError(f"{where}: the field {field!r} must stand once, in the order {', '.join(known)}.")
            fields[field] = [begun[2] or ""]
        elif not fields:
            before.append(line)
        elif line and not line.startswith("    "):
            raise DocstringError(f"{where}: the line {line!r} belongs to no field: it must be indented by four.")
        else:
            fields[list(fields)[-1]].append(line[4:])
    return "\n".join(before).strip(), {field: "\n".join(lines).strip("\n") for field, lines in fields.items()}


def items(where: str, text: str) -> dict[str, str]:
    """The "name: description" of a field such as Args, name -> description on one line.

    Raises:
        DocstringError: a line that belongs to no item.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        begun = re.match(r"(\w+): (.+)", line)
        if begun:
            found[begun[1]] = begun[2]
        elif line.startswith("    ") and found:
            found[list(found)[-1]] += f" {line.strip()}"
        elif line:
            raise DocstringError(f"{where}: the line {line!r} is not 'name: description'.")
    return found


def markdown(text: str) -> str:
    """A text with its lists and equations as Markdown."""
    blocks: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        last = blocks[-1][0] if blocks else ""
        if not line:
            blocks.append(("", []))
        elif line.startswith("* "):
            blocks.append(("item", [line[2:]]))
        elif line.startswith("  ") and last == "item":
            blocks[-1][1].append(line.strip())
        elif line.startswith("    "):
            if last != "equations":
                blocks.append(("equations", []))
            blocks[-1][1].append(line[4:])
        else:
            if last != "words":
                blocks.append(("words", []))
            blocks[-1][1].append(line)
    page = ""
    before = ""
    for kind, lines in blocks:
        if lines:
            page += ("\n" if kind == before == "item" else "\n\n") + _block(kind, lines)
            before = kind
    return page.strip("\n")


def cell(text: str) -> str:
    """A text in one line, for a table."""
    return escaped(" ".join(text.split())).replace("|", r"\|").removesuffix(".")


def escaped(text: str) -> str:
    """Words in which Markdown sees no emphasis but bold, and no tag; what stands in backticks stays."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        piece
        if piece.startswith("`")
        else re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<!\*)\*(?=[^\s*])|<(?=[A-Za-z/!])", r"\\\g<0>", piece)
        for piece in pieces
    )


def _block(kind: str, lines: list[str]) -> str:
    if kind == "equations":
        return "\n".join(["```", *lines, "```"])
    first, further = ("* ", "  ") if kind == "item" else ("", "")
    # A line that began with one of these signs would begin a list, a heading or a quotation.
    joined = re.sub(r" (?=(?:[-+*=>#|]|\d+[.)]) )", "\0", escaped(" ".join(lines)))
    filled = textwrap.fill(
        joined, WIDTH, initial_indent=first, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )
    return filled.replace("\0", " ")
