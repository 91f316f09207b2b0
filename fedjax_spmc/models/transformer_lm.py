"""A small causal transformer that predicts the next token, in the place of Neurotoxin's GPT-2.

Neurotoxin's second task fine-tunes the pretrained GPT-2 of 124 million parameters. This network has the same kind of
layers (pre-norm, GELU, learned positions, tied decoder) in a small size and is trained from scratch: a stand-in, whose
numbers say nothing of a pretrained model.

Source: Radford, Wu, Child, Luan, Amodei, Sutskever, "Language Models are Unsupervised Multitask Learners", 2019; the
    layers are those of torch's `nn.TransformerEncoder` with `norm_first` and a causal mask.
Deviations: GPT-2's initial weights are N(0, 0.02^2), those of its residual outputs smaller with depth; here too, biases
    0. A decoder's bias, which GPT-2 has not. Dropout behind the embedding and behind both branches, none on the weights
    of attention.
"""

from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.models.layers import as_model
from fedjax_spmc.models.lstm_lm import Layers, Width
from fedjax_spmc.options import FRACTION, Range
from fedjax_spmc.registry import models
from fedjax_spmc.types import Array, Model

SCALE = 0.02
EPSILON = 1e-5


class Parameters(nn.Module):
    """A named group of parameters, declared in order; calling it gives them.

    Attributes:
        kinds: name -> shape, and how the initial values are drawn.
    """

    kinds: Mapping[str, tuple[tuple[int, ...], nn.initializers.Initializer]]

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """The parameters by name."""
        return {name: self.param(name, init, shape) for name, (shape, init) in self.kinds.items()}


def affine(features: int, inputs: int, name: str, scale: float = SCALE) -> dict[str, Array]:
    """Weight [features, inputs] and bias [features] of a linear layer."""
    weight, bias = nn.initializers.normal(scale), nn.initializers.zeros
    return Parameters({"weight": ((features, inputs), weight), "bias": ((features,), bias)}, name=name)()


def norm(width: int, name: str) -> dict[str, Array]:
    """Weight and bias [width] of a layer norm."""
    weight, bias = nn.initializers.ones, nn.initializers.zeros
    return Parameters({"weight": ((width,), weight), "bias": ((width,), bias)}, name=name)()


def applied(x: Array, layer: dict[str, Array]) -> Array:
    """A linear layer over the last axis of [B, T, inputs]."""
    return x @ layer["weight"].T + layer["bias"][None, None]


def normed(x: Array, layer: dict[str, Array]) -> Array:
    """A layer norm over the last axis of [B, T, width]."""
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPSILON)
    return centred / deviation * layer["weight"][None, None] + layer["bias"][None, None]


class Attention(nn.Module):
    """Parameters of torch's `nn.MultiheadAttention`: in_proj_weight, in_proj_bias, out_proj."""

    width: int
    out_scale: float

    @nn.compact
    def __call__(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """The input's and the output's linear layer."""
        weight = self.param("in_proj_weight", nn.initializers.normal(SCALE), (3 * self.width, self.width))
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * self.width,))
        return {"weight": weight, "bias": bias}, affine(self.width, self.width, "out_proj", self.out_scale)


class Layer(nn.Module):
    """Pre-norm attention and pre-norm feed-forward of four times the width, each added to what came in."""

    width: int
    heads: int
    dropout: float
    out_scale: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, T, width] -> the same."""
        projection, out = Attention(self.width, self.out_scale, name="self_attn")()
        inner = affine(4 * self.width, self.width, "linear1")
        outer = affine(self.width, 4 * self.width, "linear2", self.out_scale)
        norms = norm(self.width, "norm1"), norm(self.width, "norm2")

        def dropped(x: Array) -> Array:
            return nn.Dropout(self.dropout, deterministic=not train)(x)

        batch, length, width = x.shape
        parts = applied(normed(x, norms[0]), projection).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = (parts[:, :, i] for i in range(3))
        seen = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + dropped(applied(seen.reshape(batch, length, width), out))
        hidden = dropped(jax.nn.gelu(applied(normed(x, norms[1]), inner), approximate=False))
        return x + dropped(applied(hidden, outer))


class LayerList(nn.Module):
    """`0`, `1`, ..."""

    count: int
    width: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """All layers in turn."""
        for i in range(self.count):
            x = Layer(self.width, self.heads, self.dropout, SCALE / (2 * self.count) ** 0.5, name=str(i))(x, train)
        return x


class Stack(nn.Module):
    """`layers` and `norm`."""

    count: int
    width: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """The layers and the last norm."""
        x = LayerList(self.count, self.width, self.heads, self.dropout, name="layers")(x, train)
        return normed(x, norm(self.width, "norm"))


class TransformerLanguageModel(nn.Module):
    """`encoder`, `positions`, `transformer`, `decoder` (its bias alone: the weight is the encoder's)."""

    vocabulary: int
    width: int
    heads: int
    layers: int
    dropout: float

    @nn.compact
    def __call__(self, tokens: Array, train: bool) -> Array:
        """[B, T] -> logits [B, T, vocabulary]."""
        length = tokens.shape[1]
        draw = nn.initializers.normal(SCALE)
        encoder = Parameters({"weight": ((self.vocabulary, self.width), draw)}, name="encoder")()["weight"]
        positions = Parameters({"weight": ((length, self.width), draw)}, name="positions")()["weight"]
        x = encoder[tokens] + positions[None]
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = Stack(self.layers, self.width, self.heads, self.dropout, name="transformer")(x, train)
        bias = Parameters({"bias": ((self.vocabulary,), nn.initializers.zeros)}, name="decoder")()
        return applied(x, {"weight": encoder, **bias})


@models.register("transformer_lm")
def transformer_lm(
    width: Width = 64,
    heads: Annotated[int, Range(1, 1000)] = 4,
    layers: Layers = 2,
    dropout: Annotated[float, FRACTION] = 0.1,
    num_classes: int = 100,
    sequence_length: int = 64,
    vocabulary: int = 100,
) -> Model:
    """Small pre-norm decoder, trained from scratch, that predicts the next token at every place.

    Args:
        width: of every layer.
        heads: of attention.
        layers: how many.
        dropout: probability of dropping a number.
        num_classes, vocabulary: number of tokens.
        sequence_length: tokens in a row; there are as many positions.

    Raises:
        ConfigError: the width is no multiple of the heads.
    """
    if width % heads:
        raise ConfigError(
            f"model.options.width = {width} is not allowed with model.options.heads = {heads}: it must be a multiple "
            "of it."
        )
    module = TransformerLanguageModel(vocabulary, width, heads, layers, dropout)
    return as_model(module, num_classes, (sequence_length,), dropout=dropout > 0, dtype=jnp.int32)
