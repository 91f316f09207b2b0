"""Attacks: what malicious clients do, one file each. A list of attacks composes into one."""

from collections.abc import Sequence
from typing import Any

from fedjax_spmc import registry
from fedjax_spmc.attacks import triggers
from fedjax_spmc.attacks.compose import compose
from fedjax_spmc.types import Attack

names = registry.attacks.names
describe = registry.attacks.describe


def make(name: str | Sequence[str], /, **options: Any) -> Attack:
    """The attack `name`, or the composition of several; an option goes to each attack that knows it.

    Raises:
        ValueError: unknown name or option (the known ones are listed), wrong type, value out of range.
    """
    if isinstance(name, str):
        return registry.attacks.make(name, **options)
    parts = []
    unused = dict(options)
    for part in name:
        known = registry.attacks.options(part)
        parts.append(registry.attacks.make(part, **{key: value for key, value in options.items() if key in known}))
        unused = {key: value for key, value in unused.items() if key not in known}
    if unused:
        registry.attacks.make(name[-1], **unused)
    return compose(parts)


__all__ = ["compose", "describe", "make", "names", "triggers"]
