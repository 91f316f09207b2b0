"""What an experiment has on the host, each from a resolved config: data, partition, roster, the settings in arrays."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc import data, registry, schedules
from fedjax_spmc.data import partition
from fedjax_spmc.data.pipeline import ClientIndices
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.federation import Federation, FederationState
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.types import Array, Examples, PRNGKey, Roster


class ArraySettings(NamedTuple):
    """The settings that are arrays in an experiment's program: experiments that differ in no more can share one.

    Attributes:
        hyper: learning_rate, momentum, weight_decay; beta2 and clip_norm where they are in use.
        local, aggregator, pre, attack: the array options of these parts, but for those that are None; of
            pre-aggregators by `NAME.x`.
        server: the numbers that the server's optimiser takes; {} without one.
        schedule: [rounds] float32 factors on the local learning rate; None = it is constant.
    """

    hyper: dict[str, Any]
    local: dict[str, Any]
    aggregator: dict[str, Any]
    pre: dict[str, Any]
    attack: dict[str, Any]
    server: dict[str, Any]
    schedule: Any = None


class Experiment(NamedTuple):
    """All that one experiment is made of, before its first round.

    Attributes:
        federation: the parts of the round.
        arrays: (training examples, index lists) on the device, what the federation's clients read.
        sizes: [N] int32, length of every client's index list.
        test: test examples on the device.
        state: before round 0; what a large part keeps of all clients is a `store.Store`.
        key: the experiment's key, the same in every round.
        malicious: [N] bool, the ground truth (for metrics and pictures).
        idle: [N] bool, clients that never train.
        parts: index lists of the clients, on the host.
        dataset: on the host.
        evaluate: (variables, test, roster, own) -> evaluation.Counts, jitted.
        start_sha256: of the saved model with which the run begins; None where weights are drawn.
        program_key: what its programs depend on, see `compiled.key_of`; None = they are made anew.
    """

    federation: Federation
    arrays: tuple[Examples, ClientIndices]
    sizes: Array
    test: Examples
    state: FederationState
    key: PRNGKey
    malicious: np.ndarray
    idle: np.ndarray
    parts: list[np.ndarray]
    dataset: data.Dataset
    evaluate: Callable[..., Any]
    start_sha256: str | None = None
    program_key: Hashable = None


def load_data(config: Any) -> data.Dataset:
    """The config's data set."""
    section = config.data
    return data.load(
        section.name,
        data_dir=section.data_dir,
        cache_dir=section.cache_dir,
        order=section.order,
        limit_train=section.limit_train,
        limit_test=section.limit_test,
        val_fraction=section.val_fraction,
        **dict(section.options),
    )


def divide(config: Any, dataset: data.Dataset) -> list[np.ndarray]:
    """Index lists of all clients, with the reference's draws: the validation tail is shuffled first.

    Raises:
        ConfigError: no client has a full batch where others are dropped, or the partition cannot be made.
    """
    rng = np.random.RandomState(config.seed)
    num_examples = len(dataset.train_labels) + len(dataset.val_labels)
    partition.split_validation(num_examples, config.data.val_fraction, rng)
    known = registry.partitions.options(config.partition.name)
    options: dict[str, Any] = {name: config.partition[name] for name in known}
    if registry.partitions.needs(config.partition.name, "owners"):
        options["owners"] = dataset.owners
    draw = registry.partitions.make(config.partition.name, **options)
    parts = draw(dataset.train_labels, config.federation.num_clients, rng)
    largest = max(len(part) for part in parts)
    if config.local.drop_last and config.local.batch_size > largest:
        raise ConfigError(
            f"local.batch_size = {config.local.batch_size} is not allowed: it must be at most {largest}, the number of "
            "training examples of the largest client, or local.drop_last must be False."
        )
    return parts


def idle_clients(config: Any, parts: Sequence[np.ndarray]) -> np.ndarray:
    """[N] bool: clients that never train, because their examples make no batch.

    Args:
        config: resolved.
        parts: index lists of all clients, from `divide`.
    """
    fewest = config.local.batch_size if config.local.drop_last else 1
    return np.array([len(part) < fewest for part in parts], bool)


def roster(config: Any, key: PRNGKey) -> Roster:
    """Who is malicious and when they attack; without an attack, no client."""
    num_clients, bad = config.federation.num_clients, configs.num_malicious(config)
    order = np.arange(num_clients)[::-1]
    if config.attack.placement == "random":
        order = np.asarray(jax.random.permutation(purpose_key(key, "roster"), num_clients))
    malicious = np.zeros(num_clients, bool)
    malicious[order[:bad]] = True
    last = config.attack.schedule.last
    return Roster(
        malicious=jnp.asarray(malicious),
        first=jnp.int32(config.attack.schedule.first),
        last=jnp.int32(np.iinfo(np.int32).max if last is None else last),
        round=jnp.int32(0),
        every=jnp.int32(config.attack.schedule.every),
        turns=jnp.int32(config.attack.schedule.turns),
    )


def server_examples(config: Any, dataset: data.Dataset) -> Examples | None:
    """The examples that the server holds: the validation split, raw; None where the aggregator takes no data.

    Raises:
        ConfigError: the split is smaller than one batch.
    """
    name = config.aggregator.name
    if not registry.aggregators.needs(name, "server"):
        return None
    if len(dataset.val_labels) < config.local.batch_size:
        raise ConfigError(
            f"data.val_fraction = {config.data.val_fraction} is not allowed with aggregator.name = {name!r}: it must "
            f"leave the server at least one batch of {config.local.batch_size} validation images, not "
            f"{len(dataset.val_labels)}."
        )
    return examples_of(dataset.val_inputs, dataset.val_labels)


def examples_of(inputs: np.ndarray, labels: np.ndarray) -> Examples:
    """Examples on the device."""
    return Examples(jnp.asarray(inputs), jnp.asarray(labels, jnp.int32))


def array_settings(config: Any) -> ArraySettings:
    """The config's own array settings, as Python has them."""

    def traced(section: str, given: Mapping[str, Any]) -> dict[str, Any]:
        taken = configs.array_options(config, section)
        return {name: value for name, value in given.items() if value is not None and name in taken}

    return ArraySettings(
        hyper={name: config.local[name] for name in configs.hyperparameters(config)},
        server={name: config.server[name] for name in configs.server_settings(config)},
        schedule=schedule_of(config),
        local=traced("local", config.local.options),
        aggregator=traced("aggregator", config.aggregator.options),
        pre=traced(configs.PRE, configs.options_in(config, configs.PRE)),
        attack=traced("attack", configs.attack_options(config)),
    )


def schedule_of(config: Any) -> np.ndarray | None:
    """The config's factors on the local learning rate: [rounds] float32; None where it is constant."""
    name = config.local.schedule
    if name == "constant":
        return None
    settings = {setting: config.local[setting] for setting in schedules.TAKES[name]}
    factors = schedules.factors(name, config.federation.rounds, config.local.learning_rate, **settings)
    return factors.astype(np.float32)


def asks_for_truth(config: Any) -> bool:
    """Whether an option of the aggregator asks for the ground truth, which is then sent along with the uploads."""
    return any(path.startswith("aggregator.") for path in configs.oracle_options(configs.flatten(config)))


def is_oracle(config: Any) -> bool:
    """Whether an option that hands the ground truth to the aggregator or to clients is on; such results are marked."""
    return bool(configs.oracle_options(configs.flatten(config)))
