"""Named presets: which fields a word behind `--config=FILE:` changes. Presets never change `model.name`."""

from typing import Any

from fedjax_spmc.config import Config, default_config, set_field
from fedjax_spmc.errors import ConfigError

METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"local.rule": "sgd", "aggregator.name": "mean"},
    "spmc": {"local.rule": "spmc", "aggregator.name": "spmc"},
}
"""A method is a pair of a local rule and an aggregator, as a paper uses it."""

REFERENCE: dict[str, Any] = {
    "attack.poison_fraction": 0.3,
    "attack.trigger": "spmc_code",
    "attack.options.augmentation": "frozen",
    "sampling.options.order": "drawn",
}
"""What the authors' code does whatever the method."""

REFERENCE_RULES: dict[str, dict[str, Any]] = {
    "sgd": {"local.epochs": 1},
    "spmc": {"local.options.floor": 0.0},
}
"""What the authors' code does with a local rule."""

REFERENCE_AGGREGATORS: dict[str, dict[str, Any]] = {"mean": {"aggregator.options.weights": "uniform"}}
"""What the authors' code does with an aggregator."""


def names() -> dict[str, str]:
    """Preset -> what it sets, in words."""
    listed = {name: ", ".join(f"{k}={v}" for k, v in fields.items()) for name, fields in METHODS.items()}
    every = {**REFERENCE, "with sgd": REFERENCE_RULES["sgd"], "with spmc": REFERENCE_RULES["spmc"]}
    listed["reference"] = "the authors' code: " + ", ".join(f"{k}={v}" for k, v in every.items())
    return listed


def make_config(arg: str = "", **fields: Any) -> Config:
    """The default config with the presets in `arg` and then `fields` applied.

    Args:
        arg: preset names joined by commas: at most one method (default "spmc"), and "reference".
        **fields: fields of this config file by dotted path with `__` for the dot, such as data__name="digits"; they are
            set before the presets.

    Raises:
        ConfigError: an unknown preset (the known ones are listed), or two methods.
    """
    words = [word.strip() for word in arg.split(",") if word.strip()]
    for word in words:
        if word not in names():
            raise ConfigError(f"preset {word!r} is unknown: it must be one of {', '.join(names())}, joined by commas.")
    methods = [word for word in words if word in METHODS]
    if len(methods) > 1:
        raise ConfigError(f"presets {', '.join(methods)} exclude each other: give one of {', '.join(METHODS)}.")
    config = default_config()
    for name, value in fields.items():
        set_field(config, name.replace("__", "."), value)
    changes = dict(METHODS[methods[0] if methods else "spmc"])
    if "reference" in words:
        changes |= REFERENCE | REFERENCE_RULES.get(changes["local.rule"], {})
        changes |= REFERENCE_AGGREGATORS.get(changes["aggregator.name"], {})
    for path, value in changes.items():
        set_field(config, path, value)
    return config
