"""The rest of FLIP's code against `flip_misc`: the server's mean, rejection, the attack's trigger, falling rates."""

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, attacks, evaluation, metrics, server
from fedjax_spmc.attacking import fallen
from fedjax_spmc.keys import root_key
from fedjax_spmc.one_round import average_stats
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.parity.kinds_small import channels_last
from fedjax_spmc.parity.recorded_nets import below
from fedjax_spmc.types import AttackContext, Batch, Roster, Task, Upload, Variables

EXACT, AGGREGATED, RATES = 0.0, 1e-6, 1e-8
SERVER_RATE, ADVERSARIES, TARGET, ATTACKERS_RATE = 0.1, 4, 2, 0.05
TRIGGERS = {1: "dba_mnist", 3: "dba_cifar"}
"""By channels."""
STATISTICS = ("running_mean", "running_var")


@kind(r"flip_misc.*")
def aggregation(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """A mean of ten models, of which the server takes a tenth of the way, batch statistics too."""
    if not any(name.startswith("agg/") for name in arrays):
        return
    parts = {part: below(arrays, f"agg/{part}") for part in ("global0", "updates", "global1")}

    def split(found: dict[str, np.ndarray]) -> Variables:
        floats = {name: jnp.asarray(x, jnp.float32) for name, x in found.items() if np.asarray(x).dtype.kind == "f"}
        stats = {name: x for name, x in floats.items() if name.rpartition(".")[2] in STATISTICS}
        return Variables({name: x for name, x in floats.items() if name not in stats}, stats)

    old, updates = split(parts["global0"]), split(parts["updates"])
    models = jax.tree.map(lambda g, u: g[None] + u, old, updates)
    count = len(jax.tree.leaves(updates)[0])

    @jax.jit
    def play() -> Variables:
        upload = Upload(old.params, models.params, jnp.ones(count), jnp.ones(count, bool), client_stats=models.stats)
        rule = aggregators.make("mean", weights="uniform")
        params, verdict, _ = rule.aggregate(upload, rule.init(old.params, count), root_key(0))
        stats = average_stats(upload, jnp.ones(count, bool), verdict, old.stats)
        optimizer = server.make("sgd", learning_rate=SERVER_RATE)
        assert optimizer is not None
        return optimizer.step(old, Variables(params, stats), optimizer.init(old.params))[0]

    comparison = Comparison("server's step", AGGREGATED)
    new = play()
    for name, ours in {**new.params, **new.stats}.items():
        comparison.add(name, ours, parts["global1"][name])
    yield comparison.outcome(source)


@kind(r"flip_misc.*")
def rejection(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Accuracy and success with a threshold on the confidence, and how many are right whatever it is."""
    found = below(arrays, "reject")
    if not found:
        return
    logits, labels = jnp.asarray(found["logits"]), np.asarray(found["labels"])
    tops, predicted = jax.jit(evaluation.top_probability)(logits), np.argmax(np.asarray(logits), axis=-1)
    every, others = np.ones(len(labels), bool), labels != TARGET
    masks = [every, predicted == labels, every, predicted == TARGET, others, (predicted == TARGET) & others]
    bins = jax.jit(evaluation.histograms)(tops, [jnp.asarray(mask) for mask in masks])
    kept = dict(zip(evaluation.Histograms._fields, jax.device_get(bins), strict=True))
    comparison = Comparison("rejection", 1e-4)
    for name in found:
        said = re.fullmatch(r"tau(.+)/(clean|poison_target2)", name)
        if said is None:
            continue
        values = metrics.judged(kept, float(said[1]), backdoor=True)
        right, hits = 100 * np.mean(predicted == labels), 100 * np.mean(predicted == TARGET)
        ours = (values["A"], right) if said[2] == "clean" else (values["ASR_all"], hits)
        _, percent, ignoring, correct, total = np.asarray(found[name])
        comparison.add(f"{name} percent", ours[0], percent)
        comparison.add(f"{name} of {total}", ours[0], 100 * correct / total)
        comparison.add(f"{name} whatever the confidence", ours[1], 100 * ignoring / total)
    yield comparison.outcome(source)


@kind(r"flip_misc.*")
def trigger(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """The four parts of the trigger, the whole, and which labels of a batch change."""
    for family in dict.fromkeys(name.split("/")[1] for name in arrays if name.startswith("trigger/")):
        found, comparison = below(arrays, f"trigger/{family}"), Comparison(f"trigger {family}", EXACT)
        shape = channels_last(found["adv-1"]).shape
        count = int(found["train_poison_count"])
        labels = jnp.asarray(found["train_labels_in"], jnp.int32)
        batch = Batch(
            jnp.zeros((len(labels), *shape)), labels, jnp.arange(len(labels), dtype=jnp.int32), labels > -1
        )  # fmt: skip
        attack = attacks.make(
            "dba",
            target_label=TARGET,
            trigger=TRIGGERS[shape[-1]],
            poison_per_batch=count,
        )
        roster = Roster(jnp.arange(10) < ADVERSARIES, jnp.int32(0), jnp.int32(0), jnp.int32(0))
        raw = Task(
            10, jax.ShapeDtypeStruct(shape, jnp.float32), lambda raw, keys: raw, (0.0,) * shape[-1], (1.0,) * shape[-1]
        )
        ctx = AttackContext(task=raw, roster=roster)
        assert attack.init is not None
        assert attack.poison is not None
        assert attack.backdoor is not None
        own = attack.init(ctx, root_key(0))
        for adversary in range(ADVERSARIES):
            made = attack.poison(ctx, own, batch, jnp.int32(adversary), jnp.int32(0), root_key(0))
            comparison.add(f"adversary {adversary}", made.inputs[0], channels_last(found[f"adv{adversary}"]))
            if adversary == 1:
                changed = np.asarray(made.inputs).any(axis=(1, 2, 3))
                comparison.add("train_changed", changed, found["train_changed"])
                comparison.add("train_labels_out", made.labels, found["train_labels_out"])
        comparison.add("whole", attack.backdoor(ctx, own, batch).inputs[0], channels_last(found["adv-1"]))
        yield comparison.outcome(source)


@kind(r"flip_misc.*")
def rates(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """The attackers' learning rate in each of their epochs: it falls at 20 and 80 % of them, on CIFAR-10 (6) never."""
    found = below(arrays, "poison_lr")
    if found:
        comparison = Comparison("attackers' learning rates", RATES)
        for name, theirs in found.items():
            epochs = len(theirs)
            marks = (epochs // 5, epochs * 4 // 5) if epochs % 5 == 0 else (epochs,)
            ours = [ATTACKERS_RATE * float(fallen(jnp.int32(epoch), marks, 0.1)) for epoch in range(epochs)]
            comparison.add(name, ours, theirs)
        yield comparison.outcome(source)
    if any(name.startswith("pretrain/") for name in arrays):
        yield skipped("outputs of the code's checkpoints", source, "the file has no weights of them")
