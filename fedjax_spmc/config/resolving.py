"""From a config to a checked one: every field in its own type, the options of the chosen parts written out in full."""

import math
import os
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, cast

import numpy as np

from fedjax_spmc import attacks, preaggregators, registry, schedules, server, training
from fedjax_spmc.config import advice, presets
from fedjax_spmc.config.fields import (
    ATTACK_FIELDS,
    CHANGEABLE_FIELDS,
    FIELDS,
    HYPERPARAMETERS,
    OPTION_PATHS,
    PRE,
    SECTION_FIELDS,
    SECTIONS,
    Config,
    default_config,
    flatten,
    option_at,
    options_in,
    plain,
    set_field,
    unknown_field,
    value_at,
)
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import Option, check_options, quoted
from fedjax_spmc.paths import expanded
from fedjax_spmc.types import TRUTH, Aggregator, PreAggregator, ServerData


def resolve(config: Config) -> Config:
    """A checked copy in which every field has its own type and every option of the chosen parts is written out.

    An option that several attacks of a list know with different defaults is left out unless it is given: each keeps
    its own.

    Raises:
        ConfigError: one sentence that names the field, the value and what is allowed.
    """
    flat = flatten(config)
    registry.load_plugins(FIELDS["plugins"].check(flat.get("plugins", ()), "plugins"))
    resolved = default_config()
    for path, value in flat.items():
        if option_at(path)[0]:
            continue
        if path not in FIELDS:
            raise ConfigError(unknown_field(path))
        set_field(resolved, path, check_field(path, value))
    for section, place in OPTION_PATHS.items():
        given = {name: value for path, value in flat.items() for at, name in [option_at(path)] if at == section}
        names, alike = resolved_name(resolved, section), part_options(resolved, section)
        known = alike | options_of_one(resolved, section)
        owner = f"{SECTIONS[section][1]} = {names_text(names)}"
        for name in given.keys() - known.keys():
            raise advice.unknown_option(section, name, owner, alike)
        checked = check_options(owner, known, given, f"{place}.")
        disputed = _disputed(resolved, section)
        defaults = {name: option.default for name, option in alike.items() if name not in disputed}
        for name, value in (defaults | checked).items():
            set_field(resolved, f"{place}.{name}", value)
    for name in ATTACK_FIELDS:
        if resolved.attack[name] is None:
            set_field(resolved, f"attack.{name}", _default_of_attacks(resolved, name))
    _check_combinations(resolved)
    return resolved


def resolved_name(config: Config, section: str) -> Any:
    """The part that a section names (`aggregator.name`, `local.rule`, ...); a tuple where it is a list."""
    value = value_at(config, SECTIONS[section][1])
    return tuple(value) if isinstance(value, (tuple, list)) else value


def resolved_names(config: Config, section: str) -> tuple[str, ...]:
    """The same as `resolved_name`, always as a tuple."""
    value = resolved_name(config, section)
    return value if isinstance(value, tuple) else (value,)


def part_options(config: Config, section: str) -> dict[str, Option]:
    """The options that the part chosen in `section` takes; those that are config fields of their own are left out."""
    own = SECTION_FIELDS.get(section, ())
    return {name: option for name, option in _options_of_all(config, section) if name not in own}


def _options_of_all(config: Config, section: str) -> Iterator[tuple[str, Option]]:
    """The options of each part chosen in `section` in turn; of pre-aggregators as `NAME.option`."""
    kind, field = SECTIONS[section]
    for part in resolved_names(config, section):
        for name, option in kind.options(part, field).items():
            yield f"{part}.{name}" if section == PRE else name, option


def options_of_one(config: Config, section: str) -> dict[str, Option]:
    """`NAME.option` -> the option of that attack alone, for the attacks that are chosen; no other section has such."""
    if section != "attack":
        return {}
    return {
        f"{name}.{option}": known
        for name in resolved_names(config, section)
        for option, known in registry.attacks.options(name).items()
    }


def _disputed(config: Config, section: str) -> set[str]:
    """The options for which the attacks of a list have different defaults."""
    defaults: dict[str, Any] = {}
    disputed: set[str] = set()
    for name, option in _options_of_all(config, section):
        if defaults.setdefault(name, option.default) != option.default:
            disputed.add(name)
    return disputed


def _default_of_attacks(config: Config, name: str) -> Any:
    """The default of one of `ATTACK_FIELDS` in the attacks chosen; None where they differ.

    Where no attack has a use for the field it is BadNets's, so that there is a value to write down.
    """
    parts = [one for one in resolved_names(config, "attack") if name in registry.attacks.options(one)]
    defaults = {registry.attacks.options(one)[name].default for one in parts or ["badnets"]}
    return defaults.pop() if len(defaults) == 1 else None


def attack_options(config: Config) -> dict[str, Any]:
    """The arguments of `attacks.make`: the options and those fields of `attack` that the chosen attacks know."""
    known = {option for name in resolved_names(config, "attack") for option in registry.attacks.options(name)}
    fields = {name: config.attack[name] for name in ATTACK_FIELDS if name in known and config.attack[name] is not None}
    return {**fields, **options_in(config, "attack")}


def array_options(config: Config, section: str) -> set[str]:
    """Names of the array options of the part chosen in `section`; several attacks must all take an array."""
    taken: dict[str, bool] = {}
    for name, option in _options_of_all(config, section):
        taken[name] = taken.get(name, True) and option.traced
    of_one = {name for name, option in options_of_one(config, section).items() if option.traced}
    return {name for name, traced in taken.items() if traced} | of_one


def names_text(value: Any) -> str:
    """The name, or the names, that a section holds, for a sentence."""
    return (", ".join(value) or "()") if isinstance(value, tuple) else str(value)


def check_field(path: str, value: Any) -> Any:
    """A value in the type of the field at `path`.

    Raises:
        ConfigError: it is not allowed there.
    """
    field = FIELDS[path]
    for name in value if isinstance(value, (tuple, list)) else (value,):
        advice.refuse_wrong_part(path, name)
    if path == PRE:
        one = isinstance(value, str) and value in registry.preaggregators.names()
        listed = field.check((value,) if one else value)
        for name in listed:
            registry.preaggregators.factory(name, PRE)
        preaggregators.check_once(listed)
        return listed
    if path == "attack.name" and isinstance(value, (tuple, list)):
        if not value:
            raise field.refusal(value)
        names = [field.check(item, path) for item in value]
        return tuple(names) if len(names) > 1 else names[0]
    return field.check(value)


def _check_combinations(config: Config) -> None:
    federation, schedule = config.federation, config.attack.schedule
    if federation.clients_per_round > federation.num_clients:
        raise ConfigError(
            f"federation.clients_per_round = {federation.clients_per_round} is not allowed: it must be at most "
            f"federation.num_clients = {federation.num_clients}."
        )
    if config.sampling.name == "uniform" and config.sampling.options.attackers == "forced_only":
        benign = federation.num_clients - num_malicious(config)
        if federation.clients_per_round > benign:
            raise ConfigError(
                f"federation.clients_per_round = {federation.clients_per_round} is not allowed with "
                "sampling.options.attackers = 'forced_only', which keeps malicious clients out of rounds without an "
                f"attack: it must be at most {benign}, the number of benign clients."
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
            f"{config.aggregator.name!r}{_attackers(config)}{_and_behind(config)}: it must be at least "
            f"{aggregator.min_clients}."
        )
    for extra in aggregator.needs:
        if extra != TRUTH and extra not in rule.sends:
            sending = [name for name in registry.local_rules.names() if extra in registry.local_rules.make(name).sends]
            raise ConfigError(
                f"local.rule = {config.local.rule!r} is not allowed with aggregator.name = {config.aggregator.name!r}, "
                f"which needs the clients to send {extra}: it must be one of {', '.join(sending)}."
            )
    if rule.needs_linear and config.aggregator.pre:
        raise ConfigError(
            f"local.options.teacher_weights = 'verdict' is not allowed with {_behind(config)}, behind which the model "
            "is no weighted mean of the uploads by the rule's weights: it must be 'uniform'."
        )
    if rule.needs_linear and not aggregator.traits.linear:
        raise ConfigError(
            "local.options.teacher_weights = 'verdict' is not allowed with aggregator.name = "
            f"{config.aggregator.name!r}, whose model is no weighted mean of the uploads: it must be 'uniform'."
        )
    _check_milestones(config)
    _check_pixel_statistics(config)
    _check_evaluation(config)
    for path in ("local.rule", "attack.local.rule"):
        name = value_at(config, path)
        chosen = rule if path == "local.rule" else registry.local_rules.make(name) if name is not None else None
        apart = path == "attack.local.rule" and config.attack.local.optimizer == "sgd"
        if chosen is not None and chosen.needs_sgd and config.local.optimizer != "sgd" and not apart:
            raise ConfigError(
                f"local.optimizer = {config.local.optimizer!r} is not allowed with {path} = {name!r}, whose formula "
                "assumes SGD: it must be 'sgd'."
            )
    _check_unused(config, "local", training.TAKES, "optimizer")
    _check_unused(config, "local", schedules.TAKES, "schedule")
    _check_unused(config, "server", server.TAKES, "optimizer")
    if config.server.optimizer != "none":
        with_optimizer = f"server.optimizer = {config.server.optimizer!r}"
        if rule.needs_linear:
            raise ConfigError(
                f"local.options.teacher_weights = 'verdict' is not allowed with {with_optimizer}, whose model is no "
                "weighted mean of the uploads: it must be 'uniform'."
            )
        if aggregator.evaluated is not Aggregator._field_defaults["evaluated"]:
            raise ConfigError(
                f"{with_optimizer} is not allowed with aggregator.name = {config.aggregator.name!r}, which with these "
                "options evaluates a model of its own that no step of the server reaches: it must be 'none'."
            )
    for name, value in attack_options(config).items():
        for attack in resolved_names(config, "attack"):
            known = registry.attacks.options(attack)
            if name in known:
                label = f"attack.{name}" if name in ATTACK_FIELDS else f"attack.options.{name}"
                known[name].check(value, label)
    attacks.make(resolved_name(config, "attack"), **attack_options(config))


def _check_unused(config: Config, section: str, takes: Mapping[str, tuple[str, ...]], deciding: str) -> None:
    """Refuses settings that another field leaves without effect: see `options.refuse_unused`.

    Args:
        config: the config.
        section: in which the fields stand.
        takes: value of the deciding field -> the names of the fields that it has a use for.
        deciding: name of the field that decides.
    """
    chosen = config[section][deciding]
    for name in dict.fromkeys(name for taken in takes.values() for name in taken if name not in takes[chosen]):
        path, value = f"{section}.{name}", config[section][name]
        if value != FIELDS[path].default:
            raise ConfigError(
                f"{path} = {quoted(value)} is not allowed with {section}.{deciding} = {chosen!r}, where it has no "
                f"effect: it must be {quoted(FIELDS[path].default)}."
            )


def _check_milestones(config: Config) -> None:
    for path in ("local.schedule_milestones", "attack.local.milestones"):
        value = value_at(config, path)
        if any(type(one) is not int or not 0 <= one < 2**31 for one in value):
            raise FIELDS[path].refusal(value)
    if config.local.schedule == "step" and not config.local.schedule_milestones:
        raise ConfigError(
            "local.schedule_milestones = () is not allowed with local.schedule = 'step': it must be a list of at least "
            "one round."
        )


def _check_pixel_statistics(config: Config) -> None:
    for name in ("mean", "std"):
        path, value = f"data.{name}", config.data[name]
        numbers = [one for one in value if type(one) in (int, float) and math.isfinite(one)]
        if len(numbers) < len(value) or (name == "std" and min(numbers, default=1) <= 0):
            raise FIELDS[path].refusal(value)
        if value and not config.data.normalise:
            raise ConfigError(
                f"{path} = {quoted(value)} is not allowed with data.normalise = False, where it has no effect: it must "
                "be ()."
            )


def _check_evaluation(config: Config) -> None:
    """Refuses what cannot be read off the histograms, and brings thresholds into their own type."""
    confidence, thresholds = config.evaluation.confidence, config.evaluation.lifespan_thresholds
    if round(confidence, 2) != confidence:
        raise FIELDS["evaluation.confidence"].refusal(confidence)
    numbers = [one for one in thresholds if isinstance(one, (int, float, np.number)) and not isinstance(one, bool)]
    names = {f"{float(one):g}" for one in numbers if 0 <= one <= 100}
    if len(names) != len(thresholds):
        raise FIELDS["evaluation.lifespan_thresholds"].refusal(thresholds)
    set_field(config, "evaluation.lifespan_thresholds", tuple(map(float, thresholds)))


def hyperparameters(config: Config) -> tuple[str, ...]:
    """The fields of `local` that are numbers of its optimiser: traced scalars in a round."""
    clip = () if config.local.clip_norm is None else ("clip_norm",)
    return (*HYPERPARAMETERS, *training.TAKES[config.local.optimizer], *clip)


def server_settings(config: Config) -> tuple[str, ...]:
    """The fields of `server` that are numbers of its optimiser, but for those that are None."""
    taken = server.TAKES[config.server.optimizer]
    return tuple(name for name in taken if config.server[name] is not None)


def _behind(config: Config) -> str:
    return f"aggregator.pre = {names_text(resolved_name(config, PRE))}"


def _and_behind(config: Config) -> str:
    return f" and {_behind(config)}" if config.aggregator.pre else ""


def _attackers(config: Config) -> str:
    attackers = config.aggregator.options.get("attackers")
    return "" if attackers is None else f" and aggregator.options.attackers = {attackers}"


def _aggregator(config: Config) -> Aggregator:
    """The config's aggregator behind its pre-aggregators, only to read its attributes.

    One that needs data on the server gets a placeholder.
    """
    name = config.aggregator.name
    given: dict[str, Any] = {}
    if registry.aggregators.needs(name, "server"):
        if config.data.val_fraction == 0:
            raise ConfigError(
                f"data.val_fraction = 0 is not allowed with aggregator.name = {name!r}, which needs clean data on the "
                "server: it must be above 0."
            )
        nothing: Any = np.zeros(1)
        given["server"] = ServerData(model=cast(Any, None), inputs=nothing, labels=nothing, batch_size=1)
    rule = registry.aggregators.make(name, **given, **dict(config.aggregator.options))
    return preaggregators.in_front(_chain(config), rule, name)


def _chain(config: Config) -> dict[str, PreAggregator]:
    return preaggregators.make(config.aggregator.pre, **options_in(config, PRE))


def with_chosen_options(config: Config) -> Config:
    """A copy of a resolved config with the values that the aggregator chooses for K uploads in place of None.

    For `config.json` alone: a run keeps such options open, as a round with fewer usable uploads may take less. Fields
    that are None for a number stand there as that number, and folders of data in full, as whoever reads the run may
    stand elsewhere.
    """
    copy = default_config()
    for path, value in flatten(config).items():
        set_field(copy, path, value)
    num_clients = config.federation.clients_per_round
    for section, filled in (
        ("aggregator", _aggregator(config).chosen(num_clients)),
        (PRE, preaggregators.chosen(_chain(config), num_clients)),
    ):
        given = options_in(copy, section)
        for name, value in filled.items():
            if given.get(name) is None:
                set_field(copy, f"{OPTION_PATHS[section]}.{name}", value)
    for name in ("data_dir", "cache_dir"):
        if copy.data[name]:
            copy.data[name] = os.path.abspath(expanded(copy.data[name], f"data.{name}"))
    if copy.server.optimizer != "none" and copy.server.learning_rate is None:
        copy.server.learning_rate = server.default_rate(copy.server.optimizer)
    if "schedule_rounds" in schedules.TAKES[copy.local.schedule] and copy.local.schedule_rounds is None:
        copy.local.schedule_rounds = copy.local.schedule_offset + copy.federation.rounds
    return copy


def differing_fields(old: Config, new: Config) -> list[str]:
    """Dotted paths of the fields that differ, those in `CHANGEABLE_FIELDS` left out; options stand last."""
    a, b = flatten(old), flatten(new)
    missing = object()
    return [
        path
        for path in sorted(a.keys() | b.keys(), key=lambda path: (bool(option_at(path)[0]), path))
        if path not in CHANGEABLE_FIELDS and plain(a.get(path, missing)) != plain(b.get(path, missing))
    ]


def method_title(config: Config) -> str:
    """The method by name, and what stands in front of its aggregator, for tables and pictures."""
    name = presets.method_name(config.local.rule, config.aggregator.name)
    behind = f" behind {names_text(resolved_name(config, PRE))}" if config.aggregator.pre else ""
    return name + behind


def run_title(config: Config) -> str:
    """The method, the data and the attack of a run, for the head of a picture: two lines."""
    attack = names_text(resolved_name(config, "attack"))
    share = f", {100 * config.attack.malicious_fraction:g} % malicious" if num_malicious(config) else ""
    return f"{method_title(config)}\n{config.data.name}, {'no attack' if attack == 'none' else attack}{share}"


def num_malicious(config: Config) -> int:
    """The floor of N * malicious_fraction in exact decimal arithmetic: 0.29 of 100 is 29; 0 without an attack.

    Deviation: the authors' codes truncate the product of floats, which gives 28 there.
    """
    if set(resolved_names(config, "attack")) == {"none"}:
        return 0
    return math.floor(config.federation.num_clients * Decimal(repr(config.attack.malicious_fraction)))
