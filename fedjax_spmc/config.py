"""The config: its fields, their defaults and checks, and the overrides of the command line.

A config is a plain `ml_collections.ConfigDict`; `resolve` checks every field before anything runs and writes the
options of the chosen parts out in full.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import jax
import numpy as np

from fedjax_spmc import registry
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import FRACTION, NON_NEGATIVE, POSITIVE, Option, Range, check_options, shown
from fedjax_spmc.types import Aggregator, ServerData

Config = Any
"""An `ml_collections.ConfigDict`, or any mapping of the same fields: its fields are checked when it is resolved."""

COUNT = Range(1, 10**9)
ROUND = Range(0, 10**9)

FIELDS: dict[str, Option] = {
    option.name: option
    for option in (
        Option("seed", int, 0, range=Range(0, 2**32 - 1)),
        Option(
            "precision", str, "float32", choices=("float32", "tensorfloat32", "bfloat16"), note="of matrix products"
        ),
        Option("plugins", tuple, (), note="modules to import, which register their parts"),
        Option("data.name", str, "cifar10", choices=registry.datasets.names),
        Option("data.data_dir", str, None, optional=True, note="None = TFDS_DATA_DIR, else TFDS's default"),
        Option("data.cache_dir", str, None, optional=True, note="None = FEDJAX_SPMC_CACHE, else ~/.cache/fedjax_spmc"),
        Option("data.order", str, "original", choices=("original", "stored")),
        Option("data.limit_train", int, None, optional=True, range=COUNT, note="None = all"),
        Option("data.limit_test", int, None, optional=True, range=COUNT, note="None = all"),
        Option("data.val_fraction", float, 0.1, range=Range(0, 0.9)),
        Option("data.augment", bool, True, note="crop and flip of the data set"),
        Option("partition.name", str, "dirichlet", choices=registry.partitions.names),
        Option("partition.beta", float, 0.5, range=Range(0, 1e6, low_open=True), note="for equal shares use iid"),
        Option("partition.min_size", int, 10, range=Range(0, 10**9)),
        Option("partition.shards", int, 2, range=Range(1, 10**6), note="shards per client"),
        Option("model.name", str, "simple_cnn", choices=registry.models.names),
        Option("model.norm", str, "batch", choices=("batch", "group", "none"), note="where a model has norms"),
        Option("federation.rounds", int, 50, range=COUNT),
        Option("federation.num_clients", int, 10, range=Range(1, 10**6)),
        Option("federation.clients_per_round", int, 10, range=Range(1, 10**6)),
        Option("federation.client_batch", int, None, optional=True, range=Range(1, 10**6), note="None = by backend"),
        Option("federation.devices", int, None, optional=True, range=COUNT, note="None = all that there are"),
        Option("federation.eval_every", int, 1, range=COUNT),
        Option("sampling.name", str, "uniform", choices=registry.samplings.names),
        Option("local.rule", str, "spmc", choices=registry.local_rules.names),
        Option("local.epochs", int, 10, range=Range(1, 10**6)),
        Option("local.batch_size", int, 64, range=Range(1, 10**6)),
        Option("local.learning_rate", float, 0.01, range=POSITIVE),
        Option("local.momentum", float, 0.9, range=Range(0, 1, high_open=True)),
        Option("local.weight_decay", float, 1e-5, range=NON_NEGATIVE),
        Option("aggregator.name", str, "spmc", choices=registry.aggregators.names),
        Option("attack.name", str, "badnets", choices=registry.attacks.names, note="or a list of them"),
        Option("attack.malicious_fraction", float, 0.3, range=FRACTION),
        Option("attack.placement", str, "last", choices=("last", "random")),
        Option("attack.poison_fraction", float, 0.5, range=FRACTION),
        Option("attack.target_label", int, 2, range=Range(0, 10**6)),
        Option("attack.trigger", str, "fdcr_paper", note="a preset of the attack, see --list"),
        Option("attack.schedule.first", int, 0, range=ROUND, note="first round of the attack"),
        Option("attack.schedule.last", int, None, optional=True, range=ROUND, note="last round; None = to the end"),
        Option("checkpoint.every", int, 1, range=COUNT),
        Option("sweep.experiment_batch", int, None, optional=True, range=COUNT, note="None = by backend"),
    )
}
"""Every field but the free `options`, by its dotted path."""

PARTS: dict[str, tuple[registry.Registry, str]] = {
    "model": (registry.models, "model.name"),
    "data": (registry.datasets, "data.name"),
    "sampling": (registry.samplings, "sampling.name"),
    "local": (registry.local_rules, "local.rule"),
    "aggregator": (registry.aggregators, "aggregator.name"),
    "attack": (registry.attacks, "attack.name"),
}
"""The sections with free `options`: the registry that types them and the field that names the part."""

ATTACK_FIELDS = ("poison_fraction", "target_label", "trigger")
"""Fields of `attack` that are options of those attacks that know them."""

SECTION_FIELDS: dict[str, tuple[str, ...]] = {"attack": ATTACK_FIELDS, "model": ("norm",)}
"""Such fields of all sections; they are not repeated among the section's `options`."""

HYPER = ("learning_rate", "momentum", "weight_decay")
"""Fields of `local` that are numbers of the optimiser: traced scalars in a round."""

FREE_FIELDS = (
    "data.data_dir", "data.cache_dir", "checkpoint.every", "federation.rounds", "federation.devices",
    "sweep.experiment_batch",
)  # fmt: skip
"""Fields that do not touch the numbers of the rounds played: a run may go on with others (rounds: with more)."""


def default_config() -> Config:
    """A config with every field at its default (the papers' setting) and no options."""
    from ml_collections import ConfigDict

    config: Config = ConfigDict(type_safe=False)
    for path, field in FIELDS.items():
        set_field(config, path, field.default)
    for section in PARTS:
        config[section].options = ConfigDict(type_safe=False)
    return config


def set_field(config: Config, path: str, value: Any) -> None:
    """Sets a field by its dotted path; missing sections are created."""
    from ml_collections import ConfigDict

    *sections, name = path.split(".")
    for section in sections:
        if section not in config:
            config[section] = ConfigDict(type_safe=False)
        config = config[section]
    if name in config:
        del config[name]  # where a float stands, an assignment would turn True into 1.0
    config[name] = value


def flatten(config: Config, prefix: str = "") -> dict[str, Any]:
    """All fields by dotted path; empty sections vanish.

    Raises:
        ConfigError: `config` is no mapping.
    """
    if not hasattr(config, "items"):
        raise ConfigError(f"config = {shown(config)} is not allowed: it must be a ConfigDict.")
    flat: dict[str, Any] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        is_field = path in FIELDS or ".options." in path
        if hasattr(value, "items") and not is_field:
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = to_plain(value) if hasattr(value, "items") else value
    return flat


def loosened(config: Config) -> Config:
    """A copy that has every section and takes values of any type, ready for `override`.

    Raises:
        ConfigError: an unknown field.
    """
    loose = default_config()
    for path, value in flatten(config).items():
        section, _, option = path.partition(".options.")
        if path not in FIELDS and not (option and section in PARTS):
            raise ConfigError(unknown_field(path))
        set_field(loose, path, value)
    return loose


def resolve(config: Config) -> Config:
    """A checked copy in which every field has its own type and every option of the chosen parts is written out.

    Raises:
        ConfigError: one sentence that names the field, the value and what is allowed.
    """
    flat = flatten(config)
    registry.load_plugins(FIELDS["plugins"].check(flat.get("plugins", ()), "plugins"))
    resolved = default_config()
    for path, value in flat.items():
        section, _, option = path.partition(".options.")
        if option and section in PARTS:
            continue
        if path not in FIELDS:
            raise ConfigError(unknown_field(path))
        set_field(resolved, path, _check_field(path, value))
    for section in PARTS:
        given = {
            path.split(".options.", 1)[1]: value.tolist() if isinstance(value, jax.Array) else value
            for path, value in flat.items()
            if path.startswith(f"{section}.options.")
        }
        known = part_options(resolved, section)
        names = resolved_name(resolved, section)
        checked = check_options(f"{PARTS[section][1]} = {_words(names)}", known, given, f"{section}.options.")
        options = {name: checked.get(name, option.default) for name, option in known.items()}
        resolved[section].options.update(options)
    _check_together(resolved)
    return resolved


def resolved_name(config: Config, section: str) -> Any:
    """What a section names: `aggregator.name`, `local.rule`, ...; a tuple where it is a list of attacks."""
    value = flatten(config)[PARTS[section][1]]
    return tuple(value) if isinstance(value, (tuple, list)) else value


def part_options(config: Config, section: str) -> dict[str, Option]:
    """The options that the part chosen in `section` takes; those that are config fields of their own are left out."""
    names = resolved_name(config, section)
    known: dict[str, Option] = {}
    for name in names if isinstance(names, tuple) else (names,):
        known.update(PARTS[section][0].options(name, PARTS[section][1]))
    own = SECTION_FIELDS.get(section, ())
    return {name: option for name, option in known.items() if name not in own}


def attack_options(config: Config) -> dict[str, Any]:
    """What `attacks.make` is given: the options and those fields of `attack` that the chosen attacks know."""
    names = resolved_name(config, "attack")
    known: set[str] = set()
    for name in names if isinstance(names, tuple) else (names,):
        known |= set(registry.attacks.options(name))
    fields = {name: config.attack[name] for name in ATTACK_FIELDS if name in known}
    return {**fields, **dict(config.attack.options)}


def array_options(config: Config, section: str) -> set[str]:
    """Names of the array options of the part chosen in `section`; several attacks must all take an array."""
    names = resolved_name(config, section)
    taken: dict[str, bool] = {}
    for name in names if isinstance(names, tuple) else (names,):
        for option in PARTS[section][0].options(name).values():
            taken[option.name] = taken.get(option.name, True) and option.traced
    return {name for name, traced in taken.items() if traced}


def parse_override(config: Config, path: str, text: str) -> Any:
    """The value of `--config.PATH=TEXT`, typed by the field or by the option of the chosen part."""
    section, _, name = path.partition(".options.")
    if name and section in PARTS:
        known = part_options(config, section)
        if name not in known:
            owner = f"{PARTS[section][1]} = {_words(resolved_name(config, section))}"
            check_options(owner, known, {name: text}, f"{section}.options.")
        return known[name].parse(text, path)
    if path not in FIELDS:
        raise ConfigError(unknown_field(path))
    if path == "attack.name" and any(sign in text for sign in ",(["):
        words = [word.strip("'\" ") for word in text.strip("()[] ").split(",")]
        return _check_field(path, tuple(word for word in words if word))
    return FIELDS[path].parse(text, path)


def override(config: Config, assignments: Iterable[tuple[str, str]]) -> list[str]:
    """Applies the overrides of the command line in place: first what names a part, then the rest.

    Returns:
        Notices for the user: overriding the name of a part drops the options that a preset gave the old one.

    Raises:
        ConfigError: an unknown field or option, a wrong type, a value out of range.
    """
    from ml_collections import ConfigDict

    notices = []
    assignments = list(assignments)
    naming = {field: section for section, (_, field) in PARTS.items()}
    for path, text in assignments:
        if path == "plugins":
            set_field(config, path, parse_override(config, path, text))
            registry.load_plugins(config.plugins)
    for path, text in assignments:
        if path not in naming:
            continue
        value = parse_override(config, path, text)
        section = naming[path]
        dropped = dict(config[section].options)
        if value != resolved_name(config, section) and dropped:
            config[section].options = ConfigDict(type_safe=False)
            notices.append(f"{path} is now {_words(value)}: dropped {section}.options {dropped} of the preset.")
        set_field(config, path, value)
    for path, text in assignments:
        if path not in naming and path != "plugins":
            set_field(config, path, parse_override(config, path, text))
    return notices


def unknown_field(path: str) -> str:
    """The sentence for a field that does not exist, with those that stand nearest to it."""
    section = path.rpartition(".")[0]
    near = [name for name in FIELDS if name.rpartition(".")[0] == section] or sorted({n.split(".")[0] for n in FIELDS})
    if section in PARTS:
        near.append(f"{section}.options.NAME")
    return f"{path or 'a field without a name'} is no field of the config; near it are {', '.join(near)}."


def telling(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by dotted path that touch the numbers of a whole run: with the rounds."""
    free = set(FREE_FIELDS) - {"federation.rounds"}
    return {path: value for path, value in flat.items() if path not in free}


def difference(old: Config, new: Config) -> list[str]:
    """Dotted paths of the fields that differ, those in `FREE_FIELDS` left out; options stand last."""
    a, b = flatten(old), flatten(new)
    missing = object()
    return [
        path
        for path in sorted(a.keys() | b.keys(), key=lambda path: (".options." in path, path))
        if path not in FREE_FIELDS and plain(a.get(path, missing)) != plain(b.get(path, missing))
    ]


def to_plain(config: Config) -> dict[str, Any]:
    """The config as nested plain values, ready for JSON."""
    return {name: to_plain(v) if hasattr(v, "items") else plain(v) for name, v in config.items()}


def plain(value: Any) -> Any:
    """A value as JSON has it: tuples become lists."""
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _check_field(path: str, value: Any) -> Any:
    field = FIELDS[path]
    if path == "attack.name" and isinstance(value, (tuple, list)):
        if not value:
            raise field.refuse(value)
        names = [field.check(item, path) for item in value]
        return tuple(names) if len(names) > 1 else names[0]
    return field.check(value)


def _check_together(config: Config) -> None:
    federation, schedule = config.federation, config.attack.schedule
    if federation.clients_per_round > federation.num_clients:
        raise ConfigError(
            f"federation.clients_per_round = {federation.clients_per_round} is not allowed: it must be at most "
            f"federation.num_clients = {federation.num_clients}."
        )
    if schedule.last is not None and schedule.last < schedule.first:
        raise ConfigError(
            f"attack.schedule.last = {schedule.last} is not allowed: it must be at least "
            f"attack.schedule.first = {schedule.first}."
        )
    # Building the parts checks what their signatures cannot say, such as a trigger that no preset is called.
    aggregator = _aggregator(config)
    rule = registry.local_rules.make(config.local.rule, **dict(config.local.options))
    if aggregator.min_clients > federation.clients_per_round:
        raise ConfigError(
            f"federation.clients_per_round = {federation.clients_per_round} is not allowed with aggregator.name = "
            f"{config.aggregator.name!r}{_attackers(config)}: it must be at least {aggregator.min_clients}."
        )
    for extra in aggregator.needs:
        if extra not in rule.sends:
            sending = [name for name in registry.local_rules.names() if extra in registry.local_rules.make(name).sends]
            raise ConfigError(
                f"local.rule = {config.local.rule!r} is not allowed with aggregator.name = {config.aggregator.name!r}, "
                f"which needs the clients to send {extra}: it must be one of {', '.join(sending)}."
            )
    if rule.needs_linear and not aggregator.traits.linear:
        raise ConfigError(
            "local.options.teacher_weights = 'verdict' is not allowed with aggregator.name = "
            f"{config.aggregator.name!r}, whose model is no weighted mean of the uploads: it must be 'uniform'."
        )
    for name, value in attack_options(config).items():
        for attack in (config.attack.name,) if isinstance(config.attack.name, str) else config.attack.name:
            known = registry.attacks.options(attack)
            if name in known:
                label = f"attack.{name}" if name in ATTACK_FIELDS else f"attack.options.{name}"
                known[name].check(value, label)


def _attackers(config: Config) -> str:
    attackers = config.aggregator.options.get("attackers")
    return "" if attackers is None else f" and aggregator.options.attackers = {attackers}"


def _aggregator(config: Config) -> Aggregator:
    """The config's aggregator, to be asked and never run: one that needs data on the server gets a stand-in."""
    name = config.aggregator.name
    given: dict[str, Any] = {}
    if registry.aggregators.needs(name, "server"):
        if config.data.val_fraction == 0:
            raise ConfigError(
                f"data.val_fraction = 0 is not allowed with aggregator.name = {name!r}, which needs clean data on the "
                "server: it must be above 0."
            )
        nothing: Any = np.zeros(1)
        given["server"] = ServerData(model=cast(Any, None), images=nothing, labels=nothing, batch_size=1)
    return registry.aggregators.make(name, **given, **dict(config.aggregator.options))


def recorded(config: Config) -> Config:
    """A copy of a resolved config that shows, in place of None, what the aggregator takes for K uploads a round.

    For the record alone: a run keeps such options open, as a round with fewer usable uploads may take less.
    """
    copy = default_config()
    for path, value in flatten(config).items():
        set_field(copy, path, value)
    options = copy.aggregator.options
    for name, value in _aggregator(config).chosen(config.federation.clients_per_round).items():
        if options.get(name) is None:
            options[name] = value
    return copy


def method_title(config: Config) -> str:
    """The local rule and the aggregator in words, for tables and pictures."""
    local, aggregator = config.local.rule, config.aggregator.name
    return local if local == aggregator else f"{local} + {aggregator}"


def num_malicious(config: Config) -> int:
    """int(N * malicious_fraction), truncated as the authors' codes do; 0 without an attack."""
    names = resolved_name(config, "attack")
    if set(names if isinstance(names, tuple) else (names,)) == {"none"}:
        return 0
    return math.floor(config.federation.num_clients * config.attack.malicious_fraction)
