"""Walks a folder of golden files and compares each with the results of this package.

Every module `kinds_*.py` beside this one is imported, and registers what it can compare.
"""

import importlib
from pathlib import Path

import numpy as np

from fedjax_spmc import reading
from fedjax_spmc.parity.comparison import KINDS, Outcome, Say, failed, silent, skipped


class _Required(dict):  # type: ignore[type-arg]
    """Arrays of a file; a missing one names itself."""

    def __missing__(self, name: str) -> np.ndarray:
        raise KeyError(f"array {name!r} is missing")


def walk(folder: Path, say: Say = silent) -> list[Outcome]:
    """Compares every `*.npz` in a folder; each file gives at least one row.

    Args:
        folder: of golden files.
        say: takes a line for each file, before it is compared.
    """
    for module in sorted(Path(__file__).parent.glob("kinds_*.py")):  # they register their kinds
        importlib.import_module(f"{__package__}.{module.stem}")

    outcomes: list[Outcome] = []
    paths = sorted(folder.glob("*.npz"))
    for number, path in enumerate(paths, 1):
        say(f"file {number} of {len(paths)}: {path.name}")
        checks = [check for pattern, check in KINDS if pattern.fullmatch(path.stem)]
        if not checks:
            outcomes.append(skipped(path.stem, path.name, "no check of this kind yet"))
            continue
        try:
            arrays = _Required(reading.arrays(path))
        except (FileNotFoundError, reading.UnreadableError) as error:
            words = error if isinstance(error, reading.UnreadableError) else "is missing"
            outcomes.append(failed(path.stem, path.name, f"the file {words}"))
            continue
        for check in checks:
            try:
                outcomes += list(check(arrays, path.name))
            except Exception as error:
                named = not isinstance(error, KeyError)  # a missing array names itself
                outcomes.append(failed(path.stem, path.name, reading.reason_of(error, named=named)))
    return outcomes
