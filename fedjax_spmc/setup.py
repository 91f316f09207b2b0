"""The parts of one experiment, each from a resolved config; `experiment.py` puts them together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, attacks, data, local_rules, models, registry, sampling, schedules
from fedjax_spmc import config as configs
from fedjax_spmc import server as servers
from fedjax_spmc.data import partition
from fedjax_spmc.data.pipeline import ClientIndices, Pipeline, client_data
from fedjax_spmc.data.task import task_of as make_task
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.federation import Attacker, Federation, FederationState
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.types import (
    Aggregator,
    Array,
    Attack,
    ClientData,
    Examples,
    LocalRule,
    Model,
    PRNGKey,
    Roster,
    ServerData,
    Task,
)


class ArraySettings(NamedTuple):
    """The settings that are arrays in an experiment's program: experiments that differ in no more can share one.

    Attributes:
        hyper: learning_rate, momentum, weight_decay; beta2 and clip_norm where they are in use.
        local, aggregator, attack: the array options of these parts, but for those that are None.
        server: the numbers that the server's optimiser takes; {} without one.
        schedule: [rounds] float32 factors on the local learning rate; None = it is constant.
    """

    hyper: dict[str, Any]
    local: dict[str, Any]
    aggregator: dict[str, Any]
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
        state: before round 0.
        key: the experiment's key, the same in every round.
        malicious: [N] bool, the ground truth (for metrics and pictures).
        parts: index lists of the clients, on the host.
        dataset: on the host.
        evaluate: (variables, test, roster, own) -> evaluation.Counts, jitted.
        start_sha256: of the saved model with which the run begins; None where weights are drawn.
    """

    federation: Federation
    arrays: tuple[Examples, ClientIndices]
    sizes: Array
    test: Examples
    state: FederationState
    key: PRNGKey
    malicious: np.ndarray
    parts: list[np.ndarray]
    dataset: data.Dataset
    evaluate: Callable[..., Any]
    start_sha256: str | None = None


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
    options = {name: config.partition[name] for name in known}
    draw = registry.partitions.make(config.partition.name, **options)
    parts = draw(dataset.train_labels, config.federation.num_clients, rng)
    largest = max(len(part) for part in parts)
    if config.local.drop_last and config.local.batch_size > largest:
        raise ConfigError(
            f"local.batch_size = {config.local.batch_size} is not allowed: it must be at most {largest}, the number of "
            "training examples of the largest client, or local.drop_last must be False."
        )
    return parts


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
    parts = {
        section: {
            name: value
            for name, value in given.items()
            if value is not None and name in configs.array_options(config, section)
        }
        for section, given in (
            ("local", config.local.options),
            ("aggregator", config.aggregator.options),
            ("attack", configs.attack_options(config)),
        )
    }
    return ArraySettings(
        hyper={name: config.local[name] for name in configs.hyperparameters(config)},
        server={name: config.server[name] for name in configs.server_settings(config)},
        schedule=schedule_of(config),
        **parts,
    )


def schedule_of(config: Any) -> np.ndarray | None:
    """The config's factors on the local learning rate: [rounds] float32; None where it is constant."""
    name = config.local.schedule
    if name == "constant":
        return None
    settings = {setting: config.local[setting] for setting in schedules.TAKES[name]}
    return schedules.factors(name, config.federation.rounds, **settings).astype(np.float32)


def task_of(config: Any, info: data.DatasetInfo) -> Task:
    """What the data set makes of the model's work, with the config's augmentation and normalisation."""
    return make_task(info, config.data.augment, config.data.normalise)


def model_of(config: Any, info: data.DatasetInfo) -> Model:
    """The config's model for a data set.

    Raises:
        ConfigError: it takes no inputs of this kind.
    """
    name, pixels = config.model.name, info.vocabulary == 0
    known = registry.models.options(name)
    options = dict(config.model.options) | ({"norm": config.model.norm} if "norm" in known else {})
    shape: dict[str, Any] = {"image_shape": tuple(info.input_shape)}
    if not pixels:
        shape = {"sequence_length": info.input_shape[0], "vocabulary": info.vocabulary}
    if not registry.models.needs(name, next(iter(shape))):
        fitting = [one for one in registry.models.names() if registry.models.needs(one, next(iter(shape)))]
        kind = "images" if pixels else "sequences of tokens"
        raise ConfigError(
            f"model.name = {name!r} is not allowed with data.name = {info.name!r}, which holds {kind}: it must be "
            f"one of {', '.join(fitting) or 'the models of a plug-in'}."
        )
    shape = {given: value for given, value in shape.items() if registry.models.needs(name, given)}
    return models.make(name, num_classes=info.num_classes, **shape, **options)


def sampling_of(config: Any) -> sampling.Sampler:
    """The config's sampling of clients."""
    build = sampling.make(config.sampling.name, **dict(config.sampling.options))
    return build(config.federation.num_clients, config.federation.clients_per_round)


def local_rule_of(config: Any, settings: ArraySettings) -> LocalRule:
    """The config's local rule."""
    return local_rules.make(config.local.rule, **dict(config.local.options) | settings.local)


def attack_of(config: Any, settings: ArraySettings) -> Attack:
    """The config's attack."""
    return attacks.make(configs.resolved_name(config, "attack"), **configs.attack_options(config) | settings.attack)


def aggregator_of(
    config: Any, task: Task, model: Model, settings: ArraySettings
) -> Callable[[Examples | None], Aggregator]:
    """The config's aggregator as a function of the examples that the server holds (`server_examples`)."""
    name, options = config.aggregator.name, dict(config.aggregator.options) | settings.aggregator
    known = {"network": model, "rounds": config.federation.rounds}
    options |= {given: value for given, value in known.items() if registry.aggregators.needs(name, given)}
    if not registry.aggregators.needs(name, "server"):
        return lambda examples: aggregators.make(name, **options)

    def aggregator(examples: Examples | None) -> Aggregator:
        assert examples is not None
        server = ServerData(
            model=model,
            inputs=examples.inputs,
            labels=examples.labels,
            batch_size=config.local.batch_size,
            task=task,
            epochs=config.local.epochs,
            momentum=settings.hyper["momentum"],
            weight_decay=settings.hyper["weight_decay"],
        )
        return aggregators.make(name, **options, server=server)

    return aggregator


def server_optimizer_of(config: Any, settings: ArraySettings) -> servers.ServerOptimizer | None:
    """The config's server optimiser; None where the aggregator's model is installed."""
    return servers.make(config.server.optimizer, **settings.server)


def attacker_of(config: Any, rule: LocalRule) -> Attacker:
    """How the config's attacking clients train.

    Raises:
        ConfigError: their rule does not send what the benign one sends.
    """
    own = config.attack.local
    other = None if own.rule is None else local_rules.make(own.rule)
    lacking = [] if other is None else [extra for extra in rule.sends if extra not in other.sends]
    if lacking:
        raise ConfigError(
            f"attack.local.rule = {own.rule!r} is not allowed with local.rule = {config.local.rule!r}, whose clients "
            f"send {', '.join(lacking)}: it must be a rule that sends them, or None."
        )
    hyper = {name: own[name] for name in configs.HYPERPARAMETERS if own[name] is not None}
    return Attacker(other, own.epochs, hyper, tuple(own.milestones), own.gamma)


def client_data_of(config: Any, task: Task, rule: LocalRule) -> Callable[..., ClientData]:
    """How the config's clients read their batches: see `Federation.client_data`."""
    pipeline = Pipeline(
        batch_size=config.local.batch_size,
        passes=max(config.local.epochs, config.attack.local.epochs or 0) + rule.extra_passes,
        prepare=task.prepare,
        drop_last=config.local.drop_last,
    )

    def read(
        arrays: tuple[Examples, ClientIndices], client_id: Array, frozen: Array, round_index: Array, key: PRNGKey
    ) -> ClientData:
        train, indices = arrays
        rows, size = indices.rows[client_id], indices.sizes[client_id]
        return client_data(pipeline, train, rows, size, client_id, frozen, round_index, key)

    return read


def held_by(config: Any, dataset: data.Dataset) -> Any:
    """The arrays that the config's attack holds, on the host; () where it holds none."""
    attack = attack_of(config, array_settings(config))
    if attack.hold is None:
        return ()

    def load(name: str, **options: Any) -> data.Dataset:
        section = config.data
        return data.load(name, data_dir=section.data_dir, cache_dir=section.cache_dir, order=section.order, **options)

    return attack.hold(dataset, load)


def check_fits(config: Any, info: data.DatasetInfo) -> None:
    """Refuses a config that does not fit the data set.

    Raises:
        ConfigError: the attacker's target is no class of it, or incomplete batches would enter batch statistics.
    """
    targets = {"attack.target_label": config.attack.target_label}
    for name, value in configs.attack_options(config).items():
        if name.endswith(".target_label"):
            targets[f"attack.options.{name}"] = value
    for path, target in targets.items():
        if target >= info.num_classes:
            raise ConfigError(
                f"{path} = {target} is not allowed: it must be a class of {info.name}, 0 to {info.num_classes - 1}."
            )
    if not config.local.drop_last:
        _check_statistics(config, info)


def _check_statistics(config: Any, info: data.DatasetInfo) -> None:
    """Refuses a model whose batch statistics would count the missing rows of an incomplete batch."""
    name, model = config.model.name, model_of(config, info)
    if not jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)).stats):
        return
    given, instead = f"model.name = {name!r}", ""
    if "norm" in registry.models.options(name):
        given, instead = f"{given} and model.norm = {config.model.norm!r}", ", or model.norm 'group' or 'none'"
    raise ConfigError(
        f"local.drop_last = False is not allowed with {given}, whose batch statistics would count the rows that an "
        f"incomplete batch lacks: it must be True{instead}."
    )


def is_oracle(config: Any) -> bool:
    """Whether an option that hands the ground truth to the aggregator is on; such results are marked."""
    return any(name.startswith("oracle_") and bool(value) for name, value in config.aggregator.options.items())
