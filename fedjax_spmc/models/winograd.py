"""3x3 convolutions with stride 1 and zero padding 1 in 4/9 of the multiplications, and their gradient by the kernel.

Winograd's minimal filtering F(2x2, 3x3): Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
Every 2x2 tile of outputs is A^T [(G k G^T) * (B^T d B)] A, with d the 4x4 pixels which the tile reads: 16 products for
36. Over all tiles each of the 16 entries is one matrix product over the channels. All entries of A, B and G are 0, 1 or
1/2, so that in float32 rounding errors stay within a few units of those of the direct sum.

A tile is (i, j) of [4, 4] throughout, and lists of 16 arrays run over i, then j.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_spmc.models.forms import largest_divisor
from fedjax_spmc.types import Array

HIGHEST = lax.Precision.HIGHEST
BLOCK_NUMBERS = 2**18
"""Numbers in a block of images: the 16 transformed arrays of a block, four times as many, then stay in the caches."""

Arrays = Sequence[Array]


def _block_size(batch: int, image: int, factor: int) -> int:
    """Images in a block, from the numbers in an image and in one of the 16 matrices, which every block reads anew."""
    return largest_divisor(batch, max(BLOCK_NUMBERS, 2 * factor) // image)


def _along_both_axes(transform: Callable[[Arrays], Arrays], rows: Sequence[Arrays]) -> list[Array]:
    """`transform` over the first index of rows[i][j], then over the second; a flat list."""
    columns = [transform([row[j] for row in rows]) for j in range(len(rows[0]))]
    return [part for i in range(len(columns[0])) for part in transform([column[i] for column in columns])]


def _transform_input(d: Arrays) -> Arrays:
    """B^T d."""
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _transform_filter(k: Arrays) -> Arrays:
    """G k."""
    outer = k[0] + k[2]
    return k[0], (outer + k[1]) / 2, (outer - k[1]) / 2, k[2]


def _transform_filter_transposed(m: Arrays) -> Arrays:
    """G^T m."""
    return m[0] + (m[1] + m[2]) / 2, (m[1] - m[2]) / 2, (m[1] + m[2]) / 2 + m[3]


def _transform_output(m: Arrays) -> Arrays:
    """A^T m."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _transform_output_transposed(y: Arrays) -> Arrays:
    """A y."""
    return y[0], y[0] + y[1], y[0] - y[1], -y[1]


def _tiles(images: Array) -> list[Array]:
    """B^T d B for the tiles of [B, H, W, C]: 16 arrays [B * H / 2 * W / 2, C]."""
    batch, height, width, channels = images.shape
    down, right = height // 2, width // 2
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    pairs = padded.reshape(batch, down + 1, 2, right + 1, 2, channels)

    def pixel(i: int, j: int) -> Array:
        return pairs[:, i // 2 : i // 2 + down, i % 2, j // 2 : j // 2 + right, j % 2]

    parts = _along_both_axes(_transform_input, [[pixel(i, j) for j in range(4)] for i in range(4)])
    return [part.reshape(-1, channels) for part in parts]


def _gradient_tiles(cotangent: Array) -> list[Array]:
    """A y A^T for the tiles y of [B, H, W, O]: 16 arrays [B * H / 2 * W / 2, O]."""
    batch, height, width, outputs = cotangent.shape
    pairs = cotangent.reshape(batch, height // 2, 2, width // 2, 2, outputs)
    parts = _along_both_axes(_transform_output_transposed, [[pairs[:, :, i, :, j] for j in range(2)] for i in range(2)])
    return [part.reshape(-1, outputs) for part in parts]


def _convolve(images: Array, filters: Arrays, contracted: int) -> Array:
    """[B, H, W, C] by the 16 entries of G k G^T, matrices whose dimension `contracted` is C -> [B, H, W, other]."""
    batch, height, width, _ = images.shape
    outputs = filters[0].shape[1 - contracted]

    def block(images: Array) -> Array:
        products = [
            lax.dot_general(tile, factor, (((1,), (contracted,)), ((), ())), precision=HIGHEST)
            for tile, factor in zip(_tiles(images), filters, strict=True)
        ]
        parts = _along_both_axes(_transform_output, [products[4 * i : 4 * i + 4] for i in range(4)])
        parts = [part.reshape(-1, height // 2, width // 2, outputs) for part in parts]
        rows = [jnp.stack(parts[2 * i : 2 * i + 2], axis=3) for i in range(2)]
        return jnp.stack(rows, axis=2).reshape(-1, height, width, outputs)

    size = _block_size(batch, images.size // batch, filters[0].size)
    if size == batch:
        return block(images)
    blocks = lax.map(block, images.reshape(batch // size, size, *images.shape[1:]))
    return blocks.reshape(batch, height, width, outputs)


def _filters(kernel: Array, taps: Sequence[int]) -> list[Array]:
    """G k G^T of [O, C, 3, 3] with its rows and columns taken as in `taps`: 16 arrays [O, C].

    Taps come first and the channels keep their order, as a transposed product is cheap and a transposed kernel is not.
    """
    planes = kernel.transpose(2, 3, 0, 1)
    return _along_both_axes(_transform_filter, [[planes[u, v] for v in taps] for u in taps])


def forward(images: Array, kernel: Array) -> Array:
    """Convolution of [B, H, W, C], with H and W even, by [O, C, 3, 3] -> [B, H, W, O]."""
    return _convolve(images, _filters(kernel, (0, 1, 2)), 1)


def by_images(cotangent: Array, kernel: Array) -> Array:
    """Gradient by the images, [B, H, W, C], from [B, H, W, O]: a convolution with the kernel turned round."""
    return _convolve(cotangent, _filters(kernel, (2, 1, 0)), 0)


def by_kernel(images: Array, cotangent: Array) -> Array:
    """Gradient by the kernel, [O, C, 3, 3], from [B, H, W, C] and [B, H, W, O]."""
    batch, channels = images.shape[0], images.shape[3]

    def block(images: Array, cotangent: Array) -> list[Array]:
        return [
            lax.dot_general(gradient, tile, (((0,), (0,)), ((), ())), precision=HIGHEST)
            for gradient, tile in zip(_gradient_tiles(cotangent), _tiles(images), strict=True)
        ]

    size = _block_size(batch, images.size // batch, cotangent.shape[3] * channels)
    if size == batch:
        products = block(images, cotangent)
    else:
        blocks = [x.reshape(batch // size, size, *x.shape[1:]) for x in (images, cotangent)]
        empty = [jnp.zeros((cotangent.shape[3], channels), cotangent.dtype)] * 16
        products, _ = lax.scan(
            lambda total, pair: (jax.tree.map(jnp.add, total, block(*pair)), None), empty, tuple(blocks)
        )
    taps = _along_both_axes(_transform_filter_transposed, [products[4 * i : 4 * i + 4] for i in range(4)])
    return jnp.stack(taps).reshape(3, 3, *products[0].shape).transpose(2, 3, 0, 1)
