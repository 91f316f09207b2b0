"""How attackers test a model of theirs on data of their own: how well the backdoor works, and the main task."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.losses import asked, cross_entropy
from fedjax_spmc.types import Array, AttackContext, Batch, PRNGKey, Variables


class Success(NamedTuple):
    """Of one model.

    Attributes:
        loss: float32 scalar, mean cross entropy of triggered examples with the labels that the attacker wants; those
            left out that have this label without the trigger. Infinite where none is left.
        success: float32 scalar, the share of these labels that the model gives, in percent; 0 where none is left.
        accuracy: float32 scalar, the share of clean labels that it gives, in percent.
    """

    loss: Array
    success: Array
    accuracy: Array


Gather = Callable[[Array], Batch]
"""Number of the batch -> clean batch."""


def success_of(ctx: AttackContext, variables: Variables, gather: Gather, batches: Array | int, key: PRNGKey) -> Success:
    """A model on so many clean batches, and on the same ones with the trigger of the whole list.

    Batches count by their asked labels.

    Args:
        ctx: of a round.
        variables: the model; it runs as in the test.
        gather: of the batches.
        batches: how many.
        key: for networks that ask for one.
    """
    loss, success = backdoor_of(ctx, variables, gather, batches, key)
    return Success(loss, success, accuracy_of(ctx, variables, gather, batches, key))


def backdoor_of(
    ctx: AttackContext, variables: Variables, gather: Gather, batches: Array | int, key: PRNGKey
) -> tuple[Array, Array]:
    """loss and success of `Success`."""

    def triggered(number: Array) -> Batch:
        clean = gather(number)
        shown = ctx.backdoor(clean)
        return shown._replace(labels=jnp.where(shown.labels == clean.labels, -1, shown.labels))

    loss, hits, number = _counts(ctx, variables, triggered, batches, key)
    mean = jnp.where(number > 0, loss / jnp.maximum(number, 1), jnp.inf)
    return mean, 100 * hits / jnp.maximum(number, 1)


def accuracy_of(ctx: AttackContext, variables: Variables, gather: Gather, batches: Array | int, key: PRNGKey) -> Array:
    """accuracy of `Success`."""
    _, hits, number = _counts(ctx, variables, gather, batches, key)
    return 100 * hits / jnp.maximum(number, 1)


def _counts(
    ctx: AttackContext, variables: Variables, gather: Gather, batches: Array | int, key: PRNGKey
) -> tuple[Array, Array, Array]:
    """Summed cross entropy, labels that come out, labels asked."""

    def add(number: Array, sums: Array) -> Array:
        batch = gather(number)
        logits, _ = ctx.model.apply(*variables, batch.inputs, False, key)
        counted = asked(batch.labels, batch.valid)
        hits = counted & (logits.argmax(axis=-1) == batch.labels)
        number, hits = (x.sum().astype(jnp.float32) for x in (counted, hits))
        return sums + jnp.stack([cross_entropy(logits, batch.labels, batch.valid) * number, hits, number])

    loss, hits, number = jax.lax.fori_loop(0, batches, add, jnp.zeros(3))
    return loss, hits, number


def require_backdoor(ctx: AttackContext, name: str) -> None:
    """Refuses a list of attacks whose success cannot be tested.

    Raises:
        ConfigError: none of them has a backdoor.
    """
    if ctx.backdoor is None:
        raise ConfigError(
            f"attack.name = {name} is not allowed without an attack that has a backdoor, such as badnets: it tests how "
            f"well the backdoor works, and must stand in a list with one, such as badnets,{name}."
        )
