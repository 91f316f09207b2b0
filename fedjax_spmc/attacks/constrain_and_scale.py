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
from fedjax_spmc.attacks._success import Success, require_backdoor, success_of
from fedjax_spmc.attacks._training import rule_context
from fedjax_spmc.attacks.model_replacement import model_replacement
from fedjax_spmc.options import FRACTION, POSITIVE, TRACED, refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.training import Hooks, step_of_sgd
from fedjax_spmc.types import (
    Array,
    Attack,
    AttackContext,
    Batch,
    ClientData,
    LocalRule,
    Params,
    PRNGKey,
    Variables,
)

SLOWER = ((20.0, 50.0), (60.0, 100.0))
"""Where the received model gives more than so many percent of the labels wanted the rate is divided by so much."""

Test = Callable[[AttackContext, Variables, Array, Array, PRNGKey], Success]
"""(ctx, model, client_id, number of the test, key) -> how it does; test 0 is that of the received model."""


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
    training = (
        stopping(stop_loss, keep_accuracy, slow_down, on_own_data) if stop_loss is not None or slow_down else None
    )
    return Attack(mask_gradients=constraint(alpha), train=training, craft=scaling.craft)


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


def on_own_data(ctx: AttackContext, variables: Variables, client_id: Array, number: Array, key: PRNGKey) -> Success:
    """The test of an attacker: an epoch of its clean data, the same one each time."""
    del number
    require_backdoor(ctx, "constrain_and_scale")
    data = ctx.clean_data(client_id)

    def gather(number: Array) -> Batch:
        return data.gather(number, key)

    return success_of(ctx, variables, gather, data.num_batches, key)


def stopping(stop_loss: float | Array | None, keep_accuracy: bool, slow_down: bool, test: Test) -> Callable[..., Any]:
    """The slot that trains as the local rule does, at another rate and until the backdoor is learnt.

    Args:
        stop_loss, keep_accuracy, slow_down: see `constrain_and_scale`.
        test: of a model.
    """

    def train(
        rule: LocalRule,
        ctx: AttackContext,
        own: Any,
        variables: Variables,
        client_state: Any,
        data: ClientData,
        client_id: Array,
        key: PRNGKey,
        hooks: Hooks,
    ) -> Any:
        del own
        each = data.num_batches
        before = test(ctx, variables, client_id, jnp.int32(0), key)
        slower = jnp.float32(1.0)
        for percent, divisor in SLOWER if slow_down else ():
            slower = slower / jnp.where(before.success > percent, divisor, 1.0)

        def stepping(earlier: Array) -> Any:
            """The step, with milestones so many epochs earlier."""

            def rate(step: Array) -> Array:
                return slower * (1.0 if hooks.rate is None else hooks.rate(step + earlier * each))

            return step_of_sgd(rule, rule_context(ctx), variables, client_state, data, key, hooks._replace(rate=rate))

        def goes_on(state: tuple[Array, ...]) -> Array:
            epoch, _, stopped, _ = state
            return (epoch < ctx.epochs) & ~stopped & (each > 0)

        def train_epoch(state: tuple[Any, ...]) -> tuple[Any, ...]:
            epoch, earlier, stopped, carry = state
            step, _ = stepping(earlier)
            carry = jax.lax.fori_loop(epoch * each, (epoch + 1) * each, step, carry)
            if stop_loss is not None:
                now = test(ctx, Variables(carry[0], carry[1]), client_id, epoch + 1, key)
                learnt = now.loss <= stop_loss
                worse = (now.accuracy < before.accuracy) & keep_accuracy
                stopped, earlier = learnt & ~worse, earlier + (learnt & worse)
            return epoch + 1, earlier, stopped, carry

        first = jnp.int32(0), jnp.int32(0), jnp.zeros((), bool), stepping(jnp.int32(0))[1]
        epochs, _, _, (params, stats, _, sums, _) = jax.lax.while_loop(goes_on, train_epoch, first)
        return Variables(params, stats), client_state, (epochs * each).astype(jnp.int32), sums

    return train
