"""Texts, as ids, become rows of one length: streams cut into blocks that ask for the next token, or one row a text."""

from collections.abc import Iterable

import numpy as np

from fedjax_spmc.data.tokens import PADDING


def blocks(stream: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A stream cut into inputs and, for each place, the token that follows.

    Block b holds stream[b * length : (b + 1) * length]; its labels stand one further. What the last block lacks is
    `PADDING`, and its places without a following token are not asked.

    Args:
        stream: [m] whole numbers.
        length: T.

    Returns:
        inputs [n, T] int32 and labels [n, T] int32, -1 = not asked; none of a stream of less than two tokens.
    """
    count = -(-(len(stream) - 1) // length) if len(stream) > 1 else 0
    inputs, labels = (np.full(count * length, fill, np.int32) for fill in (PADDING, -1))
    inputs[: len(stream)] = stream[: len(inputs)]
    labels[: max(0, len(stream) - 1)] = stream[1:]
    return inputs.reshape(count, length), labels.reshape(count, length)


def next_token_rows(
    tokens: np.ndarray, lengths: np.ndarray, length: int, owners: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of all texts.

    Args:
        tokens: [sum of lengths], the texts one after another.
        lengths: [texts].
        length: T.
        owners: [texts], never falling: texts with one owner are one stream; None = every text is one.

    Returns:
        inputs [n, T] int32, labels [n, T] int32, and [n] int32, the first text of the stream that each block is of.
    """
    starts = np.arange(len(lengths)) if owners is None else np.flatnonzero(np.diff(owners, prepend=owners[:1] - 1))
    ends = np.cumsum(lengths)
    cuts = ends[starts[1:] - 1] if len(starts) > 1 else np.zeros(0, int)
    made = [blocks(stream, length) for stream in np.split(tokens, cuts)]
    first = np.repeat(starts, [len(inputs) for inputs, _ in made]).astype(np.int32)
    return _joined((one[0] for one in made), length), _joined((one[1] for one in made), length), first


def _joined(pieces: Iterable[np.ndarray], length: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, length), np.int32), *pieces])


def padded_rows(tokens: np.ndarray, lengths: np.ndarray, length: int) -> np.ndarray:
    """A row for each text: its first `length` tokens, behind `PADDING` where it has fewer; [texts, length] int32.

    Args:
        tokens: [sum of lengths], the texts one after another.
        lengths: [texts].
        length: T.
    """
    kept = np.minimum(lengths, length)
    places = np.arange(length)[None, :] - (length - kept)[:, None]
    rows = np.full((len(lengths), length), PADDING, np.int32)
    asked = places >= 0
    starts = (np.cumsum(lengths) - lengths)[:, None]
    rows[asked] = tokens[(starts + places)[asked]]
    return rows
