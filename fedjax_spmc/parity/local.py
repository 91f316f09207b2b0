"""Local training against `spmc_local_runs`: the real training loop on the recorded batches."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import local_rules, models, training
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
    others = [name for name in ("fedprox", "scaffold", "aligned") if any(key.startswith(name) for key in arrays)]
    if others:
        yield skipped("local rules", source, f"not checked yet: {', '.join(others)}")
