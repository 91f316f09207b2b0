"""Uploads that need no training: vectors made of benign updates, which all attackers send alike.

Updates are [b, D], a row for each benign client. Sources with each function.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_spmc.types import Array

Direction = Literal["std", "sign", "unit_vec"]
TRIALS = 24
"""Of the search: from 10 it ends within 1e-5 after 21."""


def unbiased_std(updates: Array) -> Array:
    """[D]: standard deviation over the rows, with b - 1 in the denominator; 0 of a single row."""
    squares = jnp.square(updates - updates.mean(axis=0)[None]).sum(axis=0)
    return jnp.sqrt(squares / max(len(updates) - 1, 1))


def a_little_is_enough(updates: Array, z: float | Array) -> Array:
    """[D]: mean + z std of the updates.

    Source: Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS
        2019; z is left to the caller.
    """
    return updates.mean(axis=0) + z * unbiased_std(updates)


def direction_of(updates: Array, kind: Direction) -> Array:
    """[D]: the direction away from the mean: "std" of the updates, "sign" of the mean, "unit_vec" the mean at length 1.

    Source: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
        Federated Learning", NDSS 2021, section IV.
    """
    mean = updates.mean(axis=0)
    if kind == "std":
        return unbiased_std(updates)
    return jnp.sign(mean) if kind == "sign" else mean / jnp.linalg.norm(mean)


def pushed(updates: Array, direction: Array, criterion: Literal["max", "sum"]) -> tuple[Array, Array]:
    """mean - lambda direction, with the largest lambda that the search finds to stay as near as benign updates are.

    Source: Shejwalkar and Houmansadr, NDSS 2021, their code's search: lambda goes up by half a step where the vector is
        near enough and down else, the step being halved each time from 10, until it is within 1e-5 of the last such.
    Args:
        updates: [b, D].
        direction: [D].
        criterion: "max" (min-max): the largest squared distance to a benign update is at most the largest between two
            of them. "sum" (min-sum): the sum of squared distances is at most that of the benign update for which it is
            smallest, as their code has it.

    Returns:
        [D] and lambda.
    """
    mean = updates.mean(axis=0)
    between = jax.vmap(lambda one: jnp.square(updates - one[None]).sum(axis=1))(updates)
    limit = between.max() if criterion == "max" else between.sum(axis=1).min()

    def near(strength: Array) -> Array:
        distances = jnp.square(updates - (mean - strength * direction)[None]).sum(axis=1)
        return (distances.max() if criterion == "max" else distances.sum()) <= limit

    def trial(state: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        strength, step, best = state
        done, good = jnp.abs(best - strength) <= 1e-5, near(strength)
        best = jnp.where(good & ~done, strength, best)
        strength = jnp.where(done, strength, strength + jnp.where(good, step, -step) / 2)
        return (strength, jnp.where(done, step, step / 2), best), None

    first = jnp.float32(10.0), jnp.float32(10.0), jnp.float32(0.0)
    (_, _, strength), _ = jax.lax.scan(trial, first, None, length=TRIALS)
    return mean - strength * direction, strength
