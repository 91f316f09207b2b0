"""fedjax_spmc: federated learning under backdoor attack, simulated as pure functions over stacked pytrees.

In a notebook:

    from fedjax_spmc import experiment
    from fedjax_spmc.config import make_config

    result = experiment.run(make_config("spmc", data__name="digits"))
"""

from typing import TYPE_CHECKING, Any

from fedjax_spmc import startup  # noqa: F401  # first, as it holds from here on

if TYPE_CHECKING:
    from fedjax_spmc.errors import ConfigError, DataError, DivergedError, UserError, WorkdirError
    from fedjax_spmc.options import FRACTION, NON_NEGATIVE, POSITIVE, TRACED, Range
    from fedjax_spmc.types import (
        Aggregator,
        Attack,
        AttackContext,
        Batch,
        ClientData,
        Context,
        Examples,
        LocalRule,
        Model,
        PreAggregator,
        Roster,
        RuleState,
        ServerData,
        Task,
        Traits,
        Upload,
        Variables,
        Verdict,
    )

__version__ = "0.1.0"

__all__ = [
    "FRACTION",
    "NON_NEGATIVE",
    "POSITIVE",
    "TRACED",
    "Aggregator",
    "Attack",
    "AttackContext",
    "Batch",
    "ClientData",
    "ConfigError",
    "Context",
    "DataError",
    "DivergedError",
    "Examples",
    "LocalRule",
    "Model",
    "PreAggregator",
    "Range",
    "Roster",
    "RuleState",
    "ServerData",
    "Task",
    "Traits",
    "Upload",
    "UserError",
    "Variables",
    "Verdict",
    "WorkdirError",
]

_HOMES: dict[str, tuple[str, ...]] = {"options": ("FRACTION", "NON_NEGATIVE", "POSITIVE", "TRACED", "Range")}
_HOMES["errors"] = tuple(name for name in __all__ if name.endswith("Error"))
_HOMES["types"] = tuple(name for name in __all__ if name not in _HOMES["errors"] + _HOMES["options"])


def __getattr__(name: str) -> Any:
    """A public name is imported when it is asked for: a command's help needs none of them, and no JAX."""
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"fedjax_spmc.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
