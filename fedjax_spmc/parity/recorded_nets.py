"""The networks of golden files, made from the names and shapes of their recorded weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_spmc import models
from fedjax_spmc.models.layers import Linear, as_model
from fedjax_spmc.models.resnet import Convolution, Normalisation
from fedjax_spmc.types import Array, Model, Task, Variables


class LinearLayers(nn.Module):
    """Linear layers with ReLU between them: [B, in] -> [B, out of the last]."""

    layers: tuple[str, ...]
    outputs: tuple[int, ...]

    @nn.compact
    def __call__(self, inputs: Array, train: bool) -> Array:
        """Logits."""
        x = inputs.T
        for i, (name, size) in enumerate(zip(self.layers, self.outputs, strict=True)):
            x = Linear(size, name=name)(nn.relu(x) if i else x)
        return x.T


class SmallNet(nn.Module):
    """The `Net` of attacks_*: conv 3x3, conv 3x3 of stride 2, each with ReLU; mean over space; linear.

    With batch normalisation behind both convolutions, which then have no bias, or without.
    """

    channels: tuple[int, int]
    num_classes: int
    batch_norm: bool

    @nn.compact
    def __call__(self, images: Array, train: bool, valid: Array | None = None) -> Array:
        """[B, H, W, C] -> logits [B, num_classes]."""
        x = images
        for i, (features, stride) in enumerate(zip(self.channels, (1, 2), strict=True), 1):
            x = Convolution(features, 3, stride, not self.batch_norm, name=f"conv{i}")(x)
            if self.batch_norm:
                x = Normalisation("batch", name=f"bn{i}")(x, train, valid)
            x = nn.relu(x)
        return Linear(self.num_classes, name="linear")(x.mean(axis=(1, 2)).T).T


def linear_layers(state: Mapping[str, np.ndarray]) -> Model:
    """The network whose layers are called as in `state`, in that order."""
    weights = {name.removesuffix(".weight"): array for name, array in state.items() if name.endswith(".weight")}
    first, last = next(iter(weights.values())), list(weights.values())[-1]
    module = LinearLayers(tuple(weights), tuple(len(one) for one in weights.values()))
    return as_model(module, len(last), (first.shape[1],))


def small_net(state: Mapping[str, np.ndarray], image_shape: tuple[int, ...]) -> Model:
    """The `Net` with the channels, and the batch normalisation or none, that `state` has."""
    channels = (len(state["conv1.weight"]), len(state["conv2.weight"]))
    classes = len(state["linear.weight"])
    return as_model(SmallNet(channels, classes, "bn1.weight" in state), classes, image_shape)


def task_of(model: Model) -> Task:
    """Recorded inputs are as the model takes them."""
    return Task(model.num_classes, model.input, lambda raw, keys: raw)


def below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix/`, by what follows."""
    start = f"{prefix}/"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def variables_of(model: Model, state: Mapping[str, np.ndarray]) -> Variables:
    """Recorded weights and batch statistics as ours."""
    return models.from_torch_dict(model, {name: np.asarray(array, np.float32) for name, array in state.items()})


def stacked(model: Model, states: Sequence[Mapping[str, np.ndarray]]) -> Variables:
    """Several of them, stacked."""
    return jax.tree.map(lambda *rows: jnp.stack(rows), *(variables_of(model, state) for state in states))


def named(tree: Any) -> dict[str, Any]:
    """Leaves of nested dicts by their path, joined by dots: a parameter's name in torch."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}
