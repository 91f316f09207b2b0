"""Local training against `spmc_local_runs`: the real training loop on the recorded batches."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_spmc import local_rules, models, training
from fedjax_spmc.data.pipeline import shuffled
from fedjax_spmc.keys import root_key
from fedjax_spmc.local_rules.scaffold import WARM_UP
from fedjax_spmc.local_rules.spmc import purify, task_and_guidance
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.parity.kinds_small import channels_last
from fedjax_spmc.types import Array, Batch, ClientData, Context, Model, PRNGKey, Variables


def fixed_batches(images: Array, labels: Array, client_id: Array | int = 0) -> ClientData:
    """Recorded batches as a client's data: images [batches, B, H, W, C], labels [batches, B]; every epoch is alike."""
    count, size = labels.shape

    def gather(step: Array, key: PRNGKey) -> Batch:
        del key
        return Batch(
            images[step % count], labels[step % count], jnp.arange(size, dtype=jnp.int32), jnp.ones(size, bool)
        )

    def take(positions: Array, key: PRNGKey) -> Batch:
        del key
        flat = images.reshape(count * size, *images.shape[2:]), labels.ravel()
        ids = positions.astype(jnp.int32)
        return Batch(flat[0][ids], flat[1][ids], ids, jnp.ones(ids.shape, bool))

    whole = jnp.int32(count * size)
    order = lambda key: shuffled(key, count * size, whole)  # noqa: E731
    return ClientData(gather, jnp.int32(count), jnp.int32(client_id), whole, take, order)


def hyper_of(values: np.ndarray) -> dict[str, float]:
    """(lr, momentum, weight decay) of a golden file by name."""
    return {name: float(v) for name, v in zip(("learning_rate", "momentum", "weight_decay"), values, strict=True)}


def trainer(rule_name: str, model: Model, arrays: Arrays) -> Callable[..., np.ndarray]:
    """A function of (start, teacher, epochs, **options): the flat model after training on the recorded batches.

    Compiled once: the teacher, the number of epochs and the options are arguments of the program.
    """
    data = recorded(arrays)

    @jax.jit
    def run(start: Variables, teacher: Any, epochs: Array, options: dict[str, Array]) -> Variables:
        rule = local_rules.make(rule_name, **options)
        ctx = Context(model, start, start, hyper_of(arrays["lr_momentum_wd"]), epochs, jnp.int32(0))
        return training.train_client(rule, ctx, teacher, data, root_key(0)).variables

    def train(start: Variables, teacher: Any = (), epochs: int = 1, **options: float) -> np.ndarray:
        traced = {name: jnp.float32(value) for name, value in options.items()}
        return np.asarray(models.to_torch(run(start, teacher, jnp.int32(epochs), traced).params))

    return train


def recorded(arrays: Arrays) -> ClientData:
    """The batches of a golden file of local runs."""
    return fixed_batches(jnp.asarray(channels_last(arrays["images"])), jnp.asarray(arrays["labels"], jnp.int32))


ALIGNED: dict[str, tuple[str, float, int]] = {
    "aligned_near": ("teacher_near", 1.0, 1),
    "aligned_other": ("teacher_other", 1.0, 1),
    "aligned_near_lamda05": ("teacher_near", 0.5, 1),
    "aligned_other_2epochs": ("teacher_other", 1.0, 2),
}
"""Aligned run -> its teacher, lambda and epochs."""


class AlignedSteps:
    """SPMC's training again, step by step, for the quantities that the reference recorded of each; compiled once."""

    NAMES = ("task_loss", "guidance_loss", "dot", "task_norm", "guidance_norm")

    def __init__(self, model: Model, arrays: Arrays):
        self._update = training.optimizer(hyper_of(arrays["lr_momentum_wd"]))
        data, key = recorded(arrays), root_key(0)

        @jax.jit
        def step(student: Variables, moments: Any, teacher: Variables, strength: Array, index: Array) -> Any:
            params, batch = student.params, data.gather(index, key)
            task, guide, stats, losses = task_and_guidance(model, params, student.stats, batch, teacher, key)
            updates, moments = self._update.update(purify(task, guide, strength), moments, params)
            pairs = list(zip(jax.tree.leaves(task), jax.tree.leaves(guide), strict=True))
            measured = (
                *losses,
                jnp.stack([jnp.sum(a * b) for a, b in pairs]),
                jnp.stack([jnp.linalg.norm(a) for a, _ in pairs]),
                jnp.stack([jnp.linalg.norm(b) for _, b in pairs]),
            )
            return Variables(optax.apply_updates(params, updates), stats), moments, measured

        self._step = step

    def run(self, student: Variables, teacher: Variables, strength: float, steps: int) -> dict[str, np.ndarray]:
        """The quantities of each step by name, [steps, ...]."""
        moments, rows = self._update.init(student.params), []
        for index in range(steps):
            student, moments, measured = self._step(student, moments, teacher, jnp.float32(strength), jnp.int32(index))
            rows.append([np.asarray(one) for one in measured])
        return {name: np.stack(column) for name, column in zip(self.NAMES, zip(*rows, strict=True), strict=True)}


def aligned_runs(model: Model, start: Variables, arrays: Arrays, source: str) -> Iterator[Outcome]:
    """SPMC's local training: the real training loop, then the same steps one by one for their recorded quantities."""
    train, steps = trainer("spmc", model, arrays), AlignedSteps(model, arrays)
    for tag, (teacher_name, strength, epochs) in ALIGNED.items():
        if f"{tag}_final" not in arrays:
            continue
        teacher = Variables(models.from_torch(model, np.asarray(arrays[teacher_name], np.float32)), {})
        comparison = Comparison(tag.replace("_", " "))
        final = train(start, teacher, epochs, strength=strength, floor=0.0)
        comparison.add("final", final, arrays[f"{tag}_final"])
        measured = steps.run(start, teacher, strength, epochs * len(arrays["labels"]))
        for name, column in measured.items():
            comparison.add(name, column, arrays[f"{tag}_{name}"])
        comparison.add("conflicts", (measured["dot"] < 0).sum(), arrays[f"{tag}_conflicts"])
        yield comparison.outcome(source)
    if "aligned_selfteacher_final" in arrays:
        reason = "informational: its first step follows the direction of rounding noise"
        yield skipped("aligned selfteacher", source, reason)


def proximal_runs(model: Model, start: Variables, arrays: Arrays, source: str) -> Iterator[Outcome]:
    """FedProx from a model that is not the one that was broadcast, over one and two passes."""
    data, rule = recorded(arrays), local_rules.make("fedprox", variant="reference")
    broadcast = Variables(models.from_torch(model, np.asarray(arrays["teacher_near"], np.float32)), {})

    @jax.jit
    def train(epochs: Array) -> Variables:
        ctx = Context(model, broadcast, broadcast, hyper_of(arrays["lr_momentum_wd"]), epochs, jnp.int32(0))
        return training.sgd(rule, ctx, start, (), data, root_key(0), training.Hooks())[0]

    for tag, epochs in (("fedprox", 1), ("fedprox_2epochs", 2)):
        if f"{tag}_final" in arrays:
            comparison = Comparison(f"local {tag.replace('_', ' ')}")
            final = train(jnp.int32(epochs)).params
            comparison.add("final", models.to_torch(final), arrays[f"{tag}_final"])
            yield comparison.outcome(source)


def scaffold_run(model: Model, start: Variables, arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Two calls of SCAFFOLD, the second from the model and the control variate that the first left."""
    if "scaffold_final_call1" not in arrays:
        return
    data, rule = recorded(arrays), local_rules.make("scaffold", variant="reference")
    state = rule.init(start, 1)

    @jax.jit
    def train(variables: Variables, control: Any) -> training.Trained:
        hyper = hyper_of(arrays["lr_momentum_wd"])
        ctx = Context(model, variables, variables, hyper, 1, jnp.int32(WARM_UP), shared=state.server)
        return training.train_client(rule, ctx, control, data, root_key(0))

    comparison = Comparison("local scaffold")
    variables, control = start, state.server
    for call in ("call1", "call2"):
        trained = train(variables, control)
        variables, control = trained.variables, trained.client_state
        comparison.add(f"final {call}", models.to_torch(variables.params), arrays[f"scaffold_final_{call}"])
        flat = np.asarray(models.to_torch(control))
        for name, ours in ((f"scaffold_control_{call}", flat), (f"scaffold_control_{call}_sample", flat[::41])):
            if name in arrays:
                comparison.add(name, ours, arrays[name])
    yield comparison.outcome(source)


@kind(r"spmc_local_runs.*")
def local_runs(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Forward pass, gradient, plain SGD, and the local rules."""
    model = models.make("simple_cnn")
    start = Variables(models.from_torch(model, np.asarray(arrays["initial"], np.float32)), {})
    images = jnp.asarray(channels_last(arrays["images"][0]))
    labels = jnp.asarray(arrays["labels"][0], jnp.int32)

    first = Comparison("forward and gradient")
    rule = local_rules.make("sgd")
    batch = Batch(images, labels, jnp.arange(len(labels), dtype=jnp.int32), jnp.ones(len(labels), bool))
    ctx = Context(model, start, start, hyper_of(arrays["lr_momentum_wd"]), 1, jnp.int32(0))
    key = root_key(0)
    logits, _ = jax.jit(lambda params: model.apply(params, start.stats, images, True, key))(start.params)
    grads, _, metrics = jax.jit(lambda params: rule.gradients(ctx, params, start.stats, batch, (), key))(start.params)
    first.add("initial_logits_batch0", logits, arrays["initial_logits_batch0"])
    first.add("initial_loss_batch0", metrics["loss"], arrays["initial_loss_batch0"])
    first.add("initial_gradient_batch0", models.to_torch(grads), arrays["initial_gradient_batch0"])
    yield first.outcome(source)

    sgd = Comparison("local sgd")
    sgd.add("fedavg_final", trainer("sgd", model, arrays)(start), arrays["fedavg_final"])
    yield sgd.outcome(source)
    yield from aligned_runs(model, start, arrays, source)
    yield from proximal_runs(model, start, arrays, source)
    yield from scaffold_run(model, start, arrays, source)
