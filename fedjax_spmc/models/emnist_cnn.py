"""The small CNN of Neurotoxin's code for EMNIST digits: 1,199,882 parameters for 28x28 images and 10 classes.

Source: Zhang et al., "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022, its public code; names,
    order and shapes of the tensors are those of that network in torch. Its second dropout is one of channels there,
    which for the units of a hidden layer is plain dropout.
"""

from typing import Annotated

from fedjax_spmc.models.cnn_dropout import CNNDropout, check_size
from fedjax_spmc.models.layers import as_model
from fedjax_spmc.options import FRACTION
from fedjax_spmc.registry import models
from fedjax_spmc.types import Model


@models.register("emnist_cnn")
def emnist_cnn(
    dropout_1: Annotated[float, FRACTION] = 0.25,
    dropout_2: Annotated[float, FRACTION] = 0.5,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (28, 28, 1),
) -> Model:
    """Two convolutions, one hidden layer, dropout of whole channels and of units, with torch's default initialisation.

    Args:
        dropout_1: probability of dropping a channel behind the pool.
        dropout_2: probability of dropping a unit behind the hidden layer.
        num_classes: number of logits.
        image_shape: (H, W, C), H and W at least 6.
    """
    check_size("emnist_cnn", image_shape)
    network = CNNDropout(dropout_1, dropout_2, num_classes, whole_channels=True, last="fc2")
    return as_model(network, num_classes, image_shape, dropout=True)
