"""3x3 convolutions for the residual networks, fast on a CPU also in their gradients.

Activations are [B, H, W, C] and kernels are in torch's layout, (out, in, 3, 3). On a CPU a wide convolution with stride
1 and both its gradients are taken in Winograd's form, see `winograd`. The others' forward passes, and gradients by the
images with stride 1, are convolutions of the library, whose path for this layout reaches the speed of a matrix product.
Its gradient by the kernel and its strided gradient by the images do not, so they are stated as matrix products here.

Under `vmap` over clients every client has its own kernel, and the library's convolution over such kernels takes a path
twenty times as slow on a CPU. There the clients are taken in turn.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_spmc.models import forms, winograd
from fedjax_spmc.models.forms import largest_divisor
from fedjax_spmc.types import Array

HIGHEST = lax.Precision.HIGHEST
BLOCK_PIXELS = 4096
"""Pixels of a block of images in these products: its patches then stay in a CPU's cache."""


def _clients_in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    """On a CPU, `function` under `vmap` becomes a loop; elsewhere it is batched as usual."""
    looped = jax.custom_batching.sequential_vmap(function)

    def choose(*arguments: Any) -> Any:
        return (looped if jax.default_backend() == "cpu" else function)(*arguments)

    return choose


def _worth_winograd(images: Array, outputs: int, stride: int) -> bool:
    """Whether fewer multiplications outweigh the transforms."""
    _, height, width, channels = images.shape
    return forms.padded_form(outputs, channels, height, width, stride) == "winograd"


def _pad(images: Array) -> Array:
    return jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _forward(images: Array, kernel: Array, stride: int) -> Array:
    if _worth_winograd(images, kernel.shape[0], stride):
        return winograd.forward(images, kernel)
    return lax.conv_general_dilated(
        images,
        kernel.transpose(2, 3, 1, 0),
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=HIGHEST,
    )


def _by_images(cotangent: Array, kernel: Array, stride: int, height: int, width: int) -> Array:
    """Gradient by the images: a convolution with the kernel turned round; with stride 2, one product for all nine taps.

    An even row 2i of an image was read by tap 1 of output row i alone, an odd row 2i + 1 by tap 2 of row i and by tap 0
    of row i + 1; likewise for columns.
    """
    if _worth_winograd(cotangent, kernel.shape[1], stride):
        return winograd.by_images(cotangent, kernel)
    if stride == 1:
        return _forward(cotangent, kernel[:, :, ::-1, ::-1].transpose(1, 0, 2, 3), 1)
    batch, rows, columns, outputs = cotangent.shape
    channels = kernel.shape[1]
    taps = kernel.transpose(0, 2, 3, 1).reshape(outputs, -1)

    def fold(products: Array, axis: int) -> Array:
        """Taps, at `axis` + 1, to the even and the odd row (or column) of a pair."""
        before, even, odd = (lax.index_in_dim(products, tap, axis + 1, keepdims=False) for tap in range(3))
        zero = jnp.zeros_like(lax.slice_in_dim(before, 0, 1, axis=axis))
        following = lax.concatenate([lax.slice_in_dim(before, 1, None, axis=axis), zero], axis)
        return jnp.stack([even, odd + following], axis=axis + 1)

    def block(cotangent: Array) -> Array:
        products = jnp.matmul(cotangent.reshape(-1, outputs), taps, precision=HIGHEST)
        products = products.reshape(-1, rows, columns, 3, 3, channels).transpose(0, 1, 3, 2, 4, 5)
        return fold(fold(products, 1), 3).reshape(-1, 2 * rows, 2 * columns, channels)

    size = largest_divisor(batch, BLOCK_PIXELS // (rows * columns))
    if size == batch:
        return block(cotangent)[:, :height, :width]
    images = lax.map(block, cotangent.reshape(batch // size, size, *cotangent.shape[1:]))
    return images.reshape(batch, 2 * rows, 2 * columns, channels)[:, :height, :width]


def _by_kernel(images: Array, cotangent: Array, stride: int) -> Array:
    """Gradient by the kernel, [O, C, 3, 3]: cotangent^T @ patches, summed over blocks of images."""
    if _worth_winograd(images, cotangent.shape[3], stride):
        return winograd.by_kernel(images, cotangent)
    batch, rows, columns, outputs = cotangent.shape
    channels = images.shape[3]

    def block(images: Array, cotangent: Array) -> Array:
        padded, flat = _pad(images), cotangent.reshape(-1, outputs)
        down, right = stride * rows, stride * columns
        strips = jnp.concatenate([padded[:, :, v : v + right : stride] for v in range(3)], axis=3)
        taps = [strips[:, u : u + down : stride].reshape(-1, 3 * channels) for u in range(3)]
        if channels < forms.JOINED_TAPS_CHANNELS:
            taps = [jnp.concatenate(taps, axis=1)]
        # The order of the factors matters: cotangent first packs the smaller matrix.
        parts = [lax.dot_general(flat, tap, (((0,), (0,)), ((), ())), precision=HIGHEST) for tap in taps]
        return jnp.concatenate(parts, axis=1)

    size = largest_divisor(batch, BLOCK_PIXELS // (rows * columns))
    if size == batch:
        total = block(images, cotangent)
    else:
        blocks = [x.reshape(batch // size, size, *x.shape[1:]) for x in (images, cotangent)]
        empty = jnp.zeros((outputs, 9 * channels), cotangent.dtype)
        total, _ = lax.scan(lambda so_far, pair: (so_far + block(*pair), None), empty, tuple(blocks))
    return total.reshape(outputs, 3, 3, channels).transpose(0, 3, 1, 2)


def _convolution(stride: int) -> Callable[[Array, Array], Array]:
    forward = _clients_in_turn(lambda images, kernel: _forward(images, kernel, stride))
    by_kernel = _clients_in_turn(lambda images, cotangent: _by_kernel(images, cotangent, stride))

    @jax.custom_vjp
    def convolution(images: Array, kernel: Array) -> Array:
        return forward(images, kernel)

    def forward_and_saved(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return forward(images, kernel), (images, kernel)

    def gradients(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
        images, kernel = saved
        height, width = images.shape[1:3]
        by_images = _clients_in_turn(lambda cotangent, kernel: _by_images(cotangent, kernel, stride, height, width))
        return by_images(cotangent, kernel), by_kernel(images, cotangent)

    convolution.defvjp(forward_and_saved, gradients)
    return convolution


_CONVOLUTIONS = {stride: _convolution(stride) for stride in (1, 2)}


def convolution_3x3(images: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution with zero padding 1, as torch's `conv2d(padding=1)` without bias.

    Args:
        images: [B, H, W, C].
        kernel: [O, C, 3, 3].
        stride: 1 or 2.

    Returns:
        [B, ceil(H / stride), ceil(W / stride), O].
    """
    return _CONVOLUTIONS[stride](images, kernel)


def convolution_1x1(images: Array, kernel: Array, stride: int = 1) -> Array:
    """Pointwise convolution without padding: [B, H, W, C] by [O, C, 1, 1] -> [B, ceil(H / stride), ..., O]."""
    chosen = images[:, ::stride, ::stride]
    flat = jnp.matmul(chosen.reshape(-1, chosen.shape[3]), kernel[:, :, 0, 0].T, precision=HIGHEST)
    return flat.reshape(*chosen.shape[:3], -1)
