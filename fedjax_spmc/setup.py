"""From a resolved config to the parts of one experiment: data on the device, partition, roster, federation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, attacks, data, local_rules, models, registry, sampling, training
from fedjax_spmc import config as configs
from fedjax_spmc.data import partition
from fedjax_spmc.data.pipeline import ClientIndices, Images, Pipeline, client_data, pad_indices
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.federation import Federation, FederationState, initial_state
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.metrics import make_evaluate
from fedjax_spmc.types import Aggregator, Array, Attack, AttackContext, Model, PRNGKey, Roster, ServerData


class Numbers(NamedTuple):
    """The settings that are arrays in an experiment's program: experiments that differ in no more can share one.

    Attributes:
        hyper: learning_rate, momentum, weight_decay.
        local, aggregator, attack: the array options of these parts, but for those that are None.
    """

    hyper: dict[str, Any]
    local: dict[str, Any]
    aggregator: dict[str, Any]
    attack: dict[str, Any]


class Experiment(NamedTuple):
    """All that one experiment is made of, before its first round.

    Attributes:
        federation: the parts of the round.
        arrays: (training images, index lists) on the device.
        test: test images on the device.
        state: before round 0.
        key: the experiment's key, the same in every round.
        malicious: [N] bool, the ground truth (for metrics and pictures).
        parts: index lists of the clients, on the host.
        dataset: on the host.
        evaluate: (variables, test, attack_state) -> metrics.Counts, jitted.
    """

    federation: Federation
    arrays: tuple[Images, ClientIndices]
    test: Images
    state: FederationState
    key: PRNGKey
    malicious: np.ndarray
    parts: list[np.ndarray]
    dataset: data.Dataset
    evaluate: Callable[..., Any]


def make_model(config: Any, num_classes: int, image_shape: tuple[int, int, int]) -> Model:
    """The config's model for images [H, W, C] of so many classes."""
    known = registry.models.options(config.model.name)
    options = dict(config.model.options) | ({"norm": config.model.norm} if "norm" in known else {})
    return models.make(config.model.name, num_classes=num_classes, image_shape=image_shape, **options)


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
        ConfigError: no client has a full batch, or the partition cannot be made.
    """
    rng = np.random.RandomState(config.seed)
    num_examples = len(dataset.train_labels) + len(dataset.val_labels)
    partition.split_validation(num_examples, config.data.val_fraction, rng)
    known = registry.partitions.options(config.partition.name)
    options = {name: config.partition[name] for name in known}
    draw = registry.partitions.make(config.partition.name, **options)
    parts = draw(dataset.train_labels, config.federation.num_clients, rng)
    largest = max(len(part) for part in parts)
    if config.local.batch_size > largest:
        raise ConfigError(
            f"local.batch_size = {config.local.batch_size} is not allowed: it must be at most {largest}, the number of "
            "training images of the largest client."
        )
    return parts


def roster(config: Any, key: PRNGKey) -> Roster:
    """Who attacks and when; without an attack nobody."""
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
    )


def server_images(config: Any, dataset: data.Dataset) -> Images | None:
    """What the server holds: the validation split, uint8, or None where the aggregator takes no data.

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
    return Images(jnp.asarray(dataset.val_images), jnp.asarray(dataset.val_labels, jnp.int32))


def server_side(
    config: Any, info: data.DatasetInfo, model: Model, numbers: Numbers
) -> Callable[[Images | None], Aggregator]:
    """The aggregator on what the server holds: images -> aggregator."""
    name, options = config.aggregator.name, dict(config.aggregator.options) | numbers.aggregator
    known = {"network": model, "rounds": config.federation.rounds}
    options |= {given: value for given, value in known.items() if registry.aggregators.needs(name, given)}
    if not registry.aggregators.needs(name, "server"):
        return lambda images: aggregators.make(name, **options)

    def aggregator_on(held: Images | None) -> Aggregator:
        assert held is not None
        server = ServerData(
            model=model,
            images=held.images,
            labels=held.labels,
            batch_size=config.local.batch_size,
            mean=jnp.array(info.mean, jnp.float32),
            std=jnp.array(info.std, jnp.float32),
            epochs=config.local.epochs,
            momentum=numbers.hyper["momentum"],
            weight_decay=numbers.hyper["weight_decay"],
        )
        return aggregators.make(name, **options, server=server)

    return aggregator_on


def numbers_of(config: Any) -> Numbers:
    """The config's own numbers, as Python has them."""
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
    return Numbers(hyper={name: config.local[name] for name in configs.HYPER}, **parts)


def attack_of(config: Any, numbers: Numbers) -> Attack:
    """The config's attack."""
    return attacks.make(configs.resolved_name(config, "attack"), **configs.attack_options(config) | numbers.attack)


def assemble(config: Any, info: data.DatasetInfo, server: Images | None, numbers: Numbers | None = None) -> Federation:
    """The parts of the round that a resolved config describes.

    Args:
        config: resolved.
        info: the data set's.
        server: from `server_images`.
        numbers: in place of the config's own; they may be traced, so that one program serves many experiments.
    """
    numbers = numbers_of(config) if numbers is None else numbers
    model = make_model(config, info.num_classes, info.image_shape)
    attack = attack_of(config, numbers)
    rule = local_rules.make(config.local.rule, **dict(config.local.options) | numbers.local)
    augment = config.data.augment
    pipeline = Pipeline(
        batch_size=config.local.batch_size,
        passes=config.local.epochs + bool(rule.sends),
        mean=jnp.array(info.mean, jnp.float32),
        std=jnp.array(info.std, jnp.float32),
        padding=info.crop_padding if augment else 0,
        flip=info.flip and augment,
    )

    def data_of(arrays: Any, client_id: Array, state: Any, round_index: Array, key: PRNGKey) -> Any:
        train, indices = arrays
        rows, size = indices.rows[client_id], indices.sizes[client_id]
        return client_data(pipeline, train, rows, size, client_id, attack, state, round_index, key)

    aggregator_on = server_side(config, info, model, numbers)
    num_clients, per_round = config.federation.num_clients, config.federation.clients_per_round
    return Federation(
        model=model,
        rule=rule,
        aggregator=aggregator_on(server),
        attack=attack,
        sample=sampling.make(config.sampling.name, **dict(config.sampling.options))(num_clients, per_round),
        client_data=data_of,
        hyper=numbers.hyper,
        epochs=config.local.epochs,
        client_batch=config.federation.client_batch or training.auto_client_batch(per_round),
        oracle=is_oracle(config),
        server=server,
        aggregator_on=None if server is None else aggregator_on,
    )


def make_begin(
    config: Any, info: data.DatasetInfo, server: Images | None
) -> Callable[[PRNGKey, Roster, Numbers], FederationState]:
    """The jitted start: (key, roster, numbers) -> the state before round 0.

    A run and a sweep call this one program, so that both start from the same bits.
    """

    @jax.jit  # one program in place of a hundred small ones
    def begin(key: PRNGKey, who: Roster, numbers: Numbers) -> FederationState:
        federation = assemble(config, info, server, numbers)
        mean, std = jnp.array(info.mean, jnp.float32), jnp.array(info.std, jnp.float32)
        context = AttackContext(who, info.image_shape, info.num_classes, mean, std)
        variables = federation.model.init(purpose_key(key, "init"))
        attack_state = federation.attack.init(context, purpose_key(key, "attack"))
        return initial_state(federation, variables, config.federation.num_clients, attack_state)

    return begin


def check_fits(config: Any, info: data.DatasetInfo) -> None:
    """Refuses a config that does not fit the data set.

    Raises:
        ConfigError: the attacker's target is no class of it.
    """
    if config.attack.target_label >= info.num_classes:
        raise ConfigError(
            f"attack.target_label = {config.attack.target_label} is not allowed: it must be a class of {info.name}, "
            f"0 to {info.num_classes - 1}."
        )


def build(config: Any, dataset: data.Dataset) -> Experiment:
    """The experiment that a resolved config describes.

    Raises:
        ConfigError: the config does not fit the data set.
    """
    info = dataset.info
    check_fits(config, info)
    parts = divide(config, dataset)
    key = jax.random.key(config.seed)
    who = roster(config, key)
    server = server_images(config, dataset)
    federation = assemble(config, info, server)
    mean, std = jnp.array(info.mean, jnp.float32), jnp.array(info.std, jnp.float32)
    return Experiment(
        federation=federation,
        arrays=(
            Images(jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels, jnp.int32)),
            pad_indices(parts),
        ),
        test=Images(jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels, jnp.int32)),
        state=make_begin(config, info, server)(key, who, numbers_of(config)),
        key=key,
        malicious=np.asarray(who.malicious),
        parts=parts,
        dataset=dataset,
        evaluate=make_evaluate(federation.model, federation.attack, mean, std),
    )


def is_oracle(config: Any) -> bool:
    """Whether an option that hands the ground truth to the aggregator is on; such results are marked."""
    return any(name.startswith("oracle_") and bool(value) for name, value in config.aggregator.options.items())
