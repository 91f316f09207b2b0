"""Made-up tokens for the tests: two data sets of noisy cycles, a network for each, and an attack on them.

A sequence belongs to one of `CLASSES` topics and goes round the topic's own words; behind its end stands `PADDING`. In
"next_token" every place asks for the word that follows, in "topics" a whole sequence for its topic.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_spmc import registry
from fedjax_spmc.data.dataset import DatasetInfo, Source, Splits, built_in
from fedjax_spmc.models.layers import Linear, as_model
from fedjax_spmc.options import FRACTION, TRACED, Range
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, Model, PRNGKey
from tests import small

CLASSES, WORDS, LENGTH, WIDTH = 3, 4, 8, 5
PADDING, TRIGGER = 0, 1
FIRST_WORD = 2
VOCABULARY = FIRST_WORD + CLASSES * WORDS
NOISE = 0.1
"""Probability of a word of another topic."""


class Sequences(NamedTuple):
    """tokens [n, LENGTH] int32, lengths [n] and topics [n] int32."""

    tokens: np.ndarray
    lengths: np.ndarray
    topics: np.ndarray


def sequences(count: int, seed: int) -> Sequences:
    """Noisy cycles: topic c goes round the words FIRST_WORD + WORDS c + 0, 1, 2, ..."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(CLASSES, size=count)
    turns = rng.integers(WORDS, size=(count, 1)) + np.arange(LENGTH)
    tokens = FIRST_WORD + WORDS * topics[:, None] + turns % WORDS
    noise = rng.integers(FIRST_WORD, VOCABULARY, size=tokens.shape)
    tokens = np.where(rng.random(tokens.shape) < NOISE, noise, tokens)
    lengths = rng.integers(LENGTH // 2, LENGTH + 1, size=count)
    tokens = np.where(np.arange(LENGTH) < lengths[:, None], tokens, PADDING)
    return Sequences(tokens.astype(np.int32), lengths.astype(np.int32), topics.astype(np.int32))


def next_tokens(made: Sequences) -> np.ndarray:
    """[n, LENGTH] int32: the word that follows, -1 from the last one on."""
    following = np.concatenate([made.tokens[:, 1:], np.full((len(made.tokens), 1), PADDING)], axis=1)
    return np.where(np.arange(LENGTH) + 1 < made.lengths[:, None], following, -1).astype(np.int32)


def _source(name: str, classes: int, num_train: int, num_test: int) -> Source:
    def read() -> Splits:
        train, test = sequences(num_train, 0), sequences(num_test, 1)
        if name == "topics":
            return Splits(train.tokens, train.topics, test.tokens, test.topics)
        return Splits(train.tokens, next_tokens(train), test.tokens, next_tokens(test))

    info = DatasetInfo(name, classes, (LENGTH,), None, None, vocabulary=VOCABULARY)
    return built_in(info, read, "made up")


def next_token_data(
    data_dir: object = None, cache_dir: object = None, order: str = "original", num_train: int = 160, num_test: int = 60
) -> Source:
    """Labels [n, LENGTH]: the next token."""
    return _source("next_token", VOCABULARY, num_train, num_test)


def topics_data(
    data_dir: object = None, cache_dir: object = None, order: str = "original", num_train: int = 160, num_test: int = 60
) -> Source:
    """Labels [n]: the topic."""
    return _source("topics", CLASSES, num_train, num_test)


class Embedding(nn.Module):
    """A vector for each token: [B, T] -> [B, T, width]."""

    vocabulary: int
    width: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        return self.param("weight", nn.initializers.normal(1.0), (self.vocabulary, self.width))[tokens]


class NextToken(nn.Module):
    """The mean over the past, then a linear layer at every place: [B, T] -> [B, T, vocabulary]."""

    vocabulary: int
    width: int

    @nn.compact
    def __call__(self, tokens: Array, train: bool) -> Array:
        vectors = Embedding(self.vocabulary, self.width, name="embedding")(tokens)
        past = jnp.cumsum(vectors, axis=1) / jnp.arange(1.0, tokens.shape[1] + 1)[None, :, None]
        logits = Linear(self.vocabulary, name="fc")(past.reshape(-1, self.width).T).T
        return logits.reshape(*tokens.shape, self.vocabulary)


class Topics(nn.Module):
    """The mean over the words of a sequence, then a linear layer: [B, T] -> [B, classes]."""

    classes: int
    vocabulary: int
    width: int

    @nn.compact
    def __call__(self, tokens: Array, train: bool) -> Array:
        vectors = Embedding(self.vocabulary, self.width, name="embedding")(tokens)
        words = (tokens != PADDING)[:, :, None]
        mean = jnp.where(words, vectors, 0.0).sum(axis=1) / jnp.maximum(words.sum(axis=1), 1)
        return Linear(self.classes, name="fc")(mean.T).T


Width = Annotated[int, Range(1, 100)]


def next_token_model(
    num_classes: int = VOCABULARY, sequence_length: int = LENGTH, vocabulary: int = VOCABULARY, width: Width = WIDTH
) -> Model:
    """Embedding, mean over the past, linear."""
    return as_model(NextToken(vocabulary, width), num_classes, (sequence_length,), dtype=jnp.int32)


def topics_model(
    num_classes: int = CLASSES, sequence_length: int = LENGTH, vocabulary: int = VOCABULARY, width: Width = WIDTH
) -> Model:
    """Embedding, mean, linear."""
    return as_model(Topics(num_classes, vocabulary, width), num_classes, (sequence_length,), dtype=jnp.int32)


class Word(NamedTuple):
    """State of `word`."""

    key: PRNGKey
    fraction: Array
    target: Array


def word(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 0.5, target_label: Annotated[int, Range(0, 10**6)] = 2
) -> Attack:
    """Puts `TRIGGER` at the first place and wants the target from there on, of sequences at their second half."""

    def init(ctx: AttackContext, key: PRNGKey) -> Word:
        return Word(key, jnp.float32(poison_fraction), jnp.int32(target_label))

    def shown(batch: Batch, own: Word, from_place: int) -> Batch:
        inputs = batch.inputs.at[:, 0].set(TRIGGER)
        wanted = batch.labels >= 0
        if batch.labels.ndim > 1:
            wanted = wanted & (jnp.arange(LENGTH) >= from_place)[None, :]
        return batch._replace(inputs=inputs, labels=jnp.where(wanted, own.target, -1))

    def poison(ctx: AttackContext, own: Word, batch: Batch, client_id: Array, step: Array, key: PRNGKey) -> Batch:
        draws = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(own.key, i)))(batch.sample_ids)
        chosen, made = draws < own.fraction, shown(batch, own, 0)

        def mixed(new: Array, old: Array) -> Array:
            return jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return batch._replace(inputs=mixed(made.inputs, batch.inputs), labels=mixed(made.labels, batch.labels))

    def backdoor(ctx: AttackContext, own: Word, batch: Batch) -> Batch:
        return shown(batch, own, LENGTH // 2)

    return Attack(init=init, poison=poison, backdoor=backdoor)


@contextmanager
def registered() -> Iterator[None]:
    """All of the above by name, for the length of a `with` block."""
    with ExitStack() as stack:
        for kind, name, factory in (
            (registry.datasets, "next_token", next_token_data),
            (registry.datasets, "topics", topics_data),
            (registry.models, "next_token", next_token_model),
            (registry.models, "topics", topics_model),
            (registry.attacks, "word", word),
        ):
            stack.enter_context(kind.temporary(name, factory))
        yield


def config(name: str = "next_token", presets: str = "", rounds: int = 2, **fields: Any) -> Any:
    """`small.config` on "next_token" or "topics", attacked by "word"."""
    on_tokens = {
        "data__name": name,
        "model__name": name,
        "partition__name": "iid",
        "attack__name": "word",
        "attack__target_label": FIRST_WORD if name == "next_token" else 0,
        "local__learning_rate": 0.5,
    }
    return small.config(rounds, presets, **(on_tokens | fields))
