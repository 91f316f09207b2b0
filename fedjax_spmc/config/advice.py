"""Mistakes in a config that have a known way out: the sentence that names it."""

import re
from collections.abc import Mapping
from typing import Any

from fedjax_spmc import registry
from fedjax_spmc.config.fields import ATTACK_FIELDS, FIELDS, OPTION_PATHS, PRE, SECTIONS
from fedjax_spmc.config.presets import PAIRED_METHODS
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.nearest import did_you_mean, either
from fedjax_spmc.options import Option, quoted

FIELD_OF_KIND: dict[str, str] = {
    **{kind.kind: field for kind, field in SECTIONS.values()},
    registry.partitions.kind: "partition.name",
}
"""Kind of part -> the field that names it."""


def refuse_wrong_part(path: str, value: Any) -> None:
    """Refuses a preset, or a part of another kind, where a field names a part.

    Raises:
        ConfigError: `value` is such a name; where it belongs is said.
    """
    kinds = {field: kind for kind, field in SECTIONS.values()} | {"partition.name": registry.partitions}
    if path not in kinds or not isinstance(value, str) or value in kinds[path].names():
        return
    said = f"{path} = {value!r} is not allowed"
    if value in PAIRED_METHODS and path in PAIRED_METHODS[value]:
        ours = PAIRED_METHODS[value][path]
        raise ConfigError(
            f"{said}: {value} is a preset, the {kinds[path].kind} is {ours}; it must be {path}={ours}, or the preset "
            f"behind the config: --config=CONFIG:{value}."
        )
    for kind, _ in SECTIONS.values():
        if value in kind.names():
            right = FIELD_OF_KIND[kind.kind]
            raise ConfigError(
                f"{said}: {value} is the name of a part of another kind ({kind.kind}): it must be {right}={value}."
            )


def refuse_several(path: str, text: str, option: Option) -> None:
    """Refuses several values for a field that takes one, typed on the command line.

    Raises:
        ConfigError: each of them would be allowed alone.
    """
    parts = [part.strip(" '\"") for part in text.strip("()[] ").split(",")]
    if option.kind is tuple or len(parts) < 2 or (option.kind is str and option.known() is None):
        return
    if re.fullmatch(r"\d+,0\d*|0,\d+", text.strip()) and option.kind is float:
        return  # a decimal comma
    try:
        values = [option.parse(part, path) for part in parts]
    except ConfigError:
        return
    grid = f"seeds={tuple(values)}" if path == "seed" else f"grid={{{path!r}: {values}}}"
    many = "seeds" if path == "seed" else "values"
    raise ConfigError(
        f"{path} = {quoted(text)} is not allowed: several {many} are a sweep (`fedjax-spmc sweep`, Sweep(base, "
        f"{grid})); here it must be one."
    )


def unknown_option(section: str, name: str, owner: str, known: Mapping[str, Option]) -> ConfigError:
    """The error for an option that the part chosen in a section does not take.

    Args:
        section: of the config.
        name: of the option.
        owner: the chosen part, in words.
        known: the options that it takes.
    """
    path = f"{OPTION_PATHS[section]}.{name}"
    if section == "attack" and name in ATTACK_FIELDS:
        return ConfigError(f"{path} is no option: it is a field of its own, attack.{name}.")
    field = f"{section}.{name}"
    if field in FIELDS:
        return ConfigError(f"{path} is no option: it is a field of its own, {field}.")
    said = f"{path} is no option of {owner}; it knows {', '.join(sorted(known)) or 'no options'}"
    kind, deciding = SECTIONS[section]
    part, _, of_one = name.partition(".")
    if of_one and part in kind.names() and part not in owner:
        return ConfigError(f"{said}. {part} must be among {deciding}.")
    meant = did_you_mean(name, known) if "." not in name else ""
    if meant:
        return ConfigError(f"{said} ({meant}).")
    others = [] if section == PRE else [one for one in kind.names() if name in kind.options(one)]
    return ConfigError(f"{said}. It is an option of {either(others)}." if others else f"{said}.")
