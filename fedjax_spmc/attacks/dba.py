"""DBA: every malicious client stamps its own part of the trigger; the test uses the whole.

Source: Xie, Huang, Chen, Li, "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020; the split is
    that of a public reproduction of FDCR.
Knows: who the other malicious clients are.
Controls: its own training data.
Cost: none to speak of.
Deviations: the paper parts the trigger into four patterns by place; the reproduction cuts the ordered list of the
    trigger's values, which runs channel by channel, into contiguous near-equal parts, one for each malicious client,
    the first ones taking the remainder: with three of them and a trigger on three channels each stamps one channel.
    Nothing is scaled up.
"""

from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

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
from fedjax_spmc.options import FRACTION, TRACED, Range
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, PRNGKey


class DbaState(NamedTuple):
    """The whole trigger, and each value's place in the trigger's list: [H, W, C] int32, -1 = none."""

    whole: Stamp
    place: Array


@attacks.register("dba")
def dba(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 0.5,
    target_label: Annotated[int, Range(0, 10**6)] = 2,
    trigger: Literal["fdcr_paper", "spmc_code", "fdcr_code"] = "fdcr_paper",
    positions: tuple[tuple[int, int, int], ...] | None = None,
    value: Annotated[float, Range(-1e3, 1e3)] | None = None,
    space: Literal["raw", "normalized"] | None = None,
    poison_per_batch: PerBatch | None = None,
) -> Attack:
    """Backdoor by data poisoning in which the malicious clients share the trigger out among them.

    Args:
        poison_fraction: probability that an image of a malicious client is poisoned.
        target_label: the label that the attacker wants.
        trigger: a published trigger; see `triggers.PRESETS`.
        positions: pixels (channel, row, column) in place of the preset's, in the order in which they are shared out.
        value: what is written in place of the preset's value.
        space: "raw" (0..1) or "normalized", in place of the preset's.
        poison_per_batch: in place of the fraction, exactly so many rows of each batch, its first ones; all of a batch
            that has fewer.

    Raises:
        ConfigError: a fraction is given beside a number for each batch, or a position is none.
    """
    triggers.check_positions(positions)
    refuse_fraction(dba, poison_per_batch, poison_fraction)

    def init(ctx: AttackContext, key: PRNGKey) -> DbaState:
        shape = ctx.task.input.shape
        pattern = triggers.chosen(trigger, positions, value, space, shape)
        place = np.full(shape, -1, np.int32)
        for i, (channel, row, column) in enumerate(triggers.listed(trigger, positions, shape)):
            place[row, column, channel] = i
        return DbaState(make_stamp(ctx, key, pattern, poison_fraction, target_label), jnp.asarray(place))

    def poison(ctx: AttackContext, own: DbaState, batch: Batch, client_id: Array, step: Array, key: PRNGKey) -> Batch:
        del step, key
        malicious, whole = ctx.roster.malicious, own.whole
        rank = jnp.cumsum(malicious.astype(jnp.int32))[client_id] - 1
        values = len(triggers.listed(trigger, positions, ctx.task.input.shape))
        start, end = part(rank, malicious.sum(dtype=jnp.int32), values)
        mine = (own.place >= start) & (own.place < end)
        stamp = triggers.Trigger(jnp.where(mine, whole.mask, 0.0), whole.value, "normalized")
        chosen = chosen_rows(batch, whole.key, whole.fraction, poison_per_batch)
        return poison_batch(batch, chosen, whole.target, stamp)

    def backdoor(ctx: AttackContext, own: DbaState, batch: Batch) -> Batch:
        del ctx
        return stamp_all(batch, own.whole)

    return Attack(init=init, poison=poison, backdoor=backdoor)


def part(rank: Array | int, parts: Array | int, length: int) -> tuple[Array, Array]:
    """Start and end of the `rank`-th of so many contiguous near-equal parts of a list; the first take the remainder.

    With more parts than values the last parts are empty.
    """
    parts = jnp.maximum(jnp.asarray(parts), 1)
    size, rest = length // parts, length % parts
    start = rank * size + jnp.minimum(rank, rest)
    return start, start + size + (rank < rest)
