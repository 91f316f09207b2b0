"""Named presets: which fields a word behind `--config=FILE:` changes. Presets never change `model.name`."""

import functools
from collections.abc import Mapping
from typing import Any

from fedjax_spmc.config.fields import Config, default_config, oracle_options, set_field
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.nearest import did_you_mean, either
from fedjax_spmc.registry import aggregators

Words = Mapping[str, Mapping[str, Any]]
"""Preset -> the fields that it sets."""

PAIRED_METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"local.rule": "sgd", "aggregator.name": "mean"},
    "spmc": {"local.rule": "spmc", "aggregator.name": "spmc"},
    "fedprox": {"local.rule": "fedprox", "aggregator.name": "mean"},
    "scaffold": {"local.rule": "scaffold", "aggregator.name": "mean", "aggregator.options.weights": "uniform"},
    "fdcr": {"local.rule": "fdcr", "aggregator.name": "fdcr"},
    "flip": {
        "local.rule": "flip",
        "local.optimizer": "adam",
        "local.momentum": 0.5,
        "local.beta2": 0.9,
        "local.weight_decay": 0.0,
        "attack.local.rule": "sgd",
        "attack.local.optimizer": "sgd",
        "aggregator.name": "mean",
        "aggregator.options.weights": "uniform",
        "server.optimizer": "sgd",
        "server.learning_rate": 0.1,
    },
}
"""Methods by name: a pair of a local rule and an aggregator, as a paper uses it. Every other aggregator is a method
too, with plain local SGD, under its own name."""

REFERENCE_FIELDS: dict[str, Any] = {
    "attack.poison_fraction": 0.3,
    "attack.trigger": "spmc_code",
    "attack.augmentation": "frozen",
    "sampling.options.order": "drawn",
}
"""The fields in which the authors' code departs from the paper, whatever the method."""

REFERENCE_FIELDS_OF_RULE: dict[str, dict[str, Any]] = {
    "sgd": {"local.epochs": 1},
    "spmc": {"local.options.floor": 0.0},
    "fedprox": {"local.options.variant": "reference"},
    "scaffold": {"local.options.variant": "reference"},
    "fdcr": {
        "local.options.fisher_kind": "authors",
        "attack.poison_fraction": 0.5,
        "attack.trigger": "fdcr_code",
        "sampling.options.order": "sorted",
    },
    "flip": {
        "local.options.preset": "reference",
        "local.options.schedule": "reference",
        "local.options.pair_key": "reference",
        "local.options.rollback_other": True,
        "local.options.margin": 0.0,
        "attack.poison_fraction": None,
        "attack.trigger": None,
        "attack.augmentation": "live",
        "sampling.options.order": "sorted",
    },
}
"""Local rule -> further fields in which the authors' code departs with it; FDCR's authors have a code of their own."""


def methods() -> dict[str, dict[str, Any]]:
    """Method -> the fields that it sets."""
    paired = {fields["aggregator.name"] for fields in PAIRED_METHODS.values()}
    alone = [name for name in aggregators.names() if name not in paired]
    return PAIRED_METHODS | {name: {"local.rule": "sgd", "aggregator.name": name} for name in alone}


@functools.cache
def method_name(rule: str, aggregator: str) -> str:
    """The one name of a method, everywhere: its preset's, or the local rule's and the aggregator's."""
    for name, fields in methods().items():
        if (rule, aggregator) == (fields["local.rule"], fields["aggregator.name"]):
            return name
    return f"{rule} + {aggregator}"


def is_averaging(config: Mapping[str, Any]) -> bool:
    """Whether a flat config is plain averaging, which others are measured against: without an `oracle_` option, nothing
    in front of the mean and no server optimiser behind it."""
    alone = not config.get("aggregator.pre") and config.get("server.optimizer", "none") == "none"
    method = method_name(config["local.rule"], config["aggregator.name"])
    return method == "fedavg" and alone and not oracle_options(config)


def reference_aggregator_options(name: str) -> dict[str, Any]:
    """The options with which the authors' code runs an aggregator."""
    if name == "mean":
        return {"aggregator.options.weights": "uniform"}
    return {"aggregator.options.variant": "reference"} if "variant" in aggregators.options(name) else {}


def descriptions() -> dict[str, str]:
    """Preset -> the fields that it sets, as text."""
    listed = {name: ", ".join(f"{k}={v}" for k, v in fields.items()) for name, fields in methods().items()}
    with_rules = {f"with {rule}": fields for rule, fields in REFERENCE_FIELDS_OF_RULE.items()}
    every = {
        **REFERENCE_FIELDS,
        **with_rules,
        "with an aggregator that has variants": {"aggregator.options.variant": "reference"},
    }
    listed["reference"] = "the authors' code: " + ", ".join(f"{k}={v}" for k, v in every.items())
    return listed


def preset_fields(arg: str = "", method: str = "spmc", words: Words | None = None) -> dict[str, Any]:
    """The fields that presets set.

    Args:
        arg: preset names joined by commas: at most one method, "reference", and any of `words`.
        method: the one that is taken where `arg` names none.
        words: presets of a config file's own: word -> the fields that it sets, behind those of the others.

    Raises:
        ConfigError: an unknown preset (the known ones are listed), two methods, or two words that set a field to
            different values.
    """
    own = {} if words is None else words
    given = [word.strip() for word in arg.split(",") if word.strip()]
    for word in given:
        if word not in descriptions() and word not in own:
            meant = did_you_mean(word, [*own, *descriptions()])
            many = f"one of the {len(descriptions())} that `fedjax-spmc list presets` names"
            raise ConfigError(
                f"preset {word!r} is unknown: it must be {either([*own, many])}, joined by commas"
                f"{f' ({meant})' if meant else ''}."
            )
    known = methods()
    chosen = [word for word in given if word in known]
    if len(chosen) > 1:
        raise ConfigError(
            f"presets {', '.join(chosen)} exclude each other: give one of them; several methods are a sweep "
            f"(`fedjax-spmc sweep`, Sweep(base, grid={{'method': {chosen}}}))."
        )
    changes = dict(known[chosen[0] if chosen else method])
    if "reference" in given:
        changes |= REFERENCE_FIELDS | REFERENCE_FIELDS_OF_RULE.get(changes["local.rule"], {})
        changes |= reference_aggregator_options(changes["aggregator.name"])
    said: dict[str, str] = {}
    for word in (word for word in given if word in own):
        for path, value in own[word].items():
            if path in said and changes[path] != value:
                raise ConfigError(f"presets {said[path]}, {word} exclude each other: both set {path}.")
            changes[path] = value
            said[path] = word
    return changes


def make_config(
    arg: str = "",
    *,
    method: str = "spmc",
    words: Words | None = None,
    fields: Mapping[str, Any] | None = None,
    **more: Any,
) -> Config:
    """The default config with the fields of a config file and then the presets in `arg` applied.

    Args:
        arg, method, words: see `preset_fields`.
        fields: by dotted path; they are set before the presets.
        **more: the same with `__` for the dot, such as data__name="digits".

    Raises:
        ConfigError: see `preset_fields`.
    """
    changes = preset_fields(arg, method, words)
    given = {name.replace("__", "."): value for name, value in more.items()}
    config = default_config()
    for path, value in {**({} if fields is None else fields), **given, **changes}.items():
        set_field(config, path, value)
    return config
