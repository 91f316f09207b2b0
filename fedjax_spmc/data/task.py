"""What a data set makes of a model's work: how its raw examples become the model's inputs."""

import jax
import jax.numpy as jnp

from fedjax_spmc.data import augment
from fedjax_spmc.data.dataset import DatasetInfo
from fedjax_spmc.types import Array, Task


def pixels(info: DatasetInfo, augmented: bool = True, normalised: bool = True) -> Task:
    """The task of a data set of images.

    Args:
        info: the data set's.
        augmented: whether training images are cropped and mirrored where the data set says so.
        normalised: whether mean and std are taken out; else the pixels are in [0, 1].
    """
    mean, std = (info.mean, info.std) if normalised else ((0.0,) * len(info.mean), (1.0,) * len(info.std))
    means, deviations = jnp.array(mean, jnp.float32), jnp.array(std, jnp.float32)
    padding = info.crop_padding if augmented else 0
    flip = info.flip and augmented

    def prepare(raw: Array, keys: Array | None) -> Array:
        if keys is not None and (padding > 0 or flip):
            raw = augment.crop_and_flip(raw, augment.draw(keys, padding, flip), padding)
        return augment.normalise(raw, means, deviations)

    shape = jax.ShapeDtypeStruct(info.image_shape, jnp.float32)
    return Task(info.num_classes, shape, prepare, means, deviations)


def tokens(num_classes: int, length: int, tokenizer: object = None) -> Task:
    """The task of a data set of sequences: tokens stay as they are."""
    shape = jax.ShapeDtypeStruct((length,), jnp.int32)
    return Task(num_classes, shape, lambda raw, keys: raw, tokenizer=tokenizer)
