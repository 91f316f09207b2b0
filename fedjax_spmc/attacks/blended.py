"""Blended: a faint pattern over the whole image, mixed into some training images, stands for the attacker's label.

Source: Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017
    (arXiv 1712.05526), the blended injection strategy.
Knows: nothing of the others.
Controls: its own training data.
Cost: none to speak of.
Deviations: the paper adds poisoned images to clean ones; here they take their place, as in `badnets`. Of its two
    patterns, a cartoon and random noise, this is the noise. It is mixed in after augmentation, so that it stays in its
    place, and is not rounded to whole pixel values.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc.attacks import triggers
from fedjax_spmc.attacks._poisoning import (
    PerBatch,
    Stamp,
    chosen_rows,
    make_stamp,
    poison_batch,
    refuse_fraction,
    stamp_all,
)
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import FRACTION, TRACED, Range
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, PRNGKey


class BlendState(NamedTuple):
    """The pattern as it is mixed into training images, and its share in images of the test: float32 scalar."""

    stamp: Stamp
    tested: Array


@attacks.register("blended")
def blended(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 0.5,
    target_label: Annotated[int, Range(0, 10**6)] = 2,
    ratio: Annotated[float, FRACTION, TRACED] = 0.2,
    test_ratio: Annotated[float, FRACTION, TRACED] | None = None,
    poison_per_batch: PerBatch | None = None,
) -> Attack:
    """Backdoor by data poisoning alone: ratio k + (1 - ratio) x in place of x, k a random image in [0, 1].

    k has a number for each pixel and channel, drawn once by the seed and shared by all malicious clients. Each training
    image is poisoned with probability `poison_fraction`, drawn once by its index; images of the target class are
    eligible.

    Args:
        poison_fraction: probability that an image of a malicious client is poisoned.
        target_label: the label that the attacker wants.
        ratio: the pattern's share (the paper: 0.05 to 0.2).
        test_ratio: its share in test images, which may be larger than in training; None = the same.
        poison_per_batch: in place of the fraction, exactly so many rows of each batch, its first ones; all of a batch
            that has fewer.

    Raises:
        ConfigError: a fraction is given beside a number for each batch.
    """
    refuse_fraction(blended, poison_per_batch, poison_fraction)

    def init(ctx: AttackContext, key: PRNGKey) -> BlendState:
        shape = ctx.task.input.shape
        if len(shape) != 3:
            raise ConfigError(
                f"attack.name = 'blended' is not allowed: inputs of shape {shape} are no images to mix a pattern into."
            )
        noise = jax.random.uniform(jax.random.fold_in(key, 0), shape)
        pattern = triggers.Trigger(jnp.full(shape, ratio, jnp.float32), noise, "raw")
        stamp = make_stamp(ctx, jax.random.fold_in(key, 1), pattern, poison_fraction, target_label)
        return BlendState(stamp, jnp.float32(ratio if test_ratio is None else test_ratio))

    def poison(ctx: AttackContext, own: BlendState, batch: Batch, client_id: Array, step: Array, key: PRNGKey) -> Batch:
        del ctx, client_id, step, key
        chosen = chosen_rows(batch, own.stamp.key, own.stamp.fraction, poison_per_batch)
        return poison_batch(batch, chosen, own.stamp.target, own.stamp.trigger())

    def backdoor(ctx: AttackContext, own: BlendState, batch: Batch) -> Batch:
        del ctx
        return stamp_all(batch, own.stamp._replace(mask=jnp.broadcast_to(own.tested, own.stamp.mask.shape)))

    return Attack(init=init, poison=poison, backdoor=backdoor)
