"""Walks a folder of golden files and compares each with the results of this package.

Every module `kinds_*.py` beside this one is imported, and registers what it can compare.
"""

import importlib
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fedjax_spmc.parity.comparison import KINDS, Outcome, failed, skipped


class _Required(dict):  # type: ignore[type-arg]
    """Arrays of a file; a missing one names itself."""

    def __missing__(self, name: str) -> np.ndarray:
        raise KeyError(f"array {name!r} is missing")


def walk(folder: Path) -> list[Outcome]:
    """Compares every `*.npz` in a folder; each file gives at least one row."""
    for module in sorted(Path(__file__).parent.glob("kinds_*.py")):  # they register their kinds
        importlib.import_module(f"{__package__}.{module.stem}")

    outcomes: list[Outcome] = []
    for path in sorted(folder.glob("*.npz")):
        checks = [check for pattern, check in KINDS if pattern.fullmatch(path.stem)]
        if not checks:
            outcomes.append(skipped(path.stem, path.name, "no check of this kind yet"))
            continue
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = _Required(file)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            outcomes.append(failed(path.stem, path.name, f"the file cannot be read: {error}"))
            continue
        for check in checks:
            try:
                outcomes += list(check(arrays, path.name))
            except Exception as error:
                reason = (
                    error.args[0] if isinstance(error, KeyError) and error.args else f"{type(error).__name__}: {error}"
                )
                outcomes.append(failed(path.stem, path.name, str(reason).splitlines()[0][:200]))
    return outcomes
