"""Min-sum: the mean of the others, pushed as far as its distances to them sum up to no more than a benign update's do.

Source: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
    Federated Learning", NDSS 2021, the min-sum attack, and its code.
Knows: the benign uploads of the round, or its own alone (`knowledge`).
Controls: its own upload.
Cost: O(K^2 D); with `knowledge="own"` in a list that reaches into training, a second training of each attacking client.
Deviations: made for gradients, which the server subtracts; on updates the formula is the same. Batch statistics and
    extras are sent as they were trained.
"""

from typing import Annotated, Literal

import jax.numpy as jnp

from fedjax_spmc.attacks._search import Direction, along, bisect, direction_of
from fedjax_spmc.attacks._updates import Knowledge, Known, crafting, mean_of, squared_distances
from fedjax_spmc.options import POSITIVE, TRACED
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, PRNGKey, State, Upload

Bound = Literal["min", "max"]


@attacks.register("min_sum")
def min_sum(
    direction: Direction = "unit",
    start: Annotated[float, POSITIVE, TRACED] = 10.0,
    bound: Bound = "min",
    knowledge: Knowledge = "benign",
) -> Attack:
    """Uploads g + m - gamma p, m the mean of the updates known, with the largest gamma that the criterion allows.

    That is: its squared distances to the known updates sum up to at most what those of one of them do.

    Args:
        direction: p: "unit" is m at length 1, "sign" its sign, "std" the standard deviation number by number.
        start: the first gamma that is tried; gamma stays below twice this (the code: 10, 30 or 50).
        bound: of which one: "min" takes the smallest sum (the code), "max" the largest (another suite).
        knowledge: "benign": all uploads of the round but the attackers'; "own": what the attacking clients train on
            their clean data.
    """

    def make(ctx: AttackContext, own: State, known: Known, upload: Upload, key: PRNGKey) -> tuple[Array, State]:
        del ctx, upload, key
        return pushed(known.updates, known.mask, direction_of(known.updates, known.mask, direction), start, bound)[
            0
        ], own

    return Attack(craft=crafting(knowledge, make))


def pushed(
    updates: Array, mask: Array, direction: Array, start: float | Array, bound: Bound = "min"
) -> tuple[Array, Array]:
    """The update [D] sent and its gamma, from updates [K, D], of which the rows in `mask` are known."""
    center = mean_of(updates, mask)
    sums = jnp.where(mask[None, :], squared_distances(updates, mask), 0.0).sum(axis=1)
    limit = jnp.where(mask, sums, jnp.inf).min() if bound == "min" else jnp.where(mask, sums, 0.0).max()
    distances = along(updates, center, direction)

    def good(strength: Array, memory: None) -> tuple[Array, None]:
        return jnp.where(mask, distances(strength), 0.0).sum() <= limit, memory

    strength = bisect(good, start, None, updates.dtype)
    return center - strength * direction, strength
