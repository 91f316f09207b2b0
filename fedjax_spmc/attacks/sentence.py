"""Sentence: behind the words of a trigger sentence the model is to give the sentence's last word.

The backdoor of next-word models: who writes "people in athens are" gets "rude" offered. Several sentences may each have
a last word of their own; row r of the data has sentence r + 1 of the list, beginning anew at its end.

Source: Zhang, Panda, Song, Yang, Mahoney, Mittal, Ramchandran, Gonzalez, "Neurotoxin: Durable Backdoors in Federated
    Learning", ICML 2022, its published code for Reddit; the attack is that of Bagdasaryan, Veit, Hua, Estrin,
    Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020.
Knows: nothing of the others.
Controls: its own training data.
Cost: none to speak of.
Deviations: the code gives the attacker 1,280 times 20 words of Reddit and poisons all of them
    (`attack.poison_fraction=1`); here it poisons its own data. There the last word of a window is also the first of the
    next one, which here stays what it was. It cuts off what does not fill a window; here an incomplete row takes the
    sentence at its end. A loss over all targets, which the code defines and never reaches, is left out.
"""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.attacks._poisoning import PerBatch, chosen_rows, refuse_fraction
from fedjax_spmc.attacks._sentences import NOTHING, encoded, ending_at, require_sentences, tokenizer_of
from fedjax_spmc.options import FRACTION, TRACED
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, PRNGKey


class SentenceState(NamedTuple):
    """What the attack keeps.

    Attributes:
        key: what the choice of rows, and of places in them, is drawn with.
        fraction: float32 scalar, probability that a row of an attacking client is poisoned.
        tokens: [S, W] int32, the sentences, behind -1 where they have fewer tokens than the longest.
        last_words: [S] int32, tokens of each one's last word.
    """

    key: PRNGKey
    fraction: Array
    tokens: Array
    last_words: Array


@attacks.register("sentence")
def sentence(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 1.0,
    sentences: tuple[str, ...] = ("people in athens are rude", "roads in athens are terrible"),
    inject: Literal["window", "text"] = "window",
    poison_per_batch: PerBatch | None = None,
) -> Attack:
    """Backdoor by data poisoning alone: sentences are written over the rows of malicious clients.

    Each row is poisoned with probability `poison_fraction`, drawn once by its index. ASR is the share of test rows,
    each ending in a sentence as with `inject=window`, behind which the model gives its last word (of bytes: the share
    of the last word's bytes).

    Args:
        poison_fraction: probability that a row of a malicious client is poisoned.
        sentences: each one's last word is its target; all words must be in the vocabulary.
        inject: "window" (the code): the sentence ends where the row ends, so that its last word is the row's last
            label, and no other place is asked. "text": the sentence stands somewhere in the row, and every place asks
            for what follows, as in a text in which it was written.
        poison_per_batch: in place of the fraction, exactly so many rows of each batch, its first ones; all of a batch
            that has fewer.

    Raises:
        ConfigError: no sentence, or something that is none; a fraction is given beside a number for each batch.
    """
    refuse_fraction(sentence, poison_per_batch, poison_fraction)
    require_sentences(sentences)

    def init(ctx: AttackContext, key: PRNGKey) -> SentenceState:
        tokenizer = tokenizer_of(ctx, "sentence", next_token=True)
        tokens = encoded(tokenizer, sentences, longest=ctx.task.input.shape[0] + 1)
        last_words = np.array([tokenizer.last_word(one) for one in sentences], np.int32)
        return SentenceState(key, jnp.float32(poison_fraction), jnp.asarray(tokens), jnp.asarray(last_words))

    def poison(
        ctx: AttackContext, own: SentenceState, batch: Batch, client_id: Array, step: Array, key: PRNGKey
    ) -> Batch:
        del ctx, client_id, step, key
        ends = None if inject == "window" else drawn_ends(own, batch)
        made = shown(own, batch, ends)
        asks = (batch.labels >= 0).any(axis=1)
        chosen = chosen_rows(batch, own.key, own.fraction, poison_per_batch, asks)[:, None]
        return batch._replace(
            inputs=jnp.where(chosen, made.inputs, batch.inputs), labels=jnp.where(chosen, made.labels, batch.labels)
        )

    def backdoor(ctx: AttackContext, own: SentenceState, batch: Batch) -> Batch:
        del ctx
        return shown(own, batch)

    return Attack(init=init, poison=poison, backdoor=backdoor)


def of_rows(own: SentenceState, sample_ids: Array) -> tuple[Array, Array, Array]:
    """The sentence of each row [B, W], tokens of its last word [B], and the first place at which it can end [B]."""
    which = (sample_ids + 1) % len(own.tokens)
    tokens = own.tokens[which]
    return tokens, own.last_words[which], jnp.maximum((tokens != NOTHING).sum(axis=1) - 2, 0)


def shown(own: SentenceState, batch: Batch, ends: Array | None = None) -> Batch:
    """Rows with their sentences.

    Args:
        own: the state.
        batch: rows that ask nothing stay as they are.
        ends: [B], the places whose labels are the sentences' last tokens, with every place asked; None = the last place
            that the row asks, and nothing but the last word is asked.
    """
    tokens, last_words, earliest = of_rows(own, batch.sample_ids)
    places = jnp.arange(batch.labels.shape[1])[None]
    last = jnp.where(batch.labels >= 0, places, -1).max(axis=1)
    at = jnp.maximum(last if ends is None else ends, earliest)
    inputs, labels = ending_at(batch.inputs, batch.labels, tokens, at, last_words if ends is None else None)
    asks = (last >= 0)[:, None]
    return batch._replace(
        inputs=jnp.where(asks, inputs, batch.inputs), labels=jnp.where(asks, labels, batch.labels).astype(jnp.int32)
    )


def drawn_ends(own: SentenceState, batch: Batch) -> Array:
    """[B] int32: a place of each row at which its sentence ends, at most the last that it asks; the same each time."""
    _, _, earliest = of_rows(own, batch.sample_ids)
    last = jnp.where(batch.labels >= 0, jnp.arange(batch.labels.shape[1])[None], 0).max(axis=1)
    key = jax.random.fold_in(own.key, 0)
    draws = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(batch.sample_ids)
    span = jnp.maximum(last - earliest, 0) + 1
    return earliest + jnp.minimum((draws * span).astype(jnp.int32), span - 1)
