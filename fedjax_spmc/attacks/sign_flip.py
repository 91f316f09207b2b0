"""Sign flip: attackers send the mean update of the others turned round.

Source: Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning
    from Heterogeneous Datasets", AAAI 2019, the sign-flipping attack; the form is that of the library byzfl 0.0.11.
Knows: the benign uploads of the round, or its own alone (`knowledge`); nothing of the others with `each`.
Controls: its own upload.
Cost: O(K D); with `knowledge="own"` in a list that reaches into training, a second training of each attacking client.
Deviations: made for gradients, which the server subtracts; on updates the formula is the same. Batch statistics and
    extras are sent as they were trained.
"""

import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.attacks._updates import Knowledge, Known, crafting, mean_of, models_of
from fedjax_spmc.options import refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, PRNGKey, State, Upload


@attacks.register("sign_flip")
def sign_flip(each: bool = False, knowledge: Knowledge = "benign") -> Attack:
    """Uploads g - m, with g the broadcast model and m the mean of the updates that are known.

    Args:
        each: whether each attacking client turns the update round that it trained, in place of the mean.
        knowledge: "benign": all uploads of the round but the attackers'; "own": what the attacking clients train on
            their clean data.
    """

    def make(ctx: AttackContext, own: State, known: Known, upload: Upload, key: PRNGKey) -> tuple[Array, State]:
        del ctx, upload, key
        return -mean_of(known.updates, known.mask), own

    def turn(ctx: AttackContext, own: State, upload: Upload, key: PRNGKey) -> tuple[Upload, State]:
        del ctx, key
        updates = trees.ravel_clients(trees.subtract(upload.client_params, upload.global_params))
        return upload._replace(client_params=models_of(upload, jnp.negative(updates))), own

    if each:
        refuse_unused(sign_flip, "each = True", {"knowledge": knowledge}, "attack")
        return Attack(craft=turn)
    return Attack(craft=crafting(knowledge, make))
