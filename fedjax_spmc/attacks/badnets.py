"""BadNets: stamp a pixel trigger on some training images and give them the label that the attacker wants.

Source: Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017;
    as used by FDCR (NeurIPS 2024, section 4.1) and by the SPMC code (`base_backdoor`).
Knows: nothing of the others.
Controls: its own training data.
Cost: none to speak of.
Deviations: poisoning is one draw per training image for the whole run, as in the codes; the SPMC code also draws the
    augmentation of malicious clients once for the run (`attack.augmentation = frozen`), which neither paper says.
"""

from typing import Annotated, Literal

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


@attacks.register("badnets")
def badnets(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 0.5,
    target_label: Annotated[int, Range(0, 10**6)] = 2,
    trigger: triggers.TriggerName = "fdcr_paper",
    positions: tuple[tuple[int, int, int], ...] | None = None,
    value: Annotated[float, Range(-1e3, 1e3)] | None = None,
    space: Literal["raw", "normalized"] | None = None,
    poison_per_batch: PerBatch | None = None,
) -> Attack:
    """Backdoor by data poisoning alone: malicious clients train honestly on poisoned data.

    The trigger is stamped after augmentation, so that it stays in its place. Each training image is poisoned with
    probability `poison_fraction`, drawn once by its index; images of the target class are eligible.

    Args:
        poison_fraction: probability that an image of a malicious client is poisoned.
        target_label: the label that the attacker wants.
        trigger: a published trigger; see `triggers.PRESETS`.
        positions: pixels (channel, row, column) in place of the preset's.
        value: what is written in place of the preset's value.
        space: "raw" (0..1) or "normalized", in place of the preset's.
        poison_per_batch: in place of the fraction, exactly so many rows of each batch, its first ones; all of a batch
            that has fewer.

    Raises:
        ConfigError: a fraction is given beside a number for each batch, or a position is none.
    """
    triggers.check_positions(positions)
    refuse_fraction(badnets, poison_per_batch, poison_fraction)

    def init(ctx: AttackContext, key: PRNGKey) -> Stamp:
        pattern = triggers.chosen(trigger, positions, value, space, ctx.task.input.shape)
        return make_stamp(ctx, key, pattern, poison_fraction, target_label)

    def poison(ctx: AttackContext, own: Stamp, batch: Batch, client_id: Array, step: Array, key: PRNGKey) -> Batch:
        del ctx, client_id, step, key
        chosen = chosen_rows(batch, own.key, own.fraction, poison_per_batch)
        return poison_batch(batch, chosen, own.target, own.trigger())

    def backdoor(ctx: AttackContext, own: Stamp, batch: Batch) -> Batch:
        del ctx
        return stamp_all(batch, own)

    return Attack(init=init, poison=poison, backdoor=backdoor)
