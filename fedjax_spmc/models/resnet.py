"""Residual networks for 32x32 images: `resnet10`, `resnet18` (the SPMC code, ICML 2025), and a thin `resnet18_thin`.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, in the form with a 3x3 stem and no
max-pool: four stages of basic blocks with 1, 2, 4 and 8 times `width` channels, then an average pool over the whole
remaining map and a linear layer.
Deviations: the code registers every tensor twice, so that its state dictionary has 148 entries for the 74 tensors of
    resnet10; here each stands once. The integer counters of batch normalisation, which nothing reads, are left out.
"""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fedjax_spmc.models.convolution import convolution_1x1, convolution_3x3
from fedjax_spmc.models.layers import Linear, as_model, torch_uniform
from fedjax_spmc.options import Range
from fedjax_spmc.registry import models
from fedjax_spmc.types import Array, Model

Norm = Literal["batch", "group", "none"]
EPS, MOMENTUM, GROUPS = 1e-5, 0.1, 32


class Convolution(nn.Module):
    """A 3x3 or 1x1 convolution; it has a bias only where no normalisation follows."""

    features: int
    size: int
    stride: int
    bias: bool

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        fan_in = images.shape[3] * self.size**2
        shape = (self.features, images.shape[3], self.size, self.size)
        weight = self.param("weight", torch_uniform(fan_in), shape)
        convolve = convolution_3x3 if self.size == 3 else convolution_1x1
        outputs = convolve(images, weight, self.stride)
        if not self.bias:
            return outputs
        return outputs + self.param("bias", torch_uniform(fan_in), (self.features,))[None, None, None]


ThreeArrays = tuple[Array, Array, Array]
Rows = Array | None
"""[B] bool, the rows of a batch that count, of which there is one at least; None = all."""


def _kept(rows: Rows, images: Array) -> Array:
    """Images, or anything of their shape, with zeros in the rows that do not count."""
    return images if rows is None else jnp.where(rows[:, None, None, None], images, 0.0)


def _count(rows: Rows, images: Array) -> Array | int:
    """Values of a channel that count."""
    if rows is None:
        return images.size // images.shape[3]
    return rows.sum(dtype=images.dtype) * (images.shape[1] * images.shape[2])


def _mean(rows: Rows, images: Array) -> Array:
    """[C]: over the rows that count."""
    if rows is None:
        return images.mean(axis=(0, 1, 2))
    return _kept(rows, images).sum(axis=(0, 1, 2)) / _count(rows, images)


@jax.custom_vjp
def _batch_normalise(images: Array, scale: Array, shift: Array, rows: Rows) -> ThreeArrays:
    """[B, H, W, C] normalised over all but the last dimension, scaled and shifted by [C]; mean and variance, [C].

    Its gradient is written out, since the one derived reads the images twice as often. Gradients by mean and variance
    are left out: nothing may ask for them.
    """
    mean = _mean(rows, images)
    variance = _mean(rows, jnp.square(images - mean[None, None, None]))
    factor = scale / jnp.sqrt(variance + EPS)
    return (images - mean[None, None, None]) * factor[None, None, None] + shift[None, None, None], mean, variance


def _batch_normalise_forward(
    images: Array, scale: Array, shift: Array, rows: Rows
) -> tuple[ThreeArrays, tuple[Array, Array, Array, Array, Rows]]:
    outputs, mean, variance = _batch_normalise(images, scale, shift, rows)
    return (outputs, mean, variance), (images, scale, mean, variance, rows)


def _batch_normalise_backward(
    saved: tuple[Array, Array, Array, Array, Rows], cotangents: ThreeArrays
) -> tuple[Array, Array, Array, None]:
    images, scale, mean, variance, rows = saved
    cotangent, count = cotangents[0], _count(rows, images)
    inverse = 1 / jnp.sqrt(variance + EPS)
    centred = images - mean[None, None, None]
    by_shift = cotangent.sum(axis=(0, 1, 2))
    by_scale = (cotangent * centred).sum(axis=(0, 1, 2)) * inverse
    factor = scale * inverse
    slope, offset = factor * inverse * by_scale / count, factor * by_shift / count
    # Rows that do not count moved neither mean nor variance.
    shared = [_kept(rows, part) for part in (slope[None, None, None] * centred, offset[None, None, None])]
    by_images = factor[None, None, None] * cotangent - shared[0] - shared[1]
    return by_images, by_scale, by_shift, None


_batch_normalise.defvjp(_batch_normalise_forward, _batch_normalise_backward)


class Normalisation(nn.Module):
    """Batch, group or no normalisation, with torch's constants and names."""

    kind: Norm

    @nn.compact
    def __call__(self, images: Array, train: bool, valid: Array | None = None) -> Array:
        """[B, H, W, C] -> the same, normalised, scaled and shifted; identity for "none".

        With `valid`, [B] bool, batch statistics are those of its rows. Where it has none they are those of all rows,
        so that nothing overflows on the way to a loss that counts nothing, and are not remembered.
        """
        if self.kind == "none":
            return images
        channels = images.shape[3]
        scale = self.param("weight", nn.initializers.ones, (channels,))
        shift = self.param("bias", nn.initializers.zeros, (channels,))
        if self.kind == "group":
            groups = math.gcd(GROUPS, channels)
            grouped = images.reshape(*images.shape[:3], groups, channels // groups)
            mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
            variance = jnp.square(grouped - mean).mean(axis=(1, 2, 4), keepdims=True)
            normal = ((grouped - mean) / jnp.sqrt(variance + EPS)).reshape(images.shape)
            return normal * scale[None, None, None] + shift[None, None, None]
        running_mean = self.variable("batch_stats", "running_mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "running_var", jnp.ones, (channels,))
        if train:
            rows = None if valid is None else valid | ~valid.any()
            outputs, mean, variance = _batch_normalise(images, scale, shift, rows)
            mean, variance = lax.stop_gradient((mean, variance))
            if not self.is_initializing():
                # torch normalises by the biased variance and remembers the unbiased one.
                count = _count(rows, images)
                unbiased = variance * (count / jnp.maximum(count - 1, 1))
                kept = MOMENTUM if valid is None else jnp.where(valid.any(), MOMENTUM, 0.0)
                running_mean.value = (1 - kept) * running_mean.value + kept * mean
                running_var.value = (1 - kept) * running_var.value + kept * unbiased
            return outputs
        mean, variance = running_mean.value, running_var.value
        factor = scale / jnp.sqrt(variance + EPS)
        return (images - mean[None, None, None]) * factor[None, None, None] + shift[None, None, None]


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    features: int
    stride: int
    norm: Norm

    @nn.compact
    def __call__(self, images: Array, train: bool, valid: Array | None = None) -> Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        bias = self.norm == "none"
        x = Convolution(self.features, 3, self.stride, bias, name="conv1")(images)
        x = nn.relu(Normalisation(self.norm, name="bn1")(x, train, valid))
        x = Convolution(self.features, 3, 1, bias, name="conv2")(x)
        x = Normalisation(self.norm, name="bn2")(x, train, valid)
        if self.stride != 1 or images.shape[3] != self.features:
            images = Convolution(self.features, 1, self.stride, bias, name="shortcut.0")(images)
            images = Normalisation(self.norm, name="shortcut.1")(images, train, valid)
        return nn.relu(x + images)


class ResNet(nn.Module):
    """Stem, four stages of blocks, average pool, linear layer."""

    blocks: tuple[int, ...]
    width: int
    num_classes: int
    norm: Norm

    @nn.compact
    def __call__(self, images: Array, train: bool, valid: Array | None = None) -> Array:
        """[B, H, W, C] -> logits [B, num_classes]; batch statistics are those of valid rows."""
        x = Convolution(self.width, 3, 1, self.norm == "none", name="conv1")(images)
        x = nn.relu(Normalisation(self.norm, name="bn1")(x, train, valid))
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                x = Block(self.width * 2**stage, stride, self.norm, name=f"layer{stage + 1}.{index}")(x, train, valid)
        x = x.mean(axis=(1, 2))
        return Linear(self.num_classes, name="linear")(x.T).T


def _resnet(
    blocks: tuple[int, ...], width: int, norm: Norm, num_classes: int, image_shape: tuple[int, int, int]
) -> Model:
    return as_model(ResNet(blocks, width, num_classes, norm), num_classes, image_shape)


@models.register("resnet10")
def resnet10(
    width: Annotated[int, Range(1, 4096)] = 64,
    norm: Norm = "batch",
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> Model:
    """ResNet with one block in each stage: 4,903,242 parameters with 10 classes.

    Args:
        width: channels of the first stage; the code has 64.
        norm: "batch" (the code), "group" (32 groups, or fewer where 32 does not divide the channels), or "none", where
            every convolution has a bias instead.
        num_classes: number of logits.
        image_shape: (H, W, C).
    """
    return _resnet((1, 1, 1, 1), width, norm, num_classes, image_shape)


@models.register("resnet18")
def resnet18(
    width: Annotated[int, Range(1, 4096)] = 64,
    norm: Norm = "batch",
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> Model:
    """ResNet with two blocks in each stage: 11,173,962 parameters with 10 classes.

    Args:
        width: channels of the first stage; the code has 64.
        norm: as for `resnet10`.
        num_classes: number of logits.
        image_shape: (H, W, C).
    """
    return _resnet((2, 2, 2, 2), width, norm, num_classes, image_shape)


@models.register("resnet18_thin")
def resnet18_thin(
    norm: Norm = "batch", num_classes: int = 10, image_shape: tuple[int, int, int] = (32, 32, 3)
) -> Model:
    """`resnet18` with 32, 64, 128 and 256 channels: 2,797,610 parameters in 62 tensors with 10 classes.

    The CIFAR network of the codes of Neurotoxin (ICML 2022), FLIP (ICLR 2023) and of many attacks.

    Args:
        norm: as for `resnet10`.
        num_classes: number of logits.
        image_shape: (H, W, C).
    """
    return _resnet((2, 2, 2, 2), 32, norm, num_classes, image_shape)
