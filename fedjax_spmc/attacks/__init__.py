"""Attacks: what malicious clients do, one file each. A list of attacks composes into one."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_spmc import registry
from fedjax_spmc.attacks import triggers
from fedjax_spmc.attacks.compose import compose
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import Attack

names = registry.attacks.names
describe = registry.attacks.describe


def make(name: str | Sequence[str], /, **options: Any) -> Attack:
    """The attack `name`, or the composition of several.

    Args:
        name: a name, or names; a name stands once.
        options: an option goes to each attack that knows it; one called `NAME.option` goes to that attack alone, and
            wins.

    Raises:
        ConfigError: (a ValueError) unknown name or option (the known ones are listed), wrong type, value out of range.
    """
    listed = (name,) if isinstance(name, str) else tuple(name)
    if len(set(listed)) < len(listed):
        raise ConfigError(f"attack.name = {', '.join(listed)} is not allowed: a name must stand once.")
    parts = {one: registry.attacks.make(one, **given) for one, given in options_by_part(listed, options).items()}
    return compose(parts)


def options_by_part(listed: Sequence[str], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Which of the options each attack of a list is made with.

    Raises:
        ConfigError: an option that none of them knows.
    """
    given: dict[str, dict[str, Any]] = {}
    unused = dict(options)
    for one in listed:
        known = registry.attacks.options(one)
        own = {key.removeprefix(f"{one}."): value for key, value in options.items() if key.startswith(f"{one}.")}
        given[one] = {key: value for key, value in options.items() if key in known} | own
        unused = {key: value for key, value in unused.items() if key not in known and not key.startswith(f"{one}.")}
    if unused:
        registry.attacks.make(listed[-1], **unused)
    return given


__all__ = ["compose", "describe", "make", "names", "options_by_part", "triggers"]
