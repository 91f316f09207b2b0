"""Layers of the networks, written so that they are fast on a CPU when every client has its own weights.

Inside a network the batch is the LAST axis: activations are [channels, height, width, B] or [features, B]. A weight in
torch's layout, (out, in), then multiplies from the left as it is, the channel-major flattening of torch is a plain
reshape, and every slice of an image is contiguous in memory.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_spmc.types import Array, Model, Params, PRNGKey, Stats, Variables


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Torch's default for convolutions and linear layers, weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = float(1 / np.sqrt(fan_in))

    def draw(key: PRNGKey, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def batch_last(images: Array) -> Array:
    """[B, H, W, C] -> [C, H, W, B]."""
    return images.transpose(3, 1, 2, 0)


@jax.custom_vjp
def product(weight: Array, inputs: Array) -> Array:
    """Matrix product [M, K] @ [K, N] whose two gradients are taken in the order of factors that a CPU runs fastest.

    Over the many columns of a convolution, inputs @ cotangent^T takes 0.7 ms of CPU time where cotangent @ inputs^T,
    the order of automatic differentiation, takes 1.3 ms.
    """
    return weight @ inputs


def _product_forward(weight: Array, inputs: Array) -> tuple[Array, tuple[Array, Array]]:
    return weight @ inputs, (weight, inputs)


def _product_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    weight, inputs = saved
    by_weight = jax.lax.dot_general(inputs, cotangent, (((1,), (1,)), ((), ()))).T
    by_inputs = jax.lax.dot_general(weight, cotangent, (((0,), (0,)), ((), ())))
    return by_weight, by_inputs


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def max_of_first(values: Array) -> Array:
    """Maximum over the leading axis, [4, ...] -> [...]; on an exact tie the first gets the gradient, as in torch."""
    return _max_forward(values)[0]


def _max_forward(values: Array) -> tuple[Array, Array]:
    largest = values[0]
    index = jnp.zeros(largest.shape, jnp.int8)
    for phase in range(1, 4):
        above = values[phase] > largest
        largest = jnp.where(above, values[phase], largest)
        index = jnp.where(above, jnp.int8(phase), index)
    return largest, index


def _max_backward(index: Array, cotangent: Array) -> tuple[Array]:
    # Stated by hand: automatic differentiation pads and adds the four parts, which costs more than the product itself.
    return (jnp.stack([jnp.where(index == phase, cotangent, 0) for phase in range(4)]),)


max_of_first.defvjp(_max_forward, _max_backward)


def pooled_patches(images: Array, size: int) -> Array:
    """What a `convolution_pool` of kernels size x size sees: [C, H, W, B] -> [C * (size + 1)^2, rows, columns, B]."""
    channels, height, width, batch = images.shape
    rows, columns, taps = (height - size + 1) // 2, (width - size + 1) // 2, (size + 1) // 2
    down, right = rows + taps - 1, columns + taps - 1
    blocks = images[:, : 2 * down, : 2 * right].reshape(channels, down, 2, right, 2, batch)
    blocks = blocks.transpose(2, 4, 0, 1, 3, 5).reshape(4 * channels, down, right, batch)
    # Columns first, rows second: the second stack, by far the larger, then copies whole rows of the image.
    strips = jnp.stack([blocks[:, :, v : v + columns] for v in range(taps)])
    strips = strips.reshape(4 * taps * channels, down, columns * batch)
    patches = jnp.stack([strips[:, u : u + rows] for u in range(taps)])
    return patches.reshape(4 * taps * taps * channels, rows, columns, batch)


def kernel_phases(kernel: Array) -> Array:
    """The kernel shifted by (p, q), for each of the four outputs under a window: [O, C, k, k] -> [4 O, C (k + 1)^2]."""
    outputs, channels, size, _ = kernel.shape
    taps = (size + 1) // 2
    phases = jnp.stack([jnp.pad(kernel, ((0, 0), (0, 0), (p, 1 - p), (q, 1 - q))) for p in (0, 1) for q in (0, 1)])
    phases = phases.reshape(4, outputs, channels, taps, 2, taps, 2).transpose(0, 1, 3, 5, 4, 6, 2)
    return phases.reshape(4 * outputs, -1)


def convolution_pool(images: Array, kernel: Array, bias: Array) -> Array:
    """Valid convolution with stride 1, ReLU and 2x2 max-pool with stride 2, as one matrix product.

    The four outputs under a pooling window are four channels of one convolution with stride 2, whose kernel is one row
    and one column larger: phase (p, q) is the kernel shifted by (p, q). On the 2x2 space-to-depth image that is a
    convolution with stride 1, so the patches are few and long slices. Bias and ReLU come after the maximum, which
    changes nothing because both are monotone and shared by the window. A size that leaves the pooling a rest drops it.

    Args:
        images: [C, H, W, B].
        kernel: [O, C, k, k], k odd.
        bias: [O].

    Returns:
        [O, (H - k + 1) // 2, (W - k + 1) // 2, B].
    """
    patches = pooled_patches(images, kernel.shape[2])
    products = product(kernel_phases(kernel), patches.reshape(len(patches), -1))
    largest = max_of_first(products.reshape(4, len(bias), *patches.shape[1:]))
    return nn.relu(largest + bias[:, None, None, None])


def _kernel_and_bias(module: nn.Module, features: int, channels: int, size: int) -> tuple[Array, Array]:
    """The parameters of a convolution, in torch's order: weight [features, channels, size, size], bias [features]."""
    draw = torch_uniform(channels * size * size)
    weight = module.param("weight", draw, (features, channels, size, size))
    return weight, module.param("bias", draw, (features,))


class ConvolutionPool(nn.Module):
    """A `convolution_pool` with its own kernel and bias: [C, H, W, B] -> [features, rows, columns, B]."""

    features: int
    size: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Convolves, cuts off at zero and pools."""
        return convolution_pool(images, *_kernel_and_bias(self, self.features, len(images), self.size))


def convolution(images: Array, kernel: Array, bias: Array) -> Array:
    """Valid convolution with stride 1 as one matrix product over the patches: [C, H, W, B] -> [O, rows, columns, B].

    Args:
        images: [C, H, W, B].
        kernel: [O, C, k, k].
        bias: [O].
    """
    outputs, channels, size, _ = kernel.shape
    rows, columns = images.shape[1] - size + 1, images.shape[2] - size + 1
    # Columns first, as in `pooled_patches`.
    strips = jnp.stack([images[:, :, v : v + columns] for v in range(size)])
    patches = jnp.stack([strips[:, :, u : u + rows] for u in range(size)])
    weight = kernel.transpose(0, 2, 3, 1).reshape(outputs, -1)
    products = product(weight, patches.reshape(channels * size * size, -1))
    return products.reshape(outputs, rows, columns, -1) + bias[:, None, None, None]


class Convolution(nn.Module):
    """A `convolution` with its own kernel and bias: [C, H, W, B] -> [features, H - size + 1, W - size + 1, B]."""

    features: int
    size: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Convolves."""
        return convolution(images, *_kernel_and_bias(self, self.features, len(images), self.size))


class Linear(nn.Module):
    """Affine map [in, B] -> [features, B]."""

    features: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Multiplies and adds."""
        weight = self.param("weight", torch_uniform(inputs.shape[0]), (self.features, inputs.shape[0]))
        bias = self.param("bias", torch_uniform(inputs.shape[0]), (self.features,))
        return product(weight, inputs) + bias[:, None]


def ordered(tree: Any, like: Mapping[str, Any] | None = None) -> Any:
    """Copies nested dicts into `OrderedDict`s, whose leaves jax visits in order of insertion instead of sorted by key.

    Args:
        tree: nested dicts.
        like: nested dicts with the same keys whose order is taken; default: the order of `tree`.
    """
    if not isinstance(tree, Mapping):
        return tree
    keys = tree if like is None else like
    return OrderedDict((key, ordered(tree[key], None if like is None else like[key])) for key in keys)


def paths(tree: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """The paths of all leaves of nested dicts, in order."""
    return tuple(
        (key, *rest) for key, value in tree.items() for rest in (paths(value) if isinstance(value, Mapping) else ((),))
    )


def as_model(module: nn.Module, num_classes: int, image_shape: tuple[int, int, int], dropout: bool = False) -> Model:
    """Wraps a Flax module called as `module(images [B, H, W, C], train)`.

    The module must create its parameters in torch's registration order, under torch's names and in torch's layout; its
    batch statistics are the collection "batch_stats".

    Args:
        module: the network.
        num_classes: number of logits.
        image_shape: (H, W, C).
        dropout: whether it draws random numbers in training; they come from Flax's stream "dropout", which begins with
            the `key` that `Model.apply` is given. A module without it never reads that key.
    """

    def init(key: PRNGKey) -> Variables:
        variables = module.init(key, jnp.zeros((1, *image_shape), jnp.float32), False)
        stats = variables.get("batch_stats")
        return Variables(ordered(variables["params"]), ordered(stats) if stats else {})

    def apply(
        params: Params, stats: Stats, images: Array, train: bool, key: PRNGKey | None = None
    ) -> tuple[Array, Stats]:
        if dropout and train and key is None:
            raise ValueError(f"{type(module).__name__} draws random numbers in training: Model.apply needs a key.")
        draws = {"dropout": key} if dropout and train and key is not None else {}
        if not stats:
            return jnp.asarray(module.apply({"params": params}, images, train, rngs=draws)), stats
        variables = {"params": params, "batch_stats": stats}
        logits, new = module.apply(variables, images, train, rngs=draws, mutable=["batch_stats"])
        return logits, ordered(new["batch_stats"], like=stats)

    order = paths(jax.eval_shape(init, jax.random.key(0)).params)
    return Model(init, apply, order, num_classes, image_shape)
