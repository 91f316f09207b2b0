"""A convolution, ReLU and max-pool as matrix products, for narrow layers whose clients have weights of their own.

The four outputs under a pooling window are four channels of one convolution with stride 2, whose kernel is one row and
one column larger: phase (p, q) is the kernel shifted by (p, q). On the 2x2 space-to-depth image that is a convolution
with stride 1, so the patches are few and long slices. Activations are [channels, height, width, B], see `layers`.

On a CPU one row of windows is taken at a time: its patches are copied, multiplied and forgotten while they lie in the
cache, and copied again for the gradient. Elsewhere, and where every row would have to read wide kernels for few
patches, the whole image is one product.
"""

from collections.abc import Sequence
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
        largest = _largest_by_rows(strips(images, size), phases).swapaxes(0, 1)
    else:
        patches = pooled_patches(images, size).reshape(-1, rows * columns * batch)
        largest = max_of_first(product(phases, patches).reshape(4, features, -1))
    return nn.relu(largest.reshape(features, rows, columns, batch) + bias[:, None, None, None])


def strips(images: Array, size: int) -> Array:
    """What a row of 2x2 blocks holds for every output above it, for kernels size x size: [C, H, W, B] -> [H', S, N].

    N = columns of outputs * B; S = 2 C (size + 1); H' = rows of outputs and (size - 1) // 2 more. An output of row r
    sees the strips r to r + (size - 1) // 2.
    """
    channels, height, width, batch = images.shape
    rows, columns, taps = (height - size + 1) // 2, (width - size + 1) // 2, (size + 1) // 2
    down, right = rows + taps - 1, columns + taps - 1
    blocks = images[:, : 2 * down, : 2 * right].reshape(channels, down, 2, right, 2, batch)
    blocks = blocks.transpose(1, 2, 4, 0, 3, 5).reshape(down, 4 * channels, right, batch)
    shifted = _stack_second([blocks[:, :, v : v + columns] for v in range(taps)])
    return shifted.reshape(down, 4 * taps * channels, columns * batch)


def _stack_second(parts: Sequence[Array]) -> Array:
    """`jnp.stack(parts, 1)`; on a CPU one is written after the other, which takes half the time of joining them."""
    if jax.default_backend() != "cpu":
        return jnp.stack(parts, 1)
    whole = jnp.zeros((len(parts[0]), len(parts), *parts[0].shape[1:]), parts[0].dtype)
    for index, part in enumerate(parts):
        whole = whole.at[:, index].set(part)
    return whole


def pooled_patches(images: Array, size: int) -> Array:
    """What all outputs see: [C, H, W, B] -> [C (size + 1)^2, rows, N], N = columns * B."""
    stripped, taps = strips(images, size), (size + 1) // 2
    rows = len(stripped) - taps + 1
    seen = jnp.stack([stripped[u : u + rows].swapaxes(0, 1) for u in range(taps)])
    return seen.reshape(-1, *seen.shape[2:])


def kernel_phases(kernel: Array) -> Array:
    """The kernel shifted by (p, q), for each of the four outputs under a window: [O, C, k, k] -> [4 O, C (k + 1)^2]."""
    outputs, channels, size, _ = kernel.shape
    taps = (size + 1) // 2
    phases = jnp.stack([jnp.pad(kernel, ((0, 0), (0, 0), (p, 1 - p), (q, 1 - q))) for p in (0, 1) for q in (0, 1)])
    phases = phases.reshape(4, outputs, channels, taps, 2, taps, 2).transpose(0, 1, 3, 5, 4, 6, 2)
    return phases.reshape(4 * outputs, -1)


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
def _largest_by_rows(stripped: Array, phases: Array) -> Array:
    """The largest of the four outputs under every window: `strips` [H', S, N], phases [4 O, K] -> [rows, O, N]."""
    return _largest_forward(stripped, phases)[0]


def _largest_forward(stripped: Array, phases: Array) -> tuple[Array, Any]:
    taps = phases.shape[1] // stripped.shape[1]
    rows = jnp.arange(len(stripped) - taps + 1)

    def forward(_: None, row: Array) -> tuple[None, tuple[Array, Array]]:
        products = phases @ _patches_of_row(stripped, row, taps)
        return None, _max_and_index(products.reshape(4, len(phases) // 4, -1))

    _, (largest, index) = lax.scan(forward, None, rows)
    return largest, (stripped, phases, rows, index)


def _patches_of_row(stripped: Array, row: Array, taps: int) -> Array:
    return lax.dynamic_slice_in_dim(stripped, row, taps).reshape(-1, stripped.shape[2])


def _largest_backward(saved: tuple[Array, Array, Array, Array], cotangent: Array) -> tuple[Array, Array]:
    stripped, phases, rows, index = saved
    taps = phases.shape[1] // stripped.shape[1]

    def sent_to(index: Array, cotangent: Array) -> Array:
        return _to_index(index, cotangent).reshape(len(phases), -1)

    # Two loops: a first layer has no use for the second. Patches times cotangents and not the other way round, as
    # automatic differentiation has it: that takes a third longer on a CPU.
    def by_phases(total: Array, of_row: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, index, cotangent = of_row
        patches, sent = _patches_of_row(stripped, row, taps), sent_to(index, cotangent)
        return total + lax.dot_general(patches, sent, (((1,), (1,)), ((), ()))), None

    def by_strips(total: Array, of_row: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, index, cotangent = of_row
        by_patches = lax.dot_general(phases, sent_to(index, cotangent), (((0,), (0,)), ((), ())))
        sum_so_far = lax.dynamic_slice_in_dim(total, row, taps)
        sum_now = sum_so_far + by_patches.reshape(sum_so_far.shape)
        return lax.dynamic_update_slice_in_dim(total, sum_now, row, 0), None

    of_rows = rows, index, cotangent
    phases_too, _ = lax.scan(by_phases, jnp.zeros(phases.shape[::-1], phases.dtype), of_rows)
    strips_too, _ = lax.scan(by_strips, jnp.zeros_like(stripped), of_rows)
    return strips_too, phases_too.T


_largest_by_rows.defvjp(_largest_forward, _largest_backward)
