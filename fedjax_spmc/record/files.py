"""Files that survive a crash: a line at a time, or replaced as a whole."""

import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def json_line(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON; NaN and infinity, which JSON does not know, are refused."""
    return json.dumps(row, allow_nan=False) + "\n"


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a row to a file of JSON lines and waits until it is on the disk.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("a") as stream:
        stream.write(json_line(row))
        stream.flush()
        os.fsync(stream.fileno())


def replace(path: Path, content: bytes) -> None:
    """Replaces a file, atomically: a reader, or a crash, finds the old content or the new.

    Until then the new content stands beside it in a hidden file, `.NAME-...`, which a killed process leaves behind.

    Raises:
        OSError: it cannot be written.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file that only pictures need; none where it is not there or cannot be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return {}


def replace_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a file of JSON lines, atomically.

    Raises:
        OSError: it cannot be written.
    """
    replace(path, "".join(map(json_line, rows)).encode())
