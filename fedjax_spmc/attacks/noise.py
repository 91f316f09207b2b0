"""Noise: attackers send Gaussian noise, alone or added to an update.

Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017, the Gaussian attack; the library byzfl 0.0.11.
Knows: nothing of the others; with `around="mean"` the benign uploads of the round, or its own alone (`knowledge`).
Controls: its own upload.
Cost: O(K D); with `around="mean", knowledge="own"` in a list that reaches into training, a second training of each
    attacking client.
Deviations: the paper's deviation of 200 is that of gradients; byzfl's 1 is the default here, which for most models is
    still far above an update. Each attacking client draws noise of its own. Batch statistics and extras are sent as
    they were trained.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.attacks._updates import Knowledge, Known, crafting, mean_of, models_of
from fedjax_spmc.options import NON_NEGATIVE, TRACED, refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, PRNGKey, State, Upload


@attacks.register("noise")
def noise(
    scale: Annotated[float, NON_NEGATIVE, TRACED] = 1.0,
    around: Literal["broadcast", "own", "mean"] = "broadcast",
    knowledge: Knowledge = "benign",
) -> Attack:
    """Uploads g + u + scale z, with g the broadcast model, z standard normal and u the update named by `around`.

    Args:
        scale: standard deviation of each number.
        around: "broadcast": u = 0 (byzfl); "own": what the attacking client trained; "mean": the mean of the updates
            that are known.
        knowledge: "benign": all uploads of the round but the attackers'; "own": what the attacking clients train on
            their clean data.
    """

    def drawn(ctx: AttackContext, like: Array, key: PRNGKey) -> Array:
        keys = jax.vmap(lambda client: jax.random.fold_in(key, client))(ctx.client_ids)
        return scale * jax.vmap(lambda one: jax.random.normal(one, like.shape[1:], like.dtype))(keys)

    def make(ctx: AttackContext, own: State, known: Known, upload: Upload, key: PRNGKey) -> tuple[Array, State]:
        del upload
        return mean_of(known.updates, known.mask)[None] + drawn(ctx, known.updates, key), own

    def alone(ctx: AttackContext, own: State, upload: Upload, key: PRNGKey) -> tuple[Upload, State]:
        updates = trees.ravel_clients(trees.subtract(upload.client_params, upload.global_params))
        start = updates if around == "own" else jnp.zeros_like(updates)
        return upload._replace(client_params=models_of(upload, start + drawn(ctx, updates, key))), own

    if around == "mean":
        return Attack(craft=crafting(knowledge, make))
    refuse_unused(noise, f"around = {around!r}", {"knowledge": knowledge}, "attack")
    return Attack(craft=alone)
