"""Whole federation rounds against `spmc_rounds_*`: the real round, fed with the recorded batches."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, attacks, local_rules, models
from fedjax_spmc.evaluation import make_evaluate
from fedjax_spmc.federation import Federation, FederationState, initial_state
from fedjax_spmc.keys import root_key
from fedjax_spmc.metrics import percentages
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind
from fedjax_spmc.parity.kinds_local import fixed_batches, hyper_of
from fedjax_spmc.parity.kinds_small import channels_last
from fedjax_spmc.rounds import make_round
from fedjax_spmc.types import Examples, Roster, Task, Upload, Variables

TARGET = 2
TASK = Task(10, jax.ShapeDtypeStruct((32, 32, 3), jnp.float32), lambda raw, keys: raw)
"""The recorded images are normalised already."""


class Replay(NamedTuple):
    """A recorded federation as ours: its parts, the state before round 0, and the batches [clients, batches, ...]."""

    federation: Federation
    state: FederationState
    batches: tuple[jax.Array, jax.Array]


def replay_of(arrays: Arrays, rule: tuple[str, dict], aggregator: tuple[str, dict], epochs: int) -> Replay:
    """The federation of a golden file with the given local rule and aggregator (name, options)."""
    online = np.asarray(arrays["online_clients"])
    model = models.make("simple_cnn")
    federation = Federation(
        model=model,
        task=TASK,
        rule=local_rules.make(rule[0], **rule[1]),
        aggregator=lambda server: aggregators.make(aggregator[0], **aggregator[1]),
        attack=attacks.make("none"),
        sample=lambda key, roster: jnp.asarray(online, jnp.int32)[roster.round],
        client_data=lambda data, client_id, frozen, round_index, key: fixed_batches(
            data[0][client_id], data[1][client_id], client_id
        ),
        hyper=hyper_of(arrays["lr_momentum_wd"]),
        epochs=epochs,
        client_batch=1,
    )
    nobody = Roster(jnp.zeros(online.shape[1], bool), jnp.int32(0), jnp.int32(0), jnp.int32(0))
    initial = Variables(models.from_torch(model, np.asarray(arrays["initial_state"], np.float32)), {})
    state = initial_state(federation, initial, online.shape[1], nobody, root_key(0))
    batches = jnp.asarray(channels_last(arrays["images"])), jnp.asarray(arrays["labels"], jnp.int32)
    return Replay(federation, state, batches)


def compare_rounds(comparison: Comparison, arrays: Arrays, replay: Replay, first: int) -> FederationState:
    """Plays the rounds from `first` on, each from our own state, and compares models, weights, accuracy and ASR."""
    federation, state = replay.federation, replay.state
    play = make_round(federation, replay.batches, jnp.asarray(arrays["sample_counts"], jnp.int32))
    evaluate = make_evaluate(federation.model, federation.attack, TASK)

    def accuracy(name: str, labels: Any) -> float | None:
        test = Examples(jnp.asarray(channels_last(arrays[name])), jnp.asarray(labels, jnp.int32))
        return percentages(evaluate(state.variables, test, state.roster, state.attack), backdoor=False)["A"]

    for index in range(first, len(arrays["online_clients"])):
        state, report = play(state, root_key(0))
        flat = models.to_torch(state.variables.params)
        comparison.add(f"global_after_round {index}", flat, arrays["global_after_round"][index])
        comparison.add("weights", report.verdict.weights, arrays["weights_in_online_order"][index])
        clean = accuracy("test_images", arrays["test_labels"])
        comparison.add("accuracy", clean, arrays["accuracy"][index])
        success = accuracy("backdoor_test_images", np.full(len(arrays["backdoor_test_images"]), TARGET))
        comparison.add("attack_success_rate", success, arrays["attack_success_rate"][index])
    return state


@kind(r"spmc_rounds_fedavg_equal.*")
def fedavg_equal(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """FedAvg with equal weights; the reference makes one local pass whatever `local_epochs` says."""
    comparison = Comparison("rounds of fedavg")
    compare_rounds(comparison, arrays, replay_of(arrays, ("sgd", {}), ("mean", {"weights": "uniform"}), 1), 0)
    yield comparison.outcome(source)


@kind(r"spmc_rounds_aligned_spmd.*")
def aligned_spmd(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """SPMC from the recorded local models of round 0 on: before them student and teacher are equal, and the reference
    follows the direction of rounding noise."""
    comparison = Comparison("rounds of spmc")
    replay = replay_of(arrays, ("spmc", {"floor": 0.0}), ("spmc", {}), int(arrays["local_epochs"]))
    federation, state = replay.federation, replay.state
    ids = np.asarray(arrays["online_clients"])[0]
    local = np.asarray(arrays["local_after_round0"], np.float32)[ids]
    rows = jax.vmap(lambda flat: models.from_torch(federation.model, flat))(jnp.asarray(local))
    upload = Upload(
        global_params=state.variables.params,
        client_params=rows,
        num_examples=jnp.asarray(arrays["sample_counts"][ids], jnp.float32),
        participating=jnp.ones(len(ids), bool),
        client_ids=jnp.asarray(ids, jnp.int32),
        client_stats={},
    )
    params, verdict, _ = federation.aggregator(None).aggregate(upload, state.aggregator, root_key(0))
    comparison.add("global_after_round 0", models.to_torch(params), arrays["global_after_round"][0])
    comparison.add("weights", verdict.weights, arrays["weights_in_online_order"][0])
    variables = Variables(params, {})
    teachers = federation.rule.after_round(state.rule, upload, rows, variables, verdict)
    state = state._replace(variables=variables, rule=teachers, round=jnp.int32(1))
    last = compare_rounds(comparison, arrays, replay._replace(state=state), 1)
    flat = np.asarray(jax.vmap(lambda one: models.to_torch(one))(last.rule.clients.params))
    comparison.add("teacher_after_last_round_client0", flat[0], arrays["teacher_after_last_round_client0"])
    comparison.add("teacher_after_last_round_sample", flat[:, ::41], arrays["teacher_after_last_round_sample"])
    yield comparison.outcome(source)
