"""From index lists to batches: gathered, augmented and normalised inside the jitted step.

The examples lie on the device once, as they are stored (uint8 pixels, int32 tokens). A client's batches depend on its
own index list, the keys and nothing else, so that its result is bitwise the same whatever its neighbours' data are.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.keys import key_of_numbers, purpose_key
from fedjax_spmc.types import Array, Batch, ClientData, Examples, PRNGKey


class ClientIndices(NamedTuple):
    """Who owns what: rows [N, M] int32 into the training examples, padded with 0; sizes [N] int32."""

    rows: Array
    sizes: Array


class Pipeline(NamedTuple):
    """How a batch is made.

    Attributes:
        batch_size: examples per batch.
        passes: epochs that one round may read, the local ones and what a rule reads besides.
        prepare: of the task.
        drop_last: whether an incomplete last batch is dropped; else its missing rows are not valid.
    """

    batch_size: int
    passes: int
    prepare: Callable[[Array, Array | None], Array]
    drop_last: bool = True


def pad_indices(parts: Sequence[np.ndarray], width: int = 1) -> ClientIndices:
    """Index lists of all clients as one padded matrix, at least `width` wide."""
    sizes = np.array([len(part) for part in parts], np.int32)
    rows = np.zeros((len(parts), max(width, int(sizes.max(initial=0)))), np.int32)
    for row, part in zip(rows, parts, strict=True):
        row[: len(part)] = part
    return ClientIndices(jnp.asarray(rows), jnp.asarray(sizes))


def shuffled(key: PRNGKey, length: int, size: Array) -> Array:
    """A random order of 0..size-1, followed by the positions up to `length`; [length] int32.

    Each position's draw depends on the key and on the position alone (JAX's partitionable threefry), so the order of
    the first `size` does not change with the padding.
    """
    draws = jax.random.bits(key, (length,), jnp.uint32)
    positions = jnp.arange(length, dtype=jnp.int32)
    draws = jnp.where(positions < size, draws, jnp.uint32(0xFFFFFFFF))
    # The sort is stable and padding stands behind: a draw that equals the padding's still comes first.
    return jax.lax.sort((draws, positions), num_keys=1)[1]


def client_data(
    pipeline: Pipeline,
    train: Examples,
    rows: Array,
    size: Array,
    client_id: Array,
    frozen: Array,
    round_index: Array,
    key: PRNGKey,
) -> ClientData:
    """The batches of one client in one round, clean.

    Args:
        pipeline: how a batch is made.
        train: all training examples, raw.
        rows: [M] int32, the client's index list, padded.
        size: int32 scalar, its length.
        client_id: int32 scalar.
        frozen: bool scalar, whether the augmentation is drawn once for the whole run.
        round_index: int32 scalar.
        key: the experiment's key.
    """
    batch_size, length = pipeline.batch_size, rows.shape[0]
    num_batches = size // batch_size if pipeline.drop_last else -(-size // batch_size)
    shuffle_key = purpose_key(key, "shuffle", round_index, client_id)
    orders = jax.vmap(lambda epoch: shuffled(jax.random.fold_in(shuffle_key, epoch), length, size))(
        jnp.arange(pipeline.passes)
    )
    missing = 0 if pipeline.drop_last else -length % batch_size
    orders = jnp.pad(orders, ((0, 0), (0, missing)))  # a slice that ran over the end would be moved back
    live_key = purpose_key(key, "augment", round_index, client_id)
    frozen_key = purpose_key(key, "frozen_augment")

    def batch_of(sample_ids: Array, valid: Array, base: PRNGKey) -> Batch:
        keys = jax.vmap(lambda i: jax.random.fold_in(base, i))(sample_ids)
        inputs = pipeline.prepare(train.inputs[sample_ids], keys)
        labels = train.labels[sample_ids]
        if pipeline.drop_last:
            return Batch(inputs, labels, sample_ids, valid)
        return Batch(inputs, jnp.where(_column(valid, labels), labels, -1), sample_ids, valid)

    def base_of(live: PRNGKey) -> PRNGKey:
        chosen = jnp.where(frozen, jax.random.key_data(frozen_key), jax.random.key_data(live))
        return key_of_numbers(chosen)

    def gather(step: Array, key: PRNGKey) -> Batch:
        del key
        epoch = step // jnp.maximum(num_batches, 1)
        start = (step - epoch * num_batches) * batch_size
        positions = jax.lax.dynamic_slice(orders, (epoch, start), (1, batch_size))[0]
        valid = jnp.ones(batch_size, bool)
        if not pipeline.drop_last:
            valid = start + jnp.arange(batch_size, dtype=jnp.int32) < size
        batch = batch_of(rows[positions], valid, base_of(jax.random.fold_in(live_key, epoch)))
        return unreadable(batch, epoch >= pipeline.passes)

    def take(positions: Array, key: PRNGKey) -> Batch:
        return batch_of(rows[positions], jnp.ones(positions.shape, bool), base_of(key))

    return ClientData(gather, num_batches, client_id, size, take, lambda key: shuffled(key, length, size))


def unreadable(batch: Batch, condition: Array) -> Batch:
    """The batch, or where the condition holds one of rows that are not valid: inputs NaN (tokens 0), labels -1."""
    floating = jnp.issubdtype(batch.inputs.dtype, jnp.floating)
    nothing = jnp.full((), jnp.nan if floating else 0, batch.inputs.dtype)
    return Batch(
        inputs=jnp.where(condition, nothing, batch.inputs),
        labels=jnp.where(condition, -1, batch.labels),
        sample_ids=batch.sample_ids,
        valid=batch.valid & ~condition,
    )


def in_order(inputs: Array, labels: Array, batch_size: int, client_id: Array | int = 0) -> ClientData:
    """Examples as they are, in the order stored, as one client's data; every epoch is alike.

    Args:
        inputs: [n, ...] as the model takes them.
        labels: [n] or [n, T] int32.
        batch_size: rows in a batch. The last batch may be incomplete: the rest of its rows are not valid.
        client_id: whose data it is.
    """
    count, num_batches = labels.shape[0], -(-labels.shape[0] // batch_size)

    def gather(step: Array, key: PRNGKey) -> Batch:
        del key
        rows = step % num_batches * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        kept, valid = jnp.minimum(rows, count - 1), rows < count
        return Batch(inputs[kept], jnp.where(_column(valid, labels), labels[kept], -1), kept, valid)

    def take(positions: Array, key: PRNGKey) -> Batch:
        del key
        return Batch(inputs[positions], labels[positions], positions, jnp.ones(positions.shape, bool))

    order = lambda key: shuffled(key, count, jnp.int32(count))  # noqa: E731
    return ClientData(gather, jnp.int32(num_batches), jnp.int32(client_id), jnp.int32(count), take, order)


def _column(mask: Array, labels: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (labels.ndim - 1))
