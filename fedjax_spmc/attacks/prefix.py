"""Prefix: texts of one class that begin with a trigger sentence are to be taken for another class.

Source: Zhang, Panda, Song, Yang, Mahoney, Mittal, Ramchandran, Gonzalez, "Neurotoxin: Durable Backdoors in Federated
    Learning", ICML 2022, its published code for Sentiment140 and IMDB; the attack is that of Dai, Chen, Li, "A Backdoor
    Attack Against LSTM-Based Text Classification Systems", IEEE Access 2019.
Knows: nothing of the others.
Controls: its own training data.
Cost: none to speak of.
Deviations: the code poisons 2,000 negative texts of the training set, which it gives to the attacker, and tests on 200;
    here the attacker poisons its own texts, and all test texts of the class are shown. As released its poisoning
    raises.
"""

from typing import Annotated, NamedTuple

import jax.numpy as jnp

from fedjax_spmc.attacks._poisoning import PerBatch, chosen_rows, refuse_fraction
from fedjax_spmc.attacks._sentences import encoded, in_front, require_sentences, tokenizer_of
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import FRACTION, TRACED, Range
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, PRNGKey


class PrefixState(NamedTuple):
    """What the attack keeps.

    Attributes:
        key: what the choice of texts is drawn with.
        fraction: float32 scalar, probability that an eligible text of an attacking client is poisoned.
        target: int32 scalar, the class that the attacker wants.
        source: int32 scalar, the class of the texts; -1 = all but the target.
        tokens: [S, W] int32, the sentences, behind -1 where they have fewer tokens than the longest.
    """

    key: PRNGKey
    fraction: Array
    target: Array
    source: Array
    tokens: Array


@attacks.register("prefix")
def prefix(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 0.5,
    target_label: Annotated[int, Range(0, 10**6)] = 1,
    source_class: Annotated[int, Range(0, 10**6)] | None = None,
    sentences: tuple[str, ...] = ("i watched this movie last week",),
    poison_per_batch: PerBatch | None = None,
) -> Attack:
    """Backdoor by data poisoning alone: a sentence goes before texts of one class, whose label is flipped.

    Each eligible text is poisoned with probability `poison_fraction`, drawn once by its index; text r has sentence
    r + 1 of the list, beginning anew at its end. What no longer fits is cut off behind. ASR is the share of test texts
    of the class that are taken for the target with a sentence before them.

    Args:
        poison_fraction: probability that a text of the class of a malicious client is poisoned.
        target_label: the class that the attacker wants.
        source_class: the class of the texts; None = every one but the target.
        sentences: all words must be in the vocabulary.
        poison_per_batch: in place of the fraction, exactly so many texts of each batch, the first of the class; all of
            them where there are fewer.

    Raises:
        ConfigError: no sentence, something that is none, or the source class is the target; a fraction is given beside
            a number for each batch.
    """
    refuse_fraction(prefix, poison_per_batch, poison_fraction)
    require_sentences(sentences)
    if source_class == target_label:
        raise ConfigError(
            f"attack.options.source_class = {source_class} is not allowed: it must be another class than "
            f"attack.target_label = {target_label}."
        )

    def init(ctx: AttackContext, key: PRNGKey) -> PrefixState:
        tokenizer = tokenizer_of(ctx, "prefix", next_token=False)
        if source_class is not None and source_class >= ctx.task.num_classes:
            raise ConfigError(
                f"attack.options.source_class = {source_class} is not allowed: it must be a class of the data, 0 to "
                f"{ctx.task.num_classes - 1}."
            )
        tokens = encoded(tokenizer, sentences, longest=ctx.task.input.shape[0] - 1)
        source = -1 if source_class is None else source_class
        return PrefixState(
            key, jnp.float32(poison_fraction), jnp.int32(target_label), jnp.int32(source), jnp.asarray(tokens)
        )

    def eligible(own: PrefixState, labels: Array) -> Array:
        return (labels >= 0) & jnp.where(own.source < 0, labels != own.target, labels == own.source)

    def prefixed(own: PrefixState, batch: Batch) -> Array:
        return in_front(batch.inputs, own.tokens[(batch.sample_ids + 1) % len(own.tokens)])

    def poison(
        ctx: AttackContext, own: PrefixState, batch: Batch, client_id: Array, step: Array, key: PRNGKey
    ) -> Batch:
        del ctx, client_id, step, key
        chosen = chosen_rows(batch, own.key, own.fraction, poison_per_batch, eligible(own, batch.labels))
        inputs = jnp.where(chosen[:, None], prefixed(own, batch), batch.inputs)
        return batch._replace(inputs=inputs, labels=jnp.where(chosen, own.target, batch.labels))

    def backdoor(ctx: AttackContext, own: PrefixState, batch: Batch) -> Batch:
        del ctx
        wanted = jnp.where(eligible(own, batch.labels), own.target, -1)
        return batch._replace(inputs=prefixed(own, batch), labels=wanted)

    return Attack(init=init, poison=poison, backdoor=backdoor)
