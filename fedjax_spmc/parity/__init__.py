"""Numerics against the public references: `python -m fedjax_spmc.parity`, or `parity.walk(folder)`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_spmc.parity.comparison import Outcome
    from fedjax_spmc.parity.walker import walk


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: the command's help needs none of it, and no JAX."""
    homes = {"Outcome": "comparison", "walk": "walker"}
    if name in homes:
        return getattr(importlib.import_module(f"fedjax_spmc.parity.{homes[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Outcome", "walk"]
