"""The parts of a federation and the state that a round changes; `one_round` plays it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import summing, trees
from fedjax_spmc.keys import root_key
from fedjax_spmc.models.on_batch import on_whole_batches
from fedjax_spmc.server import ServerOptimizer
from fedjax_spmc.store import Store, are_few, is_large
from fedjax_spmc.training import map_clients
from fedjax_spmc.types import (
    Aggregator,
    Array,
    Attack,
    AttackContext,
    ClientData,
    LocalRule,
    Model,
    Params,
    PRNGKey,
    Roster,
    RuleState,
    State,
    Task,
    Upload,
    Variables,
    Verdict,
)


class FederationState(NamedTuple):
    """Everything that a round changes; with the key it determines all that follows.

    Attributes:
        variables: the global model.
        previous: the global model one round earlier.
        rule: state of the local rule.
        aggregator: state of the aggregator.
        server_optimizer: state of the server's optimiser; () without one.
        roster: who is malicious and when they attack: the ground truth.
        attack: state of the attack.
        round: int32 scalar, the next round.
        diverged: int32 scalar, first round in which clients trained and nobody's model stayed finite; -1 = none.
        drawn: () where `rule` and `aggregator` hold rows of all N clients; in the midst of a round [K] ids, of which
            alone they hold rows then, see `narrowed`.
    """

    variables: Variables
    previous: Variables
    rule: RuleState
    aggregator: State
    server_optimizer: State
    roster: Roster
    attack: State
    round: Array
    diverged: Array
    drawn: Any = ()

    def is_narrow(self) -> bool:
        """Whether it holds rows of the clients drawn alone."""
        return not isinstance(self.drawn, tuple)


class RoundReport(NamedTuple):
    """What a round says of itself.

    Attributes:
        verdict: of the aggregator.
        client_ids, participating, steps: [K], who was drawn, who took part, local steps.
        attacking: [K] bool, who attacked in this round.
        metrics: means of the training metrics.
        rejected: int32 scalar, uploads that were not finite.
        failed: int32 scalar, 1 where the aggregation failed and the global model was kept, else 0.
        unattacked: int32 scalar, 1 in a round of the attack's schedule in which no attacking client took part, else 0.
        details: small arrays that the aggregator's own pictures show.
    """

    verdict: Verdict
    client_ids: Array
    participating: Array
    steps: Array
    attacking: Array
    metrics: dict[str, Array]
    rejected: Array
    failed: Array
    unattacked: Array
    details: dict[str, Array]


class Attacker(NamedTuple):
    """How attacking clients train; None = as benign ones.

    Attributes:
        rule: their local rule: prepare, train and finish are its own, and the client's state is kept.
        epochs: local epochs.
        hyper: in place of the benign learning_rate, momentum, weight_decay.
        milestones: local epochs, from 0, at whose start the learning rate is multiplied with `gamma`.
        gamma: see there.
        plain: whether their optimiser is SGD where that of benign clients is Adam.
        idle: whether malicious clients train so too in rounds in which they do not attack, on clean data and without
            the milestones.
    """

    rule: LocalRule | None = None
    epochs: Any = None
    hyper: Mapping[str, Any] = {}
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    plain: bool = False
    idle: bool = False


class Large(NamedTuple):
    """Which parts keep so much of all N clients that a single run has it on the host, see `store`."""

    rule: bool = False
    aggregator: bool = False


class Federation(NamedTuple):
    """The parts of a federation.

    Attributes:
        model, task, rule, attack: see `types`.
        aggregator: clean data of the server, or None -> the aggregator. It is called inside the compiled round, so that
            images on the server are arguments of it and no constants.
        sample: (key, roster) -> [K] int32 client ids, in the order drawn.
        client_data: (arrays, client_id, frozen, round, key) -> ClientData, clean; `frozen` (bool scalar) says that the
            client's augmentation is drawn once for the whole run.
        hyper: learning_rate, momentum, weight_decay, and what else `Context.hyper` may have: floats or traced scalars.
        epochs: local epochs.
        client_batch: clients vmapped at a time.
        schedule: [rounds] float32, factor on the learning rate in each round; None = 1.
        oracle: whether the aggregator's options ask for the ground truth; then `extras["malicious"]` carries it.
        server_optimizer: steps towards the aggregator's model; None = that model is installed.
        server: clean images and labels that the aggregator holds on the server, or None.
        held: arrays that the attack holds, see `Attack.hold`.
        attacker: how attacking clients train where they do not train as benign ones.
        frozen: whether a malicious client's augmentation is drawn once for the whole run.
        whole_batches: whether every row of every client's batch is valid: local rules then run the model on all rows,
            so that one that takes no `valid` works too.
        map_clients: (train_one, stacked rows, client_batch, work [K]) -> stacked results; several devices may share the
            rows.
        large: see there.
    """

    model: Model
    task: Task
    rule: LocalRule
    aggregator: Callable[[Any], Aggregator]
    attack: Attack
    sample: Callable[[PRNGKey, Roster], Array]
    client_data: Callable[[Any, Array, Array, Array, PRNGKey], ClientData]
    hyper: Mapping[str, Any]
    epochs: int
    client_batch: int
    schedule: Any = None
    oracle: bool = False
    server_optimizer: ServerOptimizer | None = None
    server: Any = None
    held: Any = ()
    attacker: Attacker = Attacker()
    frozen: bool = False
    whole_batches: bool = False
    map_clients: Callable[[Callable[..., Any], Any, int, Array], Any] = map_clients
    large: Large = Large()

    def local_model(self) -> Model:
        """The network as local rules run it."""
        return on_whole_batches(self.model) if self.whole_batches else self.model

    def hyper_at(self, round_index: Array) -> Mapping[str, Any]:
        """`hyper` with the learning rate of a round."""
        if self.schedule is None:
            return self.hyper
        factor = jnp.asarray(self.schedule)[round_index]
        return {**self.hyper, "learning_rate": factor * self.hyper["learning_rate"]}

    def aggregator_for(self, state: FederationState) -> Aggregator:
        """The aggregator, which is told where its rows stand in a state that is narrowed."""
        aggregator = self.aggregator(self.server)
        if aggregator.rows is None or not state.is_narrow():
            return aggregator

        def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
            return aggregator.aggregate(numbered(upload), state, key)

        return aggregator._replace(aggregate=aggregate)

    def sums_models(self, clients_per_round: int) -> bool:
        """Whether a round sums the clients' models as they are trained and keeps none, see `summing`.

        Fewer than `summing.FROM_CLIENTS` are kept, and so are clients that train at once.
        """
        alone = self.client_batch == 1 and self.attack.craft is None and not self.oracle
        many = clients_per_round >= summing.FROM_CLIENTS
        return alone and many and summing.can_be(self.rule, self.aggregator(self.server))

    def rule_is_narrow(self) -> bool:
        """Whether `after_round` needs no more than the rows of the clients drawn."""
        rule = self.rule
        idle = rule.after_round is LocalRule._field_defaults["after_round"]
        return rule.drawn_only or idle or (self.large.rule and rule.running is not None)


def evaluated_model(federation: Federation, state: FederationState) -> Variables:
    """The global model as it is evaluated and saved, which a rule may tell from the one that it broadcasts."""
    aggregator = federation.aggregator(federation.server)
    params = aggregator.evaluated(state.variables.params, state.aggregator)
    return state.variables._replace(params=params)


def initial_state(
    federation: Federation, variables: Variables, num_clients: int, roster: Roster, key: PRNGKey, stored: bool = False
) -> FederationState:
    """The state before round 0.

    Args:
        federation: the parts.
        variables: the initial global model.
        num_clients: N.
        roster: who is malicious and when they attack.
        key: what the attack draws with.
        stored: whether parts that are `Federation.large` are left without rows, for `with_stores`.
    """
    ctx = AttackContext(
        model=federation.model, variables=variables, task=federation.task, roster=roster, held=federation.held
    )
    init, optimizer = federation.attack.init, federation.server_optimizer
    rule = federation.rule.init(variables, num_clients)
    large = federation.large if stored else Large()
    return FederationState(
        variables=variables,
        previous=variables,
        rule=rule._replace(clients=()) if large.rule else rule,
        aggregator=()
        if large.aggregator
        else federation.aggregator(federation.server).init(variables.params, num_clients),
        server_optimizer=() if optimizer is None else optimizer.init(variables.params),
        roster=roster,
        attack=() if init is None else init(ctx, key),
        round=jnp.int32(0),
        diverged=jnp.int32(-1),
    )


def with_stores(federation: Federation, state: FederationState, num_clients: int) -> FederationState:
    """The state before round 0 as a single run has it: large parts have a store of the host in place of N rows.

    Args:
        federation: the parts.
        state: from `initial_state`, with `stored`.
        num_clients: N.
    """

    clients, aggregated = _kept_of_all(federation, num_clients)

    def store(init: Callable[[Variables], State]) -> Store:
        shapes = jax.eval_shape(init, state.variables)
        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes)
        made = jax.jit(lambda variables, ids: trees.take_rows(init(variables), ids))
        return Store(num_clients, row, functools.partial(made, state.variables))

    if federation.large.rule:
        state = state._replace(rule=state.rule._replace(clients=store(clients)))
    return state._replace(aggregator=store(aggregated)) if federation.large.aggregator else state


def large_parts(federation: Federation, num_clients: int, clients_per_round: int) -> Large:
    """Which parts keep so much that a single run has it on the host.

    Args:
        federation: the parts.
        num_clients: N.
        clients_per_round: K.
    """
    if not are_few(clients_per_round, num_clients):
        return Large()  # without a look at shapes, which takes time
    variables = jax.eval_shape(federation.model.init, root_key(0))
    clients, aggregated = (jax.eval_shape(init, variables) for init in _kept_of_all(federation, num_clients))
    able = federation._replace(large=Large(rule=True)).rule_is_narrow()
    return Large(
        rule=able and is_large(clients, num_clients, clients_per_round),
        aggregator=federation.aggregator(federation.server).rows is not None
        and is_large(aggregated, num_clients, clients_per_round),
    )


def _kept_of_all(federation: Federation, num_clients: int) -> tuple[Callable[[Variables], State], ...]:
    """Functions of the first model: what the local rule and what the aggregator keep of N clients before round 0."""
    return (
        lambda variables: federation.rule.init(variables, num_clients).clients,
        lambda variables: federation.aggregator(federation.server).init(variables.params, num_clients),
    )


def numbered(upload: Upload) -> Upload:
    """The upload as clients 0..K-1, which is where their rows stand in a narrowed state."""
    return upload._replace(client_ids=jnp.arange(len(upload.participating), dtype=jnp.int32))
