"""The global model on the test set, clean and triggered: counts, which `metrics` turns into percentages."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import numerics
from fedjax_spmc.keys import root_key
from fedjax_spmc.losses import asked
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, Examples, Model, Roster, State, Task, Variables

TEST_BATCH = 500
LOGITS_AT_ONCE = 2**26
"""Numbers in the logits of a batch at most: sequences with a large vocabulary go in smaller batches."""
MOST_CLASSES = 1000
"""Up to so many classes are counted each by itself."""


class Counts(NamedTuple):
    """Labels of the test set that are asked (one an image, many a sequence), int32.

    Attributes:
        asked, correct: [classes], by true class; [1] for all together where there are more than `MOST_CLASSES`.
        triggered, hits: scalars, labels that the attacker wants once the trigger is there, and those that come out so.
        triggered_others, hits_others: the same without those whose true label is the wanted one.
    """

    asked: Array
    correct: Array
    triggered: Array
    hits: Array
    triggered_others: Array
    hits_others: Array


def make_evaluate(model: Model, attack: Attack, task: Task, held: State = ()) -> Callable[..., Counts]:
    """The jitted evaluation: (variables, test: Examples, roster, own) -> Counts; `own` is the attack's state.

    Args:
        model, attack, task: of the federation.
        held: arrays that the attack holds.
    """
    by_class = model.num_classes <= MOST_CLASSES
    places = model.num_classes if by_class else 1

    def evaluate(variables: Variables, test: Examples, roster: Roster, own: State) -> Counts:
        ctx = AttackContext(model=model, variables=variables, task=task, roster=roster, held=held)

        def predict(inputs: Array) -> Array:
            logits, _ = model.apply(variables.params, variables.stats, inputs, False, root_key(0))
            return jnp.argmax(logits, axis=-1)

        def batches(examples: Examples, count: Callable[[Batch], Counts]) -> Counts:
            total = examples.labels.shape[0]
            logits = model.num_classes * math.prod(examples.labels.shape[1:])
            size = min(TEST_BATCH, total, max(1, LOGITS_AT_ONCE // logits))

            def count_batch(start: Array) -> Counts:
                rows = start + jnp.arange(size, dtype=jnp.int32)
                valid = rows < total
                rows = jnp.minimum(rows, total - 1)
                labels = examples.labels[rows]
                labels = jnp.where(valid.reshape(valid.shape + (1,) * (labels.ndim - 1)), labels, -1)
                return count(Batch(task.prepare(examples.inputs[rows], None), labels, rows, valid))

            starts = jnp.arange(0, total, size, dtype=jnp.int32)
            return jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(count_batch, starts))

        def spread(labels: Array, mask: Array) -> Array:
            counted = (labels >= 0) & mask
            places_of = jnp.maximum(labels, 0) if by_class else jnp.zeros_like(labels)
            return jnp.zeros(places, jnp.int32).at[places_of.ravel()].add(counted.ravel().astype(jnp.int32))

        def clean(batch: Batch) -> tuple[Array, Array]:
            everywhere = jnp.ones(batch.labels.shape, bool)
            return spread(batch.labels, everywhere), spread(batch.labels, predict(batch.inputs) == batch.labels)

        def triggered(batch: Batch) -> tuple[Array, Array, Array, Array]:
            if attack.backdoor is None:
                zero = jnp.zeros((), jnp.int32)
                return zero, zero, zero, zero
            shown = attack.backdoor(ctx, own, batch)
            wanted = asked(shown.labels, batch.valid)
            hit = wanted & (predict(shown.inputs) == shown.labels)
            other = wanted & (shown.labels != batch.labels)
            return tuple(mask.sum(dtype=jnp.int32) for mask in (wanted, hit, other, hit & other))  # pyright: ignore

        if attack.test is None:
            return batches(test, lambda batch: Counts(*clean(batch), *triggered(batch)))
        nothing = jnp.zeros(places, jnp.int32), jnp.zeros(places, jnp.int32)
        own_test = jax.tree.map(jnp.asarray, attack.test(held))
        first = batches(test, lambda batch: Counts(*clean(batch), *[jnp.zeros((), jnp.int32)] * 4))
        second = batches(own_test, lambda batch: Counts(*nothing, *triggered(batch)))
        return jax.tree.map(jnp.add, first, second)

    return numerics.pinned()(jax.jit(evaluate))
