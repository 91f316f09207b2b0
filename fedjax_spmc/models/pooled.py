"""A convolution, ReLU and max-pool as matrix products, for narrow layers whose clients have weights of their own.

The four outputs under a pooling window are four channels of one convolution with stride 2, whose kernel is one row and
one column larger: phase (p, q) is the kernel shifted by (p, q). On the 2x2 space-to-depth image that is a convolution
with stride 1, so the patches are few and long slices. Activations are [channels, height, width, B], see `layers`.

On a CPU one row of windows is taken at a time: its patches are copied, multiplied and forgotten while they lie in the
cache, and copied again for the gradient. Elsewhere, and where every row would have to read wide kernels for few
patches, the whole image is one product.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fedjax_spmc.models.forms import pooled_form
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
    return nn.relu(_largest(images, kernel) + bias[:, None, None, None])


def _row_by_row(images: Array, kernel: Array) -> bool:
    """Whether one row of windows is taken at a time."""
    (outputs, _, size, _), (_, _, width, batch) = kernel.shape, images.shape
    return pooled_form(outputs, (width - size + 1) // 2, batch) == "rows"


def _largest(images: Array, kernel: Array) -> Array:
    """The largest of the four outputs under every window: [O, rows, columns, B]."""
    if not _row_by_row(images, kernel):
        return max_of_first(_all_four(images, kernel))
    return _from_rows(_largest_by_rows(blocks(images, kernel.shape[2]), kernel_phases(kernel)), images.shape[-1])


def largest_and_index(images: Array, kernel: Array) -> tuple[Array, Array]:
    """The maxima of a `convolution_pool` before bias and ReLU, and their places; for custom differentiation rules.

    Returns:
        [O, rows, columns, B]: the largest output under every window, and int8: which of the four (2 p + q) it is.
    """
    if not _row_by_row(images, kernel):
        return _max_and_index(_all_four(images, kernel))
    largest, (*_, index) = _largest_forward(blocks(images, kernel.shape[2]), kernel_phases(kernel))
    return _from_rows(largest, images.shape[-1]), _from_rows(index, images.shape[-1])


def images_gradient(images: Array, kernel: Array, index: Array, cotangent: Array) -> Array:
    """Gradient with respect to the images [C, H, W, B], of `index` and a cotangent as `largest_and_index` has them."""
    if not _row_by_row(images, kernel):
        return jax.vjp(lambda x: _all_four(x, kernel), images)[1](to_index(index, cotangent))[0]
    parts, by_images = jax.vjp(lambda x: blocks(x, kernel.shape[2]), images)
    return by_images(_parts_gradient(parts, kernel_phases(kernel), _to_rows(index), _to_rows(cotangent)))[0]


def _all_four(images: Array, kernel: Array) -> Array:
    """The four outputs under every window, of the whole image in one product: [4, O, rows, columns, B]."""
    patches = pooled_patches(images, kernel.shape[2])
    products = product(kernel_phases(kernel), patches.reshape(len(patches), -1))
    return products.reshape(4, len(kernel), *patches.shape[1:])


def _to_rows(values: Array) -> Array:
    return values.swapaxes(0, 1).reshape(values.shape[1], len(values), -1)


def _from_rows(values: Array, batch: int) -> Array:
    return values.swapaxes(0, 1).reshape(values.shape[1], len(values), -1, batch)


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
    """The patches of all outputs, ordered as `kernel_phases`: [C, H, W, B] -> [C (size + 1)^2, rows, columns, B]."""
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


def to_index(index: Array, cotangent: Array) -> Array:
    """[...] -> [4, ...], zero but where `index` says. By hand: automatic differentiation pads and adds four parts."""
    phases = lax.broadcasted_iota(jnp.int8, (4, *index.shape), 0)
    return jnp.where(phases == index[None], cotangent[None], jnp.zeros((), cotangent.dtype))


max_of_first.defvjp(_max_and_index, lambda index, cotangent: (to_index(index, cotangent),))


@jax.custom_vjp
def first_largest(values: Array) -> Array:
    """As `max_of_first` for any number of values, at most 127, and with NaN as the largest of all."""
    return _first_largest(values)[0]


def _first_largest(values: Array) -> tuple[Array, tuple[Array, Array]]:
    largest = values[0]
    index = jnp.zeros(largest.shape, jnp.int8)
    for place in range(1, len(values)):
        above = (values[place] > largest) | (values[place] != values[place])
        largest = jnp.where(above, values[place], largest)
        index = jnp.where(above, jnp.int8(place), index)
    return largest, (index, jnp.zeros((len(values), 0), jnp.int8))  # the second tells how many there are


def _sent_to_first(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    index, places = saved
    numbers = lax.broadcasted_iota(jnp.int8, (len(places), *index.shape), 0)
    return (jnp.where(numbers == index[None], cotangent[None], jnp.zeros((), cotangent.dtype)),)


first_largest.defvjp(_first_largest, _sent_to_first)


@jax.custom_vjp
def _largest_by_rows(parts: Array, phases: Array) -> Array:
    """The largest of the four outputs under every window: `blocks` [H', 4 C, W', B], phases -> [rows, O, columns B]."""
    return _largest_forward(parts, phases)[0]


def _taps(parts: Array, phases: Array) -> int:
    return math.isqrt(phases.shape[1] // parts.shape[1])


def _patches_of_row(parts: Array, row: Array, taps: int) -> Array:
    """[taps^2 4 C, columns B]: the patches that the windows of one row read."""
    _, depth, width, batch = parts.shape
    sizes = taps, depth, width - taps + 1, batch
    # Each shift is a slice of its own: XLA copies them one after the other; cut out of one slice it copies them slowly.
    seen = jnp.stack([lax.dynamic_slice(parts, (row, 0, v, 0), sizes) for v in range(taps)], axis=1)
    return seen.reshape(taps * taps * depth, -1)


def _largest_forward(parts: Array, phases: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    taps = _taps(parts, phases)

    def forward(_: None, row: Array) -> tuple[None, tuple[Array, Array]]:
        products = phases @ _patches_of_row(parts, row, taps)
        return None, _max_and_index(products.reshape(4, len(phases) // 4, -1))

    _, (largest, index) = lax.scan(forward, None, _rows(parts, taps))
    return largest, (parts, phases, index)


def _rows(parts: Array, taps: int) -> Array:
    return jnp.arange(len(parts) - taps + 1)


def _largest_backward(saved: tuple[Array, Array, Array], cotangent: Array) -> tuple[Array, Array]:
    # Two loops: a first layer has no use for that of `_parts_gradient`.
    parts, phases, index = saved
    taps = _taps(parts, phases)

    def add(total: Array, of_row: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, index, cotangent = of_row
        sent = to_index(index, cotangent).reshape(len(phases), -1)
        # Patches times cotangents and not the other way round, as automatic differentiation has it: that takes a third
        # longer on a CPU.
        return total + lax.dot_general(_patches_of_row(parts, row, taps), sent, (((1,), (1,)), ((), ()))), None

    total, _ = lax.scan(add, jnp.zeros(phases.shape[::-1], phases.dtype), (_rows(parts, taps), index, cotangent))
    return _parts_gradient(parts, phases, index, cotangent), total.T


def _parts_gradient(parts: Array, phases: Array, index: Array, cotangent: Array) -> Array:
    taps = _taps(parts, phases)
    height, depth, width, batch = parts.shape
    columns = width - taps + 1

    def add(total: Array, of_row: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, index, cotangent = of_row
        sent = to_index(index, cotangent).reshape(len(phases), -1)
        by_patches = lax.dot_general(phases, sent, (((0,), (0,)), ((), ())))
        sum_so_far = lax.dynamic_slice_in_dim(total, row, taps)
        sum_now = sum_so_far + by_patches.reshape(sum_so_far.shape)
        return lax.dynamic_update_slice_in_dim(total, sum_now, row, 0), None

    def strips(parts: Array) -> Array:
        return jnp.stack([parts[:, :, v : v + columns] for v in range(taps)], axis=1)

    empty = jnp.zeros((height, taps * depth, columns * batch), parts.dtype)
    total, _ = lax.scan(add, empty, (_rows(parts, taps), index, cotangent))
    return jax.linear_transpose(strips, parts)(total.reshape(height, taps, depth, columns, batch))[0]


_largest_by_rows.defvjp(_largest_forward, _largest_backward)
