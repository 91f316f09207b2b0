"""How attackers test a model of theirs on data of their own: how well the backdoor works, and the main task."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.losses import asked, cross_entropy
from fedjax_spmc.types import Array, AttackContext, Batch, Variables


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


def success_of(
    ctx: AttackContext, variables: Variables, gather: Callable[[Array], Batch], batches: Array | int, key: Array
) -> Success:
    """A model on so many clean batches, and on the same ones with the trigger of the whole list.

    Batches count by their asked labels.

    Args:
        ctx: of a round.
        variables: the model; it runs as in the test.
        gather: number of the batch -> clean batch.
        batches: how many.
        key: for networks that ask for one.
    """

    def add(number: Array, sums: Array) -> Array:
        clean = gather(number)
        shown = ctx.backdoor(clean)
        shown = shown._replace(labels=jnp.where(shown.labels == clean.labels, -1, shown.labels))
        return sums + jnp.stack([*counts(clean)[1:], *counts(shown)])

    def counts(batch: Batch) -> tuple[Array, Array, Array]:
        logits, _ = ctx.model.apply(*variables, batch.inputs, False, key)
        counted = asked(batch.labels, batch.valid)
        number = counted.sum().astype(jnp.float32)
        hits = (counted & (logits.argmax(axis=-1) == batch.labels)).sum().astype(jnp.float32)
        return cross_entropy(logits, batch.labels, batch.valid) * number, hits, number

    right, clean, loss, hits, triggered = jax.lax.fori_loop(0, batches, add, jnp.zeros(5))
    mean = jnp.where(triggered > 0, loss / jnp.maximum(triggered, 1), jnp.inf)
    return Success(mean, 100 * hits / jnp.maximum(triggered, 1), 100 * right / jnp.maximum(clean, 1))


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
