"""The networks for texts in plain torch, and a local epoch of next tokens."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F


class LanguageModel(nn.Module):
    """Embedding, LSTM, decoder with the embedding's weight (or its own): [B, T] -> [B, T, vocabulary]."""

    def __init__(self, vocabulary: int, width: int, layers: int = 2, dropout: float = 0.0, tied: bool = True):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocabulary, width)
        self.rnn = nn.LSTM(width, width, layers, dropout=dropout)
        self.decoder = nn.Linear(width, vocabulary)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The state starts at zero in every row."""
        outputs, _ = self.rnn(self.drop(self.encoder(tokens.T)))
        return self.decoder(self.drop(outputs)).transpose(0, 1)


class Classifier(nn.Module):
    """Embedding, LSTM, a linear layer on the last place: [B, T] -> [B, outputs]; one output z becomes (0, z)."""

    def __init__(self, outputs: int, vocabulary: int, width: int, hidden: int, layers: int = 2, between: float = 0.0):
        super().__init__()
        self.encoder = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, layers, dropout=between, batch_first=True)
        self.decoder = nn.Linear(hidden, outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits."""
        outputs, _ = self.lstm(self.encoder(tokens))
        logits = self.decoder(outputs[:, -1])
        return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], dim=1)


class Transformer(nn.Module):
    """Embedding and positions, pre-norm layers under a causal mask, norm, tied decoder: -> [B, T, vocabulary]."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, layers: int):
        super().__init__()
        self.encoder = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.decoder = nn.Linear(width, vocabulary)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits at every place, each from what stands before it and at it."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.decoder(self.transformer(self.encoder(tokens) + self.positions.weight[None], mask, is_causal=True))


def train_next_tokens(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], optimizer: torch.optim.Optimizer
) -> int:
    """One step for each batch, on the mean over its asked places; returns the number of steps."""
    steps = 0
    for tokens, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), ignore_index=-1).backward()
        optimizer.step()
        steps += 1
    return steps
