"""The live progress line; plain lines where the output is no terminal."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from fedjax_spmc.record.remarks import Remark, at_chance, in_progress
from fedjax_spmc.terminal import Lines


class Progress:
    """Prints a line per evaluated round: round, A, ASR, R, V, what went wrong, seconds per round, time left; before the
    first one what is being done. The first line that is played compiles: its time says nothing of those to come.

    Args:
        rounds: rounds of the whole run.
        stream: where to print; None prints nothing. One that is closed on the way ends nothing.
    """

    def __init__(self, rounds: int, stream: TextIO | None):
        self._rounds = rounds
        self._lines = Lines(stream)
        self._live = stream is not None and stream.isatty()
        self._fastest = float("inf")
        self._failed = self._rejected = 0
        self._first = True

    def phase(self, text: str) -> None:
        """Says what is being done before a round can be shown; a live line takes its place."""
        self._lines.add(f"\r\033[K{text} ..." if self._live else f"{text} ...", end="" if self._live else "\n")

    def begin(self, history: Sequence[Mapping[str, Any]], remarks: Sequence[Remark]) -> None:
        """Takes what was played before, and prints what is known before the next round.

        Args:
            history: lines of `metrics.jsonl`.
            remarks: each gets a line.
        """
        for line in history:
            self._count(line)
        for remark in remarks:
            self.note(f"note: {remark.sentence}")

    def note(self, text: str) -> None:
        """Prints a line of its own."""
        self._lines.add(("\r\033[K" if self._live else "") + text)

    def update(self, line: Mapping[str, Any]) -> None:
        """Prints the evaluated round `line` (see `metrics.jsonl`), and what went wrong until then."""
        if self._lines.stream is None:
            return
        self._count(line)
        if not self._first:  # the first round compiles
            self._fastest = min(self._fastest, line["round_seconds"] + line["eval_seconds"])
        self._first = False
        rounds = self._rounds - line["round"] - 1
        seconds = self._fastest * rounds if rounds else 0.0
        left = f"  {clock(seconds)} left" if seconds < float("inf") else ""
        shown = "  ".join(f"{name} {_percent(line[name])}" for name in ("A", "ASR", "R", "V"))
        wrong = in_progress(line["round"] + 1, self._failed, self._rejected, at_chance(line))
        text = (  # what went wrong comes first: a narrow terminal cuts the end
            f"round {line['round'] + 1:>{len(str(self._rounds))}}/{self._rounds}  "
            + (f"{wrong}  " if wrong else "")
            + f"{shown}  {line['round_seconds']:6.2f} s/round{left}"
        )
        if self._live:  # a line that wraps could not be overwritten
            text = text[: (_columns(self._lines.stream) or len(text) + 1) - 1]
        self._lines.add(("\r\033[K" if self._live else "") + text, end="" if self._live else "\n")

    def _count(self, line: Mapping[str, Any]) -> None:
        self._failed += line.get("aggregation_failed", 0)
        self._rejected += line.get("non_finite", 0)

    def close(self) -> None:
        """Ends the live line."""
        if self._live:
            self._lines.add("")


def _columns(stream: TextIO) -> int:
    """The width of the terminal; 0 where it is not known."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


def _percent(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.2f}"


def clock(seconds: float) -> str:
    """Seconds as 3:07 or 1:03:07."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
