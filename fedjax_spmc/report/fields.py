"""The fields of a config that was found in a folder, whatever version wrote it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc.errors import WorkdirError


def with_defaults(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fields and options by dotted path, those that are missing at their defaults: older versions knew fewer."""
    fields = {path: configs.plain(option.default) for path, option in configs.FIELDS.items()}
    given = fields | {path: configs.plain(value) for path, value in configs.flatten(content).items()}
    options = {}
    for section, (parts, name) in configs.PARTS.items():
        own = configs.SECTION_FIELDS.get(section, ())
        for part in given[name] if isinstance(given[name], list) else [given[name]]:
            if part in parts.names():  # a plug-in's part may not be known here
                known = parts.options(part).items()
                options |= {f"{section}.options.{n}": configs.plain(o.default) for n, o in known if n not in own}
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
    return found


_REQUIRED: dict[str, Any] = {
    "seed": int, "federation.num_clients": int, "federation.rounds": int, "federation.eval_every": int,
    "federation.clients_per_round": int, "attack.malicious_fraction": (int, float), "partition.beta": (int, float),
    "data.name": str, "local.rule": str, "aggregator.name": str, "attack.placement": str,
}  # fmt: skip
"""Fields that the report computes with, and their types."""


def malicious_clients(config: Mapping[str, Any]) -> np.ndarray:
    """[N] bool: who is malicious, as `setup.roster` draws it."""
    from fedjax_spmc import setup

    made = configs.default_config()
    for name in ("federation.num_clients", "attack.malicious_fraction", "attack.placement", "attack.name"):
        configs.set_field(made, name, config[name])
    count = configs.num_malicious(made)
    clients = config["federation.num_clients"]
    if config["attack.placement"] != "random" or not count:
        return np.arange(clients) >= clients - count
    import jax

    return np.asarray(setup.roster(made, jax.random.key(config["seed"])).malicious)
