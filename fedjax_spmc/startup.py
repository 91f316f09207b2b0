"""What holds for a command from its first moment, before its own code is there; importing this module sets it up.

Seconds go by between `python -m fedjax_spmc.run` and the command's first line, in which JAX and the rest are imported.
An exception that Ctrl-C raises among imports is lost in a callback or ends in a crash: so it ends the process at once,
in one line. A program that imports the package as a library is left alone.
"""

import os
import signal
import sys

INTERRUPTED = 130
"""Exit code of a command that was interrupted."""
COMMAND = getattr(sys, "argv", [""])[:1] == ["-m"]
"""Whether this process is a command of the package: so it is while Python looks for the module that it is to run."""


def _leave(number: int, frame: object) -> None:
    os.write(2, b"interrupted.\n")
    os._exit(INTERRUPTED)


def interrupts(at_once: bool) -> None:
    """Whether Ctrl-C ends a command at once or raises KeyboardInterrupt; where it is ignored, it stays so."""
    if COMMAND and signal.getsignal(signal.SIGINT) in (_leave, signal.default_int_handler):
        signal.signal(signal.SIGINT, _leave if at_once else signal.default_int_handler)


interrupts(at_once=True)


class Imports:
    """`with Imports():` around imports that a command does late: Ctrl-C ends it at once, as during the first ones."""

    def __enter__(self) -> None:
        self._before = signal.getsignal(signal.SIGINT)
        interrupts(at_once=True)

    def __exit__(self, *error: object) -> None:
        interrupts(at_once=self._before is _leave)


def _keep_streams() -> None:
    """Opens the standard streams that are closed: else the next file, a model say, takes the place of a log."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free


def _tell(kind, error, trace) -> None:
    """An exception that nobody has caught; of a user's making, it is one sentence here too."""
    from fedjax_spmc.errors import UserError

    if issubclass(kind, KeyboardInterrupt):
        _leave(signal.SIGINT, None)
    if issubclass(kind, UserError):
        os.write(2, f"error: {error}\n".encode(errors="replace"))
        os._exit(2)
    sys.__excepthook__(kind, error, trace)


def _tell_unraisable(found) -> None:
    """An exception in a callback, which Python only prints."""
    import _thread
    import threading

    if isinstance(found.exc_value, KeyboardInterrupt):  # it must not be lost
        threading.Timer(0.01, _thread.interrupt_main).start()
    # What Orbax still has under way when a disk is full comes too late for anyone: the error itself has been told.
    elif not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(found)


def _check_jax() -> None:
    """Imports JAX, which reads its settings in the environment.

    Raises:
        ConfigError: one of them is not allowed.
    """
    try:
        import jax
    except ValueError as error:
        from fedjax_spmc.errors import ConfigError

        said = str(error)
        if "JAX" not in said:
            raise
        raise ConfigError(
            f"JAX refuses a variable of the environment: {said}; it must be set otherwise or not at all."
        ) from None
    del jax


if COMMAND:
    _keep_streams()
    sys.excepthook = _tell
    sys.unraisablehook = _tell_unraisable
_check_jax()
