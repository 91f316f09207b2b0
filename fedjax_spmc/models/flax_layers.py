"""Flax's own `nn.Conv`, `nn.max_pool`, `nn.Dense` and `nn.Dropout`, computed on a CPU in the forms that `forms` picks.

A network that is written with them keeps its parameters, their names and layouts; only the arithmetic is another, whose
results differ by rounding. XLA's convolution has gradients on a CPU that are many times as slow as a matrix product,
and its max-pool a slow select-and-scatter.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen import pooling
from jax import lax

from fedjax_spmc.models import forms, rows, threefry
from fedjax_spmc.models.convolution import convolution_3x3
from fedjax_spmc.models.picking import first_largest
from fedjax_spmc.models.product import product
from fedjax_spmc.types import Array, PRNGKey

MOST_OF_A_WINDOW = 64
"""Places in a window of a max-pool, at most: more are left to the library."""
LEFT = (nn.ConvTranspose, nn.ConvLocal)
"""Layers that always stay with the library."""

_left: ContextVar[dict[str, None] | None] = ContextVar("left to the library", default=None)
"""What was left to the library, in the order met, while the forms are on; None = they are off."""


@contextlib.contextmanager
def fast_forms(on: bool = True) -> Iterator[dict[str, None]]:
    """For as long as the `with` block lasts, Flax's layers are computed in the forms that `forms` picks.

    Args:
        on: False leaves all to the library.

    Yields:
        A dict whose keys come to name, in the order met, the layers that were left to the library and why.
    """
    left: dict[str, None] = {}
    if not on or not forms.on_cpu():
        yield left
        return
    _watch_pools()
    token = _left.set(left)
    try:
        with nn.intercept_methods(_with_hook):
            yield left
    finally:
        _left.reset(token)


def convolve(
    lhs: Array,
    rhs: Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    name: str = "a convolution",
) -> Array:
    """`lax.conv_general_dilated`, for `nn.Conv`'s hook `conv_general_dilated=`; see there.

    Args:
        lhs, ..., preferred_element_type: as there.
        name: of the layer, where it is left to the library.
    """
    left = _left.get()
    asked = (lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, batch_group_count, precision)
    work = None
    if lhs.ndim == 4 and batch_group_count == 1 and preferred_element_type is None:
        work = _work_of(lhs, rhs, window_strides, padding, *asked[:4])
    form = "library" if work is None else forms.form_of(work)
    if work is None or form == "library":
        if left is not None and forms.on_cpu():
            reason = f"{lhs.ndim - 2} dimensions" if work is None else forms.why_library(work)
            left[f"{name} ({reason})"] = None
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, *asked, preferred_element_type=preferred_element_type
        )
    if form == "taps":
        return convolution_3x3(lhs, rhs.transpose(3, 2, 0, 1), work.strides[0])
    return (by_rows if form == "rows" else by_patches)(lhs, rhs, work)


def slow_layers(left: Sequence[str]) -> str:
    """What a user is told of the layers that were left to the library, all of them at once."""
    return f"slow on a CPU, as the library computes the gradients: {', '.join(left)} (docs/extend.md, a Flax model)"


def by_patches(images: Array, kernel: Array, work: forms.Work) -> Array:
    """A convolution as one product over its patches, the batch last: [B, H, W, C] by [h, w, C, K] -> [B, ..., K]."""
    (high, wide), (lines, columns) = work.size, work.windows
    (down, right), (apart, beside) = work.strides, work.dilation
    padded = jnp.pad(images, ((0, 0), *work.padding, (0, 0))).transpose(3, 1, 2, 0)

    def seen(x: Array, axis: int, start: int, count: int, stride: int) -> Array:
        return lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)

    # Columns first, as in `pooled.pooled_patches`.
    strips = jnp.stack([seen(padded, 2, v * beside, columns, right) for v in range(wide)])
    patches = jnp.stack([seen(strips, 2, u * apart, lines, down) for u in range(high)])
    weight = kernel.transpose(3, 0, 1, 2).reshape(work.kernels, -1)
    products = product(weight, patches.reshape(weight.shape[1], -1))
    return products.reshape(work.kernels, lines, columns, -1).transpose(3, 1, 2, 0)


def by_rows(images: Array, kernel: Array, work: forms.Work) -> Array:
    """The same for strides of 1, one row of windows at a time, see `rows`."""
    parts = jnp.pad(images, ((0, 0), *work.padding, (0, 0))).transpose(1, 3, 2, 0)
    taps = kernel.transpose(3, 0, 1, 2).reshape(work.kernels, -1)
    products: Array = rows.convolution(parts, taps, work.size)
    return products.reshape(*products.shape[:2], work.windows[1], -1).transpose(3, 0, 2, 1)


def max_pool(inputs: Array, window: tuple[int, int], windows: tuple[int, int]) -> Array:
    """The largest of windows that lie side by side: [B, H, W, C] -> [B, *windows, C]; a rest at the edges is left out.

    On an exact tie the first of a window gets the gradient, as in the library; NaN is the largest of all.
    """
    (high, wide), (down, right) = window, windows
    last = inputs.transpose(1, 3, 2, 0)[: down * high, :, : right * wide]  # as the convolutions have it
    cut = last.reshape(down, high, last.shape[1], right, wide, -1)
    largest = first_largest(jnp.stack([cut[:, p, :, :, q] for p in range(high) for q in range(wide)]))
    return largest.transpose(3, 0, 2, 1)


def _work_of(
    lhs: Array, rhs: Array, strides: Any, padding: Any, lhs_dilation: Any, rhs_dilation: Any, numbers: Any, groups: int
) -> forms.Work | None:
    """What is asked for, as the rule reads it; None where the axes are in another order than Flax's."""
    expected = lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
    if lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers) != expected:
        return None
    high, wide, channels, kernels = rhs.shape
    strides, dilation = tuple(strides), (1, 1) if rhs_dilation is None else tuple(rhs_dilation)
    reach = (high - 1) * dilation[0] + 1, (wide - 1) * dilation[1] + 1
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], reach, strides, padding)
    pads: Any = tuple((int(before), int(after)) for before, after in padding)
    lines, columns = (
        (side + before + after - far) // step + 1
        for side, (before, after), far, step in zip(lhs.shape[1:3], pads, reach, strides, strict=True)
    )
    plain = lhs.dtype == rhs.dtype and lhs.dtype in (jnp.float32, jnp.float64) and min(lines, columns) > 0
    plain = plain and (lhs_dilation is None or tuple(lhs_dilation) == (1, 1))
    return forms.Work(
        kernels, channels, (high, wide), (lines, columns), len(lhs), strides, pads, dilation, groups, plain
    )


def _dense(lhs: Array, rhs: Array, dimension_numbers: Any, precision: Any = None, **others: Any) -> Array:
    """`lax.dot_general` as `nn.Dense` calls it, rows by a matrix, with gradients in the order that a CPU is fast in."""
    if others or lhs.dtype != rhs.dtype or dimension_numbers != (((lhs.ndim - 1,), (0,)), ((), ())):
        return lax.dot_general(lhs, rhs, dimension_numbers, precision=precision, **others)
    return product(lhs.reshape(-1, lhs.shape[-1]), rhs).reshape(*lhs.shape[:-1], rhs.shape[1])


def _with_hook(call: Callable[..., Any], arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
    """Gives a layer of Flax's that is about to compute its hook; one that a user gave stays."""
    module, left = context.module, _left.get()
    if left is None or context.method_name != "__call__":
        return call(*arguments, **keywords)
    if type(module) is nn.Dropout:
        return _drop(module, *arguments, **keywords)
    name = ".".join(module.path)
    hooks = {}
    if type(module) is nn.Conv and module.conv_general_dilated is None and module.conv_general_dilated_cls is None:
        hooks = {"conv_general_dilated": functools.partial(convolve, name=f"nn.Conv {name}")}
    elif type(module) is nn.Dense and module.dot_general is None and module.dot_general_cls is None:
        hooks = {"dot_general": _dense}
    elif isinstance(module, LEFT):
        left[f"nn.{type(module).__name__} {name}"] = None
    for hook, function in hooks.items():  # a bound module is frozen, but it is this call's own
        object.__setattr__(module, hook, function)
    try:
        return call(*arguments, **keywords)
    finally:
        for hook in hooks:
            object.__setattr__(module, hook, None)


def _drop(layer: nn.Dropout, inputs: Array, deterministic: bool | None = None, rng: PRNGKey | None = None) -> Array:
    """What `nn.Dropout` returns, number for number, its mask drawn in one loop."""
    if layer.rate == 0.0 or nn.merge_param("deterministic", layer.deterministic, deterministic):
        return inputs
    if layer.rate == 1.0:
        return jnp.zeros_like(inputs)
    key = layer.make_rng(layer.rng_collection) if rng is None else rng
    shared = {axis % inputs.ndim for axis in layer.broadcast_dims}
    shape = tuple(1 if axis in shared else side for axis, side in enumerate(inputs.shape))
    kept = threefry.bernoulli(key, 1.0 - layer.rate, shape)
    return jnp.where(jnp.broadcast_to(kept, inputs.shape), inputs / (1.0 - layer.rate), jnp.zeros_like(inputs))


@functools.cache
def _watch_pools() -> None:
    """`nn.max_pool` is a function and no module: what it calls asks from now on whether the forms are on."""
    library = pooling.pool

    @functools.wraps(library)
    def pool(inputs: Array, init: Any, reduce_fn: Any, window_shape: Any, strides: Any, padding: Any) -> Array:
        left = _left.get()
        if left is None or reduce_fn is not lax.max:
            return library(inputs, init, reduce_fn, window_shape, strides, padding)
        windows = _windows_side_by_side(inputs, tuple(window_shape), strides, padding)
        if windows is not None:
            return max_pool(inputs, tuple(window_shape), windows)
        left[f"nn.max_pool of {tuple(window_shape)} windows with strides {strides}, padding {padding}"] = None
        return library(inputs, init, reduce_fn, window_shape, strides, padding)

    pooling.pool = pool


def _windows_side_by_side(inputs: Array, window: tuple[int, ...], strides: Any, padding: Any) -> Any:
    """How many windows there are in each direction, where they neither overlap nor read padding; else None."""
    fits = inputs.ndim == 4 and len(window) == 2 and strides is not None and tuple(strides) == window
    if not fits or not jnp.issubdtype(inputs.dtype, jnp.floating) or window[0] * window[1] > MOST_OF_A_WINDOW:
        return None
    pads = padding
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(inputs.shape[1:3], window, window, padding)
    if any(before or after for before, after in pads):
        return None
    windows = inputs.shape[1] // window[0], inputs.shape[2] // window[1]
    return windows if min(windows) > 0 else None


__all__ = ["by_patches", "by_rows", "convolve", "fast_forms", "max_pool", "slow_layers"]
