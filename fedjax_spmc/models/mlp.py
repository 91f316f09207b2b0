"""A multi-layer perceptron: the smallest network, for tests and quick looks."""

from flax import linen as nn

from fedjax_spmc import registry
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.models.layers import Linear, as_model, batch_last
from fedjax_spmc.types import Array, Model


class MLP(nn.Module):
    """Flatten (channel-major, as torch does), hidden layers `fc1`, `fc2`, ... with ReLU, then `cls`."""

    hidden: tuple[int, ...]
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """[B, H, W, C] -> logits [B, num_classes]."""
        del train
        x = batch_last(images).reshape(-1, images.shape[0])
        for i, features in enumerate(self.hidden, start=1):
            x = nn.relu(Linear(features, name=f"fc{i}")(x))
        return Linear(self.num_classes, name="cls")(x).T


@registry.models.register("mlp")
def mlp(
    hidden: tuple[int, ...] = (128, 64), num_classes: int = 10, image_shape: tuple[int, int, int] = (32, 32, 3)
) -> Model:
    """Multi-layer perceptron with torch's default initialisation.

    Args:
        hidden: sizes of the hidden layers; an empty list gives softmax regression.
        num_classes: number of logits.
        image_shape: (H, W, C).
    """
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in hidden):
        raise ConfigError(f"hidden = {hidden!r} is not allowed: it must be a list of whole numbers above 0.")
    return as_model(MLP(tuple(hidden), num_classes), num_classes, image_shape)
