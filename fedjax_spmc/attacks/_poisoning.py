"""What attacks that poison pixels share: which examples are poisoned, the trigger stamped, the label written."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc.attacks import triggers
from fedjax_spmc.types import Array, AttackContext, Batch, PRNGKey


class Stamp(NamedTuple):
    """State of such an attack.

    Attributes:
        key: what the choice of examples is drawn with.
        fraction: float32 scalar, probability that an example of an attacking client is poisoned.
        target: int32 scalar, the label that the attacker wants.
        mask, value: the trigger on normalised images, see `triggers.Trigger`.
    """

    key: PRNGKey
    fraction: Array
    target: Array
    mask: Array
    value: Array

    def trigger(self) -> triggers.Trigger:
        """The trigger."""
        return triggers.Trigger(self.mask, self.value, "normalized")


def make_stamp(
    ctx: AttackContext, key: PRNGKey, trigger: triggers.Trigger, fraction: float | Array, target: int | Array
) -> Stamp:
    """The state before round 0; the trigger may be in either space."""
    pattern = triggers.normalized(trigger, jnp.asarray(ctx.task.mean), jnp.asarray(ctx.task.std))
    return Stamp(key, jnp.float32(fraction), jnp.int32(target), pattern.mask, pattern.value)


def poison_draws(key: PRNGKey, sample_ids: Array) -> Array:
    """[B] float32 in [0, 1), one draw for each training image, the same in every round and for every client."""
    return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(sample_ids)


def poison_batch(
    batch: Batch, draws: Array, fraction: float | Array, target: int | Array, trigger: triggers.Trigger
) -> Batch:
    """Stamps and relabels the valid examples whose draw lies below the fraction (SPMC code: u < rate).

    Args:
        batch: inputs [B, H, W, C] float32, in the trigger's space; labels [B].
        draws: [B] float, uniform in [0, 1).
        fraction: poison fraction.
        target: the label that the attacker wants.
        trigger: what is stamped.
    """
    poisoned = draws < fraction
    inputs = jnp.where(poisoned[:, None, None, None], triggers.stamp(batch.inputs, trigger), batch.inputs)
    labels = jnp.where(poisoned & (batch.labels >= 0), target, batch.labels)
    return batch._replace(inputs=inputs, labels=labels)


def stamp_all(batch: Batch, stamp: Stamp) -> Batch:
    """Triggered test images: the whole trigger on every one, the attacker's label where one is asked."""
    wanted = jnp.where(batch.labels >= 0, stamp.target, -1).astype(batch.labels.dtype)
    return batch._replace(inputs=triggers.stamp(batch.inputs, stamp.trigger()), labels=wanted)
