"""The config's fields: their names, defaults and ranges, and a config as a flat or a plain mapping.

A config is a plain `ml_collections.ConfigDict`; `resolve` checks every field before anything runs.
"""

from collections.abc import Mapping
from typing import Any

from fedjax_spmc import options, registry, schedules, server, training
from fedjax_spmc.config.likely import likely
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.nearest import either
from fedjax_spmc.options import FRACTION, NON_NEGATIVE, POSITIVE, Option, Range, quoted

Config = Any
"""An `ml_collections.ConfigDict`, or any mapping of the same fields: its fields are checked when it is resolved."""

COUNT = Range(1, 10**9)
ROUND = Range(0, 10**9)
BELOW_ONE = Range(0, 1, high_open=True)
AS_BENIGN = "of attacking clients; None = as benign ones"
OF_THE_ATTACK = "None = the attack's own"

FIELDS: dict[str, Option] = {
    option.name: option
    for option in (
        Option("seed", int, 0, range=Range(0, 2**32 - 1)),
        Option(
            "precision", str, "float32", choices=("float32", "tensorfloat32", "bfloat16"), note="of matrix products"
        ),
        Option("plugins", tuple, (), note="modules to import, which register their parts"),
        Option("data.name", str, "cifar10", choices=registry.datasets.names, group="data"),
        Option("data.data_dir", str, None, optional=True, note="None = TFDS_DATA_DIR, else TFDS's default"),
        Option("data.cache_dir", str, None, optional=True, note="None = FEDJAX_SPMC_CACHE, else ~/.cache/fedjax_spmc"),
        Option("data.order", str, "original", choices=("original", "stored")),
        Option("data.limit_train", int, None, optional=True, range=COUNT, note="None = all"),
        Option("data.limit_test", int, None, optional=True, range=COUNT, note="None = all"),
        Option("data.val_fraction", float, 0.1, range=Range(0, 0.9)),
        Option("data.augment", bool, True, note="crop and flip of the data set"),
        Option("data.normalise", bool, True, note="False leaves pixels in [0, 1]"),
        Option("data.mean", tuple, (), note="of pixels in [0, 1], one for each channel; () = the data set's own"),
        Option("data.std", tuple, (), note="like data.mean, above 0; () = the data set's own"),
        Option("partition.name", str, "dirichlet", choices=registry.partitions.names, group="partitions"),
        Option("partition.beta", float, 0.5, range=Range(0, 1e6, low_open=True), note="for equal shares use iid"),
        Option("partition.min_size", int, 10, range=Range(0, 10**9)),
        Option("partition.shards", int, 2, range=Range(1, 10**6), note="shards per client"),
        Option("model.name", str, "simple_cnn", choices=registry.models.names, group="models"),
        Option("model.norm", str, "batch", choices=("batch", "group", "none"), note="where a model has norms"),
        Option(
            "model.start", str, None, optional=True, note="a model.npz or a run folder to begin with; None = at random"
        ),
        Option("federation.rounds", int, 50, range=COUNT),
        Option("federation.num_clients", int, 10, range=Range(1, 10**6)),
        Option("federation.clients_per_round", int, 10, range=Range(1, 10**6)),
        Option("federation.client_batch", int, None, optional=True, range=Range(1, 10**6), note="None = by backend"),
        Option("federation.devices", int, None, optional=True, range=COUNT, note="None = all that there are"),
        Option("federation.eval_every", int, 1, range=COUNT),
        Option("sampling.name", str, "uniform", choices=registry.samplings.names, group="sampling"),
        Option("local.rule", str, "spmc", choices=registry.local_rules.names, group="rules"),
        Option("local.epochs", int, 10, range=Range(1, 10**6)),
        Option("local.batch_size", int, 64, range=Range(1, 10**6)),
        Option("local.learning_rate", float, 0.01, range=POSITIVE),
        Option("local.optimizer", str, "sgd", choices=tuple(training.TAKES)),
        Option("local.momentum", float, 0.9, range=BELOW_ONE, note="of sgd; beta1 of adam"),
        Option("local.beta2", float, 0.999, range=BELOW_ONE, note="of adam"),
        Option(
            "local.clip_norm",
            float,
            None,
            optional=True,
            range=POSITIVE,
            note="largest norm of a step's gradient, as the optimiser gets it; None = no clipping",
        ),
        Option("local.weight_decay", float, 1e-5, range=NON_NEGATIVE),
        Option(
            "local.schedule",
            str,
            "constant",
            choices=tuple(schedules.TAKES),
            note="of the learning rate over global rounds; Neurotoxin's are meant for a rate of 0.2",
        ),
        Option(
            "local.schedule_offset",
            int,
            0,
            range=ROUND,
            note="rounds of the schedule that lie before round 0, such as those that model.start has behind it",
        ),
        Option(
            "local.schedule_rounds",
            int,
            None,
            optional=True,
            range=COUNT,
            note="rounds of the schedule to the end of linear and cosine; None = those up to the end of the run",
        ),
        Option("local.schedule_end", float, 0.0, range=FRACTION, note="factor at the end of linear and cosine"),
        Option("local.schedule_milestones", tuple, (), note="whole numbers: rounds of it, from 0, where step falls"),
        Option("local.schedule_gamma", float, 0.1, range=Range(0, 1, low_open=True), note="factor at each milestone"),
        Option("local.drop_last", bool, True, note="whether an incomplete last batch is left out"),
        Option("aggregator.name", str, "spmc", choices=registry.aggregators.names, group="aggregators"),
        Option("aggregator.pre", tuple, (), note="names of pre-aggregators, which uploads pass before the rule"),
        Option(
            "server.optimizer", str, "none", choices=tuple(server.TAKES), note="none installs the aggregator's model"
        ),
        Option(
            "server.learning_rate",
            float,
            server.SETTINGS["learning_rate"],
            optional=True,
            range=POSITIVE,
            note="None = 1 for sgd and momentum, else 0.01",
        ),
        Option("server.beta1", float, server.SETTINGS["beta1"], range=BELOW_ONE, note="share of the old first moment"),
        Option("server.beta2", float, server.SETTINGS["beta2"], range=BELOW_ONE, note="share of the old second moment"),
        Option("server.tau", float, server.SETTINGS["tau"], range=POSITIVE, note="added to the second moment's root"),
        Option(
            "attack.name", str, "badnets", choices=registry.attacks.names, group="attacks", note="or a list of them"
        ),
        Option("attack.malicious_fraction", float, 0.3, range=FRACTION),
        Option("attack.placement", str, "last", choices=("last", "random")),
        Option("attack.poison_fraction", float, None, optional=True, range=FRACTION, note=OF_THE_ATTACK),
        Option("attack.target_label", int, None, optional=True, range=Range(0, 10**6), note=OF_THE_ATTACK),
        Option("attack.trigger", str, None, optional=True, note=f"a preset of the attack, see --list; {OF_THE_ATTACK}"),
        Option(
            "attack.augmentation",
            str,
            "live",
            choices=("live", "frozen"),
            note="frozen: that of malicious clients is drawn once for the run",
        ),
        Option(
            "attack.local.rule",
            str,
            None,
            optional=True,
            choices=registry.local_rules.names,
            group="rules",
            note=AS_BENIGN,
        ),
        Option("attack.local.optimizer", str, None, optional=True, choices=("sgd",), note=AS_BENIGN),
        Option(
            "attack.local.idle",
            bool,
            False,
            note="whether malicious clients train so, on clean data, in rounds in which they do not attack; else as"
            " benign ones",
        ),
        Option("attack.local.epochs", int, None, optional=True, range=Range(1, 10**6), note=AS_BENIGN),
        Option("attack.local.learning_rate", float, None, optional=True, range=POSITIVE, note=AS_BENIGN),
        Option("attack.local.momentum", float, None, optional=True, range=BELOW_ONE, note=AS_BENIGN),
        Option("attack.local.weight_decay", float, None, optional=True, range=NON_NEGATIVE, note=AS_BENIGN),
        Option(
            "attack.local.milestones",
            tuple,
            (),
            note="whole numbers: local epochs, from 0, at whose start the rate falls",
        ),
        Option("attack.local.gamma", float, 0.1, range=POSITIVE, note="factor at each milestone"),
        Option("attack.schedule.first", int, 0, range=ROUND, note="first round of the attack, from 0"),
        Option(
            "attack.schedule.last", int, None, optional=True, range=ROUND, note="last round, from 0; None = to the end"
        ),
        Option("attack.schedule.every", int, 1, range=COUNT, note="rounds from one attack round to the next"),
        Option("attack.schedule.turns", int, 0, choices=(0, 1), note="1 = one malicious client after another"),
        Option(
            "evaluation.confidence",
            float,
            0.0,
            range=Range(0, 0.99),
            note="a multiple of 0.01: a prediction whose probability is below it is rejected",
        ),
        Option(
            "evaluation.lifespan_thresholds",
            tuple,
            (50.0,),
            note="percents from 0 to 100, each once: ASR above which a backdoor counts as alive",
        ),
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

PRE = "aggregator.pre"
OPTION_PATHS = {section: f"{section}.options" for section in PARTS} | {PRE: "aggregator.pre_options"}
"""Section -> where its options stand; those of pre-aggregators are `aggregator.pre_options.NAME.x`."""

SECTIONS = PARTS | {PRE: (registry.preaggregators, PRE)}
"""`PARTS` and the list of pre-aggregators."""

ATTACK_FIELDS = ("poison_fraction", "target_label", "trigger")
"""Fields of `attack` that are options of those attacks that know them; None leaves each attack its own default."""

SECTION_FIELDS: dict[str, tuple[str, ...]] = {"attack": ATTACK_FIELDS, "model": ("norm",)}
"""Such fields of all sections; they are not repeated among the section's `options`."""

HYPERPARAMETERS = ("learning_rate", "momentum", "weight_decay")
"""Fields of `local` that every optimiser takes, and that an attacker may have of its own under `attack.local`."""

CHANGEABLE_FIELDS = (
    "data.data_dir", "data.cache_dir", "checkpoint.every", "federation.rounds", "federation.devices",
    "sweep.experiment_batch", "evaluation.confidence", "evaluation.lifespan_thresholds",
)  # fmt: skip
"""Fields that do not touch the rounds played: a run may go on with another value (rounds: a larger). What is measured
with those of `evaluation` is made anew from what the lines hold."""


def default_config() -> Config:
    """A config with every field at its default (the papers' setting) and no options."""
    from ml_collections import ConfigDict

    config: Config = ConfigDict(type_safe=False)
    for path, field in FIELDS.items():
        set_field(config, path, field.default)
    for path in OPTION_PATHS.values():
        set_field(config, path, ConfigDict(type_safe=False))
    return config


def option_at(path: str) -> tuple[str, str]:
    """The section and the name of the option at a dotted path; ("", "") where there is none."""
    for section, place in OPTION_PATHS.items():
        if path.startswith(f"{place}."):
            return section, path[len(place) + 1 :]
    return "", ""


def options_in(config: Config, section: str) -> dict[str, Any]:
    """The options that a config gives in a section, by name (`NAME.x` for those of one part)."""
    place: str = OPTION_PATHS[section]
    found: Any = config
    for name in place.split("."):
        found = found.get(name, {})
        if not hasattr(found, "items"):
            return {}
    inside = _flat(found, f"{place}.", _options_of_one_attack(config))
    return {path[len(place) + 1 :]: value for path, value in inside.items()}


def value_at(config: Config, path: str) -> Any:
    """The value of one field by its dotted path, as in `flatten`, which reads them all and takes as many times longer.

    Raises:
        KeyError: the config has no such field.
    """
    value: Any = config
    for name in path.split("."):
        value = value[name]
    return _plain_field(value, path)


def oracle_options(config: Mapping[str, Any]) -> list[str]:
    """The options, by dotted path, that are on in a flat config and hand the ground truth to the server or clients."""
    given = ("aggregator.options.oracle_", "local.options.oracle_")
    return [path for path, value in config.items() if path.startswith(given) and bool(value)]


def belongs_to_method(path: str) -> bool:
    """Whether a field belongs to the method and not to the conditions under which methods are compared."""
    return path.startswith(("local.options.", "aggregator.", "server.")) or path == "local.rule"


def set_field(config: Config, path: str, value: Any) -> None:
    """Sets a field by its dotted path; missing sections are created.

    Raises:
        ConfigError: a value stands where the path has a section.
    """
    from ml_collections import ConfigDict

    *sections, name = path.split(".")
    for section in sections:
        if section not in config:
            config[section] = ConfigDict(type_safe=False)
        config = config[section]
        if not hasattr(config, "items"):
            raise ConfigError(unknown_field(path))
    if name in config:
        del config[name]  # where a float stands, an assignment would turn True into 1.0
    config[name] = value


def flatten(config: Config) -> dict[str, Any]:
    """All fields by dotted path; empty sections vanish. Options of one attack are `attack.options.NAME.option`.

    Raises:
        ConfigError: `config` is no mapping.
    """
    if not hasattr(config, "items"):
        raise ConfigError(
            f"config = {quoted(config)} is not allowed: it must be a ConfigDict, as make_config('fedavg', "
            "data__name='digits') and config.files.read_config('digits:fedavg')[0] return it."
        )
    return _flat(config, "", _options_of_one_attack(config))


def _options_of_one_attack(config: Config) -> set[str]:
    """Where options of one attack alone may stand."""
    return {f"attack.options.{name}" for name in _attack_names(config)}


def _plain_field(value: Any, path: str) -> Any:
    return to_plain(value) if hasattr(value, "items") else options.plain(value, path)


def _flat(config: Config, prefix: str, of_one_attack: set[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        is_field = path in FIELDS or (".options." in path and path not in of_one_attack)
        if hasattr(value, "items") and not is_field:
            flat.update(_flat(value, f"{path}.", of_one_attack))
        else:
            flat[path] = _plain_field(value, path)
    return flat


def _attack_names(config: Config) -> list[str]:
    """The attacks that a config names, whatever else is wrong with it."""
    section: Any = dict(config.items()).get("attack")
    fields = dict(section.items()) if hasattr(section, "items") else {}
    names = options.plain(fields.get("name", FIELDS["attack.name"].default), "attack.name")
    return [name for name in (names if isinstance(names, (tuple, list)) else [names]) if isinstance(name, str)]


def unknown_field(path: str) -> str:
    """The sentence for a field that does not exist, with what may be meant, or else those that stand nearest to it."""
    inner = [name for name in FIELDS if name.startswith(f"{path}.")]
    if inner:
        meant = f" did you mean {path}.name?" if f"{path}.name" in FIELDS else ""
        return f"{path} is no field of the config but a section:{meant} Its fields are {', '.join(inner)}."
    if path.rpartition(".")[2] == "seeds":
        return (
            "seeds is no field of the config: several seeds are a sweep (`fedjax-spmc sweep`, Sweep(base, "
            "seeds=(0, 1, 2))); one is the field seed."
        )
    meant = [] if path in OPTION_PATHS.values() else likely(path, FIELDS)
    if meant:
        return (
            f"{path} is no field of the config: did you mean {either(meant)}? `fedjax-spmc list fields` has them all."
        )
    section = path.rpartition(".")[0]
    near = [name for name in FIELDS if name.rpartition(".")[0] == section] or sorted({n.split(".")[0] for n in FIELDS})
    near += [
        f"{place}.{'NAME.x' if part == PRE else 'NAME'}"
        for part, place in OPTION_PATHS.items()
        if place.rpartition(".")[0] == section
    ]
    return f"{path or 'a field without a name'} is no field of the config; near it are {', '.join(near)}."


def result_fields(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by dotted path that touch the numbers of a whole run, the number of rounds among them."""
    free = set(CHANGEABLE_FIELDS) - {"federation.rounds"}
    return {path: value for path, value in flat.items() if path not in free}


def to_plain(config: Config) -> dict[str, Any]:
    """The config as nested plain values, ready for JSON."""
    return {name: to_plain(v) if hasattr(v, "items") else plain(v) for name, v in config.items()}


def plain(value: Any, label: str = "a value") -> Any:
    """A value as JSON has it: Python's own (`options.plain`, which raises), and tuples become lists."""
    value = options.plain(value, label)
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value
