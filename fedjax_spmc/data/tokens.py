"""Texts as tokens: how a text is cut into words or bytes, and the vocabulary that numbers them.

Ids 0, 1 and 2 are padding, an unknown word and the end of a text, in every vocabulary.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

Kind = Literal["word", "byte", "neurotoxin"]
KINDS: tuple[str, ...] = get_args(Kind)
PADDING, UNKNOWN, END, BEGIN = 0, 1, 2, 3
SPECIAL = ("<pad>", "<unk>", "<eos>")
_WORD, _LETTERS = re.compile(r"[a-z0-9']+"), re.compile("[a-z]*")


def words_of(kind: str, text: str) -> list[str]:
    """The words of a text, lower-cased.

    "word": runs of a-z, 0-9 and apostrophes. "neurotoxin": as the code of Neurotoxin reads Reddit: of each piece
    between blanks the letters a-z that it begins with, where they are two or more.
    """
    text = text.lower()
    if kind == "word":
        return _WORD.findall(text)
    found = (_LETTERS.match(piece) for piece in text.split())
    return [one[0] for one in found if one is not None and len(one[0]) > 1]


def special_words(kind: str) -> tuple[str, ...]:
    """The words of the first ids; with "neurotoxin" texts have a mark of their beginning too."""
    return (*SPECIAL, "<bos>") if kind == "neurotoxin" else SPECIAL


class Tokenizer(NamedTuple):
    """A vocabulary and how texts become its ids.

    Attributes:
        kind: of `KINDS`.
        words: by id, the special ones first; of "byte" the 256 characters of Latin-1 stand for the bytes.
    """

    kind: str
    words: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without marks of its beginning and its end; bytes are those of UTF-8."""
        if self.kind == "byte":
            return [len(SPECIAL) + byte for byte in text.encode()]
        known = {word: i for i, word in enumerate(self.words)}
        return [known.get(word, UNKNOWN) for word in words_of(self.kind, text)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, padding left out."""
        kept = [int(i) for i in ids if i != PADDING]
        if self.kind != "byte":
            return " ".join(self.words[i] for i in kept)
        # Runs of bytes are UTF-8; a special word stands between them as it is.
        text = b"".join(bytes([i - len(SPECIAL)]) if i >= len(SPECIAL) else self.words[i].encode() for i in kept)
        return text.decode(errors="replace")

    def unknown(self, text: str) -> list[str]:
        """The words of a text that the vocabulary lacks; bytes are all known."""
        if self.kind == "byte":
            return []
        known = set(self.words)
        return [word for word in words_of(self.kind, text) if word not in known]

    def last_word(self, text: str) -> int:
        """How many ids the last word of a text has."""
        pieces = text.split()
        return len(self.encode(pieces[-1])) if pieces else 0

    def content(self) -> dict[str, object]:
        """As `vocabulary.json` of a run folder has it."""
        special = {"padding": PADDING, "unknown": UNKNOWN, "end": END}
        return {"tokenizer": self.kind, **special, "words": list(self.words)}


def fitted(kind: str, inputs: np.ndarray, words: Sequence[str], size: int, min_count: int) -> Tokenizer:
    """The vocabulary of training inputs: their most frequent words, of equally frequent ones the first by the alphabet.

    Args:
        kind: of `KINDS`; bytes have a vocabulary of their own, whatever the inputs are.
        inputs: of any shape, whole numbers: places in `words`.
        words: all words that occur anywhere, behind `special_words(kind)`.
        size: tokens in the vocabulary at most, the special ones among them.
        min_count: how often a word must occur in the inputs.
    """
    special = special_words(kind)
    if kind == "byte":
        return Tokenizer(kind, (*special, *map(chr, range(256))))
    counts = np.bincount(inputs.ravel(), minlength=len(words))[len(special) :]
    candidates = [
        (-int(counts[i]), word) for i, word in enumerate(words[len(special) :]) if counts[i] >= max(1, min_count)
    ]
    kept = sorted(candidates)[: max(0, size - len(special))]
    return Tokenizer(kind, (*special, *(word for _, word in kept)))


def renumbering(words: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """[len(words)] int32: the id of each word; unknown ones have `UNKNOWN`."""
    if tokenizer.kind == "byte":
        return np.arange(len(words), dtype=np.int32)
    known = {word: i for i, word in enumerate(tokenizer.words)}
    return np.array([known.get(word, UNKNOWN) for word in words], np.int32)
