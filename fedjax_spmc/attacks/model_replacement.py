"""Model replacement: the attacker scales its update so that it survives the averaging.

Source: Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020, Equation 3;
    the published codes of it, of DBA (ICLR 2020) and of "Attack of the Tails" (NeurIPS 2020).
Knows: how many clients take part and attack, and the server's learning rate; with `weights=size` how many examples
    each client has.
Controls: its own upload.
Cost: O(D).
Deviations: in the first code one of several attackers trains and sends its part as often as there are attackers; here
    each sends its own, and they share the replacement. That code divides by all clients, not by those that take part:
    `server.learning_rate` does the same here.
"""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.options import POSITIVE, TRACED, refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, PRNGKey, Upload


@attacks.register("model_replacement")
def model_replacement(
    factor: Annotated[float, POSITIVE, TRACED] | None = None,
    weights: Literal["uniform", "size"] = "uniform",
    statistics: bool = True,
) -> Attack:
    """Uploads g + factor (w - g) in place of w, g being the broadcast model. Composes with any poisoning of data.

    With the factor left open, and under the mean that `weights` names, the new model is the mean of the attackers'
    models plus what the others add.

    Args:
        factor: None = K / (server learning rate * attackers of the round), or with "size", for each attacker, all
            examples of the round's clients / (its own * server learning rate * attackers of the round).
        weights: of the mean that the server is taken to compute: "uniform", or "size" by numbers of examples.
        statistics: whether batch statistics are scaled too (the first two codes; the third has networks without). A
            variance that is scaled can become negative where the server does not average as expected.
    """
    if factor is not None:
        refuse_unused(model_replacement, "a factor that is given", {"weights": weights}, "attack")

    def craft(ctx: AttackContext, own: Any, upload: Upload, key: PRNGKey) -> tuple[Upload, Any]:
        del key
        scale = factors(ctx, upload)

        def scaled(rows: Any, center: Any) -> Any:
            update = trees.subtract(rows, center)
            return jax.tree.map(lambda g, u: g[None] + trees.column(scale, u) * u, center, update)

        upload = upload._replace(client_params=scaled(upload.client_params, upload.global_params))
        if statistics and jax.tree.leaves(upload.client_stats):
            upload = upload._replace(client_stats=scaled(upload.client_stats, ctx.variables.stats))
        return upload, own

    def factors(ctx: AttackContext, upload: Upload) -> Array:
        """[K] float32."""
        sizes = upload.num_examples
        if factor is not None:
            return jnp.full(sizes.shape, factor, jnp.float32)
        attackers = jnp.maximum(ctx.roster.attacks_now(ctx.client_ids).sum(), 1)
        share = jnp.ones(sizes.shape) if weights == "uniform" else sizes
        return share.sum() / (jnp.maximum(share, 1) * ctx.server_learning_rate * attackers)

    return Attack(craft=craft)
