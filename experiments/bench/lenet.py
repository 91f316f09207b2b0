"""LeNet as a user writes it who knows Flax and nothing of this package: a plug-in, `--config.plugins=lenet`.

    x -> 5x5x16, ReLU, max-pool -> 5x5x32, ReLU, max-pool -> 120 -> 84 -> logits

Its convolutions, pools and dense layers are Flax's own, its images NHWC, its parameters Flax's. `bench_step.py` times
it as `as_model` takes it by default, and with `model.options.fast_forms=False`.
"""

from flax import linen as nn

from fedjax_spmc.models.layers import as_model
from fedjax_spmc.registry import models


class LeNet(nn.Module):
    """Two convolutions with pools, three dense layers."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        """[B, 32, 32, 3] -> logits [B, num_classes]."""
        x = nn.max_pool(nn.relu(nn.Conv(16, (5, 5), padding="VALID")(images)), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(32, (5, 5), padding="VALID")(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(120)(x.reshape(len(x), -1)))
        x = nn.relu(nn.Dense(84)(x))
        return nn.Dense(self.num_classes)(x)


@models.register("lenet")
def lenet(fast_forms: bool = True, num_classes: int = 10, image_shape: tuple[int, int, int] = (32, 32, 3)):
    """LeNet with `nn.Conv`; `fast_forms` is the switch of `as_model`."""
    return as_model(LeNet(num_classes), num_classes, image_shape, fast_forms=fast_forms)
