"""The attacker of "Attack of the Tails" against `attacks_edge_case`: training with and without a ball, replacement.

The attacker and a client without a batch play a round; its data are the recorded batches, of which the last may be
incomplete, and what it sends is scaled by all clients' examples over its own. No recorded weight reaches the edge of
the l-infinity ball, which is 0.002: those cases hold its steps alone.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, attacks, local_rules
from fedjax_spmc.attacking import Attackers
from fedjax_spmc.data.pipeline import in_order
from fedjax_spmc.federation import Attacker, Federation, initial_state
from fedjax_spmc.keys import root_key
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind
from fedjax_spmc.parity.kinds_small import channels_last
from fedjax_spmc.parity.recorded_nets import below, named, small_net, task_of, variables_of
from fedjax_spmc.types import Array, Attack, ClientData, Context, Params, Roster, Upload

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
PLAIN_STEP = 1e-3
"""Learning rate of the l-infinity form, which has neither momentum nor weight decay."""
LOCAL, UPLOAD = 2e-6, 1e-5
"""Tolerances, of the attacker's model and of what was scaled up."""
BALLS = {2: "l2", 0: "linf"}
"""The norm as the files call it -> ours; -1 is none."""


def hyper_of(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How the attacker steps."""
    if int(found["norm"]) == 0:
        return {"learning_rate": PLAIN_STEP, "momentum": 0.0, "weight_decay": 0.0}
    return {"learning_rate": float(found["lr"]), "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}


def attack_of(found: Mapping[str, np.ndarray]) -> Attack:
    """The ball where there is one, and the replacement."""
    parts = {"model_replacement": attacks.registry.attacks.make("model_replacement", weights="size")}
    norm = BALLS.get(int(found["norm"]))
    if norm is not None:
        every = int(found["every"]) if norm == "l2" else 1
        ball = attacks.registry.attacks.make("pgd", radius=float(found["eps"]), norm=norm, every=every)
        parts = {"pgd": ball, **parts}
    return attacks.compose(parts)


def player(found: Mapping[str, np.ndarray]) -> Callable[[Array], tuple[Params, Params]]:
    """A function of the number of epochs: the attacker's model behind so many, and what it sends; compiled once."""
    images, labels = jnp.asarray(channels_last(found["x"])), jnp.asarray(found["y"], jnp.int32)
    model = small_net(below(found, "global0"), images.shape[1:])
    start = variables_of(model, below(found, "global0"))
    rule = local_rules.make("sgd")
    if int(found["prox"]):
        # |w - anchor|^2 is FedProx's term for mu = 2, with the honestly trained model in place of the one broadcast.
        anchor, pull = variables_of(model, below(found, "anchor")), local_rules.make("fedprox", mu=2.0)

        def gradients(ctx: Context, *rest: Any) -> Any:
            return pull.gradients(ctx._replace(variables=anchor), *rest)

        rule = rule._replace(gradients=gradients)

    def client_data(arrays: Any, client_id: Array, frozen: Array, round_index: Array, key: Array) -> ClientData:
        del arrays, frozen, round_index, key
        data = in_order(images, labels, int(found["batch"]), client_id)
        return data._replace(num_batches=jnp.where(client_id == 0, data.num_batches, 0))

    @jax.jit
    def play(epochs: Array) -> tuple[Params, Params]:
        federation = Federation(
            model=model,
            task=task_of(model),
            rule=rule,
            aggregator=lambda examples: aggregators.make("mean"),
            attack=attack_of(found),
            sample=lambda key, roster: jnp.arange(2, dtype=jnp.int32),
            client_data=client_data,
            hyper=hyper_of(found),
            epochs=1,
            client_batch=1,
            attacker=Attacker(epochs=epochs),
        )
        roster = Roster(jnp.array([True, False]), jnp.int32(0), jnp.int32(0), jnp.int32(0))
        state = initial_state(federation, start, 2, roster, root_key(0))
        attackers = Attackers(federation, (), state, root_key(0), jnp.arange(2))
        trained = attackers.train(state.attack, jnp.int32(0), ())
        own = int(found["own"])
        upload = Upload(
            global_params=start.params,
            client_params=jax.tree.map(lambda a, b: jnp.stack([a, b]), trained.variables.params, start.params),
            num_examples=jnp.array([own, int(found["total"]) - own], jnp.float32),
            participating=jnp.ones(2, bool),
            client_stats={},
        )
        sent, _ = attackers.craft(state.attack, upload)
        return trained.variables.params, jax.tree.map(lambda x: x[0], sent.client_params)

    return play


@kind(r"attacks_edge_case.*")
def edge_cases(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Every case of a file: the model behind the first pass and at the end, and the upload."""
    for case in dict.fromkeys(name.split("/")[0] for name in arrays):
        found = below(arrays, case)
        play = player(found)
        local, upload = Comparison(f"edge case {case}", LOCAL), Comparison(f"edge case {case}, upload", UPLOAD)
        first, _ = play(jnp.int32(1))
        last, sent = play(jnp.int32(found["epochs"]))
        for comparison, part, ours in ((local, "epoch1", first), (local, "local", last), (upload, "upload", sent)):
            for name, value in named(ours).items():
                comparison.add(f"{part}/{name}", value, found[f"{part}/{name}"])
        yield local.outcome(source)
        yield upload.outcome(source)
