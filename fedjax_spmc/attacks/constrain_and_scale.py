"""Constrain and scale: the attacker stays near the broadcast model, stops when it succeeds, and scales its update.

Beside any poisoning of data: `attack.name=(badnets,constrain_and_scale)`. How long and how fast attackers train at most
is `attack.local`'s business.

Source: Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020, Algorithm 1, and
    its published code.
Knows: how many clients take part and attack, and the server's learning rate.
Controls: its own training and upload.
Cost: one norm of a model for each step; for the tests, before training and behind each epoch, the client's data twice
    through the network.
Deviations: the paper's distance is a term that a defence suggests; the code's is the length of the update, not squared,
    and its two files set alpha = 1, which switches it off. The code tests on the test set and on the attackers'
    test pictures, here the attackers test on their own clean data, without and with the trigger; no test knows the
    server's data. One of the code's attackers trains, and all send its model, see `model_replacement`; here each trains
    by itself.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.attacks._stopping import stopping, test_of
from fedjax_spmc.attacks.model_replacement import model_replacement
from fedjax_spmc.options import FRACTION, POSITIVE, TRACED, refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, Params


@attacks.register("constrain_and_scale")
def constrain_and_scale(
    alpha: Annotated[float, FRACTION, TRACED] = 0.9,
    stop_loss: Annotated[float, POSITIVE, TRACED] | None = 1e-4,
    keep_accuracy: bool = True,
    slow_down: bool = True,
    factor: Annotated[float, POSITIVE, TRACED] | None = None,
    weights: Literal["uniform", "size"] = "uniform",
    statistics: bool = True,
) -> Attack:
    """Trains on alpha L + (1 - alpha) |w - g|, L the local rule's loss and g the broadcast model; sends the update
    scaled as `model_replacement` does.

    The norm is over all parameters, and its gradient is 0 at g. It is added to the rule's gradient before the masks of
    parts that stand behind this one in the list.

    Args:
        alpha: weight of the rule's loss; 1 = no constraint.
        stop_loss: an attacker stops behind the first epoch at whose end the mean cross entropy of its own examples with
            the trigger is no larger; None = it trains all epochs.
        keep_accuracy: whether it goes on where the accuracy on its own clean examples is below what it was before
            training (the code for pictures); then the milestones of `attack.local` come one epoch earlier.
        slow_down: whether the learning rate is divided by 50 where the received model gives more than 20 % of the
            labels wanted on the attacker's own examples with the trigger, by 5000 where it gives more than 60 %.
        factor: of the update, as in `model_replacement`.
        weights: of the mean that the server is taken to compute, as in `model_replacement`.
        statistics: whether batch statistics are scaled too, as in `model_replacement`.

    Raises:
        ConfigError: no attack of the list has a backdoor, and `stop_loss` or `slow_down` asks for one.
    """
    if stop_loss is None:
        refuse_unused(constrain_and_scale, "stop_loss = None", {"keep_accuracy": keep_accuracy}, "attack")
    scaling = model_replacement(factor, weights, statistics)
    attack = Attack(mask_gradients=constraint(alpha), craft=scaling.craft)
    if stop_loss is None and not slow_down:
        return attack
    return attack._replace(train=stopping(stop_loss, keep_accuracy, slow_down, test_of("constrain_and_scale")))


def constraint(alpha: float | Array) -> Callable[..., Params]:
    """The slot that makes of the gradient of L that of alpha L + (1 - alpha) |w - g|."""

    def mask_gradients(
        ctx: AttackContext, own: Any, grads: Params, params: Params, client_id: Array, step: Array
    ) -> Params:
        del own, client_id, step
        moved = jax.tree.map(jnp.subtract, params, ctx.variables.params)
        length = trees.client_norm(jax.tree.map(lambda x: x[None], moved))[0]
        pull = (1 - alpha) / jnp.where(length > 0, length, 1.0)
        return jax.tree.map(lambda grad, x: alpha * grad + pull * x, grads, moved)

    return mask_gradients
