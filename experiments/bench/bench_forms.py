"""Every form of a convolution beside the others, layer by layer: the table behind the rule of `models/forms.py`.

    taskset -c 0 python experiments/bench/bench_forms.py [--layers=NAME,...] [--repeats=30] [--out=FILE] [--json]

Value and both gradients (by the images and by the kernel) of each layer, its bias, ReLU and pool included, in each form
that can compute it, in turn; a repetition is a compiled loop of ten turns (of the library one) that depend on one
another, so that dispatch does not count. "pooled" forms take convolution, ReLU and pool in one, as the package's own
layers do; the others take one after another, as Flax's `nn.Conv` and `nn.max_pool` and the residual nets do. The form
that the rule picks of either kind is marked. Every form's numbers are compared with the library's first.

--out=experiments/bench/forms.json writes the table where the rule's test reads it (`tests/test_flax_layers.py`). --toy
shrinks every layer: a check of the bench, its times mean nothing. Take it on an idle machine, on one core, as a round's
clients have one each.
Exit codes: 0 done, 1 a form's numbers are not the library's, 2 bad input (one sentence says what).
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.options import Option, Range
from fedjax_spmc.paths import file_to_write
from fedjax_spmc.terminal import show

TURNS = 10
MOST_MS = 4000
"""A form that has taken so long in all is not repeated again once it has two times."""


class Layer(NamedTuple):
    """A convolution of square images, stride 1: valid, or with `padding` on every side; `pool` = 2 or none."""

    layer: str
    kernels: int
    channels: int
    size: int
    image: int
    batch: int
    pool: int = 1
    padding: int = 0


LAYERS = (
    Layer("conv1 of SimpleCNN", 6, 3, 5, 32, 64, 2),
    Layer("conv2 of SimpleCNN", 16, 6, 5, 14, 64, 2),
    Layer("conv1 of a LeNet", 16, 3, 5, 32, 32, 2),
    Layer("conv2 of a LeNet", 32, 16, 5, 14, 32, 2),
    Layer("conv1 of cnn_dropout", 32, 3, 3, 32, 10),
    Layer("conv2 of cnn_dropout", 64, 32, 3, 30, 10, 2),
    Layer("conv1 of MnistNet", 20, 1, 5, 28, 64, 2),
    Layer("conv2 of MnistNet", 50, 20, 5, 12, 64, 2),
    Layer("conv2 of EMNIST's CNN", 64, 32, 3, 26, 64, 2),
    Layer("a pooled one of 8", 8, 8, 3, 30, 32, 2),
    Layer("a pooled one of 16", 16, 16, 3, 30, 32, 2),
    Layer("a pooled one of 3 to 32", 32, 3, 3, 32, 32, 2),
    Layer("a pooled one of 128", 128, 64, 3, 14, 32, 2),
    Layer("a block of 16", 16, 16, 3, 32, 32, padding=1),
    Layer("a block of 64", 64, 64, 3, 32, 32, padding=1),
    Layer("a block of 256", 256, 256, 3, 8, 32, padding=1),
    Layer("a pointwise one", 64, 64, 1, 16, 32),
)


def forms_of(layer: Layer) -> dict[str, Callable[[Any, Any, Any], Any]]:
    """Form -> (images NHWC, kernel HWIO, bias) -> outputs NHWC, for the forms that can compute a layer."""
    import jax.numpy as jnp
    from flax import linen as nn
    from jax import lax

    from fedjax_spmc.models import convolution, flax_layers, forms, picking, plain_pooled, pooled, winograd

    pads = ((layer.padding, layer.padding),) * 2
    side = layer.image + 2 * layer.padding - layer.size + 1
    work = forms.Work(layer.kernels, layer.channels, (layer.size,) * 2, (side, side), layer.batch, padding=pads)

    def ended(x: Any, fast: bool) -> Any:
        x = nn.relu(x)
        if layer.pool == 1:
            return x
        windows = (side // 2, side // 2)
        return flax_layers.max_pool(x, (2, 2), windows) if fast else nn.max_pool(x, (2, 2), (2, 2))

    def library(images: Any, kernel: Any, bias: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return ended(lax.conv_general_dilated(images, kernel, (1, 1), pads, dimension_numbers=numbers) + bias, False)

    found = {
        "library": library,
        "patches": lambda images, kernel, bias: ended(flax_layers.by_patches(images, kernel, work) + bias, True),
        "rows": lambda images, kernel, bias: ended(flax_layers.by_rows(images, kernel, work) + bias, True),
    }
    if layer.pool == 2 and layer.size % 2:

        def fused(largest: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
            def run(images: Any, kernel: Any, bias: Any) -> Any:
                found = largest(images.transpose(3, 1, 2, 0), kernel.transpose(3, 2, 0, 1))
                return nn.relu(found + bias[:, None, None, None]).transpose(3, 1, 2, 0)

            return run

        def by_rows(images: Any, kernel: Any) -> Any:
            found = pooled._largest_by_rows(pooled.blocks(images, layer.size), pooled.kernel_phases(kernel))
            return pooled._from_rows(found, layer.batch)

        def by_plain(images: Any, kernel: Any) -> Any:
            return pooled._from_rows(plain_pooled.largest(images, kernel), layer.batch)

        found["pooled rows"] = fused(by_rows)
        found["pooled phases"] = fused(
            lambda images, kernel: picking.max_of_first(pooled._four_of_phases(images, kernel))
        )
        found["pooled plain"] = fused(by_plain)
    if layer.size == 3 and layer.padding == 1:
        found["taps"] = lambda images, kernel, bias: ended(
            convolution.convolution_3x3(images, kernel.transpose(3, 2, 0, 1)) + bias, True
        )
        if layer.image % 2 == 0:
            found["winograd"] = lambda images, kernel, bias: ended(
                jnp.asarray(_by_winograd(winograd)(images, kernel.transpose(3, 2, 0, 1))) + bias, True
            )
    return found


def _by_winograd(winograd: Any) -> Callable[[Any, Any], Any]:
    import jax

    @jax.custom_vjp
    def run(images: Any, kernel: Any) -> Any:
        return winograd.forward(images, kernel)

    def gradients(saved: Any, cotangent: Any) -> Any:
        images, kernel = saved
        return winograd.by_images(cotangent, kernel), winograd.by_kernel(images, cotangent)

    run.defvjp(lambda images, kernel: (winograd.forward(images, kernel), (images, kernel)), gradients)
    return run


def picked(layer: Layer) -> list[str]:
    """The forms that the rule takes for a layer: as Flax's own, and with a pool also as the package's own."""
    from fedjax_spmc.models import forms

    side = layer.image + 2 * layer.padding - layer.size + 1
    pads = ((layer.padding, layer.padding),) * 2
    form = forms.form_of(
        forms.Work(layer.kernels, layer.channels, (layer.size,) * 2, (side, side), layer.batch, padding=pads)
    )
    if form == "taps":
        form = forms.padded_form(layer.kernels, layer.channels, layer.image, layer.image, 1)
    if layer.pool == 1:
        return [form]
    return [form, f"pooled {forms.pooled_form(layer.kernels, layer.channels, layer.size, side // 2, layer.batch)}"]


def measured(layer: Layer, repeats: int) -> dict[str, Any]:
    """A row of the table: the layer, ms of every form, the largest relative difference from the library's numbers."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(layer.batch, layer.image, layer.image, layer.channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(layer.size, layer.size, layer.channels, layer.kernels)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=layer.kernels), jnp.float32)
    loops, values, turns = {}, {}, {}
    for name, form in forms_of(layer).items():

        def gradients(images: Any, kernel: Any, form: Any = form) -> Any:
            out, pull = jax.vjp(lambda images, kernel: form(images, kernel, bias), images, kernel)
            return out, pull(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

        turns[name] = 1 if name == "library" else TURNS

        def many(images: Any, kernel: Any, gradients: Any = gradients, turns: int = turns[name]) -> Any:
            def turn(_: Any, carry: Any) -> Any:
                images, total = carry
                total = total + sum(jnp.sum(x[..., :1]) for x in jax.tree.leaves(gradients(images, kernel)))
                return images * 0.999 + 1e-30 * total, total

            return lax.fori_loop(0, turns, turn, (images, jnp.float32(0)))[1]

        values[name] = jax.jit(gradients)(images, kernel)
        loops[name] = jax.jit(many)
        jax.block_until_ready(loops[name](images, kernel))
    differs = {
        name: max(
            float(jnp.abs(a - b).max() / jnp.abs(b).max())
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(values["library"]), strict=True)
        )
        for name, one in values.items()
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, loop in loops.items():
            if len(times[name]) > 1 and sum(times[name]) * turns[name] > MOST_MS:
                continue
            start = time.perf_counter()
            jax.block_until_ready(loop(images, kernel))
            times[name].append((time.perf_counter() - start) / turns[name] * 1e3)
    ms = {name: round(statistics.median(values), 4) for name, values in times.items()}
    return {**layer._asdict(), "ms": ms, "picked": picked(layer), "differs": differs}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser("", __doc__)
    parser.flag(Option("--repeats", int, 30, range=Range(1, 10**6)), "N", "repetitions")
    parser.flag(
        Option("--layers", str, "", optional=True), "NAME,...", "layers, or parts of their names (default: all)"
    )
    parser.flag(Option("--out", str, None, optional=True), "FILE", "keeps the table in this file")
    parser.switch("--json", "prints the table as one line of JSON")
    parser.switch("--toy", "a check of the bench: tiny layers")
    return run_command(parser, lambda flags: _bench(parser, flags), arguments)


def _bench(parser: Parser, flags: Flags) -> int:
    import jax

    out = None if flags["out"] is None else file_to_write(flags["out"], "--out")
    small = {"image": 8, "batch": 2}
    words = (flags["layers"] or "").split(",")
    chosen = [layer for layer in LAYERS if any(word in layer.layer for word in words)]
    if not chosen:
        raise parser.refusal(f"--layers = {flags['layers']} names no layer: {', '.join(x.layer for x in LAYERS)}")
    rows = []
    for layer in chosen:
        row = measured(layer._replace(**small) if flags["toy"] else layer, flags["repeats"])
        rows.append(row)
        if not flags["json"]:
            times = (f"{name}{'*' if name in row['picked'] else ''} {ms:.3f}" for name, ms in sorted(row["ms"].items()))
            show(f"{row['layer']:<22} {'  '.join(times)}")
    table = {
        "about": "ms on one core: value and both gradients of a convolution with bias, ReLU and, where pool = 2, "
        "2x2 max-pool",
        "machine": f"{platform.processor() or platform.machine()}, JAX {jax.__version__}, {time.strftime('%d %B %Y')}",
        "rows": rows,
    }
    if out is not None:
        out.write_text(json.dumps(table, indent=1) + "\n")
    if flags["json"]:
        show(json.dumps(table))
    return int(max(max(row["differs"].values()) for row in rows) > 1e-3)


if __name__ == "__main__":
    sys.exit(main())
