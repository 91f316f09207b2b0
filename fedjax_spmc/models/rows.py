"""A convolution with stride 1, a piece of a row of windows at a time: its patches are multiplied while in the caches.

Images are `parts`, [H, C, W, B], so that the h rows which a row of windows reads are one slice; a kernel h by w is
`taps`, [O, h w C]. The patches of a piece are [h w C, columns B], copied once forward and once more for each gradient,
which is cheaper than to keep those of the whole image: they lie in no cache. A piece is a row, or so much of it that
its patches are few enough.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_spmc.models.forms import columns_of_a_piece
from fedjax_spmc.types import Array

Size = tuple[int, int]
"""(height, width) of a kernel."""


class Piece(NamedTuple):
    """Where a piece lies among the windows, int32 scalars: its row, and its first column."""

    row: Array
    column: Array


class Pieces(NamedTuple):
    """How the windows of `parts` are cut.

    Attributes:
        size: of the kernel.
        rows, columns: of all windows.
        wide: columns of a piece, which divide all.
        tall: rows of a piece.
    """

    size: Size
    rows: int
    columns: int
    wide: int
    tall: int = 1

    def numbers(self) -> Array:
        """The pieces' numbers, row by row."""
        return jnp.arange(self.rows // self.tall * (self.columns // self.wide))

    def at(self, number: Array) -> Piece:
        """The piece of a number."""
        each = self.columns // self.wide
        return Piece(number // each * self.tall, number % each * self.wide)

    def joined(self, stacked: Any) -> Any:
        """[pieces, O, n] of every piece -> [rows / tall, O, n columns / wide]."""
        each = self.columns // self.wide

        def join(x: Array) -> Array:
            x = x.reshape(-1, each, *x.shape[1:]).swapaxes(1, 2)
            return x.reshape(*x.shape[:2], -1)

        return jax.tree.map(join, stacked) if each > 1 else stacked


def pieces_of(parts: Array, size: Size, pooled: bool = False) -> Pieces:
    """How `parts` are cut for a kernel; with `pooled` each piece has two rows and an even number of columns."""
    height, channels, width, batch = parts.shape
    rows, columns = height - size[0] + 1, width - size[1] + 1
    wide = columns_of_a_piece(columns, channels * size[0] * size[1] * batch, 1 + pooled)
    return Pieces(size, rows, columns, wide, 1 + pooled)


def patches_at(parts: Array, pieces: Pieces, piece: Piece) -> Array:
    """[h w C, columns B]: the patches that the windows of a piece read, of one of its rows."""
    _, channels, _, batch = parts.shape
    high, wide = pieces.size
    sizes = high, channels, pieces.wide, batch
    # Each shift is a slice of its own: XLA copies them one after the other; cut out of one slice it copies them slowly.
    seen = [lax.dynamic_slice(parts, (piece.row, 0, piece.column + v, 0), sizes) for v in range(wide)]
    return jnp.stack(seen, axis=1).reshape(high * wide * channels, -1)


def each_piece(pieces: Pieces, use: Callable[[Piece], Any]) -> Any:
    """`use` of every piece, [O, n] arrays, joined to [rows, O, n ...]."""
    return pieces.joined(lax.scan(lambda _, number: (None, use(pieces.at(number))), None, pieces.numbers())[1])


def gradients(parts: Array, taps: Array, pieces: Pieces, sent: Callable[[Piece], Array]) -> tuple[Array, Array]:
    """Gradients by the parts and by the taps, in one loop: where `sent` is dear, and no first layer asks.

    Args:
        parts, taps: see above.
        pieces: of one row each.
        sent: a piece -> the cotangent of its products, [O, columns B].
    """

    def add(totals: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        piece = pieces.at(number)
        cotangent = sent(piece)
        by_taps = totals[1] + _by_taps(parts, pieces, piece, cotangent)
        return (_with_piece(totals[0], taps, pieces, piece, cotangent), by_taps), None

    empty = _no_strips(parts, pieces), _no_taps(taps)
    (by_parts, by_taps), _ = lax.scan(add, empty, pieces.numbers())
    return _from_strips(by_parts, parts, pieces), by_taps.T


def taps_gradient(parts: Array, taps: Array, pieces: Pieces, sent: Callable[[Piece], Array]) -> Array:
    """Gradient by the taps alone, see `gradients`."""

    def add(total: Array, number: Array) -> tuple[Array, None]:
        piece = pieces.at(number)
        return total + _by_taps(parts, pieces, piece, sent(piece)), None

    return lax.scan(add, _no_taps(taps), pieces.numbers())[0].T


def parts_gradient(parts: Array, taps: Array, pieces: Pieces, sent: Callable[[Piece], Array]) -> Array:
    """Gradient by the parts alone. A loop of its own: a first layer has no use for it."""

    def add(total: Array, number: Array) -> tuple[Array, None]:
        piece = pieces.at(number)
        return _with_piece(total, taps, pieces, piece, sent(piece)), None

    return _from_strips(lax.scan(add, _no_strips(parts, pieces), pieces.numbers())[0], parts, pieces)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(parts: Array, taps: Array, size: Size) -> Array:
    """The valid convolution itself: parts [H, C, W, B], taps [O, h w C] -> [rows, O, columns B]."""
    pieces = pieces_of(parts, size)
    return each_piece(pieces, lambda piece: taps @ patches_at(parts, pieces, piece))


def _convolution_backward(size: Size, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    parts, taps = saved
    pieces = pieces_of(parts, size)
    sent = functools.partial(cut, cotangent, pieces, parts.shape[-1])
    return parts_gradient(parts, taps, pieces, sent), taps_gradient(parts, taps, pieces, sent)


convolution.defvjp(lambda parts, taps, size: (convolution(parts, taps, size), (parts, taps)), _convolution_backward)


def cut(values: Array, pieces: Pieces, batch: int, piece: Piece) -> Array:
    """What lies at a piece of one row, [O, columns B], of [rows, O, columns B]."""
    sizes = 1, values.shape[1], pieces.wide * batch
    return lax.dynamic_slice(values, (piece.row, 0, piece.column * batch), sizes)[0]


def _by_taps(parts: Array, pieces: Pieces, piece: Piece, cotangent: Array) -> Array:
    # Patches times cotangents and not the other way round, as automatic differentiation has it: that takes a third
    # longer on a CPU.
    return lax.dot_general(patches_at(parts, pieces, piece), cotangent, (((1,), (1,)), ((), ())))


def _no_taps(taps: Array) -> Array:
    return jnp.zeros(taps.shape[::-1], taps.dtype)


def _with_piece(total: Array, taps: Array, pieces: Pieces, piece: Piece, cotangent: Array) -> Array:
    """The gradient by the strips so far, [H, w C, columns B], with that of a piece."""
    by_patches = lax.dot_general(taps, cotangent, (((0,), (0,)), ((), ())))
    place = piece.row, 0, piece.column * (total.shape[2] // pieces.columns)
    sum_so_far = lax.dynamic_slice(total, place, (pieces.size[0], total.shape[1], cotangent.shape[1]))
    return lax.dynamic_update_slice(total, sum_so_far + by_patches.reshape(sum_so_far.shape), place)


def _no_strips(parts: Array, pieces: Pieces) -> Array:
    height, channels, _, batch = parts.shape
    return jnp.zeros((height, pieces.size[1] * channels, pieces.columns * batch), parts.dtype)


def _from_strips(total: Array, parts: Array, pieces: Pieces) -> Array:
    height, channels, _, batch = parts.shape
    wide, columns = pieces.size[1], pieces.columns

    def strips(parts: Array) -> Array:
        return jnp.stack([parts[:, :, v : v + columns] for v in range(wide)], axis=1)

    return jax.linear_transpose(strips, parts)(total.reshape(height, wide, channels, columns, batch))[0]
