"""The sum over samples of squared gradients, from one backward pass in which every layer squares before it sums.

A network without cross-talk between samples has one cotangent column per sample in each layer. Where automatic
differentiation sums the samples' gradients, the layers here sum their squares: for a linear layer
sum_b (d_b x_b^T)^2 = (d^2) (x^2)^T, a single matrix product. Layers of other kinds are not known here.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_spmc.models.layers import ConvolutionPool, Linear, kernel_phases, max_of_first, pooled_patches
from fedjax_spmc.types import Array, Batch, Model, Params, PRNGKey, Variables

KNOWN = (Linear, ConvolutionPool)


def sum_of_squared_gradients(model: Model, variables: Variables, batch: Batch, key: PRNGKey) -> Params:
    """Sum over a batch's valid rows of the squared gradient of -log p(label | image), in eval mode.

    Memory: the gradients of the convolutions of all samples, and nothing of that kind for linear layers.

    Returns:
        A pytree like `variables.params`; check `covers` first.
    """

    def loss(params: Params) -> Array:
        with nn.intercept_methods(_squaring):
            logits, _ = model.apply(params, variables.stats, batch.images, False, key)
        log_probabilities = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_probabilities, batch.labels[:, None], axis=1)[:, 0]
        return -jnp.sum(jnp.where(batch.valid, chosen, 0.0))

    return jax.grad(loss)(variables.params)


def covers(model: Model, variables: Variables) -> bool:
    """Whether every parameter of a network belongs to a layer that is known here."""
    paths: set[tuple[str, ...]] = set()

    def collect(next_function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        if isinstance(context.module, KNOWN):
            paths.update((*context.module.path, leaf) for leaf in ("weight", "bias"))
        return next_function(*arguments, **keywords)

    def run(variables: Variables) -> Any:
        images = jnp.zeros((1, *model.image_shape), jnp.float32)
        with nn.intercept_methods(collect):
            return model.apply(variables.params, variables.stats, images, False, jax.random.key(0))

    jax.eval_shape(run, variables)
    return set(model.param_order) == paths


def _squaring(next_function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
    """Flax's interceptor: calls of known layers take the functions below."""
    module = context.module
    if not isinstance(module, KNOWN) or context.method_name != "__call__":
        return next_function(*arguments, **keywords)
    weight, bias = (module.get_variable("params", name) for name in ("weight", "bias"))
    (inputs,) = arguments
    if isinstance(module, Linear):
        return _add_bias(_multiply(weight, inputs), bias)
    products = _multiply_patches(weight, pooled_patches(inputs, weight.shape[2]))
    return nn.relu(_add_bias(max_of_first(products), bias))


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
def _multiply_patches(kernel: Array, patches: Array) -> Array:
    """Kernels [O, C, k, k] in their four phases by patches [K, rows, columns, B] -> [4, O, rows, columns, B]."""
    products = kernel_phases(kernel) @ patches.reshape(len(patches), -1)
    return products.reshape(4, kernel.shape[0], *patches.shape[1:])


def _multiply_patches_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    kernel, patches = saved
    phases, pull_back = jax.vjp(kernel_phases, kernel)
    flat = cotangent.reshape(len(phases), -1)
    by_patches = jax.lax.dot_general(phases, flat, (((0,), (0,)), ((), ()))).reshape(patches.shape)
    samples = patches.shape[-1]
    seen, sent = (jnp.moveaxis(x.reshape(len(x), -1, samples), -1, 0) for x in (patches, flat.reshape(len(phases), -1)))

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        # One after another: a batched matrix product of small matrices is slow on a CPU.
        by_phases = jax.lax.dot_general(pair[0], pair[1], (((1,), (1,)), ((), ()))).T
        return total + jnp.square(pull_back(by_phases)[0]), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(kernel), (seen, sent))
    return total, by_patches


_multiply_patches.defvjp(
    lambda kernel, patches: (_multiply_patches(kernel, patches), (kernel, patches)), _multiply_patches_backward
)
