"""In which form a convolution is computed: one rule, by what it costs, for the package's own layers and for Flax's.

On an accelerator the library is asked. On a CPU, with K kernels, C channels and W windows (of all images):

| form | what is computed | where |
|---|---|---|
| rows | a convolution, or one with ReLU and 2x2 max-pool, one row of windows at a time | `rows`, `pooled` |
| plain | the same with the pool, whose kernels are not shifted | `plain_pooled` |
| phases | with the pool, the whole image as one product of the four shifted kernels | `pooled` |
| patches | one product [K, C k k] by [C k k, W], batch last | `layers.convolution`, `flax_layers` |
| winograd | 4/9 of the multiplications of a 3x3 kernel, 16 products [K, C] by [C, W / 4] | `winograd` |
| taps | a 3x3 kernel, NHWC: the library forward, its gradients as products | `convolution` |
| library | `lax.conv_general_dilated`, whose gradients are many times as slow as a product | |

`experiments/bench/bench_forms.py` takes the times behind it; `experiments/bench/forms.json` has them.
"""

from typing import Literal, NamedTuple

import jax

Form = Literal["rows", "plain", "phases", "patches", "winograd", "taps", "library"]
WINOGRAD_CHANNELS = 64
"""Channels and kernels from which on Winograd's form is the faster one."""
PLAIN_CHANNELS = 32
"""Channels and kernels from which on a 3x3 convolution with a pool is the faster without shifted kernels."""
JOINED_TAPS_CHANNELS = 16
"""Channels below which the patches of all nine taps are joined: three products would be too small to be fast."""
WIDTHS_OF_A_ROW = 8
"""A row's products are worth reading the kernels anew where its patches are so many times the kernels."""
MOST_OF_A_ROW = 2**19
"""Numbers in the patches of one row of windows up to which going by rows was measured to be faster."""
PATCHES_OF_A_PIECE = 2**17 + 2**13
"""Numbers in the patches that are multiplied at a time, at most."""
FEW_COLUMNS = 64
"""Columns up to which a large weight is multiplied block by block."""
BLOCK_OF_A_WEIGHT = 2**18
"""Numbers in a block of a weight, at most: it stays in the caches."""
LEAST_OF_A_BLOCK, MOST_OF_A_BLOCK = 128, 1024
"""Columns of a block."""
MOST_PATCHES = 2**26
"""Numbers in the patches of a whole batch, at most: more than 256 MB are not copied out."""


class Work(NamedTuple):
    """A convolution of two dimensions.

    Attributes:
        kernels, channels: K and C.
        size: (height, width) of a kernel.
        windows: (rows, columns) of what comes out.
        batch: images.
        strides: see `lax.conv_general_dilated`.
        padding: ((before, after) of the rows, of the columns); negative ones cut.
        dilation: of the kernel.
        groups: of channels.
        plain: whether nothing else is asked for: no dilation of the images, float32 or float64.
    """

    kernels: int
    channels: int
    size: tuple[int, int]
    windows: tuple[int, int]
    batch: int
    strides: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    plain: bool = True

    def patches(self) -> int:
        """Numbers in the patches of all windows."""
        return self.channels * self.size[0] * self.size[1] * self.windows[0] * self.windows[1] * self.batch


def on_cpu() -> bool:
    """Whether programs are compiled for a CPU."""
    return jax.default_backend() == "cpu"


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is at most `limit`, and at least 1."""
    return next(size for size in range(max(1, min(number, limit)), 0, -1) if number % size == 0)


def product_block(rows: int, columns: int, width: int) -> int:
    """Into how many columns at a time a weight [rows, columns] is cut where weight^T meets [rows, width].

    The library brings a transposed weight into another order as a whole, through memory, which for few columns takes
    longer than the product. `columns` = in one.
    """
    if not on_cpu() or width > FEW_COLUMNS or rows * columns <= BLOCK_OF_A_WEIGHT:
        return columns
    block = largest_divisor(columns, min(MOST_OF_A_BLOCK, BLOCK_OF_A_WEIGHT // rows))
    return block if block >= LEAST_OF_A_BLOCK else columns


def columns_of_a_piece(columns: int, numbers: int, even: int) -> int:
    """How many of a row's columns are convolved at a time.

    Args:
        columns: of the row, a multiple of `even`.
        numbers: in the patches of one column.
        even: what the result must be a multiple of.
    """
    return even * largest_divisor(columns // even, PATCHES_OF_A_PIECE // (even * numbers))


def pooled_form(kernels: int, channels: int, size: int, columns: int, batch: int) -> Form:
    """The form of a convolution with stride 1, ReLU and 2x2 max-pool that has `columns` windows in a row."""
    if not on_cpu():
        return "phases"
    if size == 3 and min(channels, kernels) >= PLAIN_CHANNELS:
        return "plain"
    return "rows" if WIDTHS_OF_A_ROW * kernels <= columns * batch else "phases"


def padded_form(kernels: int, channels: int, height: int, width: int, stride: int) -> Form:
    """The form, "winograd" or "taps", of a 3x3 convolution with zero padding 1 of [B, height, width, channels]."""
    even = height % 2 == 0 and width % 2 == 0
    wide = min(channels, kernels) >= WINOGRAD_CHANNELS
    return "winograd" if stride == 1 and even and wide and on_cpu() else "taps"


def form_of(work: Work) -> Form:
    """The form, "rows", "patches", "taps" (then `padded_form`) or "library", of a convolution written with Flax."""
    if not on_cpu() or not work.plain or work.groups > 1 or min(map(min, work.padding)) < 0:
        return "library"
    residual = work.size == (3, 3) and work.padding == ((1, 1), (1, 1)) and work.dilation == (1, 1)
    residual = residual and work.strides in ((1, 1), (2, 2))
    few = work.patches() <= MOST_PATCHES
    if residual and (min(work.channels, work.kernels) >= WINOGRAD_CHANNELS or not few):
        return "taps"
    if (
        work.strides == work.dilation == (1, 1)
        and work.size != (1, 1)
        and work.patches() <= MOST_OF_A_ROW * work.windows[0]
    ):
        return "rows"
    return "patches" if few else "library"


def why_library(work: Work) -> str:
    """In a few words what keeps a convolution with the library."""
    if work.groups > 1:
        return f"{work.groups} groups of channels"
    if not work.plain:
        return "dilated inputs, or numbers of other than 32 or 64 bits"
    if min(map(min, work.padding)) < 0:
        return "negative padding"
    return f"{work.patches() / 2**18:.0f} MB of patches a batch"
