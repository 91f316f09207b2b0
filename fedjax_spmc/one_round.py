"""One round of federated learning as a pure function of (state, key); `rounds.make_round` compiles it.

sample K of N clients -> broadcast -> per client: prepare, local steps, finish -> craft -> aggregate -> after_round
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import summing, trees
from fedjax_spmc.aggregators.guard import usable_rows
from fedjax_spmc.attacking import Attackers
from fedjax_spmc.federation import Federation, FederationState, RoundReport, numbered
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.training import Trained
from fedjax_spmc.types import TRUTH, Array, ClientData, PRNGKey, RuleState, State, Upload, Variables, Verdict


class Trainings(NamedTuple):
    """What the clients leave of a round: [K] client ids, the attack's state in this round, stacked `Trained`.

    `trained.client_state` is () where training leaves what the clients keep as it is. Where the round sums models as
    they are trained (`Federation.sums_models`), `trained` is what `summing.train` has made.
    """

    client_ids: Array
    attack: State
    trained: Any


def play_round(
    federation: Federation, arrays: Any, sizes: Array, state: FederationState, key: PRNGKey
) -> tuple[FederationState, RoundReport]:
    """One round, pure: jit it, or vmap it over experiments. `key` is the experiment's, the same in every round."""
    return aggregate(federation, arrays, sizes, state, key, train(federation, arrays, sizes, state, key))


def sampled(federation: Federation, state: FederationState, key: PRNGKey) -> Array:
    """[K] ids of the clients that take part in the round that `state` stands before."""
    roster = state.roster._replace(round=state.round)
    return federation.sample(purpose_key(key, "sampling", state.round), roster)


def narrowed(federation: Federation, state: FederationState, client_ids: Array) -> FederationState:
    """The state with the rows of the clients drawn in place of those of all, for each part that needs no others."""
    clients, aggregated = state.rule.clients, state.aggregator
    rows = federation.aggregator(federation.server).rows
    return state._replace(
        rule=state.rule._replace(
            clients=trees.take_rows(clients, client_ids) if federation.rule_is_narrow() else clients
        ),
        aggregator=aggregated if rows is None else trees.take_rows(aggregated, rows(client_ids)),
        drawn=client_ids,
    )


def widened(federation: Federation, wide: FederationState, narrow: FederationState) -> FederationState:
    """The state behind a round: `narrow`, its rows put into those of all clients in `wide`, the state before it."""
    clients, aggregated = narrow.rule.clients, narrow.aggregator
    rows = federation.aggregator(federation.server).rows
    if federation.rule_is_narrow():
        clients = trees.put_rows(wide.rule.clients, narrow.drawn, clients)
    if rows is not None:
        aggregated = trees.put_rows(wide.aggregator, rows(narrow.drawn), aggregated)
    return narrow._replace(rule=narrow.rule._replace(clients=clients), aggregator=aggregated, drawn=())


def for_training(state: FederationState, client_ids: Array, rows: State) -> FederationState:
    """The state as `train` takes it: with the rows of the clients drawn and without what the server alone needs."""
    return state._replace(rule=state.rule._replace(clients=rows), aggregator=(), server_optimizer=(), drawn=client_ids)


def train(federation: Federation, arrays: Any, sizes: Array, state: FederationState, key: PRNGKey) -> Trainings:
    """The clients' part of a round: who takes part, and what each of them has trained.

    `state` has rows of all clients, or is from `for_training`.
    """
    if not state.is_narrow():
        client_ids = sampled(federation, state, key)
        state = for_training(state, client_ids, trees.take_rows(state.rule.clients, client_ids))
    client_ids = state.drawn
    attackers = Attackers(federation, arrays, state, key, client_ids)
    own = attackers.begin_round(state.attack)

    def train_one(row: tuple[Array, State]) -> Trained:
        client_id, client_state = row
        trained = attackers.train(own, client_id, client_state)
        pairs = zip(jax.tree.leaves(trained.client_state), jax.tree.leaves(client_state), strict=True)
        return trained._replace(client_state=()) if all(new is old for new, old in pairs) else trained

    if federation.sums_models(len(client_ids)):
        given = client_ids, sizes, federation.aggregator(federation.server), federation.map_clients
        return Trainings(client_ids, own, summing.train(lambda client_id: train_one((client_id, ())), *given))
    rows = (client_ids, state.rule.clients)
    trained = federation.map_clients(train_one, rows, federation.client_batch, sizes[client_ids])
    return Trainings(client_ids, own, trained)


def aggregate(
    federation: Federation, arrays: Any, sizes: Array, state: FederationState, key: PRNGKey, trainings: Trainings
) -> tuple[FederationState, RoundReport]:
    """The rest of a round: attackers craft their uploads, the server aggregates, all states are brought up to date.

    `state` has rows of all clients, or is narrowed; so is then the one that is returned.
    """
    if not state.is_narrow():
        narrow = narrowed(federation, state, trainings.client_ids)
        new, report = aggregate(federation, arrays, sizes, narrow, key, trainings)
        return widened(federation, state, new), report
    client_ids, own, trained = trainings
    roster = state.roster._replace(round=state.round)
    if isinstance(trained, summing.Summed):
        served = _of_sums(federation, sizes, state, own, trained)
    else:
        served = _of_uploads(federation, arrays, sizes, state, key, own, trained)
    variables, verdict, aggregator_state = served.variables, served.verdict, served.aggregator
    optimizer_state = state.server_optimizer
    if federation.server_optimizer is not None:
        stepped, moved, finite = federation.server_optimizer.step(state.variables, variables, optimizer_state)
        verdict = verdict._replace(weights=jnp.where(finite, verdict.weights, 0.0))
        variables, optimizer_state, aggregator_state = trees.where(
            verdict.weights.sum() > 0,
            (stepped, moved, aggregator_state),
            (state.variables, optimizer_state, state.aggregator),
        )
    failed = verdict.weights.sum() == 0
    took_part, usable = served.participating, served.usable
    all_rejected = took_part.any() & ~usable.any()
    new_state = FederationState(
        variables=variables,
        previous=state.variables,
        rule=served.rule_behind(variables, verdict),
        aggregator=aggregator_state,
        server_optimizer=optimizer_state,
        roster=roster,
        attack=served.attack,
        round=state.round + 1,
        diverged=jnp.where((state.diverged < 0) & all_rejected, state.round, state.diverged),
        drawn=client_ids,
    )
    total_steps = jnp.maximum(served.steps.sum(), 1)
    metrics = jax.tree.map(lambda sums: sums.sum(axis=0) / total_steps, served.metrics)
    rejected = (took_part & ~usable).sum(dtype=jnp.int32)
    attacking = roster.attacks_now(client_ids)
    unattacked = roster.attack_round() & roster.malicious.any() & ~(attacking & took_part).any()
    return new_state, RoundReport(
        verdict=verdict,
        client_ids=client_ids,
        participating=took_part,
        steps=served.steps,
        attacking=attacking,
        metrics=metrics,
        rejected=rejected,
        failed=failed.astype(jnp.int32),
        unattacked=unattacked.astype(jnp.int32),
        details=served.details,
    )


class _Served(NamedTuple):
    """What the aggregator makes of a round.

    Attributes:
        variables: the new model, before the server's optimiser.
        verdict, aggregator: the aggregator's verdict and state.
        attack: the attack's state behind the round.
        participating, usable, steps, metrics: [K], of the clients.
        details: of the aggregator.
        rule_behind: (new variables, verdict) -> the local rule's state.
    """

    variables: Variables
    verdict: Verdict
    aggregator: State
    attack: State
    participating: Array
    usable: Array
    steps: Array
    metrics: dict[str, Array]
    details: dict[str, Array]
    rule_behind: Callable[[Variables, Verdict], RuleState]


def _of_sums(
    federation: Federation, sizes: Array, state: FederationState, attack: State, summed: summing.Summed
) -> _Served:
    aggregator = federation.aggregator(federation.server)
    variables, verdict, clients = summing.mean(summed, sizes[state.drawn], aggregator, state.variables)
    usable, steps, metrics = clients
    return _Served(
        variables,
        verdict,
        state.aggregator,
        attack,
        participating=steps > 0,
        usable=usable,
        steps=steps,
        metrics=metrics,
        details={},
        rule_behind=lambda variables, verdict: state.rule,
    )


def _of_uploads(
    federation: Federation,
    arrays: Any,
    sizes: Array,
    state: FederationState,
    key: PRNGKey,
    own: State,
    trained: Trained,
) -> _Served:
    client_ids, aggregator = state.drawn, federation.aggregator_for(state)
    kept = state.rule.clients if federation.rule_is_narrow() else trees.take_rows(state.rule.clients, client_ids)
    attackers_state = state._replace(rule=state.rule._replace(clients=kept))
    upload = Upload(
        global_params=state.variables.params,
        client_params=trained.variables.params,
        num_examples=sizes[client_ids].astype(jnp.float32),
        participating=trained.steps > 0,
        client_ids=client_ids,
        steps=trained.steps,
        learning_rate=jnp.float32(federation.hyper_at(state.round)["learning_rate"]),
        round=state.round,
        client_stats=trained.variables.stats,
        extras=trained.extras,
    )
    upload, own = Attackers(federation, arrays, attackers_state, key, client_ids).craft(own, upload)
    if federation.oracle:
        upload = upload._replace(extras={**upload.extras, TRUTH: state.roster.malicious[client_ids]})

    aggregate_key = purpose_key(key, "aggregate", state.round)
    params, verdict, aggregator_state = aggregator.aggregate(upload, state.aggregator, aggregate_key)
    usable = usable_rows(upload)

    def rule_behind(variables: Variables, verdict: Verdict) -> RuleState:
        given = state.rule, kept, trained, upload, usable, variables, verdict
        return _rule_behind(federation, len(sizes), *given)

    return _Served(
        Variables(params, average_stats(upload, usable, verdict, state.variables.stats)),
        verdict,
        aggregator_state,
        own,
        participating=upload.participating,
        usable=usable,
        steps=trained.steps,
        metrics=trained.metrics,
        details=aggregator.details(upload._replace(participating=usable)),
        rule_behind=rule_behind,
    )


def _rule_behind(
    federation: Federation,
    num_clients: int,
    state: RuleState,
    kept: State,
    trained: Trained,
    upload: Upload,
    usable: Array,
    variables: Variables,
    verdict: Verdict,
) -> RuleState:
    """The local rule's state behind a round, with rows as `state` has them; `kept` are those before training."""
    rule, upload = federation.rule, upload._replace(participating=usable)
    rows = trained.client_state if jax.tree.leaves(trained.client_state) else kept
    if federation.rule_is_narrow() and not rule.drawn_only and rule.running is not None:
        return RuleState(rule.running(state.server, kept, rows, num_clients), rows)
    if federation.rule_is_narrow():
        upload = numbered(upload)
    else:
        rows = trees.put_rows(state.clients, upload.client_ids, rows)
    return rule.after_round(state._replace(clients=rows), upload, trained.variables.params, variables, verdict)


def data_of_client(
    federation: Federation, arrays: Any, state: FederationState, key: PRNGKey, client_id: Array
) -> ClientData:
    """One client's batches in the round that `state` stands before, as the attack poisons them."""
    return Attackers(federation, arrays, state, key, client_id[None]).poisoned_data(state.attack, client_id)


def average_stats(upload: Upload, usable: Array, verdict: Verdict, old: Any) -> Any:
    """Batch statistics of the new model: averaged with the verdict's weights; the old ones where all weights are 0."""
    mean = trees.weighted_mean(trees.zero_rows(usable, upload.client_stats), verdict.weights)
    return trees.where(verdict.weights.sum() > 0, mean, old)
