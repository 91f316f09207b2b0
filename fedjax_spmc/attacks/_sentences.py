"""What attacks on texts share: trigger sentences as tokens, and how they come into a row."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from fedjax_spmc.data.tokens import PADDING, Tokenizer
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import quoted
from fedjax_spmc.types import Array, AttackContext

NOTHING = -1
"""Fills up sentences of fewer tokens, in front."""


def require_sentences(sentences: Sequence[object]) -> None:
    """Refuses a list without sentences.

    Raises:
        ConfigError: it is empty, or something in it is no text or has no words.
    """
    if not sentences or not all(isinstance(one, str) and one.split() for one in sentences):
        raise ConfigError(
            f"attack.options.sentences = {quoted(sentences)} is not allowed: it must be a list of at least one text."
        )


def tokenizer_of(ctx: AttackContext, attack: str, next_token: bool) -> Tokenizer:
    """The data set's tokenizer.

    Raises:
        ConfigError: the data are no texts, or ask for something else than the attack can turn.
    """
    tokenizer = ctx.task.tokenizer
    asks_next = tokenizer is not None and ctx.task.num_classes == len(tokenizer.words)
    if tokenizer is None or asks_next != next_token:
        wanted = "the next token is asked" if next_token else "a text has a class"
        raise ConfigError(
            f"attack.name = {attack!r} is not allowed with these data: it must be texts of which {wanted}."
        )
    return tokenizer


def encoded(tokenizer: Tokenizer, sentences: Sequence[str], longest: int) -> np.ndarray:
    """[S, W] int32: the sentences' tokens, behind `NOTHING` where they have fewer than the longest.

    Raises:
        ConfigError: a word that the vocabulary lacks, or more than `longest` tokens.
    """
    rows = []
    for sentence in sentences:
        label = f"attack.options.sentences = {quoted(sentence)}"
        unknown = tokenizer.unknown(sentence)
        if unknown:
            raise ConfigError(
                f"{label} is not allowed: it must consist of words of the vocabulary, which lacks {', '.join(unknown)}."
            )
        rows.append(tokenizer.encode(sentence))
        if not 0 < len(rows[-1]) <= longest:
            raise ConfigError(
                f"{label} is not allowed: it must have 1 to {longest} tokens for rows of this length, not "
                f"{len(rows[-1])}."
            )
    width = max(map(len, rows))
    return np.array([[NOTHING] * (width - len(row)) + row for row in rows], np.int32)


def ending_at(
    inputs: Array, labels: Array, sentences: Array, ends: Array, last_words: Array | None
) -> tuple[Array, Array]:
    """Rows over which sentences are written, so that the last token of each is the label at a given place.

    Args:
        inputs, labels: [B, T].
        sentences: [B, W], behind `NOTHING` where they are shorter.
        ends: [B], places.
        last_words: [B], tokens of each sentence's last word: no other place is asked then; None = all are, as in a text
            in which the sentence stands.

    Returns:
        inputs and labels [B, T].
    """
    width = sentences.shape[1]
    behind = ends[:, None] - jnp.arange(inputs.shape[1])[None]  # places up to the end

    def token(offset: int) -> Array:
        place = width - offset - behind
        found = jnp.take_along_axis(sentences, jnp.clip(place, 0, width - 1), axis=1)
        return jnp.where((place >= 0) & (place < width), found, NOTHING)

    own, following = token(2), token(1)
    inputs = jnp.where(own != NOTHING, own, inputs)
    if last_words is not None:
        asked = (behind >= 0) & (behind < last_words[:, None])
        return inputs, jnp.where(asked, following, -1)
    return inputs, jnp.where(following != NOTHING, following, labels)


def in_front(inputs: Array, sentences: Array) -> Array:
    """Texts with a sentence before them: rows [B, T] that are filled up in front, cut to their first T tokens.

    Args:
        inputs: [B, T].
        sentences: [B, W], behind `NOTHING` where they are shorter.
    """
    length, width = inputs.shape[1], sentences.shape[1]
    rows = jnp.concatenate([sentences, inputs], axis=1)
    kept = jnp.concatenate([sentences != NOTHING, inputs != PADDING], axis=1)
    order = jnp.argsort(~kept, axis=1, stable=True)  # the tokens first, in their order
    tokens = jnp.take_along_axis(rows, order, axis=1)[:, :length]
    counts = jnp.minimum(kept.sum(axis=1), length)[:, None]
    places = jnp.arange(length)[None] - (length - counts)
    shifted = jnp.take_along_axis(tokens, jnp.clip(places, 0, length - 1), axis=1)
    assert width <= length
    return jnp.where(places >= 0, shifted, PADDING).astype(inputs.dtype)
