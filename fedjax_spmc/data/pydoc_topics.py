"""The English of Python's own help topics: real text without a download, which differs between versions of Python.

Some eighty topics, 465 KB in Python 3.11. Of each topic the paragraphs up to nine tenths of its letters are for
training, the rest is the test; the topics are dealt out to `users` users of about equal size.
"""

import re
from typing import Annotated, Literal

import numpy as np

from fedjax_spmc.data import corpus
from fedjax_spmc.data.corpus import Form, Texts
from fedjax_spmc.data.dataset import DatasetInfo, Source, Splits
from fedjax_spmc.data.text_datasets import Length, MinCount, Size, next_token_form
from fedjax_spmc.errors import ConfigError, DataError
from fedjax_spmc.options import Range
from fedjax_spmc.registry import datasets

TRAINED = 0.9
"""Share of a topic's letters that is trained on, to the end of a paragraph."""


def topics() -> dict[str, str]:
    """Python's help topics by name.

    Raises:
        DataError: this Python comes without them.
    """
    try:
        from pydoc_data.topics import topics as found
    except ImportError:
        raise DataError(
            "data set pydoc_topics cannot be read: this Python comes without the module pydoc_data.topics, which its "
            "standard library has; install it in full."
        ) from None
    return dict(sorted(found.items()))


def parted(text: str) -> tuple[str, str]:
    """The part of a topic to train on and the part to test on, cut between paragraphs; the latter may be empty."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    ends = np.cumsum([len(one) for one in paragraphs])
    cut = max(1, int(np.searchsorted(ends, TRAINED * ends[-1], side="right")))
    return "\n\n".join(paragraphs[:cut]), "\n\n".join(paragraphs[cut:])


def dealt(sizes: list[int], users: int) -> list[int]:
    """The user of each topic: the largest first, each to the user who has least."""
    total = np.zeros(users, int)
    owners = [0] * len(sizes)
    for topic in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        owners[topic] = int(total.argmin())
        total[owners[topic]] += sizes[topic]
    return owners


def read(form: Form, users: int) -> Splits:
    """Both splits.

    Raises:
        ConfigError: there are fewer topics than users.
        DataError: see `topics`.
    """
    found = topics()
    if users > len(found):
        raise ConfigError(
            f"data.options.users = {users} is not allowed: it must be at most {len(found)}, the number of topics."
        )
    owners = dealt([len(text) for text in found.values()], users)
    parts = [parted(text) for text in found.values()]
    order = sorted(range(len(parts)), key=lambda i: (owners[i], i))
    names = [f"user {owners[i]:0{len(str(users - 1))}d}" for i in order]
    train = Texts([parts[i][0] for i in order], users=names)
    test = [(parts[i][1], name) for i, name in zip(order, names, strict=True) if parts[i][1]]
    shown = Texts([text for text, _ in test], users=[name for _, name in test])
    return corpus.splits_of(corpus.tokenised(form.kind, train, shown), form)


@datasets.register("pydoc_topics")
def pydoc_topics(
    data_dir: object = None,
    cache_dir: object = None,
    order: str = "original",
    tokenizer: Literal["word", "byte"] = "word",
    vocabulary: Size = 2000,
    min_count: MinCount = 1,
    length: Length = 32,
    packed: bool = True,
    ask_unknown: bool = False,
    users: Annotated[int, Range(1, 10**6)] = 20,
) -> Source:
    """Help topics of Python, with users; next token; both orders are the same."""
    del data_dir, cache_dir, order
    form = next_token_form(pydoc_topics, tokenizer, vocabulary, min_count, length, packed, ask_unknown)
    return Source(
        DatasetInfo("pydoc_topics", 0, (length,), None, None),
        lambda: read(form, users),
        lambda: "part of Python" if topics() else "",
        lambda: "Data set pydoc_topics is part of Python: there is nothing to prepare.",
    )
