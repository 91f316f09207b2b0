"""DBA: every malicious client stamps its own part of the trigger; the test uses the whole.

The scaled single shot of its paper, in which each attacker attacks once and its update replaces the model:
`attack.name=(dba,model_replacement)` with `attack.options.factor=100`, `attack.schedule.turns=1` and
`server.learning_rate=0.1` for ten clients a round; `configs/dba_mnist.py` has the rest.

Source: Xie, Huang, Chen, Li, "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020, and its
    published code, whose patterns are the triggers `dba_mnist`, `dba_cifar` and `dba_tiny`; how other triggers are
    split is that of a public reproduction of FDCR.
Knows: who the other malicious clients are.
Controls: its own training data.
Cost: none to speak of.
Deviations: part i is that of the i-th malicious client by its id, where the code lists its attackers, and with more
    than four of them the parts begin anew. With fewer than four nobody trains some parts, which the test has (the
    code); a single one has all of them (the code). Other triggers are no patterns by place: the ordered list of their
    values, which runs channel by channel, is cut into contiguous near-equal parts, one for each malicious client, the
    first ones taking the remainder: with three of them and a trigger on three channels each stamps one channel. The
    code tests on images of the other classes (ASR) alone. Its table data are not here.
"""

import operator
from collections.abc import Sequence
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
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import FRACTION, TRACED, Range, quoted
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, PRNGKey

PARTS = 4
"""Bars of the authors' triggers."""


class DbaState(NamedTuple):
    """The whole trigger, and of each value which bar it is, or which of the trigger's list: [H, W, C] int32, or -1."""

    whole: Stamp
    place: Array


@attacks.register("dba")
def dba(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 0.5,
    target_label: Annotated[int, Range(0, 10**6)] = 2,
    trigger: triggers.TriggerName = "fdcr_paper",
    positions: tuple[tuple[int, int, int], ...] | None = None,
    value: Annotated[float, Range(-1e3, 1e3)] | None = None,
    space: Literal["raw", "normalized"] | None = None,
    part_size: tuple[int, int] | None = None,
    part_gap: tuple[int, int] | None = None,
    corner: tuple[int, int] | None = None,
    test_part: Annotated[int, Range(0, 10**6)] | None = None,
    poison_per_batch: PerBatch | None = None,
) -> Attack:
    """Backdoor by data poisoning in which the malicious clients share the trigger out among them.

    Args:
        poison_fraction: probability that an image of a malicious client is poisoned.
        target_label: the label that the attacker wants.
        trigger: a published trigger; see `triggers.PRESETS`. The authors' own are four bars, a bar for each attacker.
        positions: pixels (channel, row, column) in place of the preset's, in the order in which they are shared out.
        value: what is written in place of the preset's value.
        space: "raw" (0..1) or "normalized", in place of the preset's.
        part_size: (rows, columns) of each of the four bars in place of the preset's.
        part_gap: (rows, columns) between the bars, below and beside each other, in place of the preset's.
        corner: (row, column) at which the first bar begins, in place of the preset's (0, 0).
        test_part: the test stamps this part alone, from 0, in place of the whole trigger: the local trigger of that
            malicious client, by id; a part that nobody has is empty. `evaluate --part` asks a finished run.
        poison_per_batch: in place of the fraction, exactly so many rows of each batch, its first ones; all of a batch
            that has fewer (the code: 20 of 64, with CIFAR-10 5).

    Raises:
        ConfigError: a fraction is given beside a number for each batch; a position is none; bars are given with a
            trigger that has none or beside positions, are no bars, or reach out of the image; the part tested is none
            of the four bars.
    """
    triggers.check_positions(positions)
    refuse_fraction(dba, poison_per_batch, poison_fraction)
    bars = bars_of(trigger, positions, {"part_size": part_size, "part_gap": part_gap, "corner": corner})
    if bars is not None and test_part is not None and test_part >= PARTS:
        raise ConfigError(
            f"attack.options.test_part = {test_part} is not allowed with attack.trigger = {trigger!r}: it must be a "
            f"whole number in [0, {PARTS - 1}] or None."
        )

    def listed(shape: tuple[int, ...]) -> triggers.Positions:
        return triggers.listed(trigger, positions, shape) if bars is None else bars.positions(shape[-1])

    def init(ctx: AttackContext, key: PRNGKey) -> DbaState:
        shape = ctx.task.input.shape
        triggers.require_images(trigger, shape)
        if bars is not None and not all(map(operator.le, bars.reach(), shape)):
            raise ConfigError(
                f"attack.trigger = {trigger!r} is not allowed with part_size = {bars.size}, part_gap = {bars.gap}, "
                f"corner = {bars.corner}: its bars reach over {bars.reach()} rows and columns, and images have "
                f"{shape[:2]}."
            )
        values = listed(shape)
        pattern = triggers.chosen(trigger, values, value, space, shape)
        place = np.full(shape, -1, np.int32)
        each = 1 if bars is None else len(values) // PARTS
        for i, (channel, row, column) in enumerate(values):
            place[row, column, channel] = i // each
        return DbaState(make_stamp(ctx, key, pattern, poison_fraction, target_label), jnp.asarray(place))

    def of_rank(ctx: AttackContext, own: DbaState, rank: Array | int) -> Stamp:
        """The trigger with the part of the malicious client of this rank alone."""
        attackers = ctx.roster.malicious.sum(dtype=jnp.int32)
        if bars is not None:
            mine = (own.place == jnp.asarray(rank) % PARTS) | ((attackers == 1) & (own.place >= 0))
        else:
            start, end = part(rank, attackers, len(listed(ctx.task.input.shape)))
            mine = (own.place >= start) & (own.place < end)
        return own.whole._replace(mask=jnp.where(mine, own.whole.mask, 0.0))

    def poison(ctx: AttackContext, own: DbaState, batch: Batch, client_id: Array, step: Array, key: PRNGKey) -> Batch:
        del step, key
        whole = own.whole
        rank = jnp.cumsum(ctx.roster.malicious.astype(jnp.int32))[client_id] - 1
        chosen = chosen_rows(batch, whole.key, whole.fraction, poison_per_batch)
        return poison_batch(batch, chosen, whole.target, of_rank(ctx, own, rank).trigger())

    def backdoor(ctx: AttackContext, own: DbaState, batch: Batch) -> Batch:
        return stamp_all(batch, own.whole if test_part is None else of_rank(ctx, own, test_part))

    return Attack(init=init, poison=poison, backdoor=backdoor)


def bars_of(
    trigger: str, positions: triggers.Positions | None, given: dict[str, tuple[int, int] | None]
) -> triggers.Bars | None:
    """The bars of a trigger with what is given in place of its own; None where the trigger is a list of values.

    Args:
        trigger: name of the preset.
        positions: in place of the preset's.
        given: `part_size`, `part_gap`, `corner`.

    Raises:
        ConfigError: bars are given where there are none, or are no bars.
    """
    known = triggers.BARS.get(trigger) if positions is None else None
    changed = {name: pair for name, pair in given.items() if pair is not None}
    for name, pair in changed.items():
        path, least = f"attack.options.{name} = {quoted(pair)}", 1 if name == "part_size" else 0
        if known is None:
            there = f"attack.trigger = {trigger!r}" if positions is None else "attack.options.positions"
            raise ConfigError(
                f"{path} is not allowed with {there}, where it has no effect: it must be None; the triggers that have "
                f"bars are {', '.join(triggers.BARS)}."
            )
        if not (isinstance(pair, Sequence) and len(pair) == 2 and all(type(n) is int and n >= least for n in pair)):
            raise ConfigError(
                f"{path} is not allowed: it must be two whole numbers, rows and columns, from {least} on."
            )
    if known is None:
        return None
    size, gap, corner = (changed.get(name) or own for name, own in zip(given, known, strict=True))
    return triggers.Bars(size, gap, corner)


def part(rank: Array | int, parts: Array | int, length: int) -> tuple[Array, Array]:
    """Start and end of the `rank`-th of so many contiguous near-equal parts of a list; the first take the remainder.

    With more parts than values the last parts are empty.
    """
    parts = jnp.maximum(jnp.asarray(parts), 1)
    size, rest = length // parts, length % parts
    start = rank * size + jnp.minimum(rank, rest)
    return start, start + size + (rank < rest)
