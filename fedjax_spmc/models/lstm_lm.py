"""The next-word network of Neurotoxin's and other published codes: embedding, two LSTM layers, tied decoder, dropout.

Source: the network for Reddit of Zhang et al., "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022, its
    published code: embedding and LSTM of width 200, dropout 0.2, the decoder's weight is the embedding's.
Deviations: the code carries the LSTM's state from batch to batch; here it starts at zero in every row. Weights begin as
    in torch's word-language-model example: embedding uniform in [-0.1, 0.1], decoder's bias 0, LSTM torch's default.
"""

from typing import Annotated

import jax.numpy as jnp
from flax import linen as nn

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.models.layers import as_model
from fedjax_spmc.models.lstm import LSTM, Decoder, Embedding, State
from fedjax_spmc.options import FRACTION, Range
from fedjax_spmc.registry import models
from fedjax_spmc.types import Array, Model

Width = Annotated[int, Range(1, 10**5)]
Layers = Annotated[int, Range(1, 100)]


class LSTMLanguageModel(nn.Module):
    """`encoder`, `rnn`, `decoder`."""

    vocabulary: int
    width: int
    hidden: int
    layers: int
    dropout: float
    tied: bool

    def __call__(self, tokens: Array, train: bool) -> Array:
        """[B, T] -> logits [B, T, vocabulary]."""
        return self.with_state(tokens.T, None, train)[0].transpose(1, 0, 2)

    @nn.compact
    def with_state(self, tokens: Array, state: State | None, train: bool) -> tuple[Array, State]:
        """[T, B] and the state before -> logits [T, B, vocabulary] and the state behind."""

        def dropped(x: Array) -> Array:
            return nn.Dropout(self.dropout, deterministic=not train)(x)

        encoder = Embedding(self.vocabulary, self.width, 0.1, name="encoder")
        vectors = dropped(encoder(tokens))
        outputs, state = LSTM(self.hidden, self.layers, self.dropout, name="rnn")(vectors, train, state)
        tied = encoder.weight if self.tied else None
        return Decoder(self.vocabulary, name="decoder")(dropped(outputs), tied), state


@models.register("lstm_lm")
def lstm_lm(
    width: Width = 200,
    hidden: Width = 200,
    layers: Layers = 2,
    dropout: Annotated[float, FRACTION] = 0.2,
    tied: bool = True,
    num_classes: int = 100,
    sequence_length: int = 64,
    vocabulary: int = 100,
) -> Model:
    """LSTM that predicts the next token at every place.

    In training numbers are dropped behind the embedding, between layers and behind the last one.

    Args:
        width: of the embedding.
        hidden: of every LSTM layer.
        layers: LSTM layers.
        dropout: probability of dropping a number.
        tied: whether the decoder's weight is the embedding's, which then counts once.
        num_classes, vocabulary: number of tokens.
        sequence_length: tokens in a row.

    Raises:
        ConfigError: tied, and the widths differ.
    """
    if tied and width != hidden:
        raise ConfigError(
            f"model.options.width = {width} is not allowed with model.options.tied = True and model.options.hidden = "
            f"{hidden}: it must be the same."
        )
    module = LSTMLanguageModel(vocabulary, width, hidden, layers, dropout, tied)
    return as_model(module, num_classes, (sequence_length,), dropout=dropout > 0, dtype=jnp.int32)
