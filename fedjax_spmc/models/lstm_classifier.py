"""The sentiment network of Neurotoxin's code: embedding, two LSTM layers, a linear layer on the last place.

Source: the networks for Sentiment140 (embedding and LSTM of width 200, no dropout behind the LSTM) and IMDB (embedding
    400, LSTM 256, dropout 0.3) of Zhang et al., "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022, its
    published code; between the layers it drops half of the numbers.
Deviations: with `single` the network's one output z, whose sigmoid is the probability of class 1, stands as the logits
    (0, z): the same function, loss and gradients.
"""

from typing import Annotated

import jax.numpy as jnp
from flax import linen as nn

from fedjax_spmc.models.layers import Linear, as_model
from fedjax_spmc.models.lstm import LSTM, Embedding
from fedjax_spmc.models.lstm_lm import Layers, Width
from fedjax_spmc.options import FRACTION
from fedjax_spmc.registry import models
from fedjax_spmc.types import Array, Model


class LSTMClassifier(nn.Module):
    """`encoder`, `lstm`, `decoder`."""

    classes: int
    vocabulary: int
    width: int
    hidden: int
    layers: int
    dropout: float
    between: float
    single: bool

    @nn.compact
    def __call__(self, tokens: Array, train: bool) -> Array:
        """[B, T] -> logits [B, classes]."""
        vectors = Embedding(self.vocabulary, self.width, name="encoder")(tokens.T)
        _, (h, _) = LSTM(self.hidden, self.layers, self.between, name="lstm")(vectors, train)
        last = nn.Dropout(self.dropout, deterministic=not train)(h[-1])
        logits = Linear(1 if self.single else self.classes, name="decoder")(last.T).T
        return jnp.concatenate([jnp.zeros_like(logits), logits], axis=1) if self.single else logits


@models.register("lstm_classifier")
def lstm_classifier(
    width: Width = 200,
    hidden: Width = 200,
    layers: Layers = 2,
    dropout: Annotated[float, FRACTION] = 0.0,
    between: Annotated[float, FRACTION] = 0.5,
    single: bool = True,
    num_classes: int = 2,
    sequence_length: int = 64,
    vocabulary: int = 100,
) -> Model:
    """LSTM that tells the class of a text, with torch's default initialisation.

    Args:
        width: of the embedding.
        hidden: of every LSTM layer.
        layers: LSTM layers.
        dropout: probability of dropping a number behind the last place.
        between: the same between two layers.
        single: of two classes: whether the last layer has one output, as in the code; else one for each class.
        num_classes: number of logits.
        sequence_length: tokens in a row.
        vocabulary: number of tokens.
    """
    one = single and num_classes == 2
    module = LSTMClassifier(num_classes, vocabulary, width, hidden, layers, dropout, between, one)
    return as_model(module, num_classes, (sequence_length,), dropout=max(dropout, between) > 0, dtype=jnp.int32)
