"""Client sampling: which K of the N clients take part in a round, and in which order."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_spmc.registry import samplings
from fedjax_spmc.types import Array, PRNGKey

Sampler = Callable[[PRNGKey, Array], Array]
"""(key, round) -> [K] int32 client ids; rows of a round stand in this order."""

make = samplings.make
names = samplings.names
describe = samplings.describe


@samplings.register("uniform")
def uniform(order: Literal["sorted", "drawn"] = "sorted") -> Callable[[int, int], Sampler]:
    """K of N clients without replacement, all alike.

    Args:
        order: "sorted" puts the clients drawn in order of their ids; "drawn" leaves them in random order, also when all
            take part (the SPMC code).

    Returns:
        (N, K) -> Sampler.
    """

    def build(num_clients: int, clients_per_round: int) -> Sampler:
        def sample(key: PRNGKey, round_index: Array) -> Array:
            del round_index
            if order == "sorted" and clients_per_round == num_clients:
                return jnp.arange(num_clients, dtype=jnp.int32)
            drawn = jax.random.permutation(key, num_clients)[:clients_per_round].astype(jnp.int32)
            return jnp.sort(drawn) if order == "sorted" else drawn

        return sample

    return build
