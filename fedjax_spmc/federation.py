"""One round of federated learning as a pure function of (state, key); `rounds.make_round` compiles it.

sample K of N clients -> broadcast -> per client: prepare, local steps, finish -> craft -> aggregate -> after_round
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators.guard import usable_rows
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.training import Hooks, Trained, map_clients, train_client
from fedjax_spmc.types import (
    Aggregator,
    Array,
    Attack,
    AttackState,
    Batch,
    ClientData,
    Context,
    LocalRule,
    Model,
    PRNGKey,
    RuleState,
    State,
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
        attack: state of the attack (the ground truth of who is malicious lives here).
        round: int32 scalar, the next round.
        diverged: int32 scalar, first round in which clients trained and nobody's model stayed finite; -1 = none.
    """

    variables: Variables
    previous: Variables
    rule: RuleState
    aggregator: State
    attack: AttackState
    round: Array
    diverged: Array


class RoundReport(NamedTuple):
    """What a round says of itself.

    Attributes:
        verdict: of the aggregator.
        client_ids, participating, steps: [K], who was drawn, who took part, local steps.
        metrics: means of the training metrics.
        rejected: int32 scalar, uploads that were not finite.
        failed: int32 scalar, 1 where the aggregation failed and the global model was kept, else 0.
        details: small arrays that the aggregator's own pictures show.
    """

    verdict: Verdict
    client_ids: Array
    participating: Array
    steps: Array
    metrics: dict[str, Array]
    rejected: Array
    failed: Array
    details: dict[str, Array]


class Trainings(NamedTuple):
    """What the clients leave of a round: [K] client ids, the attack's state in this round, stacked `Trained`."""

    client_ids: Array
    attack: AttackState
    trained: Trained


class Federation(NamedTuple):
    """The parts of a federation.

    Attributes:
        model, rule, attack: see `types`.
        aggregator: clean data of the server, or None -> the aggregator. It is called inside the compiled round, so that
            images on the server are arguments of it and no constants.
        sample: (key, round) -> [K] int32 client ids, in the order drawn.
        client_data: (arrays, client_id, frozen, round, key) -> ClientData, clean; `frozen` (bool scalar) says that the
            client's augmentation is drawn once for the whole run.
        hyper: learning_rate, momentum, weight_decay: floats or traced scalars.
        epochs: local epochs.
        client_batch: clients vmapped at a time.
        oracle: whether the aggregator's options ask for the ground truth; then `extras["malicious"]` carries it.
        server: clean images and labels that the aggregator holds on the server, or None.
        map_clients: (train_one, stacked rows, client_batch, work [K]) -> stacked results; several devices may share the
            rows.
    """

    model: Model
    rule: LocalRule
    aggregator: Callable[[Any], Aggregator]
    attack: Attack
    sample: Callable[[PRNGKey, Array], Array]
    client_data: Callable[[Any, Array, Array, Array, PRNGKey], ClientData]
    hyper: Mapping[str, Any]
    epochs: int
    client_batch: int
    oracle: bool = False
    server: Any = None
    map_clients: Callable[[Callable[..., Any], Any, int, Array], Any] = map_clients


def evaluated_model(federation: Federation, state: FederationState) -> Variables:
    """The global model as it is evaluated and saved, which a rule may tell from the one that it broadcasts."""
    aggregator = federation.aggregator(federation.server)
    params = aggregator.evaluated(state.variables.params, state.aggregator)
    return state.variables._replace(params=params)


def initial_state(
    federation: Federation, variables: Variables, num_clients: int, attack_state: AttackState
) -> FederationState:
    """The state before round 0.

    Args:
        federation: the parts.
        variables: the initial global model.
        num_clients: N.
        attack_state: from `attack.init`.
    """
    return FederationState(
        variables=variables,
        previous=variables,
        rule=federation.rule.init(variables, num_clients),
        aggregator=federation.aggregator(federation.server).init(variables.params, num_clients),
        attack=attack_state,
        round=jnp.int32(0),
        diverged=jnp.int32(-1),
    )


def play_round(
    federation: Federation, arrays: Any, sizes: Array, state: FederationState, key: PRNGKey
) -> tuple[FederationState, RoundReport]:
    """One round, pure: jit it, or vmap it over experiments. `key` is the experiment's, the same in every round."""
    return aggregate(federation, sizes, state, key, train(federation, arrays, sizes, state, key))


def train(federation: Federation, arrays: Any, sizes: Array, state: FederationState, key: PRNGKey) -> Trainings:
    """The clients' part of a round: who takes part, and what each of them has trained."""
    rule, attack = federation.rule, federation.attack
    ctx = Context(
        model=federation.model,
        variables=state.variables,
        previous=state.previous,
        hyper=federation.hyper,
        epochs=federation.epochs,
        round=state.round,
        shared=state.rule.server,
    )
    client_ids = federation.sample(purpose_key(key, "sampling", state.round), state.round)
    attack_state = attack.begin_round(ctx, state.attack, arrays, purpose_key(key, "begin_round", state.round))

    def train_one(row: tuple[Array, State]) -> Any:
        client_id, client_state = row
        data = data_of_client(federation, arrays, client_id, attack_state, state.round, key)
        hooks = Hooks(
            mask_gradients=lambda grads: attack.mask_gradients(attack_state, grads, client_id),
            after_step=lambda params: attack.after_step(ctx, attack_state, params, client_id),
        )
        own = ctx._replace(obeys=~attack_state.roster.attacks_now(client_id))
        return train_client(rule, own, client_state, data, purpose_key(key, "train", state.round, client_id), hooks)

    rows = (client_ids, trees.take_rows(state.rule.clients, client_ids))
    trained = federation.map_clients(train_one, rows, federation.client_batch, sizes[client_ids])
    return Trainings(client_ids, attack_state, trained)


def data_of_client(
    federation: Federation, arrays: Any, client_id: Array, attack_state: AttackState, round_index: Array, key: PRNGKey
) -> ClientData:
    """One client's batches in a round, as the attack poisons them.

    Args:
        federation: the parts.
        arrays: what `federation.client_data` reads.
        client_id: int32 scalar.
        attack_state: of this round.
        round_index: int32 scalar.
        key: the experiment's key.
    """
    attack = federation.attack
    clean = federation.client_data(arrays, client_id, attack.freezes(attack_state, client_id), round_index, key)

    def gather(step: Array, key: PRNGKey) -> Batch:
        batch = clean.gather(step, key)
        images, labels = attack.poison(attack_state, batch.images, batch.labels, batch.sample_ids, client_id, key)
        return batch._replace(images=images, labels=labels)

    return clean._replace(gather=gather)


def aggregate(
    federation: Federation, sizes: Array, state: FederationState, key: PRNGKey, trainings: Trainings
) -> tuple[FederationState, RoundReport]:
    """The rest of a round: malicious uploads are crafted, the server aggregates, all states are brought up to date."""
    client_ids, attack_state, trained = trainings
    rule, attack, aggregator = federation.rule, federation.attack, federation.aggregator(federation.server)
    upload = Upload(
        global_params=state.variables.params,
        client_params=trained.variables.params,
        num_examples=sizes[client_ids].astype(jnp.float32),
        participating=trained.steps > 0,
        client_ids=client_ids,
        steps=trained.steps,
        learning_rate=jnp.float32(federation.hyper["learning_rate"]),
        round=state.round,
        client_stats=trained.variables.stats,
        extras=trained.extras,
    )
    crafted = attack.craft(attack_state, upload, purpose_key(key, "craft", state.round))
    attackers = attack_state.roster.attacks_now(client_ids)
    upload = upload._replace(client_params=trees.where_rows(attackers, crafted, upload.client_params))
    if federation.oracle:
        upload = upload._replace(extras={**upload.extras, "malicious": attack_state.roster.malicious[client_ids]})

    aggregate_key = purpose_key(key, "aggregate", state.round)
    params, verdict, aggregator_state = aggregator.aggregate(upload, state.aggregator, aggregate_key)
    usable = usable_rows(upload)
    failed = verdict.weights.sum() == 0
    variables = Variables(params, average_stats(upload, usable, verdict, state.variables.stats))
    rule_state = state.rule._replace(
        clients=trees.put_rows(state.rule.clients, client_ids, trained.client_state),
    )
    rule_state = rule.after_round(
        rule_state, upload._replace(participating=usable), trained.variables.params, variables, verdict
    )
    took_part = upload.participating
    lost = took_part.any() & ~usable.any()
    new_state = FederationState(
        variables=variables,
        previous=state.variables,
        rule=rule_state,
        aggregator=aggregator_state,
        attack=attack_state,
        round=state.round + 1,
        diverged=jnp.where((state.diverged < 0) & lost, state.round, state.diverged),
    )
    total_steps = jnp.maximum(trained.steps.sum(), 1)
    metrics = jax.tree.map(lambda sums: sums.sum(axis=0) / total_steps, trained.metrics)
    details = aggregator.details(upload._replace(participating=usable))
    rejected = (took_part & ~usable).sum(dtype=jnp.int32)
    return new_state, RoundReport(
        verdict, client_ids, took_part, trained.steps, metrics, rejected, failed.astype(jnp.int32), details
    )


def average_stats(upload: Upload, usable: Array, verdict: Verdict, old: Any) -> Any:
    """Batch statistics of the new model: averaged with the verdict's weights; the old ones where all weights are 0."""
    mean = trees.weighted_mean(trees.zero_rows(usable, upload.client_stats), verdict.weights)
    return trees.where(verdict.weights.sum() > 0, mean, old)
