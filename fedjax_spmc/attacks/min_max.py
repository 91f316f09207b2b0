"""Min-max: the mean of the others, pushed as far as no update lies farther from it than the two farthest benign ones.

Source: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
    Federated Learning", NDSS 2021, the min-max attack, and its code.
Knows: the benign uploads of the round, or its own alone (`knowledge`).
Controls: its own upload.
Cost: O(K^2 D); with `knowledge="own"` in a list that reaches into training, a second training of each attacking client.
Deviations: made for gradients, which the server subtracts; on updates the formula is the same. Batch statistics and
    extras are sent as they were trained.
"""

from typing import Annotated

import jax.numpy as jnp

from fedjax_spmc.attacks._search import Direction, along, bisect, direction_of
from fedjax_spmc.attacks._updates import Knowledge, Known, crafting, mean_of, squared_distances
from fedjax_spmc.options import POSITIVE, TRACED
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, PRNGKey, State, Upload


@attacks.register("min_max")
def min_max(
    direction: Direction = "unit",
    start: Annotated[float, POSITIVE, TRACED] = 10.0,
    knowledge: Knowledge = "benign",
) -> Attack:
    """Uploads g + m - gamma p, m the mean of the updates known, with the largest gamma that the criterion allows.

    That is: the largest distance to a known update is at most the largest between two of them.

    Args:
        direction: p: "unit" is m at length 1, "sign" its sign, "std" the standard deviation number by number.
        start: the first gamma that is tried; gamma stays below twice this (the code: 10, 30 or 50).
        knowledge: "benign": all uploads of the round but the attackers'; "own": what the attacking clients train on
            their clean data.
    """

    def make(ctx: AttackContext, own: State, known: Known, upload: Upload, key: PRNGKey) -> tuple[Array, State]:
        del ctx, upload, key
        return pushed(known.updates, known.mask, direction_of(known.updates, known.mask, direction), start)[0], own

    return Attack(craft=crafting(knowledge, make))


def pushed(updates: Array, mask: Array, direction: Array, start: float | Array) -> tuple[Array, Array]:
    """The update [D] sent and its gamma, from updates [K, D], of which the rows in `mask` are known."""
    center = mean_of(updates, mask)
    pairs = jnp.where(mask[:, None] & mask[None, :], squared_distances(updates, mask), 0.0)
    distances, limit = along(updates, center, direction), pairs.max()

    def good(strength: Array, memory: None) -> tuple[Array, None]:
        return jnp.where(mask, distances(strength), 0.0).max() <= limit, memory

    strength = bisect(good, start, None, updates.dtype)
    return center - strength * direction, strength
