"""Tailored: the mean of the others, pushed as far as a rule that the attackers know still lets it through.

Source: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
    Federated Learning", NDSS 2021, the attacks tailored to Multi-Krum, trimmed mean and median, and its code.
Knows: the server's rule, how many clients attack; the benign uploads of the round, or its own alone (`knowledge`).
Controls: its own upload.
Cost: O(K^2 D) and, for each of about 20 trials, O(K^3 log K) with Multi-Krum, else O(K D); with `knowledge="own"` in a
    list that reaches into training, a second training of each attacking client.
Deviations: made for gradients, which the server subtracts; on updates the formula is the same. The rule is the one of
    the code, whatever the server runs: its Multi-Krum takes uploads while more than 2 f + 2 are left, and its median is
    the lower one. With trimmed mean and median a trial is good that moves the server farther than the trial just
    before, not than the best one, as the code has it. Batch statistics and extras are sent as they were trained.
"""

from typing import Annotated, Literal

import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.attacks import _trial
from fedjax_spmc.attacks._search import Direction, along, bisect, direction_of
from fedjax_spmc.attacks._updates import Knowledge, Known, crafting, mean_of, squared_distances
from fedjax_spmc.options import POSITIVE, TRACED
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, PRNGKey, State, Upload

Rule = Literal["multi_krum", "trimmed_mean", "median"]


@attacks.register("tailored")
def tailored(
    rule: Rule = "multi_krum",
    direction: Direction = "unit",
    start: Annotated[float, POSITIVE, TRACED] = 10.0,
    knowledge: Knowledge = "benign",
) -> Attack:
    """Uploads g + m - gamma p, m the mean of the updates known, with the last gamma that was good in a search.

    With "multi_krum" gamma is good where the rule takes all of the crafted uploads, with the others where it moves the
    server's update farther from m than the gamma that was tried before.

    Args:
        rule: what the server is taken to run on the updates known and the attackers'.
        direction: p: "unit" is m at length 1, "sign" its sign, "std" the standard deviation number by number.
        start: the first gamma that is tried; gamma stays below twice this (the code: 3 to 30).
        knowledge: "benign": all uploads of the round but the attackers'; "own": what the attacking clients train on
            their clean data, beside a third as many crafted ones.
    """

    def make(ctx: AttackContext, own: State, known: Known, upload: Upload, key: PRNGKey) -> tuple[Array, State]:
        del ctx, upload, key
        away = direction_of(known.updates, known.mask, direction)
        return pushed(known.updates, known.mask, away, known.pretended, rule, start)[0], own

    return Attack(craft=crafting(knowledge, make))


def pushed(
    updates: Array, mask: Array, direction: Array, attackers: Array | int, rule: Rule, start: float | Array
) -> tuple[Array, Array]:
    """The update [D] sent and its gamma, from updates [K, D], of which the rows in `mask` are known, and a direction.

    With Multi-Krum the attackers, f, are at most K / 3 + 1 more than the rows that are not known.
    """
    center = mean_of(updates, mask)
    if rule == "multi_krum":
        pairs, to_crafted = squared_distances(updates, mask), along(updates, center, direction)

        def good(strength: Array, before: Array) -> tuple[Array, Array]:
            seen = _trial.crowd(pairs, mask, to_crafted(strength), attackers, len(mask) // 3 + 1)
            return _trial.multi_krum_takes_all_copies(seen, attackers), before
    else:
        known = _trial.sorted_updates(updates, mask)
        aggregate = _trial.trimmed_mean_with if rule == "trimmed_mean" else _trial.median_with

        def good(strength: Array, before: Array) -> tuple[Array, Array]:
            gap = aggregate(known, center - strength * direction, attackers) - center
            now = trees.root(jnp.sum(gap * gap))
            return now > before, now

    strength = bisect(good, start, jnp.full((), -1.0, updates.dtype), updates.dtype)
    return center - strength * direction, strength
