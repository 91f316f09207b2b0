"""The CNN of a published speed benchmark of federated simulators, with dropout; 1,626,442 parameters for CIFAR-10.

Source: the benchmark network of pfl-research (arXiv 2404.06430): two valid 3x3 convolutions, one max-pool, one hidden
    linear layer. `configs/s1.py` has the rest of the workload.
Deviations: torch's default initialisation; the benchmark draws the weights by Glorot's uniform rule. The names of the
    tensors are conv1, conv2, fc1, cls; order, shapes and layout are those of torch's `Sequential`.
"""

from typing import Annotated

from flax import linen as nn

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.models.layers import Convolution, ConvolutionPool, Linear, as_model, batch_last
from fedjax_spmc.options import FRACTION
from fedjax_spmc.registry import models
from fedjax_spmc.types import Array, Model


class CNNDropout(nn.Module):
    """3x3x32, ReLU, 3x3x64, ReLU, max-pool, dropout, 128, ReLU, dropout, logits.

    Behind the pool single units are dropped, or with `whole_channels` all of a channel at once; `last` names the last
    layer.
    """

    dropout_1: float
    dropout_2: float
    num_classes: int
    whole_channels: bool = False
    last: str = "cls"

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """[B, H, W, C] -> logits [B, num_classes]."""
        x = nn.relu(Convolution(32, 3, name="conv1")(batch_last(images)))
        x = ConvolutionPool(64, 3, name="conv2")(x)
        shared = (1, 2) if self.whole_channels else ()
        x = nn.Dropout(self.dropout_1, broadcast_dims=shared, deterministic=not train)(x)
        x = nn.relu(Linear(128, name="fc1")(x.reshape(-1, images.shape[0])))
        x = nn.Dropout(self.dropout_2, deterministic=not train)(x)
        return Linear(self.num_classes, name=self.last)(x).T


@models.register("cnn_dropout")
def cnn_dropout(
    dropout_1: Annotated[float, FRACTION] = 0.25,
    dropout_2: Annotated[float, FRACTION] = 0.5,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> Model:
    """Two convolutions, one hidden layer and dropout, with torch's default initialisation.

    In training a unit is dropped with the layer's probability and the others are divided by the rest, as torch does;
    the draws come from the key of `Model.apply`. FDCR's "authors" Fisher, which takes the model in train mode, sees
    dropout too.

    Args:
        dropout_1: probability of dropping a unit behind the pool.
        dropout_2: the same behind the hidden layer.
        num_classes: number of logits.
        image_shape: (H, W, C), H and W at least 6.
    """
    check_size("cnn_dropout", image_shape)
    return as_model(CNNDropout(dropout_1, dropout_2, num_classes), num_classes, image_shape, dropout=True)


def check_size(name: str, image_shape: tuple[int, int, int]) -> None:
    """Refuses images that leave nothing behind the pool.

    Raises:
        ConfigError: they are smaller than 6x6.
    """
    if min(image_shape[:2]) < 6:
        raise ConfigError(f"model {name} needs images of at least 6x6, not {image_shape[0]}x{image_shape[1]}.")
