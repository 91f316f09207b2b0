"""The parts of a round, each from a resolved config, and how they become a federation.

`experiment.py` names them one by one; `assemble` makes them all inside of a program, from settings that may be traced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_spmc import aggregators, attacks, data, local_rules, models, preaggregators, registry, sampling
from fedjax_spmc import config as configs
from fedjax_spmc import server as servers
from fedjax_spmc.data.pipeline import ClientIndices, Pipeline, client_data
from fedjax_spmc.data.task import task_of as make_task
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.federation import Attacker, Federation, FederationState, initial_state, large_parts
from fedjax_spmc.keys import purpose_key, root_key
from fedjax_spmc.setup import ArraySettings, array_settings, asks_for_truth
from fedjax_spmc.training import auto_client_batch
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
    Variables,
)


def task_of(config: Any, info: data.DatasetInfo) -> Task:
    """What the data set makes of the model's work, with the config's augmentation and normalisation."""
    given = {name: config.data[name] for name in ("mean", "std") if config.data[name]}
    return make_task(info._replace(**given), config.data.augment, config.data.normalise)


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


def local_rule_of(config: Any, settings: ArraySettings, model: Model) -> LocalRule:
    """The config's local rule; one whose state goes by the model's inputs is given the model."""
    given = {"network": model} if registry.local_rules.needs(config.local.rule, "network") else {}
    return local_rules.make(config.local.rule, **dict(config.local.options) | settings.local, **given)


def attack_of(config: Any, settings: ArraySettings) -> Attack:
    """The config's attack."""
    return attacks.make(configs.resolved_name(config, "attack"), **configs.attack_options(config) | settings.attack)


def aggregator_of(
    config: Any, task: Task, model: Model, settings: ArraySettings
) -> Callable[[Examples | None], Aggregator]:
    """The config's aggregator, its pre-aggregators in front and guarded, from the examples that the server holds.

    Those come from `setup.server_examples`; a rule that takes none is given None.
    """
    chain = preaggregators.make(config.aggregator.pre, **configs.options_in(config, configs.PRE) | settings.pre)
    name, options = config.aggregator.name, dict(config.aggregator.options) | settings.aggregator
    known = {"network": model, "rounds": config.federation.rounds}
    options |= {given: value for given, value in known.items() if registry.aggregators.needs(name, given)}
    if not registry.aggregators.needs(name, "server"):
        return lambda examples: aggregators.make_behind(chain, name, **options)

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
        return aggregators.make_behind(chain, name, **options, server=server)

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
    plain = own.optimizer == "sgd" and config.local.optimizer != "sgd"
    return Attacker(other, own.epochs, hyper, tuple(own.milestones), own.gamma, plain, own.idle)


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
        ConfigError: the attacker's target is no class of it, its pixels have other channels than the statistics given,
            or incomplete batches would enter batch statistics.
    """
    for name in ("mean", "std"):
        channels = 0 if info.mean is None else len(info.mean)
        if config.data[name] and len(config.data[name]) != channels:
            raise ConfigError(
                f"data.{name} = {config.data[name]} is not allowed with {info.name}: it must be a list of {channels}, "
                "one number for each channel, or ()."
            )
    for name, target in configs.attack_options(config).items():
        path = "attack.target_label" if name == "target_label" else f"attack.options.{name}"
        if not path.endswith(".target_label"):
            continue
        if target is not None and target >= info.num_classes:
            raise ConfigError(
                f"{path} = {target} is not allowed: it must be a class of {info.name}, 0 to {info.num_classes - 1}."
            )
    if not config.local.drop_last:
        _check_statistics(config, info)


def check_answers(config: Any, dataset: data.Dataset) -> None:
    """Refuses a model for tokens whose logits do not stand where the labels do, at every place or for a whole row.

    Raises:
        ConfigError: the models that fit are named.
    """
    info, rank = dataset.info, dataset.train_labels.ndim
    if info.vocabulary == 0 or _answers(model_of(config, info)) == rank:
        return
    shape = {"sequence_length": info.input_shape[0], "vocabulary": info.vocabulary}
    known = [one for one in registry.models.names() if registry.models.needs(one, "vocabulary")]
    fitting = [one for one in known if _answers(models.make(one, num_classes=info.num_classes, **shape)) == rank]
    kind = "a label at every place" if rank > 1 else "one label for a whole row"
    raise ConfigError(
        f"model.name = {config.model.name!r} is not allowed with data.name = {info.name!r}, which has {kind}: it must "
        f"be one of {', '.join(fitting) or 'the models of a plug-in'}."
    )


def _answers(model: Model) -> int:
    """Axes of the labels that a model's logits are for."""

    def logits(key: PRNGKey) -> Array:
        params, stats = model.init(key)
        return model.apply(params, stats, jnp.zeros((1, *model.input.shape), model.input.dtype), False)[0]

    return len(jax.eval_shape(logits, root_key(0)).shape) - 1


def _check_statistics(config: Any, info: data.DatasetInfo) -> None:
    """Refuses a model whose batch statistics would count the missing rows of an incomplete batch."""
    model = model_of(config, info)
    if not jax.tree.leaves(jax.eval_shape(model.init, root_key(0)).stats):
        return

    def run(key: PRNGKey) -> Any:
        variables, inputs = model.init(key), jnp.zeros((2, *model.input.shape), model.input.dtype)
        return model.apply(variables.params, variables.stats, inputs, True, key, jnp.ones(2, bool))

    try:
        jax.eval_shape(run, root_key(0))
    except ValueError:
        raise ConfigError(
            f"local.drop_last = False is not allowed with model.name = {config.model.name!r}, whose batch statistics "
            "would count the rows that an incomplete batch lacks: it must be True."
        ) from None


def federation_of(
    config: Any,
    task: Task,
    model: Model,
    rule: LocalRule,
    attack: Attack,
    aggregator: Callable[[Examples | None], Aggregator],
    settings: ArraySettings,
    server: Examples | None,
    held: Any,
) -> Federation:
    """The federation of these parts.

    Args:
        config: resolved.
        task, model, rule, attack, aggregator: of the config.
        settings: numbers of the config; they may be traced, so that one program serves many experiments.
        server: from `setup.server_examples`.
        held: from `held_by`, on the device.
    """
    federation = Federation(
        model=model,
        task=task,
        sample=sampling_of(config),
        client_data=client_data_of(config, task, rule),
        rule=rule,
        attack=attack,
        aggregator=aggregator,
        hyper=settings.hyper,
        schedule=settings.schedule,
        epochs=config.local.epochs,
        client_batch=config.federation.client_batch or auto_client_batch(config.federation.clients_per_round),
        oracle=asks_for_truth(config),
        server_optimizer=server_optimizer_of(config, settings),
        server=server,
        held=held,
        attacker=attacker_of(config, rule),
        frozen=config.attack.augmentation == "frozen",
        whole_batches=config.local.drop_last,
    )
    every, drawn = config.federation.num_clients, config.federation.clients_per_round
    return federation._replace(large=large_parts(federation, every, drawn))


def assemble(
    config: Any,
    info: data.DatasetInfo,
    server: Examples | None,
    held: Any = (),
    settings: ArraySettings | None = None,
) -> Federation:
    """All parts of the config, and the federation that they make; see `federation_of`."""
    settings = array_settings(config) if settings is None else settings
    task, model = task_of(config, info), model_of(config, info)
    rule, attack = local_rule_of(config, settings, model), attack_of(config, settings)
    aggregator = aggregator_of(config, task, model, settings)
    return federation_of(config, task, model, rule, attack, aggregator, settings, server, held)


def make_start(
    config: Any, info: data.DatasetInfo, server: Examples | None, stored: bool = False
) -> Callable[[PRNGKey, Roster, ArraySettings, Any, Variables | None], FederationState]:
    """The jitted start, the same for a run and a sweep: the state before round 0.

    Its arguments are (key, roster, settings, held, the variables to begin with, or None to draw them); `stored` as in
    `federation.initial_state`.
    """

    @jax.jit  # one program in place of a hundred small ones
    def start(
        key: PRNGKey, roster: Roster, settings: ArraySettings, held: Any, saved: Variables | None
    ) -> FederationState:
        federation = assemble(config, info, server, held, settings)
        variables = federation.model.init(purpose_key(key, "init")) if saved is None else saved
        attack_key = purpose_key(key, "attack")
        state = initial_state(federation, variables, config.federation.num_clients, roster, attack_key, stored)
        return jax.tree.map(_strongly_typed, state)

    return start


def _strongly_typed(leaf: Any) -> Any:
    """The same number without JAX's weak type, which a checkpoint does not keep: else a run that goes on in the process
    in which it began would compile its round anew."""
    leaf = jnp.asarray(leaf)  # an attack may hold a number of Python
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.astype(leaf.dtype)
