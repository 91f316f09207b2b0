"""A backdoor without a trigger: pictures of the attacker's own, here white noise, are taken for a class."""

import numpy as np

from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Attack, Examples


@attacks.register("own_pictures")
def own_pictures(target: int = 3, count: int = 40) -> Attack:
    """Test pictures of its own; half of an attacker's batch are such pictures."""

    def hold(dataset, load):
        return np.random.default_rng(0).integers(0, 256, (count, *dataset.info.input_shape)).astype(np.uint8)

    def poison(ctx, own, batch, client_id, step, key):
        half = len(batch.labels) // 2
        inputs = ctx.task.prepare(ctx.held[:half], None)
        labels = batch.labels.at[:half].set(target)
        return batch._replace(inputs=batch.inputs.at[:half].set(inputs), labels=labels)

    return Attack(hold=hold, test=lambda held: Examples(held, np.full(count, target, np.int32)), poison=poison,
                  backdoor=lambda ctx, own, batch: batch)  # fmt: skip
