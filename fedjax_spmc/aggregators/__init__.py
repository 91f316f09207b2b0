"""Aggregators: what the server runs on the uploads, one file each.

`make(name, **options)` builds one, wrapped in the guard that keeps anything non-finite out of every rule.
"""

from collections.abc import Mapping
from typing import Any

from fedjax_spmc import registry
from fedjax_spmc.aggregators.guard import guarded
from fedjax_spmc.preaggregators import in_front
from fedjax_spmc.types import Aggregator, PreAggregator

names = registry.aggregators.names
describe = registry.aggregators.describe


def make(name: str, /, **options: Any) -> Aggregator:
    """The aggregator `name`, guarded (see `guard.guarded`).

    Raises:
        ValueError: unknown name or option (the known ones are listed), wrong type, value out of range.
    """
    return guarded(registry.aggregators.make(name, **options), name)


def make_behind(chain: Mapping[str, PreAggregator], name: str, /, **options: Any) -> Aggregator:
    """The aggregator `name` behind pre-aggregators (`preaggregators.make`), guarded.

    Raises:
        ValueError: as `make`, or the rule cannot stand behind them.
    """
    return guarded(in_front(chain, registry.aggregators.make(name, **options), name), name)


__all__ = ["describe", "make", "make_behind", "names"]
