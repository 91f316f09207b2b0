"""The results of parity checks, rows of a table; and the registry of the checks by the names of golden files.

A check is a function of the arrays of one file; it is registered under a pattern of file names, the kind.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

TOLERANCE = 1e-5
"""Absolute; the golden files' README suggests it."""

Arrays = Mapping[str, np.ndarray]


class Outcome(NamedTuple):
    """One row of the table.

    Attributes:
        check: what was compared.
        source: the file.
        cases: number of arrays compared.
        error: worst absolute error; None where nothing was compared.
        tolerance: the largest error that passes; None where nothing was compared.
        verdict: "passed", "failed" or "skipped".
        reason: why it was skipped or failed, or "".
    """

    check: str
    source: str
    cases: int
    error: float | None
    tolerance: float | None
    verdict: str
    reason: str = ""


class Comparison:
    """Collects the errors of one row.

    Args:
        check: what is compared.
        tolerance: the largest absolute error that passes.
    """

    def __init__(self, check: str, tolerance: float = TOLERANCE):
        self._check = check
        self._tolerance = tolerance
        self._cases = 0
        self._error = 0.0
        self._reason = ""

    def add(self, name: str, ours: Any, reference: Any, slack: Any = 0.0) -> None:
        """Compares one array; `slack` is subtracted from the error (integers that the reference truncates)."""
        ours, reference = np.asarray(ours), np.asarray(reference)
        self._cases += 1
        if ours.shape != reference.shape:
            error, words = float("inf"), f"{name}: shape {ours.shape}, the file has {reference.shape}"
        elif ours.size == 0:
            return
        elif ours.dtype.kind in "US" or reference.dtype.kind in "US":
            error, words = (0.0, "") if np.array_equal(ours, reference) else (float("inf"), f"{name} differs")
        else:
            gap = np.maximum(np.abs(ours.astype(np.float64) - reference.astype(np.float64)) - slack, 0.0)
            error = float("inf") if np.isnan(gap).any() else float(gap.max())
            words = f"{name} is off by {error:.3g}"
        if error > self._tolerance and not self._reason:
            self._reason = words
        self._error = max(self._error, error)

    def include(self, other: "Comparison") -> None:
        """Adds the errors that another comparison has collected."""
        self._cases += other._cases
        self._error = max(self._error, other._error)
        self._reason = self._reason or other._reason

    def outcome(self, source: str) -> Outcome:
        """The row."""
        passed = self._error <= self._tolerance
        return Outcome(
            self._check,
            source,
            self._cases,
            self._error,
            self._tolerance,
            "passed" if passed else "failed",
            self._reason,
        )


def skipped(check: str, source: str, reason: str) -> Outcome:
    """A row that says why nothing was compared."""
    return Outcome(check, source, 0, None, None, "skipped", reason)


def failed(check: str, source: str, reason: str) -> Outcome:
    """A row of something that could not be compared and should have been."""
    return Outcome(check, source, 0, None, None, "failed", reason)


Say = Callable[[str], None]
"""Takes a line about the work in progress."""


def silent(text: str) -> None:
    """A `Say` for nobody."""


Check = Callable[[Arrays, str], Iterator[Outcome]]
KINDS: list[tuple[re.Pattern[str], Check]] = []


def kind(pattern: str) -> Callable[[Check], Check]:
    """Decorator: registers a check for the files whose names match the regular expression."""

    def add(check: Check) -> Check:
        KINDS.append((re.compile(pattern), check))
        return check

    return add


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 if at least one check ran and none failed, else 1."""
    verdicts = {outcome.verdict for outcome in outcomes}
    return 0 if "failed" not in verdicts and "passed" in verdicts else 1


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as text, one row each, and a line that counts them."""
    rows = [("check", "source", "cases", "worst error", "tolerance", "verdict")]
    for one in outcomes:
        error = "-" if one.error is None else f"{one.error:.2e}"
        tolerance = "-" if one.tolerance is None else f"{one.tolerance:.0e}"
        verdict = one.verdict + (f" ({one.reason})" if one.reason else "")
        rows.append((one.check, one.source, str(one.cases) if one.cases else "-", error, tolerance, verdict))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join([*[cell.ljust(width) for cell, width in zip(row, widths, strict=False)], row[5]]) for row in rows
    ]
    counts = {verdict: sum(one.verdict == verdict for one in outcomes) for verdict in ("passed", "failed", "skipped")}
    return "\n".join([*lines, ", ".join(f"{count} {verdict}" for verdict, count in counts.items())])


def to_json(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as JSON; an infinite error is null."""
    rows = [one._asdict() for one in outcomes]
    for row in rows:
        row["error"] = row["error"] if row["error"] is not None and np.isfinite(row["error"]) else None
    counts = {verdict: sum(one.verdict == verdict for one in outcomes) for verdict in ("passed", "failed", "skipped")}
    return json.dumps({"checks": rows, **counts}, indent=1, allow_nan=False)
