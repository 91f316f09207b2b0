"""The sum over samples of squared gradients, from one backward pass in which every layer squares before it sums.

A network without cross-talk between samples has one cotangent column per sample in each layer. Where automatic
differentiation sums the samples' gradients, the layers here sum their squares: for a linear layer
sum_b (d_b x_b^T)^2 = (d^2) (x^2)^T, a single matrix product. Layers of other kinds are not known here.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_spmc.keys import root_key
from fedjax_spmc.models.layers import ConvolutionPool, Linear
from fedjax_spmc.models.picking import to_index
from fedjax_spmc.models.pooled import images_gradient, kernel_phases, largest_and_index, pooled_patches
from fedjax_spmc.types import Array, Batch, Model, Params, PRNGKey, Variables

SUPPORTED_LAYERS = (Linear, ConvolutionPool)


def sum_of_squared_gradients(model: Model, variables: Variables, batch: Batch, key: PRNGKey) -> Params:
    """Sum over a batch's valid rows of the squared gradient of -log p(label | image), in eval mode.

    Memory: the gradients of the convolutions of all samples, and nothing of that kind for linear layers.

    Returns:
        A pytree like `variables.params`; check `supports` first.
    """

    def loss(params: Params) -> Array:
        with nn.intercept_methods(_with_squared_gradients):
            logits, _ = model.apply(params, variables.stats, batch.inputs, False, key)
        log_probabilities = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_probabilities, jnp.maximum(batch.labels, 0)[:, None], axis=1)[:, 0]
        return -jnp.sum(jnp.where(batch.valid & (batch.labels >= 0), chosen, 0.0))

    return jax.grad(loss)(variables.params)


def supports(model: Model, variables: Variables) -> bool:
    """Whether every parameter of a network belongs to a layer that is known here and sees each sample once.

    A layer over the places of a sequence has many columns a sample, whose gradients are summed before they are squared.
    """
    paths: list[tuple[str, ...]] = []
    columns: set[int] = set()

    def collect(next_function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        if isinstance(context.module, SUPPORTED_LAYERS):
            leaves = ("weight", "bias") if getattr(context.module, "bias", True) else ("weight",)
            paths.extend((*context.module.path, leaf) for leaf in leaves)
            columns.add(arguments[0].shape[-1])
        return next_function(*arguments, **keywords)

    def run(variables: Variables) -> Any:
        inputs = jnp.zeros((1, *model.input.shape), model.input.dtype)
        with nn.intercept_methods(collect):
            return model.apply(variables.params, variables.stats, inputs, False, root_key(0))

    jax.eval_shape(run, variables)
    return sorted(model.param_order) == sorted(paths) and columns == {1}


def _with_squared_gradients(next_function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
    """Flax's interceptor: calls of known layers take the functions below."""
    module = context.module
    if not isinstance(module, SUPPORTED_LAYERS) or context.method_name != "__call__":
        return next_function(*arguments, **keywords)
    weight, bias = (module.get_variable("params", name) for name in ("weight", "bias"))
    (inputs,) = arguments
    if isinstance(module, Linear):
        return _add_bias(_multiply(weight, inputs), bias) if module.bias else _multiply(weight, inputs)
    return nn.relu(_add_bias(_largest(weight, inputs), bias))


@jax.custom_vjp
def _add_bias(values: Array, bias: Array) -> Array:
    """[O, ..., B] + [O]."""
    return values + bias.reshape(-1, *[1] * (values.ndim - 1))


def _add_bias_backward(_: None, cotangent: Array) -> tuple[Array, Array]:
    by_sample = cotangent.reshape(cotangent.shape[0], -1, cotangent.shape[-1]).sum(axis=1)
    return cotangent, jnp.square(by_sample).sum(axis=1)


_add_bias.defvjp(lambda values, bias: (_add_bias(values, bias), None), _add_bias_backward)


@jax.custom_vjp
def _multiply(weight: Array, inputs: Array) -> Array:
    """[M, K] @ [K, B]."""
    return weight @ inputs


def _multiply_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    weight, inputs = saved
    by_weight = jax.lax.dot_general(jnp.square(inputs), jnp.square(cotangent), (((1,), (1,)), ((), ()))).T
    return by_weight, jax.lax.dot_general(weight, cotangent, (((0,), (0,)), ((), ())))


_multiply.defvjp(lambda weight, inputs: (weight @ inputs, (weight, inputs)), _multiply_backward)


@jax.custom_vjp
def _largest(kernel: Array, images: Array) -> Array:
    """Kernels [O, C, k, k] over images [C, H, W, B], the largest output under every window: [O, rows, columns, B]."""
    return largest_and_index(images, kernel)[0]


def _largest_forward(kernel: Array, images: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    largest, index = largest_and_index(images, kernel)
    return largest, (kernel, images, index)


def _largest_backward(saved: tuple[Array, Array, Array], cotangent: Array) -> tuple[Array, Array]:
    kernel, images, index = saved
    size, samples = kernel.shape[2], images.shape[-1]
    phases, by_kernel = jax.vjp(kernel_phases, kernel)

    def add(total: Array, of_sample: tuple[Array, Array]) -> tuple[Array, None]:
        # One after another, patches and all: stacking the samples' patches takes twice the time on a CPU.
        image, sent = of_sample
        seen = pooled_patches(image[..., None], size).reshape(phases.shape[1], -1)
        by_phases = jax.lax.dot_general(seen, sent, (((1,), (1,)), ((), ()))).T
        return total + jnp.square(by_kernel(by_phases)[0]), None

    sent = to_index(index, cotangent).reshape(len(phases), -1, samples)
    total, _ = jax.lax.scan(add, jnp.zeros_like(kernel), (jnp.moveaxis(images, -1, 0), jnp.moveaxis(sent, -1, 0)))
    return total, images_gradient(images, kernel, index, cotangent)


_largest.defvjp(_largest_forward, _largest_backward)
