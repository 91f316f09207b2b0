"""Made-up sentences of two classes, told apart by two lexicons: a task of texts that is learnt in seconds.

A sentence is neutral words among which stand words of its class, now and then one of the other class; how many of its
sentences are positive differs from user to user.
"""

from typing import Annotated

import numpy as np

from fedjax_spmc.data import corpus
from fedjax_spmc.data.corpus import Texts
from fedjax_spmc.data.dataset import DatasetInfo, Source, Splits, built_in
from fedjax_spmc.data.text_datasets import Length, class_form
from fedjax_spmc.options import Range
from fedjax_spmc.registry import datasets

NEGATIVE = "bad awful dull poor weak broken cold sad slow cheap stale ugly bitter dirty noisy lost"
POSITIVE = "good great fine lovely warm bright happy quick fresh clean sweet gentle clever solid rich kind"
NEUTRAL = (
    "the a this that we they it my our one day week film book song house road tree river table window morning evening "
    "city friend story with about after before near under over when while then here there again saw heard read made "
    "took found went came said thought looked felt"
)
STRONG, ODD = 0.3, 0.03
"""Share of a sentence's words that are of its class, and of the other class."""


def sentences(count: int, users: int, rng: np.random.Generator) -> Texts:
    """So many sentences of 5 to 12 words, user by user."""
    leaning = rng.beta(3, 3, size=users)
    owners = np.sort(rng.permutation(np.arange(count) % users))
    labels = (rng.random(count) < leaning[owners]).astype(int)
    lexicons, neutral = (NEGATIVE.split(), POSITIVE.split()), NEUTRAL.split()
    texts = []
    for label in labels:
        draws = rng.random(rng.integers(5, 13))
        chosen = [
            lexicons[label] if draw < STRONG else lexicons[1 - label] if draw < STRONG + ODD else neutral
            for draw in draws
        ]
        texts.append(" ".join(words[rng.integers(len(words))] for words in chosen))
    return Texts(texts, labels.tolist(), [f"user {owner:0{len(str(users - 1))}d}" for owner in owners])


@datasets.register("synthetic_sentiment")
def synthetic_sentiment(
    data_dir: object = None,
    cache_dir: object = None,
    order: str = "original",
    length: Length = 16,
    num_train: Annotated[int, Range(1, 10**6)] = 1000,
    num_test: Annotated[int, Range(1, 10**6)] = 300,
    users: Annotated[int, Range(1, 10**6)] = 20,
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0,
) -> Source:
    """Made-up sentences, negative or positive, with users; both orders are the same."""
    del data_dir, cache_dir, order
    form = class_form(synthetic_sentiment, "word", 1000, 1, length)

    def read() -> Splits:
        rng = np.random.default_rng(seed)
        train, test = sentences(num_train, users, rng), sentences(num_test, users, rng)
        return corpus.splits_of(corpus.tokenised(form.kind, train, test), form)

    info = DatasetInfo("synthetic_sentiment", 2, (length,), None, None)
    return built_in(info, read, "generated from its seed")
