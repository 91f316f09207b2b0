"""Grad-CAM: which places of an image a network's prediction rests on (SPMC's Figure 7)."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_spmc.keys import root_key
from fedjax_spmc.types import Array, Model, Variables


def grad_cam(model: Model, variables: Variables, images: Array) -> tuple[np.ndarray, np.ndarray | None]:
    """The predictions of a network, and how much each place of each image speaks for the predicted class.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017: the activations of the last convolution, each channel weighted by
    the mean gradient of the predicted class's logit, summed, negative values cut off.

    Args:
        model: any network whose modules are Flax's.
        variables: its parameters and statistics.
        images: [B, H, W, C] float32, normalised.

    Returns:
        predictions: [B] int.
        heat map: [B, h, w] float32 >= 0, at the resolution of the last convolution; None where the network has none.
    """
    batch = images.shape[0]
    target = _last_feature_map(model, variables, images)

    def logits_of(images: Array) -> Array:
        return model.apply(variables.params, variables.stats, images, False, root_key(0))[0]

    if target is None:
        return np.asarray(jnp.argmax(jax.jit(logits_of)(images), axis=-1)), None
    wanted, shape, batch_last = target

    @jax.jit
    def explained(images: Array) -> tuple[Array, Array, Array]:
        def chosen(shift: Array) -> tuple[Array, tuple[Array, Array]]:
            logits, activation = _with_shift(model, variables, images, wanted, shift)
            return jnp.max(logits, axis=-1).sum(), (logits, activation)

        slope, (logits, activation) = jax.grad(chosen, has_aux=True)(jnp.zeros(shape))
        return jnp.argmax(logits, axis=-1), activation, slope

    predictions, activation, slope = map(np.asarray, explained(images))
    if batch_last:  # [C, h, w, B]
        activation, slope = (np.moveaxis(array, (3, 1, 2, 0), (0, 1, 2, 3)) for array in (activation, slope))
    weights = slope.mean(axis=(1, 2), keepdims=True)
    assert len(activation) == batch
    return predictions, np.maximum((weights * activation).sum(axis=3), 0)


def _last_feature_map(model: Model, variables: Variables, images: Array) -> tuple[int, tuple[int, ...], bool] | None:
    """The last call of a module that returns a feature map: its number, the map's shape, whether the batch is last."""

    def maps(batch: int) -> list[tuple[int, tuple[int, ...]]]:
        calls: list[tuple[int, tuple[int, ...]]] = []

        def note_map(number: int, module: nn.Module, made: Any) -> Any:
            del module
            if getattr(made, "ndim", 0) == 4 and min(made.shape) > 0:
                calls.append((number, made.shape))
            return made

        shape = jax.ShapeDtypeStruct((batch, *images.shape[1:]), images.dtype)
        jax.eval_shape(lambda images: _apply_with_hook(model, variables, images, note_map), shape)
        return calls

    # Calls are listed as they end, so that a block stands behind its own convolutions: the last map of the network.
    calls, larger = maps(len(images)), maps(len(images) + 1)
    if not calls:
        return None
    number, shape = calls[-1]
    return number, shape, larger[-1][1][3] > shape[3]


def _with_shift(model: Model, variables: Variables, images: Array, wanted: int, shift: Array) -> tuple[Array, Array]:
    """(logits, feature map of the wanted call); `shift` is added to the map before the network goes on."""
    kept: list[Array] = []

    def shifted(number: int, module: nn.Module, made: Any) -> Any:
        del module
        if number != wanted:
            return made
        kept.append(made)
        return made + shift

    return _apply_with_hook(model, variables, images, shifted), kept[0]


def _apply_with_hook(
    model: Model, variables: Variables, images: Array, hook: Callable[[int, nn.Module, Any], Any]
) -> Array:
    """The logits, when every module's output is replaced by hook(number of the call, module, output)."""
    numbers = itertools.count()

    def intercept(next_function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return next_function(*arguments, **keywords)
        number = next(numbers)
        return hook(number, context.module, next_function(*arguments, **keywords))

    with nn.intercept_methods(intercept):
        return model.apply(variables.params, variables.stats, images, False, root_key(0))[0]
