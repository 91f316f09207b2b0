"""Plays a sweep: flags only, everything else is in `engine.py`.

    python -m fedjax_spmc.sweep --config=FILE[:ARG] [--config.FIELD=VALUE ...] [--workdir=DIR] [--engine=local|ray]
    python -m fedjax_spmc.sweep --config=FILE[:ARG] --dry-run [--estimate]

Exit codes: 0 every cell finished, 1 a cell failed or diverged, 2 bad input (one sentence says what), 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from fedjax_spmc import config as configs
from fedjax_spmc import devices
from fedjax_spmc import run as single
from fedjax_spmc import sweep as sweeps
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.sweep.plan import METHOD, Sweep, as_sweep, expand

USAGE = (
    "usage: python -m fedjax_spmc.sweep --config=FILE[:ARG] [--config.FIELD=VALUE ...] [--workdir=DIR] "
    "[--engine=local|ray] [--dry-run [--estimate]]"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; {USAGE}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return single.guarded(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    flags, overrides = parse(arguments)
    if flags.help:
        print(__doc__)
        return 0
    content, label, _ = single.call_config(flags.config)
    sweep = override(as_sweep(content), overrides)
    cells = expand(sweep)
    if flags.dry_run:
        from fedjax_spmc.sweep import describe

        if flags.estimate:
            single.use_compilation_cache(cells[0].config)
            devices.use_cores()
        for line in describe.plan(sweep, cells, flags.estimate):
            print(line, flush=True)
        return 0
    single.use_compilation_cache(cells[0].config)
    devices.use_cores()
    workdir = flags.workdir or f"sweeps/{label}"
    rows = sweeps.run(sweep, workdir, stream=sys.stderr, engine=flags.engine)
    ended = [row["status"] for row in rows]
    counts = ", ".join(f"{ended.count(status)} {status}" for status in dict.fromkeys(ended))
    print(f"{len(rows)} cells: {counts}. table: {workdir}/results.jsonl")
    return 0 if set(ended) == {"finished"} else 1


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The flags, and the overrides of the base config as (field, text).

    Raises:
        ConfigError: an unknown flag, a flag without a value, or no config.
    """
    parser = _Parser(prog="fedjax_spmc.sweep", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--workdir")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    for switch in ("--dry-run", "--estimate", "--help"):
        parser.add_argument(switch, action="store_true")
    flags, rest = parser.parse_known_args(list(arguments))
    overrides = []
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--config."):
            raise ConfigError(f"{word} is no flag of this command; {USAGE}.")
        if not equals:
            if not rest:
                raise ConfigError(f"{name} needs a value; {USAGE}.")
            value = rest.pop(0)
        overrides.append((name.removeprefix("--config."), value))
    if not flags.config and not flags.help:
        raise ConfigError(f"--config is missing; {USAGE}.")
    if flags.workdir == "":
        raise ConfigError(f"--workdir needs a value; {USAGE}.")
    if flags.estimate and not flags.dry_run:
        raise ConfigError("--estimate needs --dry-run: it plays no cell.")
    return flags, overrides


def override(sweep: Sweep, overrides: Sequence[tuple[str, str]]) -> Sweep:
    """The sweep around a base config with other fields.

    Raises:
        ConfigError: a field that is swept or that the methods of the grid set, an unknown field, a bad value.
    """
    base = configs.loosened(sweep.base)
    for path, _ in overrides:
        of_method = METHOD in sweep.grid and path.startswith(("local.rule", "local.options.", "aggregator."))
        if path == "seed" or path in sweep.grid or of_method:
            swept = "seeds" if path == "seed" else METHOD if of_method else path
            raise ConfigError(
                f"--config.{path} is not allowed here: {swept} is swept, change it in the sweep's config."
            )
    for notice in configs.override(base, overrides):
        print(notice, file=sys.stderr)
    return sweep._replace(base=base)


if __name__ == "__main__":
    sys.exit(main())
