"""MnistNet: FLIP's network for MNIST and Fashion-MNIST, 431,080 parameters for 28x28 images and 10 classes.

Source: Zhang et al., "FLIP: A Provable Defense Framework for Backdoor Mitigation in Federated Learning", ICLR 2023, its
    public code; names, order and shapes of the tensors are those of that network in torch.
Deviations: the code ends in a log-softmax, to which the cross entropy applies another, which changes nothing. Here the
    logits come as they are.
"""

from flax import linen as nn

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.models.layers import ConvolutionPool, Linear, as_model, batch_last
from fedjax_spmc.registry import models
from fedjax_spmc.types import Array, Model


class MnistNet(nn.Module):
    """5x5x20, ReLU, max-pool, 5x5x50, ReLU, max-pool, 500, ReLU, logits."""

    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """[B, H, W, C] -> logits [B, num_classes]."""
        del train
        x = ConvolutionPool(20, 5, name="conv1")(batch_last(images))
        x = ConvolutionPool(50, 5, name="conv2")(x)
        x = nn.relu(Linear(500, name="fc1")(x.reshape(-1, images.shape[0])))
        return Linear(self.num_classes, name="fc2")(x).T


@models.register("mnist_net")
def mnist_net(num_classes: int = 10, image_shape: tuple[int, int, int] = (28, 28, 1)) -> Model:
    """Two convolutions and one hidden layer, with torch's default initialisation.

    Args:
        num_classes: number of logits.
        image_shape: (H, W, C), H and W at least 16.
    """
    if min(image_shape[:2]) < 16:
        raise ConfigError(f"model mnist_net needs images of at least 16x16, not {image_shape[0]}x{image_shape[1]}.")
    return as_model(MnistNet(num_classes), num_classes, image_shape)
