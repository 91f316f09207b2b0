"""Model replacement against `attacks_replacement`: whole rounds of the codes of its paper and of DBA.

An attacker and a benign client train on recorded batches by the real round, the attacker's update is scaled by
`model_replacement`, and the server steps. In the first code it trains as `constrain_and_scale` does, with recorded
results of its tests. DBA's attackers are those of `dba` with its authors' triggers; its table data are rows of numbers,
which no data set here has, with the trigger written into columns.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, attacks, local_rules, server, trees
from fedjax_spmc.attacks import dba
from fedjax_spmc.attacks._stopping import stopping
from fedjax_spmc.attacks._success import Success
from fedjax_spmc.attacks.constrain_and_scale import constraint
from fedjax_spmc.data.pipeline import in_order
from fedjax_spmc.federation import Attacker, Federation, initial_state
from fedjax_spmc.keys import root_key
from fedjax_spmc.one_round import play_round
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind
from fedjax_spmc.parity.kinds_small import channels_last
from fedjax_spmc.parity.recorded_nets import below, linear_layers, named, small_net, task_of, variables_of
from fedjax_spmc.types import Aggregator, Array, Attack, AttackContext, Batch, ClientData, Roster, Task, Upload

BENIGN = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
BENIGN_EPOCHS = 2
PER_BATCH = {"mnist": 20, "cifar": 5, "tiny": 20}
"""Rows of a batch that DBA's code poisons, by data set."""
DBA_TARGET = 2
UPLOAD, GLOBAL = 1e-4, 2e-6
"""Tolerances, of what was scaled up and of the rest."""

Poison = Callable[[Array, Array, Array], tuple[Array, Array]]
"""(inputs, labels, step) of the attacker's batch -> as it poisons them."""


class Attacking(NamedTuple):
    """Who attacks: the client `rank` of `malicious` ones, in its turn."""

    rank: int = 0
    malicious: int = 1


def milestones(epochs: int, first: int) -> tuple[int, ...]:
    """The epochs, from 0, at whose start the rate falls: 0.2 and 0.8 of all, where these are whole numbers.

    Args:
        epochs: E.
        first: the number of the first epoch as the code's scheduler counts when it is asked.
    """
    return tuple(m * epochs // 10 - first for m in (2, 8) if m * epochs % 10 == 0)


def poisoning(poison: Poison) -> Attack:
    """An attack that poisons in this way."""

    def poisoned(ctx: Any, own: Any, batch: Batch, client_id: Array, step: Array, key: Array) -> Batch:
        inputs, wanted = poison(batch.inputs, batch.labels, step)
        return batch._replace(inputs=inputs, labels=wanted)

    return Attack(poison=poisoned)


def play(
    found: Mapping[str, np.ndarray],
    poison: Attack,
    factor: float | None,
    attacker: Attacker,
    server_rate: float,
    who: Attacking = Attacking(),
    further: Mapping[str, Attack] = {},
    hyper: Mapping[str, float] = BENIGN,
    rule: Aggregator | None = None,
) -> tuple[Any, Any, Any]:
    """A round of one client that attacks and a benign one, the last of all, from `global0`.

    Args:
        found: arrays of one case; without data of the benign client that one has the attacker's.
        poison: of the attacker.
        factor: by which its update is scaled; None = not at all.
        attacker: how it trains.
        server_rate: the server's learning rate.
        who: attacks.
        further: parts of the attack that stand between the poison and the scaling.
        hyper: of the benign client.
        rule: the server's; None = the plain mean.

    Returns:
        The uploads (params, stats), stacked; the variables behind the round; those that were broadcast.
    """
    of_benign = "b" if "xb" in found else ""
    table = found["x"].ndim == 2
    read = jnp.asarray if table else lambda x: jnp.asarray(channels_last(x))
    inputs = [read(found[f"x{whose}"]) for whose in ("", of_benign)]
    labels = [jnp.asarray(found[f"y{whose}"], jnp.int32) for whose in ("", of_benign)]
    weights = below(found, "global0")
    model = linear_layers(weights) if table else small_net(weights, inputs[0].shape[1:])
    task = task_of(model)._replace(mean=np.zeros(inputs[0].shape[-1:]), std=np.ones(inputs[0].shape[-1:]))
    start = variables_of(model, below(found, "global0"))

    def client_data(arrays: Any, client_id: Array, frozen: Array, round_index: Array, key: Array) -> ClientData:
        del arrays, frozen, round_index, key
        mine, other = (in_order(x, y, int(found["batch"]), client_id) for x, y in zip(inputs, labels, strict=True))
        bad = client_id == who.rank
        gather = lambda step, key: trees.where(bad, mine.gather(step, key), other.gather(step, key))  # noqa: E731
        return mine._replace(gather=gather, num_batches=jnp.where(bad, mine.num_batches, other.num_batches))

    parts = {"poison": poison, **further}
    if factor is not None:
        parts["model_replacement"] = attacks.registry.attacks.make("model_replacement", factor=factor)
    seen: dict[str, Upload] = {}
    server_rule = aggregators.make("mean", weights="uniform") if rule is None else rule

    def spy(upload: Upload, state: Any, key: Array) -> Any:
        seen["upload"] = upload
        return server_rule.aggregate(upload, state, key)

    federation = Federation(
        model=model,
        task=task,
        rule=local_rules.make("sgd"),
        aggregator=lambda examples: server_rule._replace(aggregate=spy),
        attack=attacks.compose(parts),
        sample=lambda key, roster: jnp.array([who.rank, who.malicious], jnp.int32),
        client_data=client_data,
        hyper=hyper,
        epochs=BENIGN_EPOCHS,
        client_batch=1,
        server_optimizer=server.make("sgd", learning_rate=server_rate),
        attacker=attacker,
    )

    @jax.jit
    def round_of(key: Array) -> Any:
        count = who.malicious + 1
        malicious, last = jnp.arange(count) < who.malicious, jnp.int32(who.malicious)
        roster = Roster(malicious, jnp.int32(0), last, jnp.int32(0), turns=jnp.int32(1))
        state = initial_state(federation, start, count, roster, key)._replace(round=jnp.int32(who.rank))
        after, _ = play_round(federation, (), jnp.full(count, len(labels[0]), jnp.int32), state, key)
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
            if part == other and f"{part}/{name}" not in found:
                continue
            uploads.add(f"{part} {name}", ours[row] - (center[name] if updates else 0), found[f"{part}/{name}"])
    new = Comparison(f"{title}, new model", GLOBAL)
    for name, ours in (named(after.params) | named(after.stats)).items():
        if "xb" not in found:
            break
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
    sent, after, start = play(found, poisoning(poison), float(found["scale"]), attacker, step, further=parts)
    yield from compare(title, found, sent, after, start, updates=False)


def distributed(found: Mapping[str, np.ndarray], title: str) -> Iterator[Comparison]:
    """A case of DBA's code on pictures: the attacker's own part of the pattern on the first rows."""
    epochs = int(found["epochs"])
    factor = None if int(found["baseline"]) else float(found["scale"])
    rate = {"learning_rate": float(found["lr"])}
    attacker = Attacker(epochs=epochs, hyper=BENIGN | rate, milestones=milestones(epochs, 0))
    poison = authors_dba("cifar", int(found["per"]), int(found["target"]))
    who = Attacking(int(found["adversary"]), dba.PARTS)
    sent, after, start = play(found, poison, factor, attacker, float(found["eta"]), who)
    yield from compare(title, found, sent, after, start, updates=True)


def authors_dba(name: str, per_batch: int, target: int, part: int | None = None) -> Attack:
    """DBA with its authors' trigger for a data set, and the part that the test shows (None = all)."""
    options = {"trigger": f"dba_{name}", "poison_per_batch": per_batch, "target_label": target, "test_part": part}
    return attacks.registry.attacks.make("dba", **options)


def table_rows(found: Mapping[str, np.ndarray], title: str) -> Iterator[Comparison]:
    """A case of DBA's code on rows of numbers: the attacker's values in its columns of the first rows."""
    count, epochs, columns = int(found["per"]), int(found["epochs"]), jnp.asarray(found["columns"])
    values = jnp.asarray(found["values"], jnp.float32)

    def poison(inputs: Array, labels: Array, step: Array) -> tuple[Array, Array]:
        del step
        return inputs.at[:count, columns].set(values[None]), labels.at[:count].set(int(found["target"]))

    success = float(found["accuracy_before"])
    rate = float(found["lr"]) / ((5 if success > 20 else 1) * (10 if success > 60 else 1))
    attacker = Attacker(epochs=epochs, hyper=BENIGN | {"learning_rate": rate}, milestones=milestones(epochs, 1))
    sent, after, start = play(found, poisoning(poison), float(found["scale"]), attacker, 1.0)
    yield compare(title, found, sent, after, start, updates=True)[0]


def triggers_of(found: Mapping[str, np.ndarray], title: str) -> Iterator[Comparison]:
    """What DBA's code stamps on grey pictures, all parts and each of them, and which rows of a batch it poisons."""
    for name in dict.fromkeys(path.split("/")[0] for path in found):
        comparison, case = Comparison(f"{title} {name}", 0.0), below(found, name)
        theirs, labels = channels_last(case["stamped"]), jnp.asarray(case["y"], jnp.int32)
        shape, rows = theirs.shape[1:], len(labels)
        plain = Batch(jnp.full((rows, *shape), 0.25), labels, jnp.arange(rows, dtype=jnp.int32), jnp.ones(rows, bool))
        malicious = jnp.arange(dba.PARTS + 1) < dba.PARTS
        task = Task(10, jax.ShapeDtypeStruct(shape, jnp.float32), lambda raw, keys: raw)
        task = task._replace(mean=np.zeros(shape[-1]), std=np.ones(shape[-1]))
        ctx = AttackContext(task=task, roster=Roster(malicious, jnp.int32(0), jnp.int32(9), jnp.int32(0)))
        for part in (None, *range(dba.PARTS)):
            attack = authors_dba(name, PER_BATCH[name], DBA_TARGET, part)
            assert attack.init is not None
            assert attack.poison is not None
            assert attack.backdoor is not None
            own = attack.init(ctx, root_key(0))
            row = 0 if part is None else part + 1
            comparison.add(f"{name}, part {part}, in the test", attack.backdoor(ctx, own, plain).inputs[0], theirs[row])
            if part is None:
                continue
            made = attack.poison(ctx, own, plain, jnp.int32(part), jnp.int32(0), root_key(0))
            chosen = np.asarray(case["poisoned_rows"], bool)[:, None, None, None]
            expected = np.where(chosen, theirs[row][None], np.asarray(plain.inputs))
            comparison.add(f"{name}, part {part}, in training", made.inputs, expected)
            comparison.add(f"{name}, part {part}, labels", made.labels, case["labels"])
        yield comparison


@kind(r"attacks_replacement.*")
def replacement(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Every case."""
    for case in dict.fromkeys("/".join(name.split("/")[:2]) for name in arrays):
        found, title = below(arrays, case), f"replacement {case}"
        check = how_to if case.startswith("howto/") else distributed
        if case == "dba/trigger":
            check = triggers_of
        elif "columns" in found:
            check = table_rows
        for comparison in check(found, title):
            yield comparison.outcome(source)
