"""PGD: the attacker trains in a ball around the broadcast model, so that its update does not stand out by its length.

Source: Wang, Sreenivasan, Rajput, Vishwanath, Agarwal, Sohn, Lee, Papailiopoulos, "Attack of the Tails: Yes, You Really
    Can Backdoor Federated Learning", NeurIPS 2020, and its published code; per step it is also a switch of Neurotoxin's
    code (ICML 2022), where the radius is the server's bound.
Knows: nothing of the others.
Controls: its own weights in local training, or its upload.
Cost: one norm of a model for each projection.
Deviations: under Krum and Multi-Krum the code lets the radius fall with the learning rate; here it is constant. Its
    l-infinity form takes plain gradient steps of 0.001, which here are `attack.local`'s business.
"""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.options import POSITIVE, TRACED, Range, refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, Params, PRNGKey, Upload


@attacks.register("pgd")
def pgd(
    radius: Annotated[float, POSITIVE, TRACED] = 2.0,
    norm: Literal["l2", "linf"] = "l2",
    when: Literal["step", "epoch", "round"] = "step",
    every: Annotated[int, Range(1, 10**6)] = 1,
) -> Attack:
    """Projects the attackers' parameters to the ball of a radius around the broadcast model.

    l2: w = g + (w - g) / max(1, |w - g| / radius), |.| over all parameters; l-infinity: w within g +- radius, number by
    number. The optimiser's momentum and batch statistics are left alone.

    Args:
        radius: of the ball.
        norm: "l2" or "linf".
        when: "step" projects within local epochs, see `every`; "epoch" behind the last step of each; "round" the
            uploads alone, as the parts of the list before this one left them.
        every: of "step": behind the steps 0, every, 2 every, ... of each epoch, and behind its last one; 1 = all.
    """
    if when != "step":
        refuse_unused(pgd, f"when = {when!r}", {"every": every}, "attack")

    def after_step(ctx: AttackContext, own: Any, params: Params, client_id: Array, step: Array) -> Params:
        del own, client_id
        place = step % jnp.maximum(ctx.num_batches, 1)
        now = place == ctx.num_batches - 1
        if when == "step":
            now = now | (place % every == 0)
        rows = jax.tree.map(lambda x: x[None], params)
        inside = jax.tree.map(lambda x: x[0], project(rows, ctx.variables.params, radius, norm))
        return trees.where(now, inside, params)

    def craft(ctx: AttackContext, own: Any, upload: Upload, key: PRNGKey) -> tuple[Upload, Any]:
        del ctx, key
        rows = project(upload.client_params, upload.global_params, radius, norm)
        return upload._replace(client_params=rows), own

    return Attack(craft=craft) if when == "round" else Attack(after_step=after_step)


def project(models: Params, center: Params, radius: float | Array, norm: Literal["l2", "linf"] = "l2") -> Params:
    """Models, stacked, projected one by one to the ball around `center`; those inside stay bit for bit."""
    if norm == "linf":
        return jax.tree.map(lambda w, g: jnp.clip(w, g[None] - radius, g[None] + radius), models, center)
    moved = trees.subtract(models, center)
    lengths = trees.client_norm(moved)
    shares = radius / jnp.maximum(lengths, radius)
    inside = jax.tree.map(lambda g, d: g[None] + trees.column(shares, d) * d, center, moved)
    return trees.where_rows(lengths > radius, inside, models)
