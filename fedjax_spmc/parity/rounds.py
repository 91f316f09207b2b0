"""Whole federation rounds against `spmc_rounds_*`: the real round, fed with the recorded batches."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, attacks, local_rules, models
from fedjax_spmc.data.pipeline import Images
from fedjax_spmc.federation import Federation, initial_state, make_round
from fedjax_spmc.metrics import make_evaluate, percentages
from fedjax_spmc.parity.local import fixed_batches, hyper_of
from fedjax_spmc.parity.small import channels_last
from fedjax_spmc.parity.walker import Arrays, Comparison, Outcome, kind
from fedjax_spmc.types import AttackState, Roster, Variables


@kind(r"spmc_rounds_fedavg_equal.*")
def fedavg_equal(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """FedAvg with equal weights over the recorded rounds; every round goes on from ours."""
    online = np.asarray(arrays["online_clients"])
    num_rounds, num_clients = online.shape
    model = models.make("simple_cnn")
    batches = jnp.asarray(channels_last(arrays["images"])), jnp.asarray(arrays["labels"], jnp.int32)
    attack = attacks.make("none")
    federation = Federation(
        model=model,
        rule=local_rules.make("sgd"),
        aggregator=aggregators.make("mean", weights="uniform"),
        attack=attack,
        sample=lambda key, round_index: jnp.asarray(online, jnp.int32)[round_index],
        client_data=lambda data, client_id, state, round_index, key: fixed_batches(
            data[0][client_id], data[1][client_id], client_id
        ),
        hyper=hyper_of(arrays["lr_momentum_wd"]),
        epochs=1,  # the reference's FedAvg makes one pass whatever local_epochs says
        client_batch=1,
    )
    nobody = Roster(jnp.zeros(num_clients, bool), jnp.int32(0), jnp.int32(0), jnp.int32(0))
    initial = Variables(models.from_torch(model, np.asarray(arrays["initial_state"], np.float32)), {})
    state = initial_state(federation, initial, num_clients, AttackState(nobody))
    play = make_round(federation, batches, jnp.asarray(arrays["sample_counts"], jnp.int32))
    # The test images are normalised already: this mean and std take nothing away.
    evaluate = make_evaluate(model, attack, jnp.zeros(3), jnp.full(3, 1 / 255, jnp.float32))

    def accuracy(images: np.ndarray, labels: Any, variables: Variables) -> float | None:
        test = Images(jnp.asarray(channels_last(images)), jnp.asarray(labels, jnp.int32))
        return percentages(evaluate(variables, test, state.attack), backdoor=False)["A"]

    comparison = Comparison("rounds of fedavg")
    for round_index in range(num_rounds):
        state, report = play(state, jax.random.key(0))
        flat = models.to_torch(model, state.variables.params)
        targets = np.full(len(arrays["backdoor_test_images"]), 2)
        comparison.add(f"global_after_round {round_index}", flat, arrays["global_after_round"][round_index])
        comparison.add("weights", report.verdict.weights, arrays["weights_in_online_order"][round_index])
        comparison.add(
            "accuracy",
            accuracy(arrays["test_images"], arrays["test_labels"], state.variables),
            arrays["accuracy"][round_index],
        )
        comparison.add(
            "attack_success_rate",
            accuracy(arrays["backdoor_test_images"], targets, state.variables),
            arrays["attack_success_rate"][round_index],
        )
    yield comparison.outcome(source)
