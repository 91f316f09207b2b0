"""The fields of a config that was found in a folder, whatever version wrote it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc import reading, registry
from fedjax_spmc.errors import UserError, WorkdirError
from fedjax_spmc.record import truth


def with_defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fields and options by dotted path, those that are missing at their defaults: older versions knew fewer."""
    fields = {path: configs.plain(option.default) for path, option in configs.FIELDS.items()}
    given = fields | {path: configs.plain(value) for path, value in configs.flatten(content).items()}
    options = {}
    for section, (parts, name) in configs.SECTIONS.items():
        own, place = configs.SECTION_FIELDS.get(section, ()), configs.OPTION_PATHS[section]
        for part in given[name] if isinstance(given[name], list) else [given[name]]:
            if part in parts.names():  # a plug-in's part may not be known here
                prefix = f"{place}.{part}." if section == configs.PRE else f"{place}."
                known = parts.options(part).items()
                options |= {f"{prefix}{n}": configs.plain(o.default) for n, o in known if n not in own}
    return options | given


def checked_fields(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields by dotted path; those that the report computes with are checked.

    Raises:
        WorkdirError: one of them is of another type; names `path`.
    """
    found = with_defaults(content)
    for name, kind in _REQUIRED.items():
        if not isinstance(found[name], kind) or isinstance(found[name], bool):
            raise WorkdirError(f"{path} is damaged ({name} = {found[name]!r}): the run is left out.")
    name = "evaluation.lifespan_thresholds"
    if any(not isinstance(value, (int, float)) for value in found[name]):
        raise WorkdirError(f"{path} is damaged ({name} = {found[name]!r}): the run is left out.")
    return found


_REQUIRED: dict[str, Any] = {
    "seed": int, "federation.num_clients": int, "federation.rounds": int, "federation.eval_every": int,
    "federation.clients_per_round": int, "attack.malicious_fraction": (int, float), "partition.beta": (int, float),
    "data.name": str, "local.rule": str, "aggregator.name": str, "attack.placement": str,
    "attack.schedule.first": int, "attack.schedule.last": (int, type(None)), "attack.schedule.every": int,
    "evaluation.confidence": (int, float), "evaluation.lifespan_thresholds": list, "local.batch_size": int,
}  # fmt: skip
"""Fields that the report computes with, and their types."""


def rule_flags(config: Mapping[str, Any]) -> bool | None:
    """Whether a config's aggregator flags clients at all; None where it cannot be made from the config alone."""
    options = configs.options_in(config, "aggregator")
    try:
        return registry.aggregators.make(config["aggregator.name"], **options).flags
    except (UserError, TypeError):  # of a plug-in or another version, or one that needs the server's data
        return None


def malicious_clients(config: Mapping[str, Any], folder: Path | None) -> np.ndarray:
    """[N] bool: who is malicious, as the run's `roster.json` says; nobody where only a row is left of a run.

    Raises:
        WorkdirError: the folder does not say it.
    """
    if folder is None:
        return np.zeros(config["federation.num_clients"], bool)
    path = folder / "roster.json"
    try:
        return truth.malicious_of(reading.json_object(path))
    except FileNotFoundError:
        raise WorkdirError(f"{path} is missing, nothing says who was malicious: the run is left out.") from None
    except reading.UnreadableError as error:
        raise WorkdirError(f"{path} {error}: the run is left out.") from None
    except ValueError:
        raise WorkdirError(f"{path} is damaged: the run is left out.") from None
