"""The setting of FLIP's code, which its three data sets share: a config file gives its numbers in a `FlipSetting`."""

from typing import Any, NamedTuple

from fedjax_spmc.config.fields import Config, set_field
from fedjax_spmc.config.phases import Phases
from fedjax_spmc.config.presets import Words, make_config


class FlipSetting(NamedTuple):
    """The numbers of a data set, from the code's configs.

    Attributes:
        fields: of the data set and the network.
        rates: of the clients' Adam, and of SGD where they do not harden.
        epochs: of hardening, of SGD, of the attackers.
        batch_size: of all clients where they harden; 64 else.
        per_batch: poisoned examples of 64.
        milestones: local epochs at whose start the attackers' rate falls.
        clean: clean rounds that `start` plays and `kept` leaves out.
        first, last: rounds of the continuous attack.
        shot: first round of the single shot, of which the others are two apart.
        rounds: of the run.
        confidence: with which predictions are rejected under the continuous attack.
        trigger: DBA's preset.
        options: of the local rule `flip`, whatever it searches for.
        searching: those of its searches.
        steps: those that the preset lite has numbers of its own for.
        start: the run folder of clean rounds, see `Phases`.
    """

    fields: dict[str, Any]
    rates: tuple[float, float]
    epochs: tuple[int, int, int]
    batch_size: int
    per_batch: int
    milestones: tuple[int, ...]
    clean: int
    first: int
    last: int
    shot: int
    rounds: int
    confidence: float
    trigger: str
    options: dict[str, Any]
    searching: dict[str, Any]
    steps: dict[str, int]
    start: str


SINGLE_SHOT = ("dba", "model_replacement")
ADVERSARIES = 4
BATCH = 64
REPLACEMENT = 10.0
"""Factor on an update, times the clients of a round, with which at a server rate of 0.1 the attacker's model takes the
place of the global one."""
SGD = {"local.optimizer": "sgd", "local.momentum": 0.9, "local.weight_decay": 5e-4}


def words_of(setting: FlipSetting) -> Words:
    """Words of the config: lite, single, continuous, noise, clean_steps, oracle, start, kept."""
    phases = Phases(setting.clean, setting.last - setting.first + 1, 0, setting.start).words()
    return {
        "lite": {"local.options.preset": "lite"},
        "single": {},
        "continuous": {
            "attack.name": "dba",
            "attack.schedule.first": setting.first,
            "attack.schedule.last": setting.last,
            "attack.schedule.every": 1,
            "attack.schedule.turns": 0,
            "evaluation.confidence": setting.confidence,
        },
        "noise": {"local.options.triggers": "noise"},
        "clean_steps": {"local.options.triggers": "none"},
        "oracle": {"local.options.oracle_mask_prior": True},
        "start": {**phases["start"], "evaluation.confidence": 0.0},
        "kept": {"model.start": setting.start},
    }


def make_flip_config(arg: str, setting: FlipSetting) -> Config:
    """The config of words and methods; without a method it is FLIP's, without `continuous` the single shot."""
    words = words_of(setting)
    config = make_config(arg, method="flip", words=words, fields=_fields(setting))
    given = [word.strip() for word in arg.split(",")]
    hardens = config.local.rule == "flip"
    if hardens:
        for name, value in _options(setting, dict(config.local.options)).items():
            set_field(config, f"local.options.{name}", value)
    size = setting.batch_size if hardens else BATCH
    set_field(config, "local.batch_size", size)
    set_field(config, "local.learning_rate", setting.rates[0 if hardens else 1])
    set_field(config, "local.epochs", setting.epochs[0 if hardens else 1])
    if config.aggregator.name == "mean":
        set_field(config, "aggregator.options.weights", "uniform")
    if "start" in given:
        return config
    set_field(config, "attack.trigger", setting.trigger)
    set_field(config, "attack.options.dba.poison_per_batch", setting.per_batch * size // BATCH)
    if config.attack.name != "dba":
        clients = config.federation.clients_per_round
        set_field(config, "attack.options.model_replacement.factor", REPLACEMENT * clients)
    if "kept" in given:  # the clean rounds lie behind the run
        for path in ("federation.rounds", "attack.schedule.first", "attack.schedule.last"):
            section, _, name = path.rpartition(".")
            at = config.federation if section == "federation" else config.attack.schedule
            set_field(config, path, at[name] - setting.clean)
    return config


def _options(setting: FlipSetting, given: dict[str, Any]) -> dict[str, Any]:
    """The options of the rule: those that words gave, and the setting's where they have an effect."""
    made = {"preset": "reference", **setting.options}
    given = made | given
    if given.get("triggers", "inverted") != "inverted":
        return given
    made = setting.searching | (setting.steps if given["preset"] == "reference" else {})
    one_by_one = given.get("schedule", "parallel") == "reference"
    only_there = ("short_steps", "shorten_one_way")
    return {name: value for name, value in made.items() if one_by_one or name not in only_there} | given


def _fields(setting: FlipSetting) -> dict[str, Any]:
    return {
        "data.val_fraction": 0.0,
        "data.augment": False,
        "data.normalise": False,
        "partition.beta": 0.5,
        "federation.rounds": setting.rounds,
        "federation.num_clients": 100,
        "federation.clients_per_round": 10,
        "sampling.options.attackers": "forced",
        **SGD,
        "local.drop_last": False,
        "server.optimizer": "sgd",
        "server.learning_rate": 0.1,
        "attack.name": SINGLE_SHOT,
        "attack.malicious_fraction": 0.04,
        "attack.target_label": 2,
        "attack.local.epochs": setting.epochs[2],
        "attack.local.learning_rate": 0.05,
        "attack.local.momentum": 0.9,
        "attack.local.weight_decay": 5e-4,
        "attack.local.milestones": setting.milestones,
        "attack.schedule.first": setting.shot,
        "attack.schedule.last": setting.shot + 2 * (ADVERSARIES - 1),
        "attack.schedule.every": 2,
        "attack.schedule.turns": 1,
        "checkpoint.every": 25,
        **setting.fields,
    }
