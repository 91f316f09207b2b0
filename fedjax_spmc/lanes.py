"""A loop whose batched form wastes little when its lanes end at different times.

Under `vmap`, a `fori_loop` runs all lanes until the longest is done, and those that are done compute for nothing. Here
the lanes are sorted by their length, and as they end the loop goes on with fewer of them: a few loops one after
another, over all lanes, then the longest 80, 50 and 20 %. Lanes of several `vmap`s (clients within experiments) are
packed and sorted together. A lane computes what it computes alone; only the last bits of a product may depend on how
many lanes share it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from fedjax_spmc.types import Array

LANE_SHARES = (1.0, 0.8, 0.5, 0.2)
"""Shares of the lanes, longest first, with which one loop after another goes on."""

Leaves = tuple[Array, ...]
Step = Callable[[Leaves, Array, Leaves], Leaves]
"""(constants, step, carry) -> carry."""


def loop(steps: Array, body: Callable[[Array, Any], Any], carry: Any, packed: bool | None = None) -> Any:
    """`jax.lax.fori_loop(0, steps, body, carry)`, which `vmap` turns into loops over fewer and fewer lanes.

    Args:
        steps: int32 scalar.
        body: (step, carry) -> carry; it may close over traced values.
        carry: any pytree of arrays.
        packed: False leaves `vmap` its own way. None = by backend: on a CPU, where lanes are not worth it anyway, a
            lane's bits then do not depend on its neighbours.
    """
    if not (jax.default_backend() != "cpu" if packed is None else packed):
        return jax.lax.fori_loop(0, steps, body, carry)
    flat, structure = jax.tree.flatten(carry)

    def flat_body(step: Array, *flat: Array) -> list[Array]:
        return jax.tree.leaves(body(step, jax.tree.unflatten(structure, flat)))

    # What the body closes over becomes an argument, because batching has to see it.
    closed = jax.make_jaxpr(flat_body)(jnp.int32(0), *flat)

    def step_once(constants: Leaves, step: Array, flat: Leaves) -> Leaves:
        return tuple(jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, constants))(step, *flat))

    return jax.tree.unflatten(structure, _single_lane(step_once)(steps, tuple(closed.consts), tuple(flat)))


def segment_sizes(lanes: int) -> list[int]:
    """How many lanes the loops have, strictly falling: [10, 8, 5, 2] for 10."""
    return sorted({max(1, round(lanes * share)) for share in LANE_SHARES}, reverse=True)


def _single_lane(step_once: Step) -> Callable[[Array, Leaves, Leaves], Leaves]:
    """The loop of one lane; batched, the loops of many."""

    @custom_vmap
    def run(steps: Array, constants: Leaves, flat: Leaves) -> Leaves:
        return jax.lax.fori_loop(0, steps, lambda step, flat: step_once(constants, step, flat), flat)

    @run.def_vmap
    def batch(size: int, batched: Any, steps: Array, constants: Leaves, flat: Leaves) -> tuple[Leaves, Any]:
        own = tuple(batched[1])
        steps = _as_batched(size, batched[0], steps)
        flat = tuple(_as_batched(size, is_own, x) for is_own, x in zip(batched[2], flat, strict=True))
        return _many_lanes(step_once, own)(steps, constants, flat), (True,) * len(flat)

    return run


def _as_batched(size: int, is_batched: bool, x: Array) -> Array:
    """`x` with a leading axis of lanes."""
    return x if is_batched else jnp.broadcast_to(x, (size, *x.shape))


def _many_lanes(step_once: Step, own: Sequence[bool]) -> Callable[[Array, Leaves, Leaves], Leaves]:
    """The loops of lanes [L]: every carry leads with them, and of the constants those that are each lane's `own`."""

    @custom_vmap
    def run(steps: Array, constants: Leaves, flat: Leaves) -> Leaves:
        return _shrinking_loops(step_once, own, steps, constants, flat)

    @run.def_vmap
    def batch(size: int, batched: Any, steps: Array, constants: Leaves, flat: Leaves) -> tuple[Leaves, Any]:
        lanes = steps.shape[1] if batched[0] else steps.shape[0]

        def pack(x: Array, is_batched: bool, is_own: bool) -> Array:
            if not is_batched:
                x = jnp.broadcast_to(x, (size, *x.shape))
            if not is_own:
                x = jnp.broadcast_to(x[:, None], (size, lanes, *x.shape[1:]))
            return x.reshape(size * lanes, *x.shape[2:])

        packed_own = tuple(a or b for a, b in zip(own, batched[1], strict=True))
        packed = tuple(
            pack(x, is_batched, is_own) if keep else x
            for x, is_batched, is_own, keep in zip(constants, batched[1], own, packed_own, strict=True)
        )
        carries = tuple(pack(x, is_batched, True) for x, is_batched in zip(flat, batched[2], strict=True))
        results = _many_lanes(step_once, packed_own)(pack(steps, batched[0], True), packed, carries)
        return tuple(x.reshape(size, lanes, *x.shape[1:]) for x in results), (True,) * len(flat)

    return run


def _shrinking_loops(step_once: Step, own: Sequence[bool], steps: Array, constants: Leaves, flat: Leaves) -> Leaves:
    """Sorts the lanes by their length and runs a loop for each of `segment_sizes`; the carries in the given order."""
    order = jnp.argsort(-steps, stable=True)
    ranked = steps[order]
    constants = tuple(x[order] if is_own else x for x, is_own in zip(constants, own, strict=True))
    flat = tuple(x[order] for x in flat)
    step_all = jax.vmap(step_once, in_axes=(tuple(0 if is_own else None for is_own in own), None, 0))
    sizes = segment_sizes(len(steps))
    start = jnp.int32(0)
    for size, smaller in zip(sizes, [*sizes[1:], 0], strict=True):
        end = ranked[smaller]
        own_constants = tuple(x[:size] if is_own else x for x, is_own in zip(constants, own, strict=True))

        def masked(step: Array, carry: Leaves, size: int = size, own_constants: Leaves = own_constants) -> Leaves:
            going = step < ranked[:size]
            new = step_all(own_constants, step, carry)
            return tuple(jnp.where(_as_column(going, x), y, x) for x, y in zip(carry, new, strict=True))

        done = jax.lax.fori_loop(start, end, masked, tuple(x[:size] for x in flat))
        flat = tuple(jnp.concatenate([x, rest[size:]]) for x, rest in zip(done, flat, strict=True))
        start = end
    back = jnp.argsort(order)
    return tuple(x[back] for x in flat)


def _as_column(mask: Array, x: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (x.ndim - 1))
