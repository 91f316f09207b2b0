"""Uploads g + factor (w - g) in place of w."""

from typing import Annotated

import jax

from fedjax_spmc.options import POSITIVE, TRACED
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Attack


@attacks.register("scaled")
def scaled(factor: Annotated[float, POSITIVE, TRACED] = 3.0) -> Attack:
    """Scales the attacker's update."""

    def craft(ctx, own, upload, key):
        models = jax.tree.map(lambda g, w: g[None] + factor * (w - g[None]), upload.global_params, upload.client_params)
        return upload._replace(client_params=models), own

    return Attack(craft=craft)
