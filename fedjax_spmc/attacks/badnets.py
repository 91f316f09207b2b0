"""BadNets: stamp a pixel trigger on some training images and give them the label that the attacker wants.

Source: Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017;
    as used by FDCR (NeurIPS 2024, section 4.1) and by the SPMC code (`base_backdoor`).
Deviations: poisoning is one draw per training image for the whole run, as in the codes; the SPMC code also draws the
    augmentation of malicious clients once for the run (`augmentation="frozen"`), which neither paper says.
"""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc.attacks import triggers
from fedjax_spmc.options import FRACTION, TRACED, Range
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, AttackState, PRNGKey


class BadnetsState(NamedTuple):
    """What is drawn with, the poison fraction and target as scalars, and the trigger on normalised images."""

    key: PRNGKey
    fraction: Array
    target: Array
    mask: Array
    value: Array


@attacks.register("badnets")
def badnets(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 0.5,
    target_label: Annotated[int, Range(0, 10**6)] = 2,
    trigger: Literal["fdcr_paper", "spmc_code", "fdcr_code"] = "fdcr_paper",
    augmentation: Literal["live", "frozen"] = "live",
    positions: tuple[tuple[int, int, int], ...] | None = None,
    value: Annotated[float, Range(-1e3, 1e3)] | None = None,
    space: Literal["raw", "normalized"] | None = None,
) -> Attack:
    """Backdoor by data poisoning alone: malicious clients train honestly on poisoned data.

    The trigger is stamped after augmentation, so that it stays in its place. Each training image is poisoned with
    probability `poison_fraction`, drawn once by its index; images of the target class are eligible.

    Args:
        poison_fraction: probability that an image of a malicious client is poisoned.
        target_label: the label that the attacker wants.
        trigger: a published trigger; see `triggers.PRESETS`.
        augmentation: "live" redraws crop and flip at each access as benign clients do, "frozen" draws them once.
        positions: pixels (channel, row, column) in place of the preset's.
        value: what is written in place of the preset's value.
        space: "raw" (0..1) or "normalized", in place of the preset's.
    """
    preset = triggers.PRESETS[trigger]

    def init(ctx: AttackContext, key: PRNGKey) -> AttackState:
        pattern = triggers.from_positions(
            preset.positions if positions is None else positions,
            preset.value if value is None else value,
            preset.space if space is None else space,
            ctx.image_shape,
        )
        pattern = triggers.normalized(pattern, ctx.mean, ctx.std)
        own = BadnetsState(key, jnp.float32(poison_fraction), jnp.int32(target_label), pattern.mask, pattern.value)
        return AttackState(ctx.roster, own)

    def pattern_of(state: AttackState) -> triggers.Trigger:
        return triggers.Trigger(state.own.mask, state.own.value, "normalized")

    def poison(
        state: AttackState, images: Array, labels: Array, sample_ids: Array, client_id: Array, key: PRNGKey
    ) -> tuple[Array, Array]:
        del key
        # Where nobody attacks the fraction is 0, and no draw lies below it.
        fraction = jnp.where(state.roster.attacks_now(client_id), state.own.fraction, 0.0)
        draws = poison_draws(state.own.key, sample_ids)
        return poison_samples(images, labels, draws, fraction, state.own.target, pattern_of(state))

    def backdoor(state: AttackState, images: Array, labels: Array) -> tuple[Array, Array]:
        return triggers.stamp(images, pattern_of(state)), jnp.full_like(labels, state.own.target)

    def freezes(state: AttackState, client_id: Array) -> Array:
        return state.roster.malicious[client_id] & (augmentation == "frozen")

    return Attack(init=init, poison=poison, backdoor=backdoor, freezes=freezes)


def poison_draws(key: PRNGKey, sample_ids: Array) -> Array:
    """[B] float32 in [0, 1), one draw for each training image, the same in every round and for every client."""
    return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(sample_ids)


def poison_samples(
    images: Array, labels: Array, draws: Array, fraction: float | Array, target: int | Array, trigger: triggers.Trigger
) -> tuple[Array, Array]:
    """Stamps and relabels the samples whose draw lies below the fraction (SPMC code: u < rate).

    Args:
        images: [B, H, W, C] float32, in the trigger's space.
        labels: [B] int32.
        draws: [B] float, uniform in [0, 1).
        fraction: poison fraction.
        target: the label that the attacker wants.
        trigger: what is stamped.
    """
    poisoned = draws < fraction
    images = jnp.where(poisoned[:, None, None, None], triggers.stamp(images, trigger), images)
    return images, jnp.where(poisoned, target, labels)
