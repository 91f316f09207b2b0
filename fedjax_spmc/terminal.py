"""What a command prints. Whoever stops listening, by a pipe or a terminal that is closed, ends nothing."""

import os
import sys
from typing import TextIO


def show(text: str = "") -> None:
    """Prints a line on standard output; where its reader has gone, nothing.

    Raises:
        OSError: it cannot be written for another reason: a full disk, say.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        _answer(error)


def note(text: str) -> None:
    """Prints a line on standard error; where that cannot be written, nothing."""
    Lines(sys.stderr).add(text)


class Lines:
    """Where lines about a work in progress are printed: a log that cannot be written any more is no reason to stop.

    Args:
        stream: None prints nothing.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream

    def add(self, text: str, end: str = "\n") -> None:
        """Prints a text at once."""
        if self.stream is None:
            return
        try:
            print(text, end=end, file=self.stream, flush=True)
        except (OSError, ValueError):  # a ValueError where it is closed
            silence(self.stream)
            self.stream = None


def silence(stream: TextIO | None) -> None:
    """Lets what a standard stream still holds, and whatever comes, go nowhere: Python writes it when it ends."""
    if stream is None or stream not in (sys.stdout, sys.stderr):
        return
    try:
        number, nowhere = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
    except (OSError, ValueError):
        return
    os.dup2(nowhere, number)
    os.close(nowhere)


def flush() -> None:
    """Writes what others have printed and the standard streams still hold; raises as `show`."""
    for stream in (sys.stderr, sys.stdout):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            if stream is sys.stdout:
                _answer(error)
            silence(stream)
        except ValueError:  # it is closed
            pass


def _answer(error: OSError) -> None:
    """What is done where standard output cannot be written: nothing where its reader has gone."""
    silence(sys.stdout)
    if not isinstance(error, BrokenPipeError):
        raise OSError(error.errno, error.strerror, "standard output") from None
