"""ResNet-9, Neurotoxin's network for EMNIST byclass: no normalisation, 6,594,112 parameters with 62 classes.

Source: Zhang et al., "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022, its public code; names, order
    and shapes of the tensors are those of that network in torch.
Deviations: the code's last pool takes 4x4 windows, so that it works on 32x32 images and raises on EMNIST's 28x28, of
    which a 3x3 map is left. `fit` chooses what is done here; on 32x32 both are the code's network.
"""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.models.layers import Linear, as_model
from fedjax_spmc.models.picking import max_of_first
from fedjax_spmc.models.resnet import Convolution
from fedjax_spmc.registry import models
from fedjax_spmc.types import Array, Model

LOGIT_SCALE = 0.125
SIDE = 32
"""Of the images for which the code's network is made."""


def max_pool(images: Array) -> Array:
    """2x2 max-pool with stride 2: [B, H, W, C] -> [B, H // 2, W // 2, C]; of ties the first gets the gradient."""
    down, right = images.shape[1] // 2 * 2, images.shape[2] // 2 * 2
    return max_of_first(jnp.stack([images[:, p:down:2, q:right:2] for p in (0, 1) for q in (0, 1)]))


def largest(images: Array) -> Array:
    """The maximum of every channel: [B, H, W, C] -> [B, C]; of ties the first gets the gradient, as in torch."""
    places = images.reshape(images.shape[0], -1, images.shape[3])
    first = jnp.argmax(lax.stop_gradient(places), axis=1)
    taken = lax.broadcasted_iota(first.dtype, places.shape, 1) == first[:, None]
    return jnp.where(taken, places, 0.0).sum(axis=1)


class ResNet9(nn.Module):
    """Four 3x3 convolutions, all but the first with a pool, two residual pairs, the largest of each map, logits / 8."""

    num_classes: int
    pad: bool

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """[B, H, W, C] -> logits [B, num_classes]."""
        del train

        def step(x: Array, features: int, name: str) -> Array:
            return nn.relu(Convolution(features, 3, 1, bias=False, name=f"n.{name}.conv")(x))

        def residual(x: Array, name: str) -> Array:
            features = x.shape[3]
            return x + step(step(x, features, f"{name}.res1"), features, f"{name}.res2")

        if self.pad:
            missing = [SIDE - side for side in images.shape[1:3]]
            images = jnp.pad(images, ((0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)))
        x = max_pool(step(step(images, 64, "prep"), 128, "layer1"))
        x = residual(x, "res1")
        x = max_pool(step(x, 256, "layer2"))
        x = residual(max_pool(step(x, 512, "layer3")), "res3")
        return LOGIT_SCALE * Linear(self.num_classes, bias=False, name="n.linear")(largest(x).T).T


@models.register("resnet9")
def resnet9(
    fit: Literal["global_pool", "pad"] = "global_pool",
    num_classes: int = 62,
    image_shape: tuple[int, int, int] = (28, 28, 1),
) -> Model:
    """ResNet-9 with torch's default initialisation; its last layer has no bias, so that it has no `features`.

    Args:
        fit: how images of another size than 32x32 are taken: "global_pool" takes the largest value of the whole last
            map, "pad" puts zeros around images up to 32x32, on which the code's 4x4 pool is the same.
        num_classes: number of logits.
        image_shape: (H, W, C), H and W at least 8, and at most 32 where they are padded.

    Raises:
        ConfigError: images of a size that does not fit.
    """
    low, high = min(image_shape[:2]), max(image_shape[:2])
    if low < 8 or (fit == "pad" and high > SIDE):
        allowed = "at least 8x8" if low < 8 else f"at most {SIDE}x{SIDE} with model.options.fit = 'pad'"
        raise ConfigError(f"model resnet9 needs images of {allowed}, not {image_shape[0]}x{image_shape[1]}.")
    return as_model(ResNet9(num_classes, fit == "pad"), num_classes, image_shape)
