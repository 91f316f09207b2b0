"""FLOPs and bytes of local steps, so that benchmarks can say how far a machine is used.

XLA's `cost_analysis` counts the body of a loop once, whatever its trip count: of a round, whose steps stand in loops
over clients and steps, it tells next to nothing. So one step is compiled by itself and counted, and the benchmark
multiplies by its steps. `in_loops` says whether the step itself holds a loop, as residual nets do on a CPU: there XLA's
count is too small, and `products` is the one to take.

`flops` is XLA's count, elementwise operations among them, `products` that of the matrix products and convolutions alone
(2 M N K each), read from the program as it is traced: it does not depend on the compiler, and multiplies loops of known
length out; `moved` is what these read and write, operands and results, counted the same way. `bytes` is what XLA's
operations read and write after fusion, caches not considered: an upper bound of the traffic to memory.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from fedjax_spmc.keys import root_key
from fedjax_spmc.types import Batch, Context, LocalRule, Model

CONVOLUTIONS = ((28, 6, 3), (10, 16, 6))
"""Of SimpleCNN: rows of the output, kernels, channels of the input; all kernels are 5x5."""
LINEAR = (400, 120, 84, 84, 256)


class Cost(NamedTuple):
    """One call of a function.

    Attributes:
        flops, bytes: XLA's account of the compiled program; NaN where it gives none.
        products: FLOPs of the matrix products and convolutions alone, as traced.
        moved: bytes of the operands and results of these.
        in_loops: whether the compiled program has loops, which XLA counts as if they ran once.
    """

    flops: float
    bytes: float
    products: float
    moved: float
    in_loops: bool


def of_call(function: Callable[..., Any], *arguments: Any) -> Cost:
    """The cost of one call, for arguments or their shapes; compiles the function and does not run it."""
    compiled = jax.jit(function).lower(*arguments).compile()
    found: Any = compiled.cost_analysis() or {}
    account = found[0] if isinstance(found, list) else found
    products, moved = _products(jax.make_jaxpr(function)(*arguments).jaxpr)
    return Cost(
        flops=float(account.get("flops", math.nan)),
        bytes=float(account.get("bytes accessed", math.nan)),
        products=products,
        moved=moved,
        in_loops=" while(" in (compiled.as_text() or ""),
    )


def of_step(model: Model, rule: LocalRule, batch_size: int) -> Cost:
    """The gradient of one local step on `batch_size` images; not the optimiser's step, nor how the batch is made."""
    return of_call(*_step(model, rule, batch_size))


def traced_step(model: Model, rule: LocalRule, batch_size: int) -> tuple[float, float]:
    """`products` and `moved` of `of_step`, without compiling."""
    function, *arguments = _step(model, rule, batch_size)
    return _products(jax.make_jaxpr(function)(*arguments).jaxpr)


def _step(model: Model, rule: LocalRule, batch_size: int) -> tuple[Any, ...]:
    """The gradient of a local step, and the shapes of its arguments."""
    key = jax.eval_shape(lambda: root_key(0))
    variables = jax.eval_shape(model.init, key)
    state = jax.eval_shape(lambda variables: rule.init(variables, 1), variables)
    images = jax.ShapeDtypeStruct((batch_size, *model.input.shape), jnp.float32)

    def step(variables: Any, state: Any, images: Any, key: Any) -> Any:
        labels = jnp.zeros(batch_size, jnp.int32)
        batch = Batch(images, labels, labels, jnp.ones(batch_size, bool))
        ctx = Context(model, variables, variables, {}, 1, jnp.int32(0), shared=state.server)
        own = jax.tree.map(lambda x: x[0], state.clients)
        return rule.gradients(ctx, variables.params, variables.stats, batch, own, key)

    return step, variables, state, images, key


def speed(step: Cost, steps: float, seconds: float) -> float:
    """GFLOP/s: XLA's account, but for programs with loops, of which it counts too little."""
    return (max(step.flops, step.products) if step.in_loops else step.flops) * steps / seconds / 1e9


def simple_cnn_flops(rule_name: str, batch: int, num_classes: int = 10, as_written: bool = False) -> float:
    """Operations of SimpleCNN's products in one local step, counted by hand, for 32x32x3 images.

    Forward, the gradients by the weights, and by the inputs of every layer but the first. SPMC has the teacher's
    forward pass and the second backward pass on top.

    Args:
        rule_name: "sgd" or "spmc".
        batch: images.
        num_classes: logits.
        as_written: as `pooled.convolution_pool` computes it, where each convolution's kernel is 6x6 for 5x5: the four
            outputs under a pooling window share one patch.
    """
    taps = 36 if as_written else 25
    convolutions = [rows * rows * kernels * channels * taps for rows, kernels, channels in CONVOLUTIONS]
    widths = (*LINEAR, num_classes)
    linear = sum(a * b for a, b in itertools.pairwise(widths))
    forward, backward = sum(convolutions) + linear, 2 * (sum(convolutions) + linear) - convolutions[0]
    passes = forward + backward if rule_name == "sgd" else 2 * forward + 2 * backward
    return 2.0 * batch * passes


def simple_cnn_bytes(rule_name: str, batch: int) -> float:
    """What SimpleCNN's convolutions read and write in one local step row by row on a CPU, counted by hand.

    XLA counts the body of a loop once, so that it cannot tell. A pass over a layer copies its patches (read, written,
    read by the product); forward it writes and reads the four outputs of each window and keeps the largest and its
    place, backward it reads these and spreads the gradient over the four; the gradient by the images is written, read
    and added to a sum that is read and written. Caches are not considered: nearly all of it stays in them.

    Args:
        rule_name: "sgd" or "spmc".
        batch: images.
    """
    total = 0.0
    for layer, (size, kernels, channels) in enumerate(CONVOLUTIONS):
        windows = (size // 2) ** 2 * batch
        patches, outputs = 36 * channels * windows, 4 * kernels * windows
        largest_and_place = kernels * windows * 5 / 4
        forward = by_weights = 3 * patches + 2 * outputs + largest_and_place
        by_images = 4 * patches + 2 * outputs + largest_and_place
        total += forward + by_weights + (by_images if layer else 0)
    return 4 * total * (1 if rule_name == "sgd" else 2)


def _products(jaxpr: Jaxpr) -> tuple[float, float]:
    """FLOPs and bytes of the products whose results are used: a first layer's gradient by the images, say, is not."""
    total, moved, used = 0.0, 0.0, set(map(id, jaxpr.outvars))
    for equation in reversed(jaxpr.eqns):
        if not any(id(made) in used for made in equation.outvars):
            continue
        used.update(map(id, equation.invars))
        name, shapes = equation.primitive.name, [getattr(x.aval, "shape", ()) for x in equation.invars]
        made = math.prod(getattr(equation.outvars[0].aval, "shape", ())) if equation.outvars else 0
        flops = 0.0
        if name == "dot_general":
            ((summed, _), _) = equation.params["dimension_numbers"]
            flops = 2.0 * made * math.prod(shapes[0][axis] for axis in summed)
        elif name == "conv_general_dilated":
            kernel, outputs = shapes[1], equation.params["dimension_numbers"].rhs_spec[0]
            flops = 2.0 * made * math.prod(kernel) / kernel[outputs]
        if flops:
            total += flops
            moved += sum(x.aval.size * x.aval.dtype.itemsize for x in (*equation.invars, *equation.outvars))
        turns = equation.params["length"] if name == "scan" else 1
        for inner in map(_products, _inside(equation.params)):
            total, moved = total + turns * inner[0], moved + turns * inner[1]
    return total, moved


def _inside(params: dict[str, Any]) -> list[Jaxpr]:
    """The programs inside of an operation: of a loop, a call, a function with a gradient of its own."""
    found = []
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, Jaxpr):
                found.append(one)
    return found
