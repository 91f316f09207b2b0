"""Learns in `craft` how far its update may be scaled: more while the update was long, less once it is short."""

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Attack


@attacks.register("learning_factor")
def learning_factor() -> Attack:
    """Carries a factor from round to round and uploads an update scaled by it."""

    def craft(ctx, own, upload, key):
        update = trees.subtract(upload.client_params, upload.global_params)
        lengths = trees.client_norm(update)
        bad = ctx.roster.attacks_now(ctx.client_ids)
        longer = jnp.where(bad, lengths, 0).max() > jnp.where(bad, 0, lengths).max()
        factor = own * jnp.where(longer, 0.5, 2.0)
        models = jax.tree.map(lambda g, u: g[None] + factor * u, upload.global_params, update)
        return upload._replace(client_params=models), factor

    return Attack(init=lambda ctx, key: jnp.float32(1.0), craft=craft)
