"""Moves its upload along the gradient through the server's rule: away from where the broadcast model stands."""

import jax
import jax.numpy as jnp

from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Attack


@attacks.register("through_the_defence")
def through_the_defence(step: float = 0.1) -> Attack:
    """Differentiates through `defend`."""

    def craft(ctx, own, upload, key):
        def distance(models):
            params, _ = ctx.defend(upload._replace(client_params=models))
            gaps = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), params, upload.global_params)
            return sum(jax.tree.leaves(gaps))

        slopes = jax.grad(distance)(upload.client_params)
        models = jax.tree.map(lambda w, d: w + step * jnp.sign(d), upload.client_params, slopes)
        return upload._replace(client_params=models), own

    return Attack(craft=craft)
