"""The searches by which attacks set the strength of an upload, and the directions of the optimised attacks.

Sources: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
Federated Learning", NDSS 2021, and its code (bisection, directions); the library byzfl 0.0.11 (line search).
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.attacks._updates import Known, mean_of, models_of, std_of
from fedjax_spmc.types import Array, AttackContext, Upload

Direction = Literal["unit", "sign", "std"]
NEAR = 1e-5
"""A bisection ends so near to the last strength that was good."""
MOST_TRIALS = 200
EVALUATIONS, FIRST_STEP, SHORTER = 20, 10.0, 0.8
"""Of the line search."""


def direction_of(updates: Array, mask: Array, kind: Direction) -> Array:
    """[D]: what is subtracted from the mean: "unit" the mean at length 1 (0 where it is 0), "sign" of the mean, "std"
    of the updates."""
    if kind == "std":
        return std_of(updates, mask)
    mean = mean_of(updates, mask)
    return jnp.sign(mean) if kind == "sign" else mean / unit(trees.root(jnp.sum(mean * mean)))


def unit(length: Array) -> Array:
    """A length to divide by: 1 in place of 0."""
    return jnp.where(length > 0, length, 1.0)


def along(updates: Array, center: Array, direction: Array) -> Callable[[Array], Array]:
    """strength -> [K] squared distances of the rows from center - strength direction."""
    gaps = updates - center[None]
    squares = jnp.square(gaps).sum(axis=1)
    products = jnp.matmul(gaps, direction, precision=jax.lax.Precision.HIGHEST)
    length = jnp.sum(direction * direction)
    return lambda strength: jnp.maximum(squares + 2 * strength * products + strength * strength * length, 0.0)


def bisect(good: Callable[[Array, Any], tuple[Array, Any]], start: float | Array, memory: Any, dtype: Any) -> Array:
    """The last strength that was good, as the code of Shejwalkar and Houmansadr searches it; 0 if none was.

    From `start`, by steps that begin with half of it and are halved each time: up after a good strength, down after
    another, until the next is within 1e-5 of the last good one. So it is below twice `start`.

    Args:
        good: (strength, memory) -> (bool, memory), memory being what is kept from trial to trial.
        start: the first strength.
        memory: before the first trial.
        dtype: of the strength.
    """
    start = jnp.asarray(start, dtype)

    def goes_on(state: tuple[Any, ...]) -> Array:
        strength, _, best, _, trial = state
        return (jnp.abs(best - strength) > NEAR) & (trial < MOST_TRIALS)

    def try_out(state: tuple[Any, ...]) -> tuple[Any, ...]:
        strength, step, best, memory, trial = state
        is_good, memory = good(strength, memory)
        further = strength + jnp.where(is_good, step, -step) / 2
        return further, step / 2, jnp.where(is_good, strength, best), memory, trial + 1

    first = start, start, jnp.zeros_like(start), memory, jnp.int32(0)
    return jax.lax.while_loop(goes_on, try_out, first)[2]


def line_search(value: Callable[[Array], Array], dtype: Any) -> Array:
    """The x >= 0 of the largest value that byzfl's search finds in 20 evaluations; it never goes below the best one.

    From 0 on: the step of 10 is doubled while the value grows; from the first failure on it is multiplied by 0.8 each
    time, and x goes on where that is better.
    """

    def evaluate(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        best, largest, step, expanding = state
        proposed = best + step
        found = value(proposed)
        better = found > largest
        expanding = expanding & better
        step = jnp.where(expanding, 2.0, SHORTER).astype(dtype) * step
        return jnp.where(better, proposed, best), jnp.where(better, found, largest), step, expanding

    zero = jnp.zeros((), dtype)
    state = zero, value(zero).astype(dtype), jnp.asarray(FIRST_STEP, dtype), jnp.ones((), bool)
    return jax.lax.fori_loop(1, EVALUATIONS, evaluate, state)[0]


def through_the_server(
    ctx: AttackContext, known: Known, upload: Upload, crafted: Callable[[Array], Array]
) -> Callable[[Array], Array]:
    """strength -> how far the server's model comes to lie from the mean of the known updates (`ctx.defend`).

    Attackers who know all others' uploads try the server on the round as it is. Those who know their own alone try it
    on these, with `known.pretended` crafted ones beside them, in the places of other clients of the round.
    """
    models = trees.where_rows(known.mask, known.models, upload.client_params)
    center = jax.tree.map(lambda x: x[0], models_of(upload, mean_of(known.updates, known.mask)))

    def distance(strength: Array) -> Array:
        tried = trees.where_rows(known.places, models_of(upload, crafted(strength)), models)
        params, _ = ctx.defend(upload._replace(client_params=tried, participating=known.present))
        return trees.client_norm(jax.tree.map(lambda a, b: (a - b)[None], params, center))[0]

    return distance
