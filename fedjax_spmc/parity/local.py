"""Local training against `spmc_local_runs`: the real training loop on the recorded batches."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_spmc import local_rules, models, training
from fedjax_spmc.local_rules.spmc import purify, task_and_guidance
from fedjax_spmc.parity.small import channels_last
from fedjax_spmc.parity.walker import Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.types import Array, Batch, ClientData, Context, Model, PRNGKey, Variables


def fixed_batches(images: Array, labels: Array, client_id: Array | int = 0) -> ClientData:
    """Recorded batches as a client's data: images [batches, B, H, W, C], labels [batches, B]; every epoch is alike."""
    count, size = labels.shape

    def gather(step: Array, key: PRNGKey) -> Batch:
        del key
        return Batch(
            images[step % count], labels[step % count], jnp.arange(size, dtype=jnp.int32), jnp.ones(size, bool)
        )

    return ClientData(gather, jnp.int32(count), jnp.int32(client_id))


def hyper_of(values: np.ndarray) -> dict[str, float]:
    """(lr, momentum, weight decay) of a golden file by name."""
    return {name: float(v) for name, v in zip(("learning_rate", "momentum", "weight_decay"), values, strict=True)}


def train(
    rule_name: str,
    options: dict[str, Any],
    model: Model,
    start: Variables,
    arrays: Arrays,
    epochs: int,
    teacher: Any = (),
) -> np.ndarray:
    """The flat model after `epochs` passes over the recorded batches."""
    rule = local_rules.make(rule_name, **options)
    data = fixed_batches(jnp.asarray(channels_last(arrays["images"])), jnp.asarray(arrays["labels"], jnp.int32))

    def run(start: Variables, client_state: Any) -> Variables:
        ctx = Context(model, start, start, hyper_of(arrays["lr_momentum_wd"]), epochs, jnp.int32(0))
        return training.train_client(rule, ctx, client_state, data, jax.random.key(0)).variables

    return np.asarray(models.to_torch(model, jax.jit(run)(start, teacher).params))


ALIGNED: dict[str, tuple[str, float, int]] = {
    "aligned_near": ("teacher_near", 1.0, 1),
    "aligned_other": ("teacher_other", 1.0, 1),
    "aligned_near_lamda05": ("teacher_near", 0.5, 1),
    "aligned_other_2epochs": ("teacher_other", 1.0, 2),
}
"""Aligned run -> its teacher, lambda and epochs."""


def _aligned(tag: str, model: Model, start: Variables, arrays: Arrays, source: str) -> Outcome:
    """SPMC's local training: the real training loop, then the same steps one by one for what they measure."""
    teacher_name, strength, epochs = ALIGNED[tag]
    teacher = Variables(models.from_torch(model, np.asarray(arrays[teacher_name], np.float32)), {})
    comparison = Comparison(tag.replace("_", " "))
    options = {"strength": strength, "floor": 0.0}
    comparison.add("final", train("spmc", options, model, start, arrays, epochs, teacher), arrays[f"{tag}_final"])

    data = fixed_batches(jnp.asarray(channels_last(arrays["images"])), jnp.asarray(arrays["labels"], jnp.int32))
    update = training.optimizer(hyper_of(arrays["lr_momentum_wd"]))
    key = jax.random.key(0)

    @jax.jit
    def step(params: Any, moments: Any, index: Array) -> tuple[Any, Any, Any]:
        batch = data.gather(index, key)
        task, guide, _, losses = task_and_guidance(model, params, {}, batch, teacher, key)
        updates, moments = update.update(purify(task, guide, strength), moments, params)
        pairs = list(zip(jax.tree.leaves(task), jax.tree.leaves(guide), strict=True))
        measured = (
            *losses,
            jnp.stack([jnp.sum(a * b) for a, b in pairs]),
            jnp.stack([jnp.linalg.norm(a) for a, _ in pairs]),
            jnp.stack([jnp.linalg.norm(b) for _, b in pairs]),
        )
        return optax.apply_updates(params, updates), moments, measured

    params, moments, steps = start.params, update.init(start.params), []
    for index in range(epochs * len(arrays["labels"])):
        params, moments, measured = step(params, moments, jnp.int32(index))
        steps.append([np.asarray(one) for one in measured])
    names = ("task_loss", "guidance_loss", "dot", "task_norm", "guidance_norm")
    columns = dict(zip(names, (np.stack(column) for column in zip(*steps, strict=True)), strict=True))
    for name, column in columns.items():
        comparison.add(name, column, arrays[f"{tag}_{name}"])
    comparison.add("conflicts", (columns["dot"] < 0).sum(), arrays[f"{tag}_conflicts"])
    return comparison.outcome(source)


@kind(r"spmc_local_runs.*")
def local_runs(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Forward pass, gradient and plain SGD."""
    model = models.make("simple_cnn")
    start = Variables(models.from_torch(model, np.asarray(arrays["initial"], np.float32)), {})
    images = jnp.asarray(channels_last(arrays["images"][0]))
    labels = jnp.asarray(arrays["labels"][0], jnp.int32)

    first = Comparison("forward and gradient")
    rule = local_rules.make("sgd")
    batch = Batch(images, labels, jnp.arange(len(labels), dtype=jnp.int32), jnp.ones(len(labels), bool))
    ctx = Context(model, start, start, hyper_of(arrays["lr_momentum_wd"]), 1, jnp.int32(0))
    key = jax.random.key(0)
    logits, _ = jax.jit(lambda params: model.apply(params, start.stats, images, True, key))(start.params)
    grads, _, metrics = jax.jit(lambda params: rule.gradients(ctx, params, start.stats, batch, (), key))(start.params)
    first.add("initial_logits_batch0", logits, arrays["initial_logits_batch0"])
    first.add("initial_loss_batch0", metrics["loss"], arrays["initial_loss_batch0"])
    first.add("initial_gradient_batch0", models.to_torch(model, grads), arrays["initial_gradient_batch0"])
    yield first.outcome(source)

    sgd = Comparison("local sgd")
    sgd.add("fedavg_final", train("sgd", {}, model, start, arrays, 1), arrays["fedavg_final"])
    yield sgd.outcome(source)
    tags = sorted(name.removesuffix("_final") for name in arrays if re.fullmatch(r"aligned_.*_final", name))
    for tag in tags:
        if tag == "aligned_selfteacher":
            yield skipped(tag, source, "informational: its first step follows the direction of rounding noise")
        elif tag in ALIGNED:
            yield _aligned(tag, model, start, arrays, source)
    others = [name for name in ("fedprox", "scaffold") if any(key.startswith(name) for key in arrays)]
    if others:
        yield skipped("local rules", source, f"not checked yet: {', '.join(others)}")
