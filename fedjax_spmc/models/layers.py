"""Layers of the networks, written so that they are fast on a CPU when every client has its own weights.

Inside a network the batch is the LAST axis: activations are [channels, height, width, B] or [features, B]. A weight in
torch's layout, (out, in), then multiplies from the left as it is, the channel-major flattening of torch is a plain
reshape, and every slice of an image is contiguous in memory.
"""

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_spmc.keys import root_key
from fedjax_spmc.models import flax_layers
from fedjax_spmc.models.pooled import convolution_pool
from fedjax_spmc.models.product import product
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
    # Columns first, as in `pooled.pooled_patches`.
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
    """Affine map [in, B] -> [features, B], or a linear one without a bias."""

    features: int
    bias: bool = True

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Multiplies and adds."""
        weight = self.param("weight", torch_uniform(inputs.shape[0]), (self.features, inputs.shape[0]))
        if not self.bias:
            return product(weight, inputs)
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


def as_model(
    module: nn.Module,
    num_classes: int,
    shape: tuple[int, ...],
    dropout: bool = False,
    dtype: Any = jnp.float32,
    fast_forms: bool = True,
) -> Model:
    """Wraps a Flax module called as `module(inputs [B, ...], train)`.

    Where saved models shall load into torch, the module creates its parameters in torch's registration order, under
    torch's names and in torch's layout, as the layers of this file do; those of Flax's own layers stay Flax's. Its
    batch statistics are the collection "batch_stats". One that has any and can leave rows out of them takes a third
    argument, `valid`, [B] bool or None; without it `Model.apply` refuses `valid`. `Model.features` is None unless the
    last parameters are the weight and the bias of a `Linear`.

    Args:
        module: the network.
        num_classes: number of logits.
        shape: of one example, (H, W, C) of images or (T,) of tokens.
        dropout: whether it draws random numbers in training; they come from Flax's stream "dropout", which begins with
            the `key` that `Model.apply` is given. A module without it never reads that key.
        dtype: of the inputs.
        fast_forms: whether `nn.Conv`, `nn.max_pool` and `nn.Dense` are computed on a CPU in faster forms, which differ
            from the library's by rounding (`flax_layers`). `Model.left` names what has none.
    """
    takes_valid = "valid" in inspect.signature(type(module).__call__).parameters

    def init(key: PRNGKey) -> Variables:
        variables = module.init(key, jnp.zeros((1, *shape), dtype), False)
        stats = variables.get("batch_stats")
        return Variables(ordered(variables["params"]), ordered(stats) if stats else {})

    def apply(
        params: Params, stats: Stats, inputs: Array, train: bool, key: PRNGKey | None = None, valid: Array | None = None
    ) -> tuple[Array, Stats]:
        if stats and valid is not None and not takes_valid:
            raise ValueError(
                f"{type(module).__name__} has batch statistics, which count every row: it takes no `valid`."
            )
        if dropout and train and key is None:
            raise ValueError(f"{type(module).__name__} draws random numbers in training: Model.apply needs a key.")
        draws = {"dropout": key} if dropout and train and key is not None else {}
        variables, rows = {"params": params, "batch_stats": stats}, (valid,) if takes_valid else ()
        with flax_layers.fast_forms(fast_forms):
            if not stats:
                return jnp.asarray(module.apply({"params": params}, inputs, train, rngs=draws)), stats
            logits, new = module.apply(variables, inputs, train, *rows, rngs=draws, mutable=["batch_stats"])
        return logits, ordered(new["batch_stats"], like=stats)

    linear: dict[tuple[str, ...], bool] = {}

    def note(next_function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        if isinstance(context.module, Linear):
            linear[context.module.path] = context.module.bias
        return next_function(*arguments, **keywords)

    with nn.intercept_methods(note), flax_layers.fast_forms(fast_forms) as left:
        order = paths(jax.eval_shape(init, root_key(0)).params)
    last = order[-1][:-1]

    def features(
        params: Params, stats: Stats, inputs: Array, train: bool, key: PRNGKey | None = None, valid: Array | None = None
    ) -> tuple[Array, Stats]:
        taken = []

        def catch(next_function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
            if isinstance(context.module, Linear) and context.module.path == last:
                taken.append(arguments[0])
            return next_function(*arguments, **keywords)

        with nn.intercept_methods(catch):
            _, new_stats = apply(params, stats, inputs, train, key, valid)
        return taken[0].T, new_stats

    input = jax.ShapeDtypeStruct(shape, dtype)
    return Model(init, apply, order, num_classes, input, features if linear.get(last) else None, tuple(left))
