"""Turns run folders into one page and the papers' tables.

    python -m fedjax_spmc.report RUN_OR_SWEEP ... [--out=report] [--tables=NAME,...] [--columns=NAME,...]
                                 [--spread=KIND] [--details=N] [--data_dir=DIR] [--title=TEXT]

RUN_OR_SWEEP: run folders, sweep folders, or folders that hold any of these at any depth, also kept results without
models. Written are `index.html`, one page that needs no network, and `tables/*.csv`, `*.md`, `*.tex`. `--tables` shows
papers' tables whatever was run: spmc2, fdcr1, fdcr2, fdcr3, fdcr4. `--columns` keeps these columns of the tables that
have any of them, `--spread` says what stands beside a mean, interval or std. `--details` is how many runs get pictures
of their own (8). `--out` must be new, empty, or a report, which is replaced.
"""

import sys
from collections.abc import Sequence

from fedjax_spmc import commands
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.startup import Imports
from fedjax_spmc.terminal import show


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.make("report")
    return run_command(parser, lambda flags: _report(parser, flags), arguments)


def _report(parser: Parser, flags: Flags) -> int:
    if not flags.positional:
        raise parser.refusal("no folder is given")

    with Imports():
        from fedjax_spmc.report import page, published

    for name in flags["tables"]:
        if name not in published.LAYOUTS:
            known = ", ".join(published.LAYOUTS)
            raise parser.refusal(f"--tables = {name} is not allowed: it must be one of {known}, joined by commas")
    made = page.build(
        flags.positional,
        flags["out"],
        flags["tables"],
        flags["details"],
        flags["data_dir"],
        flags["title"] or "",
        flags["columns"],
        flags["spread"],
    )
    show(f"report: {made}   tables: {made.parent / 'tables'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
