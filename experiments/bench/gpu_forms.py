"""Parts of `bench_gpu.py` without a federation: SimpleCNN's convolutions in three forms, and the plain torch loop."""

import copy
import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ceilings import seconds_of

from fedjax_spmc.keys import root_key
from fedjax_spmc.losses import cross_entropy
from fedjax_spmc.models import layers, pooled, simple_cnn
from fedjax_spmc.models.product import product
from fedjax_spmc.types import Array, Params

Convolution = Callable[[Array, Array, Array], Array]
"""(images [C, H, W, B], kernel [O, C, k, k], bias [O]) -> [O, rows, columns, B], pooled."""


def _pool(outputs: Array, bias: Array) -> Array:
    """ReLU after bias, then the maximum of every 2x2 window: [O, H, W, B] -> [O, H // 2, W // 2, B]."""
    features, rows, columns, batch = outputs.shape
    windows = nn.relu(outputs + bias[:, None, None, None])
    windows = windows[:, : rows // 2 * 2, : columns // 2 * 2].reshape(features, rows // 2, 2, columns // 2, 2, batch)
    return windows.max(axis=(2, 4))


def library(images: Array, kernel: Array, bias: Array) -> Array:
    """The library's convolution; with own kernels under `vmap` XLA makes a grouped one of it."""
    outputs = jax.lax.conv_general_dilated(
        images.transpose(3, 0, 1, 2), kernel, (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    return _pool(outputs.transpose(1, 2, 3, 0), bias)


def patches(images: Array, kernel: Array, bias: Array) -> Array:
    """One product with the patches of every output, without the sharing among the four outputs of a window."""
    features, channels, size, _ = kernel.shape
    _, height, width, batch = images.shape
    rows, columns = height - size + 1, width - size + 1
    taps = [images[:, u : u + rows, v : v + columns] for u in range(size) for v in range(size)]
    stacked = jnp.stack(taps, axis=1).reshape(channels * size * size, -1)
    return _pool((kernel.reshape(features, -1) @ stacked).reshape(features, rows, columns, batch), bias)


FORMS: dict[str, Convolution] = {"present": pooled.convolution_pool, "grouped": library, "patches": patches}


def logits_of(form: str, params: Params, images: Array) -> Array:
    """SimpleCNN's logits [B, classes] with its two convolutions in one of `FORMS`; images [B, 32, 32, 3]."""
    x = layers.batch_last(images)
    for name in ("conv1", "conv2"):
        x = FORMS[form](x, params[name]["weight"], params[name]["bias"])
    x = x.reshape(-1, images.shape[0])
    for name in ("fc1", "fc2", "l1", "l2", "cls"):
        x = product(params[name]["weight"], x) + params[name]["bias"][:, None]
        x = nn.relu(x) if name in ("fc1", "fc2", "l1") else x
    return x.T


def time_form(form: str, lanes: int, batch: int, steps: int) -> tuple[float, Array]:
    """Milliseconds a step in which every lane takes one step of SGD on its own kernels and images.

    Args:
        form: one of `FORMS`.
        lanes: clients side by side, those of all experiments.
        batch: images of a lane.
        steps: in the loop that is timed.

    Returns:
        Milliseconds, and the loss of every lane [lanes] before its first step, by which the forms are compared.
    """
    keys = jax.random.split(root_key(1), lanes)
    params = jax.jit(jax.vmap(lambda key: simple_cnn.simple_cnn().init(key).params))(keys)
    images = jax.random.normal(root_key(2), (lanes, batch, 32, 32, 3))
    labels = jax.random.randint(root_key(3), (lanes, batch), 0, 10)

    def loss(params: Params, images: Array, labels: Array) -> Array:
        return cross_entropy(logits_of(form, params, images), labels, jnp.ones(batch, bool))

    @jax.jit
    def run(params: Params, images: Array, labels: Array, steps: Array) -> tuple[Params, Array]:
        def body(step: Array, carry: tuple[Params, Array]) -> tuple[Params, Array]:
            params, first = carry
            values, grads = jax.vmap(jax.value_and_grad(loss))(params, images, labels)
            params = jax.tree.map(lambda x, g: x - 0.01 * g, params, grads)
            return params, jnp.where(step == 0, values, first)

        return jax.lax.fori_loop(0, steps, body, (params, jnp.zeros(lanes)))

    with jax.default_matmul_precision("float32"):
        program = run.lower(params, images, labels, jnp.int32(steps)).compile()
    call = functools.partial(program, params, images, labels, jnp.int32(steps))
    return seconds_of(call, repeats=2) / steps * 1e3, call()[1]


def torch_times(batch: int, steps: int, images: int = 6400) -> dict[str, float]:
    """Milliseconds per client-step of the plain torch loop on the GPU, by rule.

    The images are float32, normalised and on the GPU before the clock starts, and are neither cropped nor flipped,
    which the simulator does inside of its step. Full float32, as the simulator's default.
    """
    import torch

    from fedjax_spmc.parity.torch_reference.local import make_optimizer, train_sgd, train_spmc
    from fedjax_spmc.parity.torch_reference.model import SimpleCNN

    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cuda")
    pixels = torch.randn(images, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (images,), device=device)
    server, teacher = SimpleCNN().to(device), SimpleCNN().to(device)

    def batches(count: int) -> Iterator[tuple[Any, Any]]:
        order = torch.randperm(images, device=device)
        for step in range(count):
            chosen = order[step * batch % images :][:batch]
            yield pixels[chosen], labels[chosen]

    def run(rule: str, count: int) -> float:
        student = copy.deepcopy(server)
        optimizer = make_optimizer(student, 0.01, 0.9, 1e-5)
        torch.cuda.synchronize()
        start = time.perf_counter()
        if rule == "sgd":
            train_sgd(student, batches(count), optimizer)
        else:
            train_spmc(student, teacher, batches(count), optimizer)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / count * 1e3

    found = {}
    for rule in ("sgd", "spmc"):
        run(rule, 10)
        found[rule] = min(run(rule, steps) for _ in range(3))
    return found


def torch_missing() -> str | None:
    """Why the torch loop cannot run here; None where it can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    return None if torch.cuda.is_available() else "torch sees no GPU"
