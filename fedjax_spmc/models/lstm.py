"""LSTM layers with torch's names, layout and order of gates (i, f, g, o): one compiled scan over time for each layer.

What does not depend on the state before is one product over all places: the gates' share of the inputs, and in the
backward pass the gradients by the weights and by the inputs. The scan is left with the recurrent product alone. Its
gradient is stated by hand, because automatic differentiation would add up the gradient by the weights inside of it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_spmc.models.layers import torch_uniform
from fedjax_spmc.types import Array

State = tuple[Array, Array]
"""h and c: [B, H] of a layer, [layers, B, H] of several."""


class Weights(NamedTuple):
    """Of one layer, as torch lays them out: [4 H, inputs], [4 H, H], [4 H], [4 H]."""

    ih: Array
    hh: Array
    bias_ih: Array
    bias_hh: Array


@jax.custom_vjp
def lstm_layer(inputs: Array, state: State, weights: Weights) -> tuple[Array, State]:
    """One LSTM layer over time.

    Args:
        inputs: [T, B, E].
        state: before the first place, [B, H] each.
        weights: see `Weights`.

    Returns:
        outputs [T, B, H] and the state behind the last place.
    """

    def step(state: State, share: Array) -> tuple[State, Array]:
        (h, c), _ = _cell(state, share, weights.hh)
        return (h, c), h

    state, outputs = jax.lax.scan(step, state, _shares(inputs, weights))
    return outputs, state


def _shares(inputs: Array, weights: Weights) -> Array:
    """What the inputs and the biases add to the gates: [T, B, 4 H]."""
    products = inputs.reshape(-1, inputs.shape[-1]) @ weights.ih.T + (weights.bias_ih + weights.bias_hh)[None]
    return products.reshape(*inputs.shape[:-1], -1)


def _cell(state: State, share: Array, hidden: Array) -> tuple[State, Array]:
    """The next state, and the gates behind their functions, [B, 4 H]."""
    h, c = state
    i, f, g, o = jnp.split(share + h @ hidden.T, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * c + i * g
    return (o * jnp.tanh(c), c), jnp.concatenate([i, f, g, o], axis=-1)


def _forward(inputs: Array, state: State, weights: Weights) -> tuple[tuple[Array, State], Any]:
    def step(before: State, share: Array) -> tuple[State, tuple[Array, Array, Array]]:
        (h, c), gates = _cell(before, share, weights.hh)
        return (h, c), (h, c, gates)

    last, (outputs, cells, gates) = jax.lax.scan(step, state, _shares(inputs, weights))
    return (outputs, last), (inputs, state, weights, outputs, cells, gates)


def _backward(saved: Any, cotangents: tuple[Array, State]) -> tuple[Array, State, Weights]:
    inputs, state, weights, outputs, cells, gates = saved
    by_outputs, by_last = cotangents

    def before(first: Array, all_of_them: Array) -> Array:
        return jnp.concatenate([first[None], all_of_them[:-1]])

    def step(after: State, at: tuple[Array, ...]) -> tuple[State, Array]:
        (by_h, by_c), (by_output, gates, cell, cell_before) = after, at
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        seen = jnp.tanh(cell)
        by_h = by_h + by_output
        by_c = by_c + by_h * o * (1 - seen * seen)
        by_gates = jnp.concatenate(
            [
                by_c * g * i * (1 - i),
                by_c * cell_before * f * (1 - f),
                by_c * i * (1 - g * g),
                by_h * seen * o * (1 - o),
            ],
            axis=-1,
        )
        return (by_gates @ weights.hh, by_c * f), by_gates

    places = (by_outputs, gates, cells, before(state[1], cells))
    by_state, by_gates = jax.lax.scan(step, by_last, places, reverse=True)
    flat = by_gates.reshape(-1, by_gates.shape[-1])

    def by_weight(seen: Array) -> Array:
        return jax.lax.dot_general(flat, seen.reshape(-1, seen.shape[-1]), (((0,), (0,)), ((), ())))

    by_bias = flat.sum(axis=0)
    by_inputs = (flat @ weights.ih).reshape(inputs.shape)
    return by_inputs, by_state, Weights(by_weight(inputs), by_weight(before(state[0], outputs)), by_bias, by_bias)


lstm_layer.defvjp(_forward, _backward)


class LSTM(nn.Module):
    """Several layers, with dropout between them: torch's `nn.LSTM`.

    Attributes:
        hidden: H.
        layers: how many.
        dropout: probability of dropping a number between two layers, in training.
    """

    hidden: int
    layers: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: Array, train: bool, state: State | None = None) -> tuple[Array, State]:
        """[T, B, E] and the state before (None = zeros) -> outputs [T, B, H] and the state behind."""
        draw, size, width = torch_uniform(self.hidden), self.hidden, inputs.shape[-1]
        every = [
            Weights(
                self.param(f"weight_ih_l{layer}", draw, (4 * size, width if layer == 0 else size)),
                self.param(f"weight_hh_l{layer}", draw, (4 * size, size)),
                self.param(f"bias_ih_l{layer}", draw, (4 * size,)),
                self.param(f"bias_hh_l{layer}", draw, (4 * size,)),
            )
            for layer in range(self.layers)
        ]
        h, c = state or (jnp.zeros((self.layers, inputs.shape[1], size), inputs.dtype),) * 2
        last = []
        for layer, weights in enumerate(every):
            if layer:
                inputs = nn.Dropout(self.dropout, deterministic=not train)(inputs)
            inputs, end = lstm_layer(inputs, (h[layer], c[layer]), weights)
            last.append(end)
        return inputs, (jnp.stack([h for h, _ in last]), jnp.stack([c for _, c in last]))


class Embedding(nn.Module):
    """A vector for each token, torch's `nn.Embedding`: whole numbers [...] -> [..., width].

    Attributes:
        vocabulary: number of tokens.
        width: length of a vector.
        scale: weights are drawn uniformly from -scale to scale; None = from N(0, 1), torch's default.
    """

    vocabulary: int
    width: int
    scale: float | None = None

    def setup(self) -> None:
        """The weight, which a tied decoder takes too."""
        init = nn.initializers.normal(1.0) if self.scale is None else _uniform(self.scale)
        self.weight = self.param("weight", init, (self.vocabulary, self.width))

    def __call__(self, tokens: Array) -> Array:
        """Looks them up."""
        return self.weight[tokens]


def _uniform(scale: float) -> nn.initializers.Initializer:
    def draw(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -scale, scale)

    return draw


class Decoder(nn.Module):
    """The logits of every token, with the embedding's weight (tied) or one of its own, and a bias of zeros at first.

    Attributes:
        vocabulary: number of tokens.
        scale: see `Embedding`; of a weight of its own.
    """

    vocabulary: int
    scale: float = 0.1

    @nn.compact
    def __call__(self, features: Array, tied: Array | None) -> Array:
        """[..., width] -> [..., vocabulary]."""
        shape = (self.vocabulary, features.shape[-1])
        weight = self.param("weight", _uniform(self.scale), shape) if tied is None else tied
        bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        logits = features.reshape(-1, shape[1]) @ weight.T + bias[None]
        return logits.reshape(*features.shape[:-1], -1)
