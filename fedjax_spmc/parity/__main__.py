"""Numerics against the public references.

    python -m fedjax_spmc.parity [--golden=DIR] [--torch] [--reference=DIR] [--json]

--golden=DIR     recorded outputs of the authors' code (*.npz). The default when no other flag is given: `golden` in the
                 folder FEDJAX_SPMC_SHARED, else in ../shared.
--torch          plain torch loops of this repository beside the simulator: rounds of averaging and of SPMC.
--reference=DIR  your own clone of the authors' repository (WenddHe0119/SPMC): its server rules and aligned training,
                 imported at run time.

What is being compared is said on standard error.

Exit codes: 0 all that ran passed, 1 a check failed or none ran, 2 bad input.
"""

import os
import sys
from collections.abc import Sequence

from fedjax_spmc import commands
from fedjax_spmc.command import Flags, run_command
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.paths import expanded
from fedjax_spmc.startup import Imports
from fedjax_spmc.terminal import note, show


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(commands.make("parity"), _parity, arguments)


def _parity(flags: Flags) -> int:
    with Imports():
        from fedjax_spmc import numerics

    with numerics.pinned():
        return _compared(flags)


def _compared(flags: Flags) -> int:
    with Imports():
        from fedjax_spmc.parity.comparison import Outcome, exit_code, table, to_json
        from fedjax_spmc.parity.walker import walk

    golden, clone = (
        None if flags[name] is None else expanded(flags[name], f"--{name}") for name in ("golden", "reference")
    )
    if golden is None and not flags["torch"] and clone is None:
        golden = expanded(os.environ.get("FEDJAX_SPMC_SHARED", "../shared"), "FEDJAX_SPMC_SHARED") / "golden"
    outcomes: list[Outcome] = []
    if golden is not None:
        if not golden.is_dir():
            raise ConfigError(
                f"--golden = {str(golden)!r} is not allowed: it must be a folder of golden vectors (*.npz)."
            )
        outcomes += walk(golden, note)
    if flags["torch"]:
        from fedjax_spmc.parity.torch_rounds import against_torch

        outcomes += against_torch(note)
    if clone is not None:
        from fedjax_spmc.parity.clone import against_clone

        outcomes += against_clone(clone, note)
    show(to_json(outcomes) if flags["json"] else table(outcomes))
    return exit_code(outcomes)


if __name__ == "__main__":
    sys.exit(main())
