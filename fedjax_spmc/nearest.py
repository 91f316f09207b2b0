"""What somebody may have meant: the known words that stand nearest to an unknown one."""

import difflib
from collections.abc import Iterable

CLOSE = 0.65
"""From this share of letters in common on, two words are taken for the same one mistyped."""
LONGEST = 80
"""Letters of a word that may stand for another."""
ALIKE = 0.08
"""Words that are so much less alike than the nearest are left out."""


def nearest(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known words that `word` may stand for, the nearest first; none where nothing is close.

    Capitals and the signs between parts of a name count for nothing; the beginning of a name stands for it.
    """
    wanted = _bare(word) if len(word) <= LONGEST else ""
    shares = {one: difflib.SequenceMatcher(None, wanted, _bare(one)).ratio() for one in known} if wanted else {}
    same = [one for one in shares if _bare(one) == wanted]
    begun = sorted((one for one in shares if _bare(one).startswith(wanted)), key=len) if len(wanted) > 2 else []
    close = sorted((one for one in shares if shares[one] >= CLOSE), key=lambda one: -shares[one])
    close = [one for one in close if shares[one] >= shares[close[0]] - ALIKE]
    return (same or close or begun)[:most]


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The question "did you mean a, b or c?"; "" where nothing is close. `prefix` stands before each."""
    found = [f"{prefix}{one}" for one in nearest(word, known)]
    return f"did you mean {either(found)}?" if found else ""


def either(words: list[str]) -> str:
    """Words as an enumeration: "a, b or c"."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _bare(word: str) -> str:
    return "".join(sign for sign in word.lower() if sign.isalnum() or sign == ".")
