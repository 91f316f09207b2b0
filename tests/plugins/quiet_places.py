"""Moves only the entries that last round's aggregated update moved least, as Neurotoxin does; half of each tensor."""

import jax
import jax.numpy as jnp

from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Attack


@attacks.register("quiet_places")
def quiet_places() -> Attack:
    """Masks the attacker's gradients by last round's update."""

    def quiet(new, old):
        moved = jnp.abs(new - old)
        return moved <= jnp.median(moved)

    def mask_gradients(ctx, own, grads, params, client_id, step):
        places = jax.tree.map(quiet, ctx.variables.params, ctx.previous.params)
        return jax.tree.map(lambda g, keep: jnp.where(keep, g, 0.0), grads, places)

    return Attack(mask_gradients=mask_gradients)
