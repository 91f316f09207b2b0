"""What a data set makes of a model's work: how its raw examples become the model's inputs."""

import jax
import jax.numpy as jnp

from fedjax_spmc.data import augment
from fedjax_spmc.data.dataset import DatasetInfo
from fedjax_spmc.types import Array, Task


def task_of(info: DatasetInfo, augmented: bool = True, normalised: bool = True) -> Task:
    """The task of a data set.

    Args:
        info: the data set's.
        augmented: whether training images are cropped and mirrored where the data set says so.
        normalised: whether mean and std are taken out of pixels; else they stay in [0, 1].
    """
    if info.mean is None or info.std is None:
        shape = jax.ShapeDtypeStruct(info.input_shape, jnp.int32)
        return Task(info.num_classes, shape, lambda raw, keys: raw, tokenizer=info.tokenizer)
    mean, std = (info.mean, info.std) if normalised else ((0.0,) * len(info.mean), (1.0,) * len(info.std))
    means, deviations = jnp.array(mean, jnp.float32), jnp.array(std, jnp.float32)
    padding = info.crop_padding if augmented else 0
    flip = info.flip and augmented

    def prepare(raw: Array, keys: Array | None) -> Array:
        if keys is not None and (padding > 0 or flip):
            raw = augment.crop_and_flip(raw, augment.draw(keys, padding, flip), padding)
        return augment.normalise(raw, means, deviations)

    return Task(info.num_classes, jax.ShapeDtypeStruct(info.input_shape, jnp.float32), prepare, means, deviations)
