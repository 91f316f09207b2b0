"""Numerics against the public references.

    python -m fedjax_spmc.parity [--golden=DIR] [--json]

DIR holds golden vectors (default: `golden` in FEDJAX_SPMC_SHARED, else in ../shared). Exit codes: 0 all that ran
passed, 1 a check failed or none ran, 2 bad input.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.parity.walker import exit_code, table, to_json, walk
from fedjax_spmc.run import guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    usage = "usage: python -m fedjax_spmc.parity [--golden=DIR] [--json]"
    golden = Path(os.environ.get("FEDJAX_SPMC_SHARED", "../shared")) / "golden"
    as_json = False
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name == "--json":
            as_json = True
        elif name in ("--help", "-h"):
            print(__doc__)
            return 0
        elif name == "--golden" and (equals or rest):
            golden = Path(value if equals else rest.pop(0))
        else:
            raise ConfigError(f"{name} is no flag of this command or lacks its value; {usage}.")
    if not golden.is_dir():
        raise ConfigError(f"--golden = {str(golden)!r} is not allowed: it must be a folder of golden vectors (*.npz).")
    outcomes = walk(golden)
    print(to_json(outcomes) if as_json else table(outcomes))
    return exit_code(outcomes)


if __name__ == "__main__":
    sys.exit(main())
