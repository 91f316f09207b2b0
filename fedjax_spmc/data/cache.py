"""Decoded copies of data sets as .npy files, so that only the first run pays for decoding.

An entry is a folder <cache_dir>/data/<name>-<key> with a manifest of sha256 sums. It is written under another name and
then renamed, so a reader sees all of it or nothing; a damaged one is never used.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fedjax_spmc.paths import NoHomeError, expanded
from fedjax_spmc.reading import UnreadableError, json_of, reason_of
from fedjax_spmc.terminal import note

DEFAULT_ROOT = "~/.cache/fedjax_spmc"
MANIFEST = "manifest.json"

Arrays = Mapping[str, np.ndarray]


def root(cache_dir: str | Path | None = None) -> Path:
    """The cache folder: the argument, else $FEDJAX_SPMC_CACHE, else ~/.cache/fedjax_spmc.

    Raises:
        NoHomeError: it begins with `~`, and nothing says where that is.
    """
    given = {"data.cache_dir": cache_dir, "FEDJAX_SPMC_CACHE": os.environ.get("FEDJAX_SPMC_CACHE")}
    label, chosen = next(((name, value) for name, value in given.items() if value), ("FEDJAX_SPMC_CACHE", DEFAULT_ROOT))
    return expanded(chosen, label)


def entry(name: str, key: str, cache_dir: str | Path | None = None) -> Path:
    """The folder that holds, or would hold, the arrays of `name` made from sources with `key`."""
    return root(cache_dir) / "data" / f"{name}-{key[:16]}"


def fetch(name: str, key: str, cache_dir: str | Path | None, build: Callable[[], Arrays]) -> Arrays:
    """The arrays of an entry; where there is none, or a damaged one, they are built and stored.

    A cache that cannot be read or written costs one line on stderr and the time of `build`, nothing else.

    Args:
        name: of the data set.
        key: hex digest of everything that `build` depends on.
        cache_dir: see `root`.
        build: makes the arrays.
    """
    try:
        folder = entry(name, key, cache_dir)
    except NoHomeError as error:
        _warn(f"no cached copy is kept ({str(error).rstrip('.')}); every run decodes anew.")
        return build()
    try:
        if os.path.lexists(folder):
            return _read(folder, key)
    except UnreadableError as error:
        _warn(f"the cached copy {folder} {error} and is made anew.")
    arrays = build()
    try:
        _write(folder, key, arrays)
    except OSError as error:
        _warn(f"no cached copy could be written to {folder} ({reason_of(error)}); every run decodes anew.")
    return arrays


def _read(folder: Path, key: str) -> Arrays:
    try:
        manifest = json_of((folder / MANIFEST).read_text("utf-8"))
        if manifest["key"] != key:
            raise UnreadableError("it is of another source")
        return {name: _read_array(folder / f"{name}.npy", digest) for name, digest in manifest["sha256"].items()}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadableError(f"{Path(error.filename).name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableError(error) from None


def _read_array(path: Path, expected: str) -> np.ndarray:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            raise UnreadableError(f"{path.name} has another sha256")
        file.seek(0)
        return np.load(file, mmap_mode=None, allow_pickle=False)


def _write(folder: Path, key: str, arrays: Arrays) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
    ) as scratch:
        fresh = Path(scratch) / "fresh"  # made by mkdir, so it has the user's own permissions and not mkdtemp's
        fresh.mkdir()
        digests: dict[str, str] = {}
        for name, array in arrays.items():
            path = fresh / f"{name}.npy"
            np.save(path, array, allow_pickle=False)
            with path.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        (fresh / MANIFEST).write_text(json.dumps({"key": key, "sha256": digests}, indent=1), "utf-8")
        if os.path.lexists(folder):
            os.rename(folder, Path(scratch) / "damaged")
        try:
            os.rename(fresh, folder)
        except OSError:
            if not (folder / MANIFEST).is_file():  # otherwise another process was faster with the same arrays
                raise


def _warn(sentence: str) -> None:
    note(f"fedjax_spmc: {sentence}")
