"""Files that survive a crash: a line at a time, or replaced as a whole. Errors name the file."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_spmc import reading
from fedjax_spmc.errors import WorkdirError
from fedjax_spmc.reading import reason_of

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a disk that is full, or of what a user may put on it."""


def json_line(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON; NaN and infinity, which JSON does not know, are refused."""
    return json.dumps(row, allow_nan=False) + "\n"


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a row to a file of JSON lines and waits until it is on the disk.

    Raises:
        OSError: it cannot be written.
    """
    line = json_line(row)
    with _named(path), path.open("a") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def replace(path: Path, content: bytes) -> None:
    """Replaces a file, atomically: a reader, or a crash, finds the old content or the new.

    Until then the new content stands beside it in a hidden file, `.NAME-...`, which a killed process leaves behind.

    Raises:
        OSError: it cannot be written.
    """
    with _named(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:  # on a full disk, half of it would be in the way
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file that only pictures need; none where it is not there or cannot be read."""
    try:
        return reading.arrays(path)
    except (FileNotFoundError, reading.UnreadableError):
        return {}


def replace_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a file of JSON lines, atomically.

    Raises:
        OSError: it cannot be written.
    """
    replace(path, "".join(map(json_line, rows)).encode())


def unwritable(label: str, folder: Path, error: object) -> WorkdirError:
    """The error that says that a folder cannot be written, which of its files, and why.

    Args:
        label: names the folder: "workdir = 'runs/mine'".
        folder: its path.
        error: an OSError, or the reason in words.
    """
    why, must = reason_of(error), "it must be a folder that you may write"
    if isinstance(error, OSError):
        file = os.path.relpath(os.fsdecode(error.filename), folder) if error.filename else "."
        why = why if file.startswith(".") else f"{file}: {why}"
        must = "it needs more room, and the same command then goes on" if error.errno in FULL else must
    return WorkdirError(f"{label} cannot be written ({why}): {must}.")


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """An error of the `with` block names `path`, and not a temporary file or none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
