"""DBA: every malicious client stamps its own part of the trigger; the test uses the whole.

Source: Xie, Huang, Chen, Li, "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020; the split is
    that of a public reproduction of FDCR.
Deviations: the paper parts the trigger into four patterns by place; the reproduction cuts the ordered list of the
    trigger's values, which runs channel by channel, into contiguous near-equal parts, one for each malicious client,
    the first ones taking the remainder: with three of them and a trigger on three channels each stamps one channel.
    Nothing is scaled up.
"""

from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_spmc.attacks import triggers
from fedjax_spmc.attacks.badnets import badnets, poison_draws, poison_samples
from fedjax_spmc.options import FRACTION, TRACED, Range
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, AttackState, PRNGKey


class DbaState(NamedTuple):
    """State of the whole trigger's attack, and each value's place in the trigger's list: [H, W, C] int32, -1 = none."""

    whole: Any
    place: Array


@attacks.register("dba")
def dba(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 0.5,
    target_label: Annotated[int, Range(0, 10**6)] = 2,
    trigger: Literal["fdcr_paper", "spmc_code", "fdcr_code"] = "fdcr_paper",
    augmentation: Literal["live", "frozen"] = "live",
    positions: tuple[tuple[int, int, int], ...] | None = None,
    value: Annotated[float, Range(-1e3, 1e3)] | None = None,
    space: Literal["raw", "normalized"] | None = None,
) -> Attack:
    """Backdoor by data poisoning in which the malicious clients share the trigger out among them.

    Args:
        poison_fraction: probability that an image of a malicious client is poisoned.
        target_label: the label that the attacker wants.
        trigger: a published trigger; see `triggers.PRESETS`.
        augmentation: "live" redraws crop and flip at each access as benign clients do, "frozen" draws them once.
        positions: pixels (channel, row, column) in place of the preset's, in the order in which they are shared out.
        value: what is written in place of the preset's value.
        space: "raw" (0..1) or "normalized", in place of the preset's.
    """
    whole = badnets(poison_fraction, target_label, trigger, augmentation, positions, value, space)
    listed = triggers.PRESETS[trigger].positions if positions is None else positions

    def inner(state: AttackState) -> AttackState:
        return AttackState(state.roster, state.own.whole)

    def init(ctx: AttackContext, key: PRNGKey) -> AttackState:
        state = whole.init(ctx, key)
        place = np.full(ctx.image_shape, -1, np.int32)
        for i, (channel, row, column) in enumerate(listed):
            place[row, column, channel] = i
        return AttackState(ctx.roster, DbaState(state.own, jnp.asarray(place)))

    def poison(
        state: AttackState, images: Array, labels: Array, sample_ids: Array, client_id: Array, key: PRNGKey
    ) -> tuple[Array, Array]:
        del key
        own, roster = state.own.whole, state.roster
        rank = jnp.cumsum(roster.malicious.astype(jnp.int32))[client_id] - 1
        start, end = part(rank, roster.malicious.sum(dtype=jnp.int32), len(listed))
        mine = (state.own.place >= start) & (state.own.place < end)
        stamp = triggers.Trigger(jnp.where(mine, own.mask, 0.0), own.value, "normalized")
        fraction = jnp.where(roster.attacks_now(client_id), own.fraction, 0.0)
        return poison_samples(images, labels, poison_draws(own.key, sample_ids), fraction, own.target, stamp)

    def backdoor(state: AttackState, images: Array, labels: Array) -> tuple[Array, Array]:
        assert whole.backdoor is not None
        return whole.backdoor(inner(state), images, labels)

    return Attack(
        init=init,
        poison=poison,
        backdoor=backdoor,
        freezes=lambda state, client_id: whole.freezes(inner(state), client_id),
    )


def part(rank: Array | int, parts: Array | int, length: int) -> tuple[Array, Array]:
    """Start and end of the `rank`-th of so many contiguous near-equal parts of a list; the first take the remainder.

    With more parts than values the last parts are empty.
    """
    parts = jnp.maximum(jnp.asarray(parts), 1)
    size, rest = length // parts, length % parts
    start = rank * size + jnp.minimum(rank, rest)
    return start, start + size + (rank < rest)
