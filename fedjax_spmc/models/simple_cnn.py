"""SimpleCNN: the small LeNet-like network of the SPMC code (ICML 2025), 92,626 parameters with 10 classes."""

from flax import linen as nn

from fedjax_spmc import registry
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.models.layers import ConvolutionPool, Linear, as_model, batch_last
from fedjax_spmc.types import Array, Model


class SimpleCNN(nn.Module):
    """Two convolutions 5x5 with ReLU and max-pool, then five linear layers; no activation after `l2`."""

    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """[B, H, W, C] -> logits [B, num_classes]."""
        del train
        x = batch_last(images)
        x = ConvolutionPool(6, 5, name="conv1")(x)
        x = ConvolutionPool(16, 5, name="conv2")(x)
        x = x.reshape(-1, images.shape[0])
        x = nn.relu(Linear(120, name="fc1")(x))
        x = nn.relu(Linear(84, name="fc2")(x))
        x = nn.relu(Linear(84, name="l1")(x))
        x = Linear(256, name="l2")(x)
        return Linear(self.num_classes, name="cls")(x).T


@registry.models.register("simple_cnn")
def simple_cnn(num_classes: int = 10, image_shape: tuple[int, int, int] = (32, 32, 3)) -> Model:
    """SimpleCNN with torch's default initialisation.

    The first linear layer takes 16 * h * w features, h and w being what two rounds of "minus 4, halved" leave of the
    image: 400 for 32x32. The reference squeezes away the batch axis of a single image; this one keeps it.

    Args:
        num_classes: number of logits.
        image_shape: (H, W, C), H and W at least 16.
    """
    if min(image_shape[:2]) < 16:
        raise ConfigError(f"model simple_cnn needs images of at least 16x16, not {image_shape[0]}x{image_shape[1]}.")
    return as_model(SimpleCNN(num_classes), num_classes, image_shape)
