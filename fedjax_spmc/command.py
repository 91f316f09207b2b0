"""Shared by all command lines: one parser, errors as one sentence, config files, the cache of compiled programs.

A command is a parser and a body:

    def main(arguments=None):
        parser = Parser("compare", __doc__)
        parser.positional("WORKDIR", "run folders")
        parser.flag(Option("--png", str, None, optional=True), "FILE", "draws the curves too")
        return run_command(parser, body, arguments)

Flags are written `--flag value` or `--flag=value`, everywhere.
"""

import argparse
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fedjax_spmc import config as configs
from fedjax_spmc import terminal
from fedjax_spmc.errors import ConfigError, DivergedError, UserError
from fedjax_spmc.options import Option, quoted
from fedjax_spmc.paths import NoHomeError, expanded
from fedjax_spmc.reading import reason_of
from fedjax_spmc.startup import INTERRUPTED, interrupts
from fedjax_spmc.terminal import note, show

Overrides = list[tuple[str, str]]
"""`--config.FIELD=VALUE` as (FIELD, VALUE)."""


@dataclass(frozen=True)
class Flags:
    """A parsed command line; `flags["png"]` is the value of `--png`, in the flag's own type.

    Attributes:
        positional: the arguments without a flag, folders for instance.
        values: flag without its leading dashes, other dashes as underscores -> value.
        overrides: of the config.
    """

    positional: list[str]
    values: dict[str, Any]
    overrides: Overrides

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


class Parser:
    """The flags of one command.

    Args:
        command: the module behind `python -m fedjax_spmc.`; "" for a script.
        doc: what the command does; its help prints it and then the flags.
        overrides: whether `--config.FIELD=VALUE` is taken.
        resumes: whether the command goes on with its work when it is given again.
    """

    def __init__(self, command: str, doc: str | None, overrides: bool = False, resumes: bool = False):
        self._prog = f"python -m fedjax_spmc.{command}" if command else f"python {sys.argv[0]}"
        self._parser = _ArgumentParser(
            prog=self._prog,
            description=(doc or "").strip(),
            add_help=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._parser.add_argument("-h", "--help", action="store_true", help="prints this and ends")
        self._overrides = overrides
        self.resumes = resumes
        self._options: dict[str, Option] = {}

    def flag(self, option: Option, metavar: str, text: str, repeated: bool = False) -> None:
        """Adds a flag with a value.

        Args:
            option: named as the flag is typed, "--workdir"; it types and checks the value.
            metavar: what stands for the value in the help.
            text: the help.
            repeated: the flag may be given several times; its value is the list of all.
        """
        default = "" if option.default in (None, "", ()) else f" (default {option.default})"
        action = "append" if repeated else "store"
        self._parser.add_argument(
            option.name, metavar=metavar, action=action, help=f"{text}{default}".replace("%", "%%")
        )
        self._options[option.name] = option

    def switch(self, name: str, text: str) -> None:
        """Adds a flag without a value."""
        self._parser.add_argument(name, action="store_true", help=text)

    def positional(self, metavar: str, text: str) -> None:
        """Takes arguments without a flag, any number of them."""
        self._parser.add_argument("positional", nargs="*", metavar=metavar, help=text)

    def usage(self) -> str:
        """One line."""
        line = " ".join(self._parser.format_usage().split())
        return line + (" [--config.FIELD=VALUE ...]" if self._overrides else "")

    def help(self) -> str:
        """The help: what the command does, and its flags."""
        return self._parser.format_help() + ("\n--config.FIELD=VALUE sets any field of the config.\n" * self._overrides)

    def read(self, arguments: Sequence[str]) -> Flags:
        """Reads a command line.

        Raises:
            ConfigError: an unknown flag, a flag without a value, a value that is not allowed.
        """
        overrides, rest = self._split(arguments)
        try:
            found, unknown = self._parser.parse_known_args(rest)
        except _ArgumentError as error:
            raise self.refusal(str(error)) from None
        if unknown:
            raise self.refusal(f"{unknown[0]} is no flag of this command")
        values = vars(found)
        for name, option in self._options.items():
            key = name.lstrip("-").replace("-", "_")
            given = values[key]
            if given == "" or (isinstance(given, list) and "" in given):
                raise self.refusal(f"{name} needs a value")
            if isinstance(given, list):
                values[key] = [option.parse(text, name) for text in given]
            else:
                values[key] = option.default if given is None else option.parse(given, name)
        return Flags(values.pop("positional", []), values, overrides)

    def refusal(self, reason: str) -> ConfigError:
        """The error that says what is wrong with a command line."""
        return ConfigError(f"{reason}; {self.usage()}.")

    def _split(self, arguments: Sequence[str]) -> tuple[Overrides, list[str]]:
        """Overrides of the config, and the other arguments."""
        overrides: Overrides = []
        rest, remaining = [], list(arguments)
        while remaining:
            word = remaining.pop(0)
            name, equals, value = word.partition("=")
            if not (self._overrides and name.startswith("--config.")):
                rest.append(word)
                continue
            if not equals:
                if not remaining or remaining[0].startswith("--"):
                    raise self.refusal(f"{name} needs a value")
                value = remaining.pop(0)
            overrides.append((name.removeprefix("--config."), value))
        return overrides, rest


class _ArgumentError(Exception):
    """An error that argparse found in a command line."""


class _ArgumentParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flag = message.removeprefix("argument ").partition(":")[0]
        raise _ArgumentError(f"{flag} needs a value" if "expected one argument" in message else message)


def run_command(parser: Parser, body: Callable[[Flags], int], arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        parser: of its flags.
        body: what the command does; returns the exit code.
        arguments: in place of the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)

    def command() -> int:
        if {"--help", "-h"} & set(given):
            show(parser.help())
            return 0
        return body(parser.read(given))

    return _exit_code_of(command, parser.resumes)


def _exit_code_of(command: Callable[[], int], resumes: bool) -> int:
    """Runs a command; an error that a user can cause becomes one sentence on standard error and an exit code."""
    try:
        interrupts(at_once=not resumes)  # who keeps nothing has nothing to tidy up
        code = command()
        terminal.flush()
        return code
    except KeyboardInterrupt:
        note(f"interrupted{': the same command goes on from the last finished chunk' if resumes else ''}.")
        return INTERRUPTED
    except DivergedError as error:
        note(f"stopped: {error}")
        return 3
    except Exception as error:
        sentence = _sentence_of(error)
        if sentence is None:
            raise
        note(f"error: {' '.join(sentence.split())}")
        return 2


def _sentence_of(error: Exception) -> str | None:
    """What is said of an error that a user can cause; None of any other."""
    from fedjax_spmc import numerics

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        name = error.filename if error.filename is not None else "a file"
        return f"{name} cannot be read or written ({reason_of(error)})."
    if numerics.is_out_of_memory(error):
        return (
            f"there is not enough memory ({reason_of(error)}): a smaller federation.client_batch, local.batch_size or "
            "model takes less."
        )
    try:
        numerics.check_platform()  # whoever touches JAX where it has no device gets an error of its own kind
    except ConfigError as absent:
        return str(absent)
    return None


def read_config(text: str) -> tuple[Any, str]:
    """Loads `FILE[:PRESETS]`.

    Returns:
        The ConfigDict that the file's `get_config(presets)` returns, and a label for the run folder.

    Raises:
        ConfigError: no such file, or it is no config file.
    """
    config, label, path = call_config(text)
    if not hasattr(config, "items"):
        raise ConfigError(
            f"--config = {str(path)!r} is not allowed: its get_config returns {quoted(config)} and must return a "
            "ConfigDict."
        )
    return configs.editable_copy(config), label


def call_config(text: str) -> tuple[Any, str, Path]:
    """What the `get_config(presets)` of `FILE[:PRESETS]` returns, a label for the folder, and the file.

    Raises:
        ConfigError: no such file, or it fails.
    """
    file, colon, presets = text.partition(".py:")
    path = expanded(file + ".py" if colon else text, "--config")
    if not os.path.isfile(path):  # Path.is_file raises where the name is too long
        beside = sorted(str(one) for one in path.parent.glob("*.py")) if os.path.isdir(path.parent) else []
        known = f"beside it are {', '.join(beside)}" if beside else "see configs/"
        raise ConfigError(f"--config = {quoted(str(path))} is not allowed: it must be a config file; {known}.")
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config = {str(path)!r} is not allowed: it must be a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(presets)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the file is the user's code: it may raise anything
        raise ConfigError(f"--config = {str(path)!r} fails with {reason_of(error, named=True)}.") from None
    words = [word.strip() for word in presets.split(",") if word.strip()]
    return config, "-".join([path.stem, *words]), path


def use_compilation_cache(config: Any) -> None:
    """Keeps compiled programs on disk, so that a second start is faster."""
    import jax

    from fedjax_spmc.data import cache

    try:
        folder = cache.root(config.data.cache_dir) / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, NoHomeError):  # then every start compiles
        return
    # A damaged entry is compiled anew; that is no news.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
