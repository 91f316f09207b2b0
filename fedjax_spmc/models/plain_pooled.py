"""A plain convolution and 2x2 max-pool, for wide layers, whose time goes into products; see `pooled` for narrow ones.

As `rows` convolves, with two rows of outputs a turn and the pool in it. Activations are [channels, height, width, B].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_spmc.models import rows
from fedjax_spmc.models.picking import max_and_index
from fedjax_spmc.types import Array


@jax.custom_vjp
def largest(images: Array, kernel: Array) -> Array:
    """The largest output under every window: [C, H, W, B], [O, C, k, k], k odd -> [rows, O, columns B]."""
    return largest_and_index(images, kernel)[0]


def largest_and_index(images: Array, kernel: Array) -> tuple[Array, Array]:
    """The same, and int8, which of the four (2 p + q) it is.

    Two rows of outputs at a time: what leaves the loop is not computed anew elsewhere.
    """
    parts, taps, batch = _parts(images, kernel), _taps(kernel), images.shape[-1]
    pieces = rows.pieces_of(parts, (kernel.shape[2], kernel.shape[3]), pooled=True)

    def use(piece: rows.Piece) -> tuple[Array, Array]:
        both = [taps @ rows.patches_at(parts, pieces, piece._replace(row=piece.row + p)) for p in (0, 1)]
        pairs = [outputs.reshape(len(taps), -1, 2, batch) for outputs in both]
        found, index = max_and_index(jnp.stack([pair[:, :, q] for pair in pairs for q in (0, 1)]))
        return found.reshape(len(taps), -1), index.reshape(len(taps), -1)

    return rows.each_piece(pieces, use)


def _taps(kernel: Array) -> Array:
    return kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)


def _parts(images: Array, kernel: Array) -> Array:
    """[C, H, W, B] -> [H', C, W', B], as far as kernels with a pool reach."""
    size = kernel.shape[2]
    down, right = (2 * ((side - size + 1) // 2) + size - 1 for side in images.shape[1:3])
    return images[:, :down, :right].swapaxes(0, 1)


def _cut(
    images: Array, kernel: Array, index: Array, cotangent: Array
) -> tuple[rows.Pieces, Callable[[rows.Piece], Array]]:
    """How the outputs are cut, and the cotangent of a piece of them, from those of the largest, [rows, O, columns B].

    Piece by piece in the loops of the gradients: of the whole image it takes as long as a gradient.
    """
    parts, batch = jax.eval_shape(_parts, images, kernel), images.shape[-1]
    pieces = rows.pieces_of(parts, (kernel.shape[2], kernel.shape[3]), pooled=True)._replace(tall=1)
    halved = pieces._replace(wide=pieces.wide // 2)

    def sent(piece: rows.Piece) -> Array:
        window = rows.Piece(piece.row // 2, piece.column // 2)
        found = (rows.cut(x, halved, batch, window) for x in (index, cotangent))
        which, value = (x.reshape(len(x), -1, 1, batch) for x in found)
        places = (2 * (piece.row % 2) + jnp.arange(2)).astype(jnp.int8)[None, None, :, None]
        return jnp.where(which == places, value, 0).reshape(len(which), -1)

    return pieces, sent


def images_gradient(images: Array, kernel: Array, index: Array, cotangent: Array) -> Array:
    """Gradient by the images, from an index and a cotangent as `largest_and_index` has them."""
    parts, by_images = jax.vjp(lambda x: _parts(x, kernel), images)
    return by_images(rows.parts_gradient(parts, _taps(kernel), *_cut(images, kernel, index, cotangent)))[0]


def _forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    found, index = largest_and_index(images, kernel)
    return found, (images, kernel, index)


def _backward(saved: tuple[Array, Array, Array], cotangent: Array) -> tuple[Array, Array]:
    images, kernel, index = saved
    parts, by_images = jax.vjp(lambda x: _parts(x, kernel), images)
    taps, by_kernel = jax.vjp(_taps, kernel)
    by_parts, by_taps = rows.gradients(parts, taps, *_cut(images, kernel, index, cotangent))
    return by_images(by_parts)[0], by_kernel(by_taps)[0]


largest.defvjp(_forward, _backward)
