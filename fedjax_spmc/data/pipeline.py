"""From index lists to batches: gathered, augmented and normalised inside the jitted step.

The images lie on the device once, as uint8. A client's batches depend on its own index list, the keys and nothing else,
so that its result is bitwise the same whatever its neighbours' data are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.data import augment
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.types import Array, Batch, ClientData, PRNGKey


class Images(NamedTuple):
    """A split on the device: images [n, H, W, C] uint8, labels [n] int32."""

    images: Array
    labels: Array


class ClientIndices(NamedTuple):
    """Who owns what: rows [N, M] int32 into the training images, padded with 0; sizes [N] int32."""

    rows: Array
    sizes: Array


class Pipeline(NamedTuple):
    """How a batch is made.

    Attributes:
        batch_size: samples per batch; an incomplete last batch is dropped.
        passes: epochs that one round may read, the local ones and what a rule reads after them.
        mean, std: [C] float32, of pixel values in [0, 1].
        padding: pixels of black added on each side before a random crop; 0 = no crop.
        flip: whether images are mirrored with probability one half.
    """

    batch_size: int
    passes: int
    mean: Array
    std: Array
    padding: int
    flip: bool


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
    train: Images,
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
        train: all training images.
        rows: [M] int32, the client's index list, padded.
        size: int32 scalar, its length.
        client_id: int32 scalar.
        frozen: bool scalar, whether the augmentation is drawn once for the whole run.
        round_index: int32 scalar.
        key: the experiment's key.
    """
    batch_size, length = pipeline.batch_size, rows.shape[0]
    num_batches = size // batch_size
    shuffle_key = purpose_key(key, "shuffle", round_index, client_id)
    orders = jax.vmap(lambda epoch: shuffled(jax.random.fold_in(shuffle_key, epoch), length, size))(
        jnp.arange(pipeline.passes)
    )
    live_key = purpose_key(key, "augment", round_index, client_id)
    frozen_key = purpose_key(key, "frozen_augment")
    augmented = pipeline.padding > 0 or pipeline.flip

    def gather(step: Array, key: PRNGKey) -> Batch:
        del key
        epoch = step // jnp.maximum(num_batches, 1)
        start = (step - epoch * num_batches) * batch_size
        positions = jax.lax.dynamic_slice(orders, (epoch, start), (1, batch_size))[0]
        sample_ids = rows[positions]
        drawn = None
        if augmented:
            base = jax.random.wrap_key_data(
                jnp.where(
                    frozen, jax.random.key_data(frozen_key), jax.random.key_data(jax.random.fold_in(live_key, epoch))
                )
            )
            keys = jax.vmap(lambda i: jax.random.fold_in(base, i))(sample_ids)
            drawn = augment.draw(keys, pipeline.padding, pipeline.flip)
        pixels = augment.gather(train.images, sample_ids, drawn, pipeline.padding)
        images = augment.normalise(pixels, pipeline.mean, pipeline.std)
        labels = train.labels[sample_ids]
        return Batch(images, labels, sample_ids, jnp.ones(batch_size, bool))

    return ClientData(gather, num_batches, client_id)


def in_order(images: Array, labels: Array, batch_size: int, client_id: Array | int = 0) -> ClientData:
    """Images as they are, in the order stored, as one client's data; every epoch is alike.

    Args:
        images: [n, H, W, C] float32, normalised.
        labels: [n] int32.
        batch_size: rows in a batch. The last batch may be incomplete: the rest of its rows are not valid.
        client_id: whose data it is.
    """
    count, num_batches = labels.shape[0], -(-labels.shape[0] // batch_size)

    def gather(step: Array, key: PRNGKey) -> Batch:
        del key
        rows = step % num_batches * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        kept = jnp.minimum(rows, count - 1)
        return Batch(images[kept], labels[kept], kept, rows < count)

    return ClientData(gather, jnp.int32(num_batches), jnp.int32(client_id))
