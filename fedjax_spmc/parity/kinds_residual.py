"""Residual networks against `spmc_resnet*_narrow`: forward pass, batch statistics, and training in both ways."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import local_rules, models, training
from fedjax_spmc.keys import root_key
from fedjax_spmc.losses import cross_entropy
from fedjax_spmc.models.layers import as_model
from fedjax_spmc.models.resnet import ResNet
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind
from fedjax_spmc.parity.kinds_local import AlignedSteps, hyper_of, recorded
from fedjax_spmc.types import Array, Context, Model, Variables

LR_MOMENTUM_WD = np.array([0.01, 0.9, 1e-5])
"""Of all runs in these files; stated in their README, not in the file."""
EPOCHS = 2


def named_buffers(model: Model, variables: Variables, names: list[str]) -> np.ndarray:
    """Batch statistics in the file's order of buffers, the integer counters left out."""
    ours = models.to_torch_dict(variables)
    return np.concatenate([ours[name] for name in names if not name.endswith("num_batches_tracked")])


def without_counters(buffers: np.ndarray, names: list[str], sizes: dict[str, int]) -> np.ndarray:
    """The file's vector of buffers without the integer counters, which nothing of ours keeps."""
    keep = [np.full(sizes.get(name, 1), not name.endswith("num_batches_tracked")) for name in names]
    return np.asarray(buffers)[np.concatenate(keep)]


@kind(r"spmc_resnet\d+_narrow.*")
def residual_network(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """The network of the file, by its recorded blocks and width."""
    images = np.asarray(arrays["images"])
    blocks, width = tuple(int(count) for count in arrays["blocks"]), int(arrays["width"])
    classes = len(arrays["train_logits_batch0"][0])
    model = as_model(ResNet(blocks, width, classes, "batch"), classes, (*images.shape[3:], images.shape[2]))
    initial = jax.jit(model.init)(root_key(0))
    start = Variables(models.from_torch(model, np.asarray(arrays["parameters"], np.float32)), initial.stats)
    names = [str(name) for name in arrays["buffer_names"]]
    sizes = {name: leaf.size for name, leaf in models.to_torch_dict(start).items()}
    # The file carries no hyper-parameters of its own; its training runs go through the batches twice.
    data = {**arrays, "lr_momentum_wd": LR_MOMENTUM_WD}
    batches, key = recorded(data), root_key(0)

    forward = Comparison("forward, gradient and batch statistics")
    ours = [".".join(path) for path in model.param_order]
    forward.add("parameter_names", np.array(ours), np.array([str(name) for name in arrays["parameter_names"]]))

    @jax.jit
    def first(variables: Variables) -> Any:
        batch = batches.gather(jnp.int32(0), key)

        def loss(params: Any) -> tuple[Array, tuple[Array, Any]]:
            logits, stats = model.apply(params, variables.stats, batch.inputs, True, key)
            return cross_entropy(logits, batch.labels, batch.valid), (logits, stats)

        (value, (logits, stats)), grads = jax.value_and_grad(loss, has_aux=True)(variables.params)
        second = batches.gather(jnp.int32(1), key).inputs
        return logits, value, grads, stats, model.apply(variables.params, stats, second, False, key)[0]

    logits, loss, grads, stats, evaluated = first(start)
    forward.add("train_logits_batch0", logits, arrays["train_logits_batch0"])
    forward.add("loss_batch0", loss, arrays["loss_batch0"])
    forward.add("gradient_batch0", models.to_torch(grads), arrays["gradient_batch0"])
    after = named_buffers(model, Variables(start.params, stats), names)
    forward.add("buffers_after_batch0", after, without_counters(arrays["buffers_after_batch0"], names, sizes))
    forward.add("eval_logits_batch1", evaluated, arrays["eval_logits_batch1"])
    yield forward.outcome(source)

    # Training goes on from the batch statistics that the first forward pass left.
    begin = Variables(start.params, stats)

    def trained(rule_name: str, teacher: Any, **options: Any) -> Variables:
        rule = local_rules.make(rule_name, **options)
        ctx = Context(model, begin, begin, hyper_of(LR_MOMENTUM_WD), EPOCHS, jnp.int32(0))
        return jax.jit(lambda teacher: training.train_client(rule, ctx, teacher, batches, key).variables)(teacher)

    sgd = Comparison("4 steps of sgd")
    end = trained("sgd", ())
    sgd.add("parameters", models.to_torch(end.params), arrays["parameters_after_4_sgd_steps"])
    expected = without_counters(arrays["buffers_after_4_sgd_steps"], names, sizes)
    sgd.add("buffers", named_buffers(model, end, names), expected)
    yield sgd.outcome(source)

    aligned = Comparison("4 steps of spmc")
    teacher = Variables(models.from_torch(model, np.asarray(arrays["teacher_parameters"], np.float32)), initial.stats)
    end = trained("spmc", teacher, floor=0.0)
    aligned.add("parameters", models.to_torch(end.params), arrays["aligned_parameters_after_4_steps"])
    measured = AlignedSteps(model, data).run(begin, teacher, 1.0, EPOCHS * len(arrays["labels"]))
    aligned.add("conflicts", (measured["dot"] < 0).sum(), arrays["aligned_conflicts"])
    yield aligned.outcome(source)
