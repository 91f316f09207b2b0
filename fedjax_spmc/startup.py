"""What holds for a command from its first moment, before its own code is there; importing this module sets it up.

Seconds go by between `python -m fedjax_spmc.run` and the first round, in which JAX and the rest are imported. An
exception that Ctrl-C raises among imports is lost in a callback or ends in a crash: so it ends the process at once, in
one line. A command imports JAX when it has read its flags (`ready`), so that its help and its refusals come at once. A
program that imports the package as a library is left alone.
"""

import os
import signal
import sys
from pathlib import PurePath

INTERRUPTED = 130
"""Exit code of a command that was interrupted."""
_STARTED = (getattr(sys, "argv", None) or [""])[0]
SCRIPT = PurePath(_STARTED).stem == "fedjax-spmc"
"""Whether this process is the script that an installation brings."""
COMMAND = _STARTED == "-m" or SCRIPT
"""Whether this process is a command of the package: "-m" stands there while Python looks for the module to run."""


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
    refused = str(error) if issubclass(kind, UserError) else refusal_of_jax(error)
    if refused:
        os.write(2, f"error: {refused}\n".encode(errors="replace"))
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


def ready() -> None:
    """Imports JAX, which reads its settings in the environment.

    Raises:
        ConfigError: one of them is not allowed.
    """
    try:
        import jax
    except ValueError as error:
        from fedjax_spmc.errors import ConfigError

        refused = refusal_of_jax(error)
        if not refused:
            raise
        raise ConfigError(refused) from None
    del jax


def refusal_of_jax(error: BaseException) -> str:
    """What is said where JAX refuses a variable of the environment while it is imported; "" of any other error."""
    trace, within = error.__traceback__, False
    while trace is not None:
        within = within or trace.tb_frame.f_globals.get("__name__") == "jax"
        trace = trace.tb_next
    if not (within and isinstance(error, ValueError) and "JAX" in str(error)):
        return ""
    return f"JAX refuses a variable of the environment: {error}; it must be set otherwise or not at all."


if COMMAND:
    _keep_streams()
    sys.excepthook = _tell
    sys.unraisablehook = _tell_unraisable
else:
    ready()
