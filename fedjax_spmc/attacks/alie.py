"""ALIE, a little is enough: attackers send the mean of the others, moved by a few of their standard deviations.

Source: Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019;
    the search for z is that of the library byzfl 0.0.11.
Knows: how many clients take part and attack; the benign uploads of the round, or its own alone (`knowledge`); with
    `optimise` the server's rule.
Controls: its own upload.
Cost: O(K D); with `optimise` 20 aggregations; with `knowledge="own"` in a list that reaches into training, a second
    training of each attacking client.
Deviations: deviations are unbiased, as in the codes. Where the paper's z is infinite, because attackers are a majority
    or benign clients too few, the share of clients of which it is the quantile is held half a client away from 0 and 1.
    Batch statistics and extras are sent as they were trained.
"""

from typing import Annotated, Literal

import jax.numpy as jnp
from jax.scipy.special import ndtri

from fedjax_spmc.attacks._search import line_search, through_the_server
from fedjax_spmc.attacks._updates import Knowledge, Known, crafting, mean_of, std_of
from fedjax_spmc.options import TRACED, Range, refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, PRNGKey, State, Upload


@attacks.register("alie")
def alie(
    z: Annotated[float, Range(-1e6, 1e6), TRACED] | None = None,
    optimise: bool = False,
    sign: Literal["plus", "minus"] = "plus",
    knowledge: Knowledge = "benign",
) -> Attack:
    """Uploads g + m + z s, with m the mean and s the standard deviation, number by number, of the updates known.

    Args:
        z: how many deviations; None = the paper's, the largest that some benign clients exceed who together with the
            attackers are a majority: the (n - f - h) / (n - f) quantile of a standard normal, h = floor(n / 2 + 1) - f,
            with n uploads and f attackers. It is 0 for 10 and 2, and below 0 for some small n.
        optimise: whether z is searched anew in each round, so that the server's model comes to lie far from m.
        sign: "minus" subtracts z s (a code of the field), "plus" adds it (the others).
        knowledge: "benign": all uploads of the round but the attackers'; "own": what the attacking clients train on
            their clean data.
    """
    if optimise:
        refuse_unused(alie, "optimise = True", {"z": z}, "attack")
    side = 1.0 if sign == "plus" else -1.0

    def make(ctx: AttackContext, own: State, known: Known, upload: Upload, key: PRNGKey) -> tuple[Array, State]:
        del key
        mean, std = mean_of(known.updates, known.mask), side * std_of(known.updates, known.mask)
        if optimise:
            distance = through_the_server(ctx, known, upload, lambda strength: mean + strength * std)
            return mean + line_search(distance, mean.dtype) * std, own
        if z is not None:
            return mean + z * std, own
        return mean + published_z(upload.participating.sum(), known.attackers, mean.dtype) * std, own

    return Attack(craft=crafting(knowledge, make))


def published_z(uploads: Array | int, attackers: Array | int, dtype: type | jnp.dtype = jnp.float32) -> Array:
    """The paper's z for n uploads, f of them the attackers'; scalar of `dtype`."""
    others = jnp.maximum(jnp.asarray(uploads) - attackers, 1)
    supporters = jnp.asarray(uploads) // 2 + 1 - attackers
    share = (others - supporters).astype(dtype) / others
    edge = 0.5 / others.astype(dtype)
    return ndtri(jnp.clip(share, edge, 1 - edge))
