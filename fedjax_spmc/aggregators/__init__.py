"""Aggregators: what the server runs on the uploads, one file each.

`make(name, **options)` builds one, wrapped in the guard that keeps anything non-finite out of every rule.
"""

from typing import Any

from fedjax_spmc import registry
from fedjax_spmc.aggregators.guard import guarded
from fedjax_spmc.types import Aggregator

names = registry.aggregators.names
describe = registry.aggregators.describe


def make(name: str, /, **options: Any) -> Aggregator:
    """The aggregator `name`, guarded (see `guard.guarded`).

    Raises:
        ValueError: unknown name or option (the known ones are listed), wrong type, value out of range.
    """
    return guarded(registry.aggregators.make(name, **options))


__all__ = ["describe", "make", "names"]
