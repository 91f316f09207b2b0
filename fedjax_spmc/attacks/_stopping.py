"""Training that slows and stops by the attacker's own success.

Source: the published codes of Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS
2020, and of the attacks that were built on it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_spmc.attacks._success import Success, require_backdoor, success_of
from fedjax_spmc.attacks._training import rule_context
from fedjax_spmc.training import Hooks, step_of_sgd
from fedjax_spmc.types import Array, AttackContext, Batch, ClientData, LocalRule, PRNGKey, Variables

SLOWER = ((20.0, 50.0), (60.0, 100.0))
"""Where the received model gives more than so many percent of the labels wanted the rate is divided by so much."""

Test = Callable[[AttackContext, Variables, Array, Array, PRNGKey], Success]
"""(ctx, model, client_id, number of the test, key) -> how it does; test 0 is that of the model before training."""


def test_of(name: str) -> Test:
    """The test of an attacker of the attack `name`: an epoch of its clean data, the same one each time.

    Raises:
        ConfigError: when it is called and no attack of the list has a backdoor.
    """

    def on_own_data(ctx: AttackContext, variables: Variables, client_id: Array, number: Array, key: PRNGKey) -> Success:
        del number
        require_backdoor(ctx, name)
        data = ctx.clean_data(client_id)

        def gather(number: Array) -> Batch:
            return data.gather(number, key)

        return success_of(ctx, variables, gather, data.num_batches, key)

    return on_own_data


def stopping(
    stop_loss: float | Array | None, keep_accuracy: bool, slow_down: bool, test: Test, moving: Any = None
) -> Callable[..., Any]:
    """The slot that trains as the local rule does, at another rate and until the backdoor is learnt.

    Args:
        stop_loss, keep_accuracy, slow_down: see `constrain_and_scale`.
        test: of a model.
        moving: see `training.step_of_sgd`.
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
        before = Success(*[jnp.float32(0)] * 3)
        if stop_loss is not None or slow_down:
            before = test(ctx, variables, client_id, jnp.int32(0), key)
        slower = jnp.float32(1.0)
        for percent, divisor in SLOWER if slow_down else ():
            slower = slower / jnp.where(before.success > percent, divisor, 1.0)

        def stepping(earlier: Array) -> Any:
            """The step, with milestones so many epochs earlier."""

            def rate(step: Array) -> Array:
                return slower * (1.0 if hooks.rate is None else hooks.rate(step + earlier * each))

            slowed = hooks._replace(rate=rate)
            return step_of_sgd(rule, rule_context(ctx), variables, client_state, data, key, slowed, moving=moving)

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
