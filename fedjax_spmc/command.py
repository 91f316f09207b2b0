"""Shared by all command lines: one parser, and errors as one sentence.

A script is a parser and a body; the parsers of the package's commands are in `commands.py`.

    def main(arguments=None):
        parser = Parser("", __doc__)
        parser.positional("WORKDIR", "run folders")
        parser.flag(Option("--png", str, None, optional=True), "FILE", "draws the curves too")
        return run_command(parser, body, arguments)

Flags are written `--flag value` or `--flag=value`, everywhere. JAX is imported behind the flags, so that help and
refusals come at once.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import fedjax_spmc
from fedjax_spmc import startup, terminal
from fedjax_spmc.errors import ConfigError, DivergedError, UserError
from fedjax_spmc.nearest import did_you_mean
from fedjax_spmc.options import Option
from fedjax_spmc.reading import reason_of
from fedjax_spmc.startup import INTERRUPTED, Imports, interrupts
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
        command: the word behind `fedjax-spmc`; "" for a script.
        doc: what the command does; its help prints it and then the flags.
        overrides: whether `--config.FIELD=VALUE` is taken.
        resumes: whether the command goes on with its work when it is given again.
        examples: command lines behind the command's name, for its help.
        advise: what may be meant by a word that is no flag, as a sentence; "" where nobody can tell.
    """

    def __init__(
        self,
        command: str,
        doc: str | None,
        overrides: bool = False,
        resumes: bool = False,
        examples: Sequence[str] = (),
        advise: Callable[[str], str] = lambda word: "",
    ):
        self._prog = f"{program()} {command}" if command else f"python {sys.argv[0]}"
        self.examples = tuple(examples)
        self._advise = advise
        self._parser = _ArgumentParser(
            prog=self._prog,
            description=(doc or "").strip(),
            add_help=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._parser.add_argument("-h", "--help", action="store_true", help="prints this and ends")
        self._parser.add_argument("--version", action="store_true", help="prints the version and ends")
        self._overrides = overrides
        self.resumes = resumes
        self._options: dict[str, Option] = {}
        self._flags = ["--help", "--version"]
        self._takes_words = False

    def flag(self, option: Option, metavar: str, text: str, repeated: bool = False, bare: str | None = None) -> None:
        """Adds a flag with a value.

        Args:
            option: named as the flag is typed, "--workdir"; it types and checks the value.
            metavar: what stands for the value in the help.
            text: the help.
            repeated: the flag may be given several times; its value is the list of all.
            bare: the value of the flag where it is given without one; None = it needs one.
        """
        self._flags.append(option.name)
        default = "" if option.default in (None, "", ()) else f" (default {option.default})"
        action = "append" if repeated else "store"
        optional: dict[str, Any] = {} if bare is None else {"nargs": "?", "const": bare}
        self._parser.add_argument(
            option.name,
            metavar=metavar,
            action=action,
            help=f"{text}{default}".replace("%", "%%"),
            **optional,
        )
        self._options[option.name] = option

    def switch(self, name: str, text: str) -> None:
        """Adds a flag without a value."""
        self._flags.append(name)
        self._parser.add_argument(name, action="store_true", help=text)

    def positional(self, metavar: str, text: str) -> None:
        """Takes arguments without a flag, any number of them."""
        self._takes_words = True
        self._parser.add_argument("positional", nargs="*", metavar=metavar, help=text)

    def usage(self) -> str:
        """One line."""
        line = " ".join(self._parser.format_usage().split())
        return line + (" [--config.FIELD=VALUE ...]" if self._overrides else "")

    def flags(self) -> tuple[str, ...]:
        """The flags as they are typed, overrides of the config left out."""
        return tuple(self._flags)

    def help(self) -> str:
        """The help: what the command does, its flags, and examples."""
        parts = [self._parser.format_help().rstrip()]
        if self._overrides:
            fields = f"{program()} list fields"
            parts.append(f"--config.FIELD=VALUE sets any field of the config; `{fields}` names them all.")
        if self.examples:
            parts.append("\n".join(["examples:", *[f"  {self._prog} {example}" for example in self.examples]]))
        return "\n\n".join(parts) + "\n"

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
            raise self._unknown(unknown[0])
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

    def _unknown(self, word: str) -> ConfigError:
        """The error for a word that is no flag, with what may be meant where somebody can tell."""
        flag = word.partition("=")[0]
        meant = did_you_mean(flag, self._flags) if flag.startswith("--") else ""
        advice = meant or self._advise(word)
        said = f"{word} is no flag{' of this command' if flag.startswith('-') else ', and no more is taken'}"
        return ConfigError(f"{said}: {advice} `{self._prog} --help` has all.") if advice else self.refusal(said)

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


def program() -> str:
    """How the commands are called here: by the script of an installation, or through Python."""
    return "fedjax-spmc" if startup.SCRIPT else "python -m fedjax_spmc"


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
        if "--version" in given:
            show(version())
            return 0
        flags = parser.read(given)
        with Imports():
            startup.ready()
        check_guards()
        return body(flags)

    return exit_code_of(command, parser.resumes)


def version() -> str:
    """The name of the package and its version."""
    return f"fedjax_spmc {fedjax_spmc.__version__}"


GUARDS = re.compile(r"JAX_TRANSFER_GUARD(_\w+)?")


def check_guards() -> None:
    """Refuses variables of the environment with which JAX forbids what a simulator does all the time.

    Raises:
        ConfigError: one of them is set so.
    """
    for name, value in os.environ.items():
        if GUARDS.fullmatch(name) and value.lower().startswith("disallow"):
            raise ConfigError(
                f"{name} = {value!r} is not allowed: data go to the device and numbers come back in every round; it "
                "must be 'allow' or 'log', or not be set."
            )


def exit_code_of(command: Callable[[], int], resumes: bool) -> int:
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
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        name = error.filename if error.filename is not None else "a file"
        return f"{name} cannot be read or written ({reason_of(error)})."

    from fedjax_spmc import numerics

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
