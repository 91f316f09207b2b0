"""Reading files, and saying what is wrong as it is: a file is damaged only where its content is to blame."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
LONGEST_REASON = 200


class UnreadableError(Exception):
    """A file that is there cannot be used; `str(error)` goes on after its name: "is damaged (it is no JSON)".

    Attributes:
        damaged: whether its content is to blame, and not memory, a permission, the disk or a missing library.
    """

    def __init__(self, cause: object, damaged: bool | None = None):
        self.damaged = blames_content(cause) if damaged is None else damaged
        super().__init__(f"{'is damaged' if self.damaged else 'cannot be read'} ({reason_of(cause)})")


def blames_content(cause: object) -> bool:
    """Whether an error that came while a file was read speaks of its content."""
    foreign = isinstance(cause, (ImportError, MemoryError))
    # Pillow and zipfile say with an OSError of their own, which has no number, that a content is not theirs.
    return not foreign and not (isinstance(cause, OSError) and cause.errno is not None)


def reason_of(cause: object, named: bool = False, longest: int = LONGEST_REASON) -> str:
    """An error's reason as words within a sentence: one line without a full stop, cut where it is long.

    Args:
        cause: an exception, or the words.
        named: the exception's type stands before its words.
        longest: so many characters at most.
    """
    words = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
    if isinstance(cause, KeyError) and len(cause.args) == 1:  # its text is its argument in quotes
        words = cause.args[0]
    text = " ".join(str(words).split())
    if isinstance(cause, BaseException) and (named or not text):
        text = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
    return text[:longest].rstrip(".:; ") or "no reason given"


def parsed(path: Path, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of a file's bytes.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it cannot be read, or `parse` raised.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(error) from None
    try:
        return parse(content)
    except UnreadableError:
        raise
    except Exception as error:  # what numpy and zipfile raise on damaged bytes is not documented
        raise UnreadableError(error) from None


def json_of(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from None


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises as `parsed`."""

    def parse(content: bytes) -> dict[str, Any]:
        value = json_of(content)
        if not isinstance(value, dict):
            raise ValueError("not valid JSON: it is no object")
        return value

    return parsed(path, parse)


def text(path: Path) -> str:
    """The text in a file in UTF-8; raises as `parsed`."""
    return parsed(path, lambda content: content.decode("utf-8"))


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in an `.npz` file, nothing unpickled; raises as `parsed`."""
    return parsed(path, arrays_of)


def arrays_of(content: bytes) -> dict[str, np.ndarray]:
    """The arrays in the bytes of an `.npz` file, nothing unpickled.

    Raises:
        Exception: they are damaged; of which kind is not documented.
    """
    if not content.startswith(b"PK"):
        raise ValueError("it is no npz file")
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return dict(found)
