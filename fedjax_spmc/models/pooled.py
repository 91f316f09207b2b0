"""A convolution, ReLU and max-pool as matrix products, for narrow layers whose clients have weights of their own.

The four outputs under a pooling window are four channels of one convolution with stride 2, whose kernel is one row and
one column larger: phase (p, q) is the kernel shifted by (p, q). On the 2x2 space-to-depth image that is a convolution
with stride 1, so the patches are few and long slices. Activations are [channels, height, width, B], see `layers`.

On a CPU one row of windows is taken at a time: its patches are copied, multiplied and forgotten while they lie in the
cache, and copied again for the gradient. Elsewhere, and where every row would have to read wide kernels for few
patches, the whole image is one product.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fedjax_spmc.models.product import product
from fedjax_spmc.types import Array


def convolution_pool(images: Array, kernel: Array, bias: Array) -> Array:
    """Valid convolution with stride 1, ReLU and 2x2 max-pool with stride 2.

    Bias and ReLU come after the maximum, which changes nothing because both are monotone and shared by the window. A
    size that leaves the pooling a rest drops it. On an exact tie the first of a window gets the gradient, as in torch.

    Args:
        images: [C, H, W, B].
        kernel: [O, C, k, k], k odd.
        bias: [O].

    Returns:
        [O, (H - k + 1) // 2, (W - k + 1) // 2, B].
    """
    _, height, width, batch = images.shape
    size, features = kernel.shape[2], len(bias)
    rows, columns = (height - size + 1) // 2, (width - size + 1) // 2
    phases = kernel_phases(kernel)
    if jax.default_backend() == "cpu" and 2 * len(phases) <= columns * batch:
        largest = _largest_by_rows(blocks(images, size), phases).swapaxes(0, 1)
    else:
        patches = pooled_patches(images, size)
        largest = max_of_first(product(phases, patches.reshape(len(patches), -1)).reshape(4, features, -1))
    return nn.relu(largest.reshape(features, rows, columns, batch) + bias[:, None, None, None])


def blocks(images: Array, size: int) -> Array:
    """2x2 space to depth, as far as kernels size x size with a pool reach: [C, H, W, B] -> [H', 4 C, W', B]."""
    channels, height, width, batch = images.shape
    down, right = ((side - size + 1) // 2 + (size - 1) // 2 for side in (height, width))
    cut = images[:, : 2 * down, : 2 * right].reshape(channels, down, 2, right, 2, batch)
    return cut.transpose(1, 2, 4, 0, 3, 5).reshape(down, 4 * channels, right, batch)


def kernel_phases(kernel: Array) -> Array:
    """The kernel shifted by (p, q), for each of the four outputs under a window: [O, C, k, k] -> [4 O, C (k + 1)^2]."""
    outputs, channels, size, _ = kernel.shape
    taps = (size + 1) // 2
    phases = jnp.stack([jnp.pad(kernel, ((0, 0), (0, 0), (p, 1 - p), (q, 1 - q))) for p in (0, 1) for q in (0, 1)])
    phases = phases.reshape(4, outputs, channels, taps, 2, taps, 2).transpose(0, 1, 3, 5, 4, 6, 2)
    return phases.reshape(4 * outputs, -1)


def pooled_patches(images: Array, size: int) -> Array:
    """What all outputs see, in the order of `kernel_phases`: [C, H, W, B] -> [C (size + 1)^2, rows, columns, B]."""
    taps, parts = (size + 1) // 2, blocks(images, size)
    rows, columns = len(parts) - taps + 1, parts.shape[2] - taps + 1
    # Columns first, rows second: the second stack, by far the larger, then copies whole rows of the image.
    strips = jnp.stack([parts[:, :, v : v + columns].swapaxes(0, 1) for v in range(taps)])
    patches = jnp.stack([strips[:, :, u : u + rows] for u in range(taps)])
    return patches.reshape(-1, rows, columns, images.shape[-1])


@jax.custom_vjp
def max_of_first(values: Array) -> Array:
    """Maximum over the leading axis, [4, ...] -> [...]; on an exact tie the first gets the gradient, as in torch."""
    return _max_and_index(values)[0]


def _max_and_index(values: Array) -> tuple[Array, Array]:
    largest = values[0]
    index = jnp.zeros(largest.shape, jnp.int8)
    for phase in range(1, 4):
        above = values[phase] > largest
        largest = jnp.where(above, values[phase], largest)
        index = jnp.where(above, jnp.int8(phase), index)
    return largest, index


def _to_index(index: Array, cotangent: Array) -> Array:
    """[...] -> [4, ...], zero but where `index` says. By hand: automatic differentiation pads and adds four parts."""
    phases = lax.broadcasted_iota(jnp.int8, (4, *index.shape), 0)
    return jnp.where(phases == index[None], cotangent[None], jnp.zeros((), cotangent.dtype))


max_of_first.defvjp(_max_and_index, lambda index, cotangent: (_to_index(index, cotangent),))


@jax.custom_vjp
def _largest_by_rows(parts: Array, phases: Array) -> Array:
    """The largest of the four outputs under every window: `blocks` [H', 4 C, W', B], phases -> [rows, O, columns B]."""
    return _largest_forward(parts, phases)[0]


def _taps(parts: Array, phases: Array) -> int:
    return math.isqrt(phases.shape[1] // parts.shape[1])


def _patches_of_row(parts: Array, row: Array, taps: int) -> Array:
    """[taps^2 4 C, columns B]: what the windows of one row see."""
    _, depth, width, batch = parts.shape
    sizes = taps, depth, width - taps + 1, batch
    # Each shift is a slice of its own: XLA copies them one after the other; cut out of one slice it copies them slowly.
    seen = jnp.stack([lax.dynamic_slice(parts, (row, 0, v, 0), sizes) for v in range(taps)], axis=1)
    return seen.reshape(taps * taps * depth, -1)


def _largest_forward(parts: Array, phases: Array) -> tuple[Array, Any]:
    taps = _taps(parts, phases)
    rows = jnp.arange(len(parts) - taps + 1)

    def forward(_: None, row: Array) -> tuple[None, tuple[Array, Array]]:
        products = phases @ _patches_of_row(parts, row, taps)
        return None, _max_and_index(products.reshape(4, len(phases) // 4, -1))

    _, (largest, index) = lax.scan(forward, None, rows)
    return largest, (parts, phases, rows, index)


def _largest_backward(saved: tuple[Array, Array, Array, Array], cotangent: Array) -> tuple[Array, Array]:
    parts, phases, rows, index = saved
    taps = _taps(parts, phases)
    height, depth, width, batch = parts.shape
    columns = width - taps + 1

    def sent_to(index: Array, cotangent: Array) -> Array:
        return _to_index(index, cotangent).reshape(len(phases), -1)

    # Two loops: a first layer has no use for the second. Patches times cotangents and not the other way round, as
    # automatic differentiation has it: that takes a third longer on a CPU.
    def by_phases(total: Array, of_row: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, index, cotangent = of_row
        patches, sent = _patches_of_row(parts, row, taps), sent_to(index, cotangent)
        return total + lax.dot_general(patches, sent, (((1,), (1,)), ((), ()))), None

    def by_strips(total: Array, of_row: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, index, cotangent = of_row
        by_patches = lax.dot_general(phases, sent_to(index, cotangent), (((0,), (0,)), ((), ())))
        sum_so_far = lax.dynamic_slice_in_dim(total, row, taps)
        sum_now = sum_so_far + by_patches.reshape(sum_so_far.shape)
        return lax.dynamic_update_slice_in_dim(total, sum_now, row, 0), None

    def strips(parts: Array) -> Array:
        return jnp.stack([parts[:, :, v : v + columns] for v in range(taps)], axis=1)

    of_rows = rows, index, cotangent
    phases_too, _ = lax.scan(by_phases, jnp.zeros(phases.shape[::-1], phases.dtype), of_rows)
    strips_too, _ = lax.scan(by_strips, jnp.zeros((height, taps * depth, columns * batch), parts.dtype), of_rows)
    (parts_too,) = jax.linear_transpose(strips, parts)(strips_too.reshape(height, taps, depth, columns, batch))
    return parts_too, phases_too.T


_largest_by_rows.defvjp(_largest_forward, _largest_backward)
