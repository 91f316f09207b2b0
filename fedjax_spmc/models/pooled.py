"""A convolution, ReLU and max-pool as matrix products, for narrow layers whose clients have weights of their own.

The four outputs under a pooling window are four channels of one convolution with stride 2, whose kernel is one row and
one column larger: phase (p, q) is the kernel shifted by (p, q). On the 2x2 space-to-depth image that is a convolution
with stride 1, so the patches are few and long slices. Activations are [channels, height, width, B], see `layers`.

On a CPU one row of windows is taken at a time: its patches are copied, multiplied and forgotten while they lie in the
cache, and copied again for the gradient. Wide layers of 3x3 kernels, whose time goes into products, are convolved
without shifted kernels there (`plain_pooled`). Elsewhere, and where every row would have to read wide kernels for few
patches, the whole image is one product. `forms.pooled_form` picks.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_spmc.models import plain_pooled, rows
from fedjax_spmc.models.forms import Form, pooled_form
from fedjax_spmc.models.picking import max_and_index, max_of_first, to_index
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


def _form(images: Array, kernel: Array) -> Form:
    """Which of "rows", "plain" and "phases" is taken."""
    (outputs, channels, size, _), (_, _, width, batch) = kernel.shape, images.shape
    return pooled_form(outputs, channels, size, (width - size + 1) // 2, batch)


def _largest(images: Array, kernel: Array) -> Array:
    """The largest of the four outputs under every window: [O, rows, columns, B]."""
    form = _form(images, kernel)
    if form == "rows":
        parts, phases = blocks(images, kernel.shape[2]), kernel_phases(kernel)
        return _from_rows(_largest_by_rows(parts, phases), images.shape[-1])
    if form == "plain":
        return _from_rows(plain_pooled.largest(images, kernel), images.shape[-1])
    return max_of_first(_four_of_phases(images, kernel))


def largest_and_index(images: Array, kernel: Array) -> tuple[Array, Array]:
    """The maxima of a `convolution_pool` before bias and ReLU, and their places; for custom differentiation rules.

    Returns:
        [O, rows, columns, B]: the largest output under every window, and int8: which of the four (2 p + q) it is.
    """
    form = _form(images, kernel)
    if form == "rows":
        largest, (*_, index) = _largest_forward(blocks(images, kernel.shape[2]), kernel_phases(kernel))
        return _from_rows(largest, images.shape[-1]), _from_rows(index, images.shape[-1])
    if form == "plain":
        largest, index = plain_pooled.largest_and_index(images, kernel)
        return _from_rows(largest, images.shape[-1]), _from_rows(index, images.shape[-1])
    return max_and_index(_four_of_phases(images, kernel))


def images_gradient(images: Array, kernel: Array, index: Array, cotangent: Array) -> Array:
    """Gradient with respect to the images [C, H, W, B], of `index` and a cotangent as `largest_and_index` has them."""
    form = _form(images, kernel)
    if form == "rows":
        parts, by_images = jax.vjp(lambda x: blocks(x, kernel.shape[2]), images)
        return by_images(_parts_gradient(parts, kernel_phases(kernel), _to_rows(index), _to_rows(cotangent)))[0]
    if form == "plain":
        return plain_pooled.images_gradient(images, kernel, _to_rows(index), _to_rows(cotangent))
    return jax.vjp(lambda x: _four_of_phases(x, kernel), images)[1](to_index(index, cotangent))[0]


def _four_of_phases(images: Array, kernel: Array) -> Array:
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
    down, columns = len(parts) - taps + 1, parts.shape[2] - taps + 1
    # Columns first, rows second: the second stack, by far the larger, then copies whole rows of the image.
    strips = jnp.stack([parts[:, :, v : v + columns].swapaxes(0, 1) for v in range(taps)])
    patches = jnp.stack([strips[:, :, u : u + down] for u in range(taps)])
    return patches.reshape(-1, down, columns, images.shape[-1])


@jax.custom_vjp
def _largest_by_rows(parts: Array, phases: Array) -> Array:
    """The largest of the four outputs under every window: `blocks` [H', 4 C, W', B], phases -> [rows, O, columns B]."""
    return _largest_forward(parts, phases)[0]


def _pieces(parts: Array, phases: Array) -> rows.Pieces:
    taps = math.isqrt(phases.shape[1] // parts.shape[1])
    return rows.pieces_of(parts, (taps, taps))


def _largest_forward(parts: Array, phases: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    pieces = _pieces(parts, phases)

    def use(piece: rows.Piece) -> tuple[Array, Array]:
        return max_and_index((phases @ rows.patches_at(parts, pieces, piece)).reshape(4, len(phases) // 4, -1))

    largest, index = rows.each_piece(pieces, use)
    return largest, (parts, phases, index)


def _sent(
    parts: Array, phases: Array, index: Array, cotangent: Array
) -> tuple[rows.Pieces, Callable[[rows.Piece], Array]]:
    """How the windows are cut, and the cotangent of a piece's four outputs from that of the largest."""
    pieces = _pieces(parts, phases)

    def sent(piece: rows.Piece) -> Array:
        of_piece = (rows.cut(x, pieces, parts.shape[-1], piece) for x in (index, cotangent))
        return to_index(*of_piece).reshape(len(phases), -1)

    return pieces, sent


def _largest_backward(saved: tuple[Array, Array, Array], cotangent: Array) -> tuple[Array, Array]:
    parts, phases, index = saved
    by_phases = rows.taps_gradient(parts, phases, *_sent(parts, phases, index, cotangent))
    return _parts_gradient(parts, phases, index, cotangent), by_phases


def _parts_gradient(parts: Array, phases: Array, index: Array, cotangent: Array) -> Array:
    return rows.parts_gradient(parts, phases, *_sent(parts, phases, index, cotangent))


_largest_by_rows.defvjp(_largest_forward, _largest_backward)
