"""What holds for a command from its first moment, before its own code is there; importing this module sets it up.

A second goes by between `python -m fedjax_spmc.run` and the command's own first line, in which JAX and the rest are
imported: Ctrl-C is then answered as later, in one line. A program that imports the package as a library is left alone.
"""

import os
import sys
from types import TracebackType
from typing import Any

from fedjax_spmc import terminal
from fedjax_spmc.errors import ConfigError, UserError

INTERRUPTED = 130
"""Exit code of a command that was interrupted."""


def _begin() -> None:
    """Prepares the process of a command: standard streams that are there, and errors as one sentence."""
    # A log that is closed must not let the next file that is opened, a model say, take its number.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free
    sys.excepthook = _tell
    sys.unraisablehook = _tell_unraisable


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        terminal.note("interrupted.")
        os._exit(INTERRUPTED)
    if issubclass(kind, UserError):
        terminal.note(f"error: {error}")
        os._exit(2)
    sys.__excepthook__(kind, error, trace)


def _tell_unraisable(found: Any) -> None:
    # What Orbax still has under way when a disk is full comes too late for anyone: the error itself has been told.
    if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(found)


def _check_jax() -> None:
    """Imports JAX, which reads its settings in the environment.

    Raises:
        ConfigError: one of them is not allowed.
    """
    try:
        import jax
    except ValueError as error:
        said = str(error)
        if "JAX" not in said:
            raise
        raise ConfigError(
            f"JAX refuses a variable of the environment: {said}; it must be set otherwise or not at all."
        ) from None
    del jax


if getattr(sys, "argv", [""])[:1] == ["-m"]:  # so it is while Python looks for the module that it is to run
    _begin()
_check_jax()
