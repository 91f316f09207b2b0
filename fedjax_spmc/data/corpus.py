"""From texts to the rows of a data set: tokens of every text, then rows of one length with their labels."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc.data import sequences, tokens
from fedjax_spmc.data.dataset import Splits, Vocabulary

SPLITS = ("train", "test")
Arrays = Mapping[str, np.ndarray]


class Texts(NamedTuple):
    """The texts of a split.

    Attributes:
        texts: in order; those of one user stand together.
        labels: the class of each; None where the next token is asked.
        users: the name of the user, role or forum that each is of; None where there are none.
    """

    texts: Sequence[str]
    labels: Sequence[int] | None = None
    users: Sequence[str] | None = None


class Form(NamedTuple):
    """How texts become rows.

    Attributes:
        kind: of `tokens.KINDS`.
        length: tokens in a row.
        next_token: whether every place asks for the token that follows; else a text asks for its class.
        packed: of the former: whether the texts of a user are one stream; else every text begins a row of its own.
        vocabulary: how words are chosen.
    """

    kind: str
    length: int
    next_token: bool
    packed: bool
    vocabulary: Vocabulary


def tokenised(kind: str, train: Texts, test: Texts) -> dict[str, np.ndarray]:
    """The tokens of all texts, as a cache can hold them.

    Args:
        kind: of `tokens.KINDS`.
        train, test: the splits.

    Returns:
        words and users: uint8, UTF-8 joined by zeros; and for each split `_tokens` [all], which are bytes or places in
        words, `_lengths`, and where they are known `_labels` and `_owners` (places in users), [texts] int32.
    """
    places: dict[str, int] = {}
    names: dict[str, int] = {}
    arrays: dict[str, np.ndarray] = {}
    for split, texts in zip(SPLITS, (train, test), strict=True):
        found, lengths = [], []
        for text in texts.texts:
            if kind == "byte":
                found.append(np.frombuffer(text.encode(), np.uint8))
            else:
                ids = [places.setdefault(word, len(places)) for word in tokens.words_of(kind, text)]
                found.append(np.array(ids, np.int32))
            lengths.append(len(found[-1]))
        dtype = np.uint8 if kind == "byte" else np.int32
        arrays[f"{split}_tokens"] = np.concatenate([np.zeros(0, dtype), *found])
        arrays[f"{split}_lengths"] = np.array(lengths, np.int32)
        if texts.labels is not None:
            arrays[f"{split}_labels"] = np.array(texts.labels, np.int32)
        if texts.users is not None:
            owners = [names.setdefault(user, len(names)) for user in texts.users]
            arrays[f"{split}_owners"] = np.array(owners, np.int32)
    return arrays | {"words": _joined(places), "users": _joined(names)}


def splits_of(arrays: Arrays, form: Form) -> Splits:
    """The rows of both splits; their tokens are places in `Splits.words`, and no vocabulary is chosen yet.

    Args:
        arrays: from `tokenised`.
        form: how rows are made.
    """
    special = tokens.special_words(form.kind)
    words = tuple(map(chr, range(256))) if form.kind == "byte" else _parted(arrays["words"])
    made: dict[str, Any] = {}
    for split in SPLITS:
        ids, lengths = len(special) + arrays[f"{split}_tokens"].astype(np.int32), arrays[f"{split}_lengths"]
        owners = arrays.get(f"{split}_owners")
        if form.next_token:
            ids, lengths = _marked(ids, lengths, tokens.BEGIN if form.kind == "neurotoxin" else None)
            rows = sequences.next_token_rows(ids, lengths, form.length, owners if form.packed else None)
            made[f"{split}_inputs"], made[f"{split}_labels"], texts = rows
            owners = None if owners is None else owners[texts]
        else:
            made[f"{split}_inputs"] = sequences.padded_rows(ids, lengths, form.length)
            made[f"{split}_labels"] = arrays[f"{split}_labels"]
        if split == "train":
            made["owners"] = owners
    # The users of the test alone stand behind those of training.
    users = () if made["owners"] is None else _parted(arrays["users"])[: int(arrays["train_owners"].max()) + 1]
    return Splits(**made, users=users, words=(*special, *words), vocabulary=form.vocabulary)


def _marked(ids: np.ndarray, lengths: np.ndarray, begin: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Texts with a mark at their end, and at their beginning where there is one, and their lengths."""
    ends = np.cumsum(lengths)
    ids = np.insert(ids, ends, tokens.END)
    lengths = lengths + 1
    if begin is not None:
        ids = np.insert(ids, np.cumsum(lengths) - lengths, begin)
        lengths = lengths + 1
    return ids, lengths


def _joined(names: Mapping[str, int]) -> np.ndarray:
    return np.frombuffer("\0".join(names).encode(), np.uint8)


def _parted(joined: np.ndarray) -> tuple[str, ...]:
    text = joined.tobytes().decode()
    return tuple(text.split("\0")) if text else ()
