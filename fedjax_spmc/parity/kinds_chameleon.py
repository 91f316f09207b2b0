"""Chameleon against `attacks_chameleon`: the contrastive loss, its triggers, and whole rounds of its code.

A round is played as those of model replacement are: an attacker that trains in two stages, a benign client, and a
server that cuts both updates.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators
from fedjax_spmc.attacks import triggers
from fedjax_spmc.attacks._stopping import stopping, test_of
from fedjax_spmc.attacks._training import rule_context
from fedjax_spmc.attacks.chameleon import contrasted, contrastive_loss, cut, last_layer, supervised_contrast
from fedjax_spmc.federation import Attacker
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.parity.kinds_replacement import BENIGN, play, poisoning
from fedjax_spmc.parity.kinds_small import channels_last
from fedjax_spmc.parity.recorded_nets import below, named
from fedjax_spmc.schedules import neurotoxin_rate
from fedjax_spmc.types import Aggregator, Array, Attack, ClientData, Upload

TEMPERATURE = 0.07
FIRST_FALLS, SECOND_FALLS = (2, 4, 6, 8), (2, 4)
"""Epochs, from 0, at whose start the rates of the stages fall."""
START_RATE, TARGET_RATE = 0.001, 0.2
"""Of the benign schedule."""
BRIGHT = 255.0
"""What the triggers for CIFAR-10 write; those for EMNIST write 1."""
FIXED = {"1": ((-3, -3), (-2, -4), (-4, -2), (-2, -2)), "2": ((-6, -6), (-5, -5), (-4, -6), (-6, -4), (-4, -4))}
"""Type of the trigger -> its pixels, counted from the last row and column, where nothing moves them."""
PARAMS, STATS, LOSS = 1e-5, 1e-4, 2e-5
"""Tolerances: of parameters; of batch statistics, relative; of the loss and its gradient."""


def trigger_of(which: str, value: float, shape: tuple[int, ...]) -> triggers.Trigger:
    """A trigger on normalised images [H, W, C], as `badnets` makes it of pixels."""
    height, width, channels = shape
    pixels = tuple((c, height + row, width + column) for c in range(channels) for row, column in FIXED[which])
    return triggers.chosen("spmc_code", pixels, value, "normalized", shape)


def stamped(found: Mapping[str, np.ndarray], source: str) -> Iterator[Outcome]:
    """The triggers that the draws of their files leave in place."""
    comparison = Comparison("chameleon triggers")
    for name in dict.fromkeys(name.split("/")[0] for name in found):
        expected = channels_last(found[f"{name}/stamped"])
        moved = (4 * float(found[f"{name}/diff"]) * found[f"{name}/draws"]).astype(int)
        if moved.any():
            yield skipped(f"chameleon trigger {name}", source, "no trigger here moves from image to image")
            continue
        data, which = name.split("_")[:2]
        trigger = trigger_of(which, BRIGHT if data == "cifar" else 1.0, expected.shape)
        comparison.add(name, triggers.stamp(jnp.zeros((1, *expected.shape)), trigger)[0], expected)
    yield comparison.outcome(source)


def contrast(found: Mapping[str, np.ndarray], source: str) -> Iterator[Outcome]:
    """The loss of the first stage and its gradient by the features."""
    comparison = Comparison("chameleon contrast", LOSS)
    for name in dict.fromkeys(name.split("/")[0] for name in found):
        case = below(found, name)
        if float(case["down"]) != 1:
            reason = "no option here for a factor that the code's published runs leave at 1"
            yield skipped(f"chameleon contrast {name}", source, reason)
            continue
        labels = jnp.asarray(case["y"], jnp.int32)
        weights = jnp.where(labels == int(case["fac"]), float(case["weight"]), 1.0)
        there = jnp.ones(len(labels), bool)
        loss = lambda x, y=labels, o=weights, n=there: contrastive_loss(x, y, n, o, TEMPERATURE)  # noqa: E731
        value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(case["features"]))
        comparison.add(f"{name}/loss", value, case["loss"])
        comparison.add(f"{name}/grad", grad, case["grad"])
    yield comparison.outcome(source)


def clipping(bound: float) -> Aggregator:
    """The code's server. It averages batch statistics alike, here they follow the verdict's weights."""
    rule = aggregators.make("norm_clip", threshold=bound)

    def aggregate(upload: Upload, state: Any, key: Array) -> Any:
        params, verdict, state = rule.aggregate(upload, state, key)
        return params, verdict._replace(weights=jnp.full_like(verdict.weights, 1 / len(verdict.weights))), state

    return rule._replace(aggregate=aggregate)


def two_stages(found: Mapping[str, np.ndarray]) -> Attack:
    """The attacker's training on recorded batches: step by step through the first stage, then through the second."""
    epochs, radius = int(found["e1"]), float(found["s_norm"])

    def train(
        rule: Any,
        ctx: Any,
        own: Any,
        variables: Any,
        state: Any,
        data: ClientData,
        client_id: Any,
        key: Any,
        hooks: Any,
    ) -> Any:
        each = data.num_batches

        def from_step(first: Array) -> ClientData:
            return data._replace(gather=lambda step, step_key: data.gather(first + step, step_key))

        variables = contrasted(
            supervised_contrast(ctx, TEMPERATURE, float(found["weight"])),
            rule_context(ctx, hyper={**ctx.hyper, "learning_rate": float(found["lr1"])}),
            variables,
            (lambda epoch: from_step(epoch * each), epochs, each),
            key,
            cut(ctx, hooks, radius, float(found["s_con"])),
            (FIRST_FALLS, float(found["g1"])),
        )
        frozen = last_layer(variables.params) if int(found["freeze"]) else None
        fit = stopping(None, True, False, test_of("chameleon"), frozen)
        hooks = cut(ctx, hooks, radius, None)
        return fit(rule, ctx, own, variables, state, from_step(epochs * each), client_id, key, hooks)

    target = int(found["target"])
    return Attack(
        train=train, backdoor=lambda ctx, own, batch: batch._replace(labels=jnp.full_like(batch.labels, target))
    )


def row_of(stacked: Any, row: int) -> Any:
    """One client's."""
    return jax.tree.map(lambda x: x[row], stacked)


def whole_round(found: Mapping[str, np.ndarray], title: str) -> Iterator[Comparison]:
    """A case: the encoder between the stages, both uploads, the new model."""
    count, target = int(found["poison"]), int(found["target"])
    shape = channels_last(found["x"]).shape[1:]
    noise = jnp.asarray(channels_last(found["noise"])).reshape(-1, count, *shape)
    trigger = trigger_of("1", BRIGHT, shape)

    def poison(inputs: Array, labels: Array, step: Array) -> tuple[Array, Array]:
        rows = triggers.stamp(inputs[:count], trigger) + noise[step]
        return inputs.at[:count].set(rows), labels.at[:count].set(target)

    rate = float(neurotoxin_rate(int(found["round"]), START_RATE, TARGET_RATE))

    def played(epochs: int) -> Any:
        attacker = Attacker(
            epochs=epochs,
            hyper=BENIGN | {"learning_rate": float(found["lr2"])},
            milestones=SECOND_FALLS,
            gamma=float(found["g2"]),
        )
        parts, server = {"chameleon": two_stages(found)}, clipping(float(found["bound"]))
        benign = BENIGN | {"learning_rate": rate}
        return play(found, poisoning(poison), None, attacker, 0.5, further=parts, hyper=benign, rule=server)

    encoder, both, new = (Comparison(f"{title}{part}", PARAMS) for part in (", encoder", "", ", new model"))

    def add(comparison: Comparison, model: tuple[Any, Any], prefix: str) -> None:
        for tree, relative in zip(model, (0.0, STATS), strict=True):
            for name, value in named(tree).items():
                if prefix == "contrastive" and name.startswith("linear."):  # the file has the encoder alone
                    continue
                theirs = found[f"{prefix}/{name}"]
                comparison.add(f"{prefix}/{name}", value, theirs, relative * np.abs(theirs))

    first, _, _ = played(0)
    add(encoder, row_of(first, 0), "contrastive")
    sent, after, _ = played(int(found["e2"]))
    add(both, row_of(sent, 0), "attacker")
    add(both, row_of(sent, 1), "benign")
    add(new, after, "global1")
    yield from (encoder, both, new)


@kind(r"attacks_chameleon.*")
def chameleon(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Every case of a file."""
    yield from contrast(below(arrays, "supcon"), source)
    yield from stamped(below(arrays, "trigger"), source)
    for case in dict.fromkeys(name.split("/")[0] for name in arrays):
        if case not in ("supcon", "trigger"):
            for comparison in whole_round(below(arrays, case), f"chameleon {case}"):
                yield comparison.outcome(source)
