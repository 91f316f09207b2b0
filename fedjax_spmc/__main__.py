"""`fedjax-spmc COMMAND`, which is `python -m fedjax_spmc COMMAND`: finds the command and hands it the rest."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from fedjax_spmc import startup
from fedjax_spmc.command import exit_code_of, program, run_command, version
from fedjax_spmc.commands import COMMANDS, make
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.nearest import did_you_mean
from fedjax_spmc.startup import Imports
from fedjax_spmc.terminal import show

AT_ONCE = {"--help", "-h", "--version"}
"""What is answered without the command's own code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = (given[0], given[1:]) if given else ("", [])
    if name not in COMMANDS:
        return exit_code_of(lambda: _without_command(name), resumes=False)
    if AT_ONCE & set(rest):
        return run_command(make(name), lambda flags: 0, rest)
    if startup.SCRIPT:
        sys.path.append(os.getcwd())  # for plug-ins, as `python -m` has it
    return exit_code_of(lambda: _play(name, rest), COMMANDS[name].resumes)


def _play(name: str, rest: Sequence[str]) -> int:
    make(name).read(rest)  # a refusal needs no JAX
    with Imports():
        startup.ready()
        module = import_module(COMMANDS[name].module)
    return module.main(rest)


def _without_command(name: str) -> int:
    if name in ("--help", "-h", "help"):
        show(help_text())
    elif name == "--version":
        show(version())
    else:
        said = f"{name} is no command" if name else "no command is given"
        meant = did_you_mean(name, COMMANDS)
        raise ConfigError(f"{said}: {f'{meant} It' if meant else 'it'} must be one of {', '.join(COMMANDS)}.")
    return 0


def help_text() -> str:
    """All commands, a line each."""
    lines = [f"usage: {program()} COMMAND [--help] ...", "", "Federated learning under backdoor attack, simulated.", ""]
    lines += [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    examples = [f"  {program()} {name} {COMMANDS[name].examples[0]}" for name in ("run", "compare", "list")]
    return "\n".join([*lines, "", "examples:", *examples])


if __name__ == "__main__":
    sys.exit(main())
