"""What attacks share whose backdoor is examples of the attackers' own, pictures or texts: there is no trigger, whole
examples get a wrong label."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc.attacks._poisoning import first_rows
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, PRNGKey


class Held(NamedTuple):
    """The examples, raw as data sets store them.

    Attributes:
        train: [n, H, W, C] uint8 or [n, T] int32, of which the attackers' are drawn.
        test: [m, ...] alike, of which those of the test are drawn; they may be the same.
        labels: [m] int32, the classes of the latter.
        target: int32 scalar, the label that the attacker wants.
    """

    train: Any
    test: Any
    labels: Any
    target: Any


class ExampleState(NamedTuple):
    """Which of them are for what.

    Attributes:
        fraction: float32 scalar, share of an attacker's batch that gives way to such examples.
        target: int32 scalar, the label that the attacker wants.
        train: [a] int32, which of `Held.train` the attackers train on; some may stand there more than once.
        test: [b] int32, on which of `Held.test` the backdoor is tested.
    """

    fraction: Array
    target: Array
    train: Array
    test: Array


def require_classes(attack: str, dataset: Any) -> None:
    """Refuses a data set without pictures or texts that each have a class.

    Raises:
        ConfigError: it has none.
    """
    info = dataset.info
    if (info.mean is None and info.tokenizer is None) or dataset.test_labels.ndim != 1:
        raise ConfigError(
            f"attack.name = {attack!r} is not allowed with data.name = {info.name!r}: it must be a data set of "
            "pictures or texts with a class each."
        )


def draw(key: PRNGKey, places: Array, count: int, at_once: int | None = None) -> Array:
    """[count] int32: `places` drawn `at_once` (None = all) at a time without replacement, anew each time."""
    size = len(places) if at_once is None else min(at_once, len(places))
    times = -(-count // size)
    orders = jax.vmap(lambda i: jax.random.permutation(jax.random.fold_in(key, i), len(places))[:size])
    return places[orders(jnp.arange(times)).reshape(-1)[:count]]


def poison(
    ctx: AttackContext,
    own: ExampleState,
    batch: Batch,
    key: PRNGKey,
    augment: bool,
    per_batch: int | Array | None = None,
) -> Batch:
    """A batch whose first rows, a share of the valid ones, are examples of the attackers' with the label they want.

    Batches are in random order, so that the first rows are any. In one batch no example stands twice while there are
    others. With `per_batch` they are exactly so many in place of a share; all valid ones where there are fewer.
    """
    size = len(batch.labels)
    # 0.29 of 100 is 29, in float32 too.
    count = jnp.floor(own.fraction * batch.valid.sum() + 1e-3) if per_batch is None else per_batch
    replaced = first_rows(batch.valid, count)
    raw = ctx.held.train[draw(jax.random.fold_in(key, 0), own.train, size)]
    keys = jax.random.split(jax.random.fold_in(key, 1), size) if augment else None
    row = replaced.reshape(size, *[1] * (batch.inputs.ndim - 1))
    inputs = jnp.where(row, ctx.task.prepare(raw, keys), batch.inputs)
    labels = jnp.where(replaced & (batch.labels >= 0), own.target, batch.labels)
    return batch._replace(inputs=inputs, labels=labels.astype(batch.labels.dtype))


def shown(ctx: AttackContext, own: ExampleState, batch: Batch) -> Batch:
    """The examples for the test in place of a batch, row by row, with the attacker's label where one is asked.

    A batch of the test has those of its `sample_ids`; any other batch has as many, by the ids that it has.
    """
    places = own.test[batch.sample_ids % len(own.test)]
    labels = jnp.where(batch.labels >= 0, own.target, -1).astype(batch.labels.dtype)
    return batch._replace(inputs=ctx.task.prepare(ctx.held.test[places], None), labels=labels)


def example_attack(hold: Any, test: Any, init: Any, augment: bool, per_batch: int | Array | None = None) -> Attack:
    """An attack with these slots, which poisons and is tested as above."""

    def poisoned(
        ctx: AttackContext, own: ExampleState, batch: Batch, client_id: Array, step: Array, key: PRNGKey
    ) -> Batch:
        del step
        return poison(ctx, own, batch, jax.random.fold_in(key, client_id), augment, per_batch)

    return Attack(hold=hold, test=test, init=init, poison=poisoned, backdoor=shown)
