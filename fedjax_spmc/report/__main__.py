"""Turns run folders into one page and the papers' tables.

    python -m fedjax_spmc.report RUN_OR_SWEEP ... [--out=report] [--tables=NAME,...] [--details=N] [--data_dir=DIR]
                                 [--title=TEXT]

RUN_OR_SWEEP: run folders, sweep folders, or folders that hold any of these at any depth, also kept results without
models. Written are `index.html`, one page that needs no network, and `tables/*.csv`, `*.md`, `*.tex`. `--tables` shows
papers' tables whatever was run: spmc2, fdcr1, fdcr2, fdcr3, fdcr4. `--details` is how many runs get pictures of their
own (8). `--out` must be new, empty, or a report, which is replaced.
"""

import sys
from collections.abc import Sequence

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.run import guarded

USAGE = (
    "usage: python -m fedjax_spmc.report RUN_OR_SWEEP ... [--out=report] [--tables=NAME,...] [--details=N] "
    "[--data_dir=DIR] [--title=TEXT]"
)
FLAGS = ("--out", "--tables", "--details", "--data_dir", "--title")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    folders: list[str] = []
    flags = {"--out": "report", "--tables": "", "--details": "", "--data_dir": "", "--title": ""}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--help", "-h"):
            print(__doc__)
            return 0
        if not word.startswith("-"):
            folders.append(word)
            continue
        if name not in FLAGS:
            raise ConfigError(f"{word} is no flag of this command; {USAGE}.")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("-") else ""
        if not value:
            raise ConfigError(f"{name} needs a value; {USAGE}.")
        flags[name] = value
    if not folders:
        raise ConfigError(f"no folder is given; {USAGE}.")
    if flags["--details"] and not flags["--details"].isdigit():
        raise ConfigError(f"--details = {flags['--details']} is not allowed: it must be a whole number from 0.")

    from fedjax_spmc.report import page, published

    wanted = [name for name in flags["--tables"].split(",") if name]
    for name in wanted:
        if name not in published.LAYOUTS:
            known = ", ".join(published.LAYOUTS)
            raise ConfigError(f"--tables = {name} is not allowed: it must be one of {known}, joined by commas.")
    made = page.build(
        folders,
        flags["--out"],
        wanted,
        int(flags["--details"]) if flags["--details"] else page.DETAILS,
        flags["--data_dir"] or None,
        flags["--title"],
    )
    print(f"report: {made}   tables: {made.parent / 'tables'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
