"""The demo: averaging, SPMC and DnC under one attack, then what they say, a report, and what to type next.

    python -m fedjax_spmc demo [--workdir=runs/demo] [--config.FIELD=VALUE ...]

`configs/demo.py` says what is played. The same command goes on where it was stopped.
"""

import sys
from collections.abc import Sequence

from fedjax_spmc import commands
from fedjax_spmc.command import Flags, program, run_command
from fedjax_spmc.paths import expanded
from fedjax_spmc.startup import Imports
from fedjax_spmc.terminal import note, show

METHODS = {"fedavg": "plain averaging", "spmc": "SPMC (ICML 2025)", "dnc": "DnC (NDSS 2021)"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(commands.make("demo"), _demo, arguments)


def _demo(flags: Flags) -> int:
    with Imports():
        from fedjax_spmc import compare, devices, experiment
        from fedjax_spmc import config as configs
        from fedjax_spmc.config.files import read_config, use_compilation_cache
        from fedjax_spmc.report import page

    workdir = expanded(flags["workdir"], "--workdir")
    page.check_out(workdir / "report")
    made = {}
    for name in METHODS:
        config, _ = read_config(f"demo:{name}")
        configs.override(config, flags.overrides)
        made[name] = configs.resolve(config)
    use_compilation_cache(made["fedavg"])
    devices.use_cores(made["fedavg"].federation.devices)
    for number, (name, config) in enumerate(made.items(), 1):
        note(f"{number} of {len(made)}: {METHODS[name]}")
        experiment.run(config, workdir / name, stream=sys.stderr)
    folders = [str(workdir / name) for name in METHODS]
    title = "The demo: who holds the backdoor back?"
    written = page.build(folders, workdir / "report", details=len(folders), title=title)
    compare.main([*folders, f"--png={workdir / 'curves.png'}"])
    show(f"report: {written}")
    show(f"next: {program()} run --config=demo:krum --workdir={workdir / 'krum'}      # another method, same attack")
    return 0


if __name__ == "__main__":
    sys.exit(main())
