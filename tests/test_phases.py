"""The words of the durability configs: clean rounds, attack and what follows in one run, or from a kept model."""

import importlib.util
from pathlib import Path

import pytest

from fedjax_spmc import config as configs
from fedjax_spmc.config.phases import Phases
from fedjax_spmc.errors import ConfigError

FOLDER = Path(__file__).parent.parent / "configs"
FILES = ("neurotoxin_cifar10", "neurotoxin_cifar10_edge", "neurotoxin_emnist", "neurotoxin_small")


def config_of(name, arg=""):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return configs.resolve(module.get_config(arg))


@pytest.mark.parametrize(
    ("name", "more"),
    [*((name, "") for name in FILES), ("neurotoxin_emnist", "digits")],
)
def test_every_word_makes_a_config(name, more):
    def made(*words):
        return config_of(name, ",".join(word for word in (more, *words) if word))

    whole, start, kept = made("neurotoxin"), made("start"), made("neurotoxin", "kept")
    assert configs.flatten(made()) == configs.flatten(whole)
    schedule = whole.attack.schedule
    attacked = schedule.last - schedule.first + 1
    assert start.federation.rounds == schedule.first
    assert start.attack.name == "none"
    assert (kept.attack.schedule.first, kept.attack.schedule.last) == (1, attacked)
    assert kept.federation.rounds - 1 == whole.federation.rounds - start.federation.rounds
    assert kept.model.start.startswith("runs/")
    # What the rate is in each round does not depend on how the clean rounds came about.
    assert kept.local.schedule_offset == (0 if whole.local.schedule == "constant" else start.federation.rounds)
    assert made("baseline").attack.name == whole.attack.name[:-1]
    assert configs.num_malicious(whole) == 1
    matched = whole if name == "neurotoxin_small" else made("matched")
    assert matched.attack.name == whole.attack.name
    assert matched.attack.local.learning_rate == made("baseline").attack.local.learning_rate
    options = made("neurotoxin", "code_mask").attack.options
    assert (options["neurotoxin"]["source"], options["neurotoxin"]["strict"]) == ("clean_grad", False)
    assert made("krum").aggregator.name == "krum"


def test_dba_of_its_authors_is_four_shots_or_goes_on():
    shot, kept = config_of("dba_mnist"), config_of("dba_mnist", "kept")
    assert configs.flatten(shot) == configs.flatten(config_of("dba_mnist", "single_shot"))
    assert [configs.num_malicious(one) for one in (shot, kept)] == [4, 4]
    attack = shot.attack
    assert dict(attack.schedule) == {"first": 12, "last": 18, "every": 2, "turns": 1}
    assert dict(kept.attack.schedule) == {"first": 2, "last": 8, "every": 2, "turns": 1}
    assert attack.options.factor * shot.server.learning_rate == shot.federation.clients_per_round
    assert (attack.trigger, attack.options.poison_per_batch, attack.local.milestones) == ("dba_mnist", 20, (2, 8))
    on, start = config_of("dba_mnist", "continuous,krum"), config_of("dba_mnist", "start")
    assert (on.attack.name, on.attack.schedule.first, on.attack.schedule.every) == ("dba", 11, 1)
    assert (on.aggregator.name, on.server.learning_rate, shot.aggregator.options.weights) == ("krum", 1.0, "uniform")
    assert config_of("dba_mnist", "continuous,kept").attack.schedule.first == 1
    assert (start.attack.name, start.federation.rounds, start.server.learning_rate) == ("none", 10, 1.0)
    with pytest.raises(ConfigError, match=r"exclude each other: both set attack\.name"):
        config_of("dba_mnist", "continuous,single_shot")


def test_words_that_say_different_things_exclude_each_other():
    with pytest.raises(ConfigError, match=r"^presets baseline, neurotoxin exclude each other: both set attack\.name"):
        config_of("neurotoxin_cifar10", "baseline,neurotoxin")
    with pytest.raises(ConfigError, match=r"^preset 'nothing' is unknown: it must be neurotoxin, matched, "):
        config_of("neurotoxin_cifar10", "nothing")
    words = {"a": {"seed": 3}, "b": {"seed": 3, "local.epochs": 2}}
    made = configs.make_config("a,b", words=words, fields={"seed": 1, "local.epochs": 1})
    assert (made.seed, made.local.epochs, made.aggregator.name) == (3, 2, "spmc")


def test_phases():
    phases = Phases(clean=10, attack=3, after=5, start="runs/kept")
    assert phases.fields() == {
        "federation.rounds": 18,
        "attack.schedule.first": 10,
        "attack.schedule.last": 12,
    }
    assert "local.schedule_offset" not in phases.words()["kept"]
    assert phases._replace(scheduled=True).words()["kept"]["local.schedule_offset"] == 10


@pytest.mark.parametrize("name", ["flip_mnist", "flip_fashion_mnist", "flip_cifar10", "flip_small"])
def test_the_words_of_flips_configs(name):
    single, continuous, kept = (config_of(name, arg) for arg in ("", "flip,continuous", "lite,continuous,kept"))
    assert single.local.rule == "flip"
    assert (single.local.optimizer, single.attack.local.rule, single.attack.local.optimizer) == ("adam", "sgd", "sgd")
    assert (single.server.optimizer, single.server.learning_rate) == ("sgd", 0.1)
    assert not any((single.data.normalise, single.data.augment, single.local.drop_last))
    assert configs.num_malicious(single) == 4
    # Four attacks one after another, each of which takes the model's place.
    schedule, options = single.attack.schedule, single.attack.options
    assert (schedule.every, schedule.turns, schedule.last - schedule.first) == (2, 1, 6)
    clients = single.federation.clients_per_round
    assert options["model_replacement"]["factor"] * 0.1 / clients == pytest.approx(1)
    assert single.evaluation.confidence == 0
    assert (continuous.attack.name, continuous.attack.schedule.turns) == ("dba", 0)
    assert continuous.evaluation.confidence == 0.4
    gone = continuous.federation.rounds - kept.federation.rounds
    assert continuous.attack.schedule.first - kept.attack.schedule.first == gone > 0
    assert kept.local.options.preset == "lite"
    plain, start = config_of(name, "fedavg"), config_of(name, "fedavg,start")
    assert (plain.local.rule, plain.local.optimizer, plain.local.batch_size) == ("sgd", "sgd", 64)
    share = single.attack.options["dba"]["poison_per_batch"] / single.local.batch_size
    assert share == plain.attack.options["dba"]["poison_per_batch"] / 64
    assert (start.attack.name, start.federation.rounds) == ("none", gone)
    exact = config_of(name, "flip,reference").local.options
    assert (exact.preset, exact.schedule, exact.pair_key, exact.margin) == ("reference",) * 3 + (0,)
    for word, value in (("noise", "noise"), ("clean_steps", "none")):
        assert config_of(name, word).local.options.triggers == value
    assert config_of(name, "krum").aggregator.name == "krum"
