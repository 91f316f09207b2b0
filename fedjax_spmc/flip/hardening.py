"""Hardening: some of a batch's examples get a trigger and keep their true labels."""

import jax.numpy as jnp

from fedjax_spmc.flip.inversion import Triggers, stamped
from fedjax_spmc.types import Array, Batch


def counts_of(batch: Batch, classes: int) -> Array:
    """[C] int32, examples of each class in a batch."""
    mine = (batch.labels[:, None] == jnp.arange(classes)[None]) & batch.valid[:, None]
    return mine.sum(axis=0, dtype=jnp.int32)


def chosen(eligible: Array, draws: Array, count: Array) -> Array:
    """[B] bool: of the eligible rows the `count` with the smallest draws.

    Args:
        eligible: [B] bool, at least `count` of them.
        draws: [B] float in [0, 1].
        count: int32 scalar.
    """
    order = jnp.argsort(jnp.where(eligible, draws, 2.0))
    ranks = jnp.zeros(len(order), jnp.int32).at[order].set(jnp.arange(len(order), dtype=jnp.int32))
    return eligible & (ranks < count)


def hardened(batch: Batch, first: Array, second: Array, triggers: Triggers) -> Batch:
    """The batch with the first trigger on some rows and the second on others, cut to [0, 1] there.

    Args:
        batch: pixels in [0, 1].
        first, second: [B] bool, rows that no other trigger has.
        triggers: two.
    """
    inputs = batch.inputs
    for rows, which in ((first, 0), (second, 1)):
        trigger = Triggers(triggers.masks[which][None], triggers.patterns[which][None])
        shown = jnp.clip(stamped(inputs, trigger), 0, 1)
        inputs = jnp.where(rows[:, None, None, None], shown, inputs)
    return batch._replace(inputs=inputs)
