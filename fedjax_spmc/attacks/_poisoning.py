"""What attacks that poison training examples share: which examples, the trigger stamped, the label written."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc.attacks import triggers
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import TRACED, Range, quoted
from fedjax_spmc.types import Array, AttackContext, Batch, PRNGKey

PerBatch = Annotated[int, Range(0, 10**6), TRACED]
"""Type of the option `poison_per_batch`."""


class Stamp(NamedTuple):
    """State of an attack with a pixel trigger.

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


def refuse_fraction(factory: Callable[..., Any], per_batch: int | Array | None, fraction: float | Array) -> None:
    """Refuses a fraction beside a number of examples for each batch, which leaves it without effect.

    Raises:
        ConfigError: the fraction is not the default of the attack's `factory`. Of an array that cannot be known.
    """
    default = inspect.signature(factory).parameters["poison_fraction"].default
    if per_batch is not None and not isinstance(fraction, jax.Array) and fraction != default:
        raise ConfigError(
            f"attack.poison_fraction = {quoted(fraction)} is not allowed with attack.options.poison_per_batch = "
            f"{quoted(per_batch)}, where it has no effect: it must be None."
        )


def poison_draws(key: PRNGKey, sample_ids: Array) -> Array:
    """[B] float32 in [0, 1), one draw for each training image, the same in every round and for every client."""
    return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(sample_ids)


def chosen_rows(
    batch: Batch, key: PRNGKey, fraction: Array, per_batch: int | Array | None, eligible: Array | None = None
) -> Array:
    """[B] bool, which rows of a batch are poisoned.

    Args:
        batch: of an attacking client.
        key: of the draws.
        fraction: share of all training examples, each drawn once for the run.
        per_batch: in place of the fraction, exactly so many rows, the first eligible ones (batches are in random
            order, so that they are any); all where there are fewer.
        eligible: [B] bool; None = all valid rows.
    """
    eligible = batch.valid if eligible is None else eligible & batch.valid
    if per_batch is None:
        return eligible & (poison_draws(key, batch.sample_ids) < fraction)
    return first_rows(eligible, per_batch)


def first_rows(eligible: Array, count: int | Array) -> Array:
    """[B] bool, the first `count` of the rows that are eligible ([B] bool); all where there are fewer."""
    return eligible & (jnp.cumsum(eligible.astype(jnp.int32)) <= count)


def poison_batch(batch: Batch, chosen: Array, target: int | Array, trigger: triggers.Trigger) -> Batch:
    """Stamps the chosen rows and gives them the label that the attacker wants, where one is asked.

    Args:
        batch: inputs [B, H, W, C] float32, in the trigger's space; labels [B].
        chosen: [B] bool.
        target: the label that the attacker wants.
        trigger: what is stamped.
    """
    inputs = jnp.where(chosen[:, None, None, None], triggers.stamp(batch.inputs, trigger), batch.inputs)
    labels = jnp.where(chosen & (batch.labels >= 0), target, batch.labels)
    return batch._replace(inputs=inputs, labels=labels)


def stamp_all(batch: Batch, stamp: Stamp) -> Batch:
    """Triggered test images: the whole trigger on every one, the attacker's label where one is asked."""
    wanted = jnp.where(batch.labels >= 0, stamp.target, -1).astype(batch.labels.dtype)
    return batch._replace(inputs=triggers.stamp(batch.inputs, stamp.trigger()), labels=wanted)
