"""Client sampling: which K of the N clients take part in a round, and in which order."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_spmc.registry import samplings
from fedjax_spmc.types import Array, PRNGKey, Roster

Sampler = Callable[[PRNGKey, Roster], Array]
"""(key, roster) -> [K] int32 client ids; rows of a round stand in this order."""

make = samplings.make
names = samplings.names
describe = samplings.describe


@samplings.register("uniform")
def uniform(
    order: Literal["sorted", "drawn"] = "sorted", attackers: Literal["drawn", "forced", "forced_only"] = "drawn"
) -> Callable[[int, int], Sampler]:
    """K of N clients without replacement, all alike.

    Args:
        order: "sorted" puts the clients drawn in order of their ids; "drawn" leaves them in random order, also when all
            take part (the SPMC code).
        attackers: "drawn" takes malicious clients like everyone, "forced" has those that attack in a round take part in
            it, and "forced_only" also has them take part in no other.

    Returns:
        (N, K) -> Sampler.
    """

    def build(num_clients: int, clients_per_round: int) -> Sampler:
        def sample(key: PRNGKey, roster: Roster) -> Array:
            if order == "sorted" and clients_per_round == num_clients:
                return jnp.arange(num_clients, dtype=jnp.int32)
            drawn = jax.random.permutation(key, num_clients).astype(jnp.int32)
            if attackers != "drawn":
                attacking = roster.attacks_now(drawn)
                last = roster.malicious[drawn] & ~attacking & (attackers == "forced_only")
                drawn = drawn[jnp.argsort(jnp.where(attacking, 0, jnp.where(last, 2, 1)), stable=True)]
            drawn = drawn[:clients_per_round]
            return jnp.sort(drawn) if order == "sorted" else drawn

        return sample

    return build
