"""The global model on the test set, clean and triggered: counts, which `metrics` turns into percentages."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import numerics
from fedjax_spmc.keys import root_key
from fedjax_spmc.losses import asked
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, Examples, Model, Roster, State, Task, Variables

TEST_BATCH = 500
LOGITS_AT_ONCE = 2**26
"""Numbers in the logits of a batch at most: sequences with a large vocabulary go in smaller batches."""
MOST_CLASSES = 1000
"""Up to so many classes are counted each by itself."""
NEAR = 3
"""So many predictions are looked at where a label at every place is asked: a keyboard offers three words."""
BINS = 100
"""Bins of the histograms of the top probability, of equal width from 0 to 1."""


class Histograms(NamedTuple):
    """Asked labels by the probability that the model gives to its prediction: [BINS] int32 each.

    Bin b holds b / 100 <= p < (b + 1) / 100, compared in the precision of the probabilities, and the last bin 1 too:
    the sum from bin b on is what the threshold b / 100 accepts. A probability that is NaN is in bin 0.

    Attributes:
        clean, correct: of clean examples, and those that are predicted right.
        triggered, hits, triggered_others, hits_others: see `Counts`.
    """

    clean: Array
    correct: Array
    triggered: Array
    hits: Array
    triggered_others: Array
    hits_others: Array


class Counts(NamedTuple):
    """Labels of the test set that are asked (one an image, many a sequence), int32.

    Attributes:
        asked, correct: [classes], by true class; [1] for all together where there are more than `MOST_CLASSES`.
        triggered, hits: scalars, labels that the attacker wants once the trigger is there, and those that come out so.
        triggered_others, hits_others: the same without those whose true label is the wanted one.
        histograms: of the same labels; None where there are none.
        near: int32 scalar, asked labels whose logit is among the three largest; of labels at every place, else None.
        nats: float32 scalar, the sum of -log p over the asked labels; as near.
    """

    asked: Array
    correct: Array
    triggered: Array
    hits: Array
    triggered_others: Array
    hits_others: Array
    histograms: Histograms | None = None
    near: Array | None = None
    nats: Array | None = None


def top_probability(logits: Array) -> Array:
    """The probability that a softmax over the last axis gives to the largest logit: [..., classes] -> [...]."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return 1 / jnp.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)


def histograms(tops: Array, masks: Sequence[Array]) -> list[Array]:
    """How many of the top probabilities fall into each bin, for each mask; see `Histograms`.

    Args:
        tops: any shape.
        masks: bool, of the same shape.

    Returns:
        [BINS] int32 for each mask.
    """
    edges = jnp.asarray(np.arange(BINS) / BINS, tops.dtype)
    known = jnp.where(jnp.isnan(tops), 0.0, tops).ravel()
    bins = jnp.searchsorted(edges, known, side="right", method="compare_all") - 1
    columns = jnp.stack([mask.ravel() for mask in masks], axis=-1).astype(jnp.int32)
    return list(jnp.zeros((BINS, len(masks)), jnp.int32).at[bins].add(columns).T)


def of_labels(logits: Array, labels: Array) -> tuple[Array, Array]:
    """How many asked labels are among the `NEAR` likeliest, of equal logits all, and the sum of their -log p.

    Args:
        logits: [..., classes].
        labels: [...], -1 = not asked.

    Returns:
        int32 and float32 scalars.
    """
    own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)
    above = (~(logits <= own)).sum(axis=-1)  # what is no number is above everything
    counted = labels >= 0
    nats = jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - own[..., 0], 0.0)
    return (counted & (above < NEAR)).sum(dtype=jnp.int32), nats.sum(dtype=jnp.float32)


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

        def predict(inputs: Array) -> tuple[Array, Array, Array]:
            logits, _ = model.apply(variables.params, variables.stats, inputs, False, root_key(0))
            return jnp.argmax(logits, axis=-1), top_probability(logits), logits

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

        def clean(batch: Batch) -> tuple[list[Array], list[Array], tuple[Any, Any]]:
            predicted, tops, logits = predict(batch.inputs)
            everywhere, right = jnp.ones(batch.labels.shape, bool), predicted == batch.labels
            counted = batch.labels >= 0
            found = histograms(tops, (counted, counted & right))
            by_place = of_labels(logits, batch.labels) if batch.labels.ndim > 1 else (None, None)
            return [spread(batch.labels, everywhere), spread(batch.labels, right)], found, by_place

        def triggered(batch: Batch) -> tuple[list[Array], list[Array]]:
            if attack.backdoor is None:
                return [nothing] * 4, [no_bins] * 4
            shown = attack.backdoor(ctx, own, batch)
            predicted, tops, _ = predict(shown.inputs)
            wanted = asked(shown.labels, batch.valid)
            hit = wanted & (predicted == shown.labels)
            other = wanted & (shown.labels != batch.labels)
            masks = (wanted, hit, other, hit & other)
            return [mask.sum(dtype=jnp.int32) for mask in masks], histograms(tops, masks)

        def both(
            of_clean: tuple[list[Array], list[Array], tuple[Any, Any]], of_triggered: tuple[list[Array], list[Array]]
        ) -> Counts:
            numbers, found = (one + other for one, other in zip(of_clean[:2], of_triggered, strict=True))
            return Counts(*numbers, Histograms(*found), *of_clean[2])  # pyright: ignore[reportCallIssue]

        nothing, no_bins = jnp.zeros((), jnp.int32), jnp.zeros(BINS, jnp.int32)
        if attack.test is None:
            return batches(test, lambda batch: both(clean(batch), triggered(batch)))
        no_class, no_place = jnp.zeros(places, jnp.int32), (None, None)
        if test.labels.ndim > 1:
            no_place = nothing, jnp.zeros((), jnp.float32)
        own_test = jax.tree.map(jnp.asarray, attack.test(held))
        first = batches(test, lambda batch: both(clean(batch), ([nothing] * 4, [no_bins] * 4)))
        second = batches(own_test, lambda batch: both(([no_class] * 2, [no_bins] * 2, no_place), triggered(batch)))
        return jax.tree.map(jnp.add, first, second)

    return numerics.pinned()(jax.jit(evaluate))
