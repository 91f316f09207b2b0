"""Plays a sweep: flags only, everything else is in `engine.py`.

    python -m fedjax_spmc.sweep --config=CONFIG[:ARG] [--config.FIELD=VALUE ...] [--workdir=DIR] [--engine=local|ray]
    python -m fedjax_spmc.sweep --config=CONFIG[:ARG] --dry-run [--estimate]

Exit codes: 0 every cell finished, 1 a cell failed or diverged, 2 bad input (one sentence says what), 130 interrupted.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedjax_spmc import commands
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.startup import Imports
from fedjax_spmc.terminal import note, show

if TYPE_CHECKING:
    from fedjax_spmc.sweep.plan import Sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.make("sweep")
    return run_command(parser, lambda flags: _sweep(parser, flags), arguments)


def _sweep(parser: Parser, flags: Flags) -> int:
    if flags["config"] is None:
        raise ConfigError(
            f"--config is missing: {parser.examples[0]} is an example, `fedjax-spmc list configs` has all."
        )
    if flags["estimate"] and not flags["dry_run"]:
        raise ConfigError("--estimate needs --dry-run: it plays no cell.")
    with Imports():
        from fedjax_spmc import devices, numerics
        from fedjax_spmc import sweep as sweeps
        from fedjax_spmc.config.files import call_config, use_compilation_cache
        from fedjax_spmc.options import quoted
        from fedjax_spmc.sweep.plan import Sweep, as_sweep, expand

    content, label, _ = call_config(flags["config"])
    if hasattr(content, "items") and not isinstance(content, Sweep) and "federation" in content:
        text = flags["config"]
        raise ConfigError(
            f"--config = {quoted(text)} is not allowed: it is the config of one experiment: it must be played by "
            f"`fedjax-spmc run --config={text}`, or return Sweep(base=make_config(arg), seeds=(0, 1, 2))."
        )
    sweep = override(as_sweep(content), flags.overrides)
    cells = expand(sweep)
    if flags["dry_run"]:
        with Imports():
            from fedjax_spmc.sweep import describe

        if flags["estimate"]:
            use_compilation_cache(cells[0].config)
            devices.use_cores()
        with numerics.pinned():
            for line in describe.plan_lines(sweep, cells, flags["estimate"]):
                show(line)
        return 0
    use_compilation_cache(cells[0].config)
    devices.use_cores()
    workdir = flags["workdir"] or f"sweeps/{label}"
    rows = sweeps.run(sweep, workdir, stream=sys.stderr, engine=flags["engine"])
    ended = [row["status"] for row in rows]
    counts = ", ".join(f"{ended.count(status)} {status}" for status in dict.fromkeys(ended))
    show(f"{len(rows)} cells: {counts}. table: {workdir}/results.jsonl")
    return 0 if set(ended) == {"finished"} else 1


def override(sweep: "Sweep", overrides: Sequence[tuple[str, str]]) -> "Sweep":
    """The sweep around a base config with other fields.

    Raises:
        ConfigError: a field that is swept or that the methods of the grid set, an unknown field, a bad value.
    """
    from fedjax_spmc import config as configs
    from fedjax_spmc.sweep.plan import METHOD

    base = configs.editable_copy(sweep.base)
    for path, _ in overrides:
        set_by_method = METHOD in sweep.grid and path.startswith(("local.rule", "local.options.", "aggregator."))
        if path == "seed" or path in sweep.grid or set_by_method:
            swept = "seeds" if path == "seed" else METHOD if set_by_method else path
            raise ConfigError(
                f"--config.{path} is not allowed here: {swept} is swept, change it in the sweep's config."
            )
    for notice in configs.override(base, overrides):
        note(notice)
    return sweep._replace(base=base)


if __name__ == "__main__":
    sys.exit(main())
