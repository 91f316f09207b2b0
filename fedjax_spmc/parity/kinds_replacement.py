"""Model replacement against `attacks_replacement`: whole rounds of the codes of its paper and of DBA.

An attacker and a benign client train on recorded batches by the real round, the attacker's update is scaled by
`model_replacement`, and the server steps. In the first code it trains as `constrain_and_scale` does, with recorded
results of its tests. DBA's own triggers stand in no attack here yet; such cases say so.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, attacks, local_rules, server, trees
from fedjax_spmc.attacks._success import Success
from fedjax_spmc.attacks.constrain_and_scale import constraint, stopping
from fedjax_spmc.data.pipeline import in_order
from fedjax_spmc.federation import Attacker, Federation, initial_state, play_round
from fedjax_spmc.keys import root_key
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.parity.kinds_small import channels_last
from fedjax_spmc.parity.recorded_nets import below, named, small_net, task_of, variables_of
from fedjax_spmc.types import Array, Attack, Batch, ClientData, Roster, Upload

BENIGN = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
BENIGN_EPOCHS = 2
PARTS = ((0, 0), (0, 9), (4, 0), (4, 9))
"""Row and column at which DBA's parts for CIFAR begin; each is a row of `PART_WIDTH` pixels."""
PART_WIDTH = 6
UPLOAD, GLOBAL = 1e-4, 2e-6
"""Tolerances, of what was scaled up and of the rest."""

Poison = Callable[[Array, Array, Array], tuple[Array, Array]]
"""(inputs, labels, step) of the attacker's batch -> as it poisons them."""


def milestones(epochs: int, first: int) -> tuple[int, ...]:
    """The epochs, from 0, at whose start the rate falls: 0.2 and 0.8 of all, where these are whole numbers.

    Args:
        epochs: E.
        first: the number of the first epoch as the code's scheduler counts when it is asked.
    """
    return tuple(m * epochs // 10 - first for m in (2, 8) if m * epochs % 10 == 0)


def play(
    found: Mapping[str, np.ndarray],
    poison: Poison,
    factor: float | None,
    attacker: Attacker,
    server_rate: float,
    further: Mapping[str, Attack] = {},
) -> tuple[Any, Any, Any]:
    """A round of client 0, which attacks, and client 1, from `global0`.

    Args:
        found: arrays of one case.
        poison: of the attacker.
        factor: by which its update is scaled; None = not at all.
        attacker: how it trains.
        server_rate: the server's learning rate.
        further: parts of the attack that stand between the poison and the scaling.

    Returns:
        The uploads (params, stats), stacked; the variables behind the round; those that were broadcast.
    """
    pictures = [jnp.asarray(channels_last(found[name])) for name in ("x", "xb")]
    labels = [jnp.asarray(found[name], jnp.int32) for name in ("y", "yb")]
    model = small_net(below(found, "global0"), pictures[0].shape[1:])
    start = variables_of(model, below(found, "global0"))

    def client_data(arrays: Any, client_id: Array, frozen: Array, round_index: Array, key: Array) -> ClientData:
        del arrays, frozen, round_index, key
        mine, other = (in_order(x, y, int(found["batch"]), client_id) for x, y in zip(pictures, labels, strict=True))
        gather = lambda step, key: trees.where(client_id == 0, mine.gather(step, key), other.gather(step, key))  # noqa: E731
        return mine._replace(gather=gather, num_batches=jnp.where(client_id == 0, mine.num_batches, other.num_batches))

    def poisoned(ctx: Any, own: Any, batch: Batch, client_id: Array, step: Array, key: Array) -> Batch:
        inputs, wanted = poison(batch.inputs, batch.labels, step)
        return batch._replace(inputs=inputs, labels=wanted)

    parts = {"poison": Attack(poison=poisoned), **further}
    if factor is not None:
        parts["model_replacement"] = attacks.registry.attacks.make("model_replacement", factor=factor)
    seen: dict[str, Upload] = {}
    rule = aggregators.make("mean", weights="uniform")

    def spy(upload: Upload, state: Any, key: Array) -> Any:
        seen["upload"] = upload
        return rule.aggregate(upload, state, key)

    federation = Federation(
        model=model,
        task=task_of(model),
        rule=local_rules.make("sgd"),
        aggregator=lambda examples: rule._replace(aggregate=spy),
        attack=attacks.compose(parts),
        sample=lambda key, roster: jnp.arange(2, dtype=jnp.int32),
        client_data=client_data,
        hyper=BENIGN,
        epochs=BENIGN_EPOCHS,
        client_batch=1,
        server_optimizer=server.make("sgd", learning_rate=server_rate),
        attacker=attacker,
    )

    @jax.jit
    def round_of(key: Array) -> Any:
        roster = Roster(jnp.array([True, False]), jnp.int32(0), jnp.int32(0), jnp.int32(0))
        state = initial_state(federation, start, 2, roster, key)
        after, _ = play_round(federation, (), jnp.full(2, len(labels[0]), jnp.int32), state, key)
        upload = seen["upload"]
        return (upload.client_params, upload.client_stats), after.variables

    return *round_of(root_key(0)), start


def compare(
    title: str, found: Mapping[str, np.ndarray], sent: Any, after: Any, start: Any, updates: bool
) -> tuple[Comparison, Comparison]:
    """The uploads, as models or as updates, and the new model; what exceeds 1 is compared relatively."""
    uploads = Comparison(title, UPLOAD)
    scaled, other = ("update", "benign_update") if updates else ("upload", "benign")
    center = named(start.params) | named(start.stats)
    for name, ours in (named(sent[0]) | named(sent[1])).items():
        for row, part in enumerate((scaled, other)):
            uploads.add(f"{part} {name}", ours[row] - (center[name] if updates else 0), found[f"{part}/{name}"])
    new = Comparison(f"{title}, new model", GLOBAL)
    for name, ours in (named(after.params) | named(after.stats)).items():
        theirs = found[f"global1/{name}"]
        new.add(f"global1 {name}", ours, theirs, GLOBAL * max(0.0, np.abs(theirs).max() - 1))
    return uploads, new


def how_to(found: Mapping[str, np.ndarray], title: str) -> Iterator[Comparison]:
    """A case of the code of "How To Backdoor Federated Learning"."""
    pictures, noise = (jnp.asarray(channels_last(found[name])) for name in ("pictures", "noise"))
    count, epochs = len(pictures), int(found["epochs"])
    noise = noise.reshape(-1, *pictures.shape)

    def poison(inputs: Array, labels: Array, step: Array) -> tuple[Array, Array]:
        return inputs.at[:count].set(pictures + noise[step]), labels.at[:count].set(int(found["target"]))

    def recorded(ctx: Any, variables: Any, client_id: Array, number: Array, key: Array) -> Success:
        del ctx, variables, client_id, key
        return Success(*jnp.asarray(found["canned"], jnp.float32)[number])

    constrained = Attack(
        mask_gradients=constraint(float(found["alpha"])),
        train=stopping(1e-4, keep_accuracy=True, slow_down=True, test=recorded),
    )
    rate = {"learning_rate": float(found["lr"])}
    attacker = Attacker(epochs=epochs, hyper=BENIGN | rate, milestones=milestones(epochs, 1))
    step = float(found["eta"]) * 2 / float(found["N"])
    parts = {"constrain_and_scale": constrained}
    sent, after, start = play(found, poison, float(found["scale"]), attacker, step, parts)
    yield from compare(title, found, sent, after, start, updates=False)


def distributed(found: Mapping[str, np.ndarray], title: str) -> Iterator[Comparison]:
    """A case of DBA's code on pictures: the attacker's own part of the pattern on the first rows."""
    row, column = PARTS[int(found["adversary"])]
    count, epochs = int(found["per"]), int(found["epochs"])

    def poison(inputs: Array, labels: Array, step: Array) -> tuple[Array, Array]:
        del step
        stamped = inputs.at[:count, row, column : column + PART_WIDTH].set(1.0)
        return stamped, labels.at[:count].set(int(found["target"]))

    factor = None if int(found["baseline"]) else float(found["scale"])
    rate = {"learning_rate": float(found["lr"])}
    attacker = Attacker(epochs=epochs, hyper=BENIGN | rate, milestones=milestones(epochs, 0))
    sent, after, start = play(found, poison, factor, attacker, float(found["eta"]))
    yield from compare(title, found, sent, after, start, updates=True)


def unbuilt(case: str, found: Mapping[str, np.ndarray]) -> str:
    """Why a case cannot be played yet; "" where it can."""
    if case == "dba/trigger":
        return "not checked yet: DBA's own patterns are in no attack here"
    if "x" in found and found["x"].ndim == 2:
        return "not checked yet: there is no table data, nor a rate that falls with the success before training"
    return ""


@kind(r"attacks_replacement.*")
def replacement(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Every case that can be played."""
    for case in dict.fromkeys("/".join(name.split("/")[:2]) for name in arrays):
        found, title = below(arrays, case), f"replacement {case}"
        reason = unbuilt(case, found)
        if reason:
            yield skipped(title, source, reason)
            continue
        for comparison in (how_to if case.startswith("howto/") else distributed)(found, title):
            yield comparison.outcome(source)
