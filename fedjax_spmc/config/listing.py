"""The text of `fedjax-spmc list` and `--list`: parts with papers, options, defaults and ranges; presets, fields."""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator

from fedjax_spmc import config, registry
from fedjax_spmc.config import presets
from fedjax_spmc.config.files import shipped
from fedjax_spmc.registry import Registry

PART_KINDS = (
    ("data sets", registry.datasets),
    ("partitions", registry.partitions),
    ("models", registry.models),
    ("local rules", registry.local_rules),
    ("aggregators", registry.aggregators),
    ("pre-aggregators", registry.preaggregators),
    ("attacks", registry.attacks),
    ("sampling", registry.samplings),
)
ARRAY = (
    "array: a number that may differ between experiments of one compiled program, so that a sweep over it compiles once"
)
_SOURCE = re.compile(r"^Source: (.*?)(?=^\S|\Z)", re.DOTALL | re.MULTILINE)


def listing(group: str = "all") -> str:
    """What a config can name, as text.

    Args:
        group: one of `commands.GROUPS`, or "all".
    """
    blocks: dict[str, Callable[[], list[str]]] = {
        kind.group: lambda title=title, kind=kind: _parts(title, kind) for title, kind in PART_KINDS
    }
    blocks |= {"presets": _presets, "fields": _fields, "configs": _configs}
    chosen = list(blocks.values()) if group == "all" else [blocks[group]]
    lines = ["\n".join(block()) for block in chosen]
    arrays = any(", array)" in text for text in lines)
    return "\n\n".join([*lines, *([ARRAY] if arrays else [])])


def source(kind: Registry, name: str) -> str:
    """The publication behind a part, as its module's docstring names it, on one line; "" where it names none."""
    module = inspect.getmodule(kind.factory(name))
    found = _SOURCE.search(inspect.getdoc(module) or "") if module else None
    return " ".join(found[1].split()).removesuffix(".") if found else ""


def _parts(title: str, kind: Registry) -> list[str]:
    lines = [title]
    for name in kind.names():
        summary = (kind.factory(name).__doc__ or "").strip().splitlines()
        lines.append(f"  {name:<14} {summary[0] if summary else ''}".rstrip())
        lines += _wrapped(source(kind, name))
        for option, facts in kind.describe(name).items():
            array = ", array" if facts["array"] else ""
            lines.append(f"      {option} = {facts['default']}   ({facts['allowed']}{array})")
    return lines


def _wrapped(paper: str) -> Iterator[str]:
    indent = " " * 6
    yield from textwrap.wrap(
        f"paper: {paper}" if paper else "", 116, initial_indent=indent, subsequent_indent=f"{indent}  "
    )


def _presets() -> list[str]:
    lines = ["presets (behind --config=CONFIG:, joined by commas)"]
    return lines + [f"  {name:<14} {what}" for name, what in presets.descriptions().items()]


def _fields() -> list[str]:
    return ["fields", *[f"  {field.name} = {field.default}   ({field.allowed()})" for field in config.FIELDS.values()]]


def _configs() -> list[str]:
    lines = ["configs (--config=NAME; of sweeps for `fedjax-spmc sweep`)"]
    for name, path in shipped().items():
        text = path.read_text(encoding="utf-8")
        first = re.match(r'"""(.+)', text)
        lines.append(f"  {name:<26} {first[1].strip() if first else ''}".rstrip())
    return lines
