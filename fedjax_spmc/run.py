"""Runs one experiment: flags only, everything else is in `experiment.py`.

    python -m fedjax_spmc.run --config=FILE[:PRESETS] [--config.FIELD=VALUE ...] [--workdir=DIR]
    python -m fedjax_spmc.run --list

Exit codes: 0 finished, 2 bad input (one sentence says what), 3 training stopped being finite, 130 interrupted.
"""

import hashlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedjax_spmc import config as configs
from fedjax_spmc.errors import ConfigError, DivergedError, UserError
from fedjax_spmc.options import shown

USAGE = "usage: python -m fedjax_spmc.run --config=FILE[:PRESETS] [--config.FIELD=VALUE ...] [--workdir=DIR] | --list"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def guarded(command: Callable[[], int]) -> int:
    """Runs a command and turns what a user can cause into one sentence on standard error and an exit code."""
    try:
        return command()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except DivergedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last finished chunk.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename} cannot be read or written" if error.filename else "a file cannot be read or written"
        print(f"error: {where} ({error.strerror or error}).", file=sys.stderr)
        return 2


def _main(arguments: list[str]) -> int:
    flags = parse(arguments)
    if flags.help:
        print(f"{__doc__}")
        return 0
    if flags.list:
        from fedjax_spmc.listing import listing

        print(listing())
        return 0
    config, label = read_config(flags.config)
    for notice in configs.override(config, flags.overrides):
        print(notice, file=sys.stderr)
    config = configs.resolve(config)
    workdir = Path(flags.workdir or f"runs/{label}-{short_hash(config)}")
    use_compilation_cache(config)

    from fedjax_spmc import devices, experiment

    devices.use_cores(config.federation.devices)

    experiment.run(config, workdir, stream=sys.stderr)
    print(summary_text(workdir))
    return 0


class Flags:
    """The parsed command line: config (FILE[:PRESETS]), overrides (path, text), workdir, list, help."""

    def __init__(self) -> None:
        self.config = ""
        self.overrides: list[tuple[str, str]] = []
        self.workdir: str | None = None
        self.list = False
        self.help = False


def parse(arguments: Sequence[str]) -> Flags:
    """Reads the flags; `--flag value` is taken like `--flag=value`.

    Raises:
        ConfigError: an unknown flag, a flag without a value, or no config.
    """
    flags = Flags()
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--list", "--help", "-h"):
            flags.list = flags.list or name == "--list"
            flags.help = flags.help or name != "--list"
            continue
        if name not in ("--config", "--workdir") and not name.startswith("--config."):
            raise ConfigError(f"{word} is no flag of this command; {USAGE}.")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{name} needs a value; {USAGE}.")
            value = rest.pop(0)
        if not value and name in ("--config", "--workdir"):
            raise ConfigError(f"{name} needs a value; {USAGE}.")
        if name == "--config":
            flags.config = value
        elif name == "--workdir":
            flags.workdir = value
        else:
            flags.overrides.append((name.removeprefix("--config."), value))
    if not flags.config and not (flags.list or flags.help):
        raise ConfigError(f"--config is missing; {USAGE}.")
    return flags


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
            f"--config = {str(path)!r} is not allowed: its get_config returns {shown(config)} and must return a "
            "ConfigDict."
        )
    return configs.loosened(config), label


def call_config(text: str) -> tuple[Any, str, Path]:
    """What the `get_config(presets)` of `FILE[:PRESETS]` returns, a label for the folder, and the file.

    Raises:
        ConfigError: no such file, or it fails.
    """
    file, colon, presets = text.partition(".py:")
    path = Path(file + ".py" if colon else text)
    if not os.path.isfile(path):  # Path.is_file raises where the name is too long
        beside = sorted(str(one) for one in path.parent.glob("*.py")) if os.path.isdir(path.parent) else []
        known = f"beside it are {', '.join(beside)}" if beside else "see configs/"
        raise ConfigError(f"--config = {shown(str(path))} is not allowed: it must be a config file; {known}.")
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
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise ConfigError(f"--config = {str(path)!r} fails with {reason}.") from None
    words = [word.strip() for word in presets.split(",") if word.strip()]
    return config, "-".join([path.stem, *words]), path


def short_hash(config: configs.Config) -> str:
    """Names a config's default run folder: eight hex digits over the fields that touch the numbers."""
    flat = {path: value for path, value in configs.flatten(config).items() if path not in configs.FREE_FIELDS}
    return hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()[:8]


def use_compilation_cache(config: Any) -> None:
    """Keeps compiled programs on disk, so that a second start is faster."""
    import jax

    from fedjax_spmc.data import cache

    folder = cache.root(config.data.cache_dir) / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # then every start compiles
        return
    # A damaged entry is compiled anew; that is no news.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def summary_text(workdir: Path) -> str:
    """What is printed at the end: the summary as a small table, and where everything is."""
    from fedjax_spmc.metrics import PRINTED

    summary = json.loads((workdir / "summary.json").read_text())
    lines = ["  ".join(["percent            ", *[f"{name:>7}" for name in PRINTED]])]
    for title, suffix in (("mean of last five", ""), ("last round", "_last")):
        values = [summary[name + suffix] for name in PRINTED]
        cells = [f"{'-':>7}" if value is None else f"{value:7.2f}" for value in values]
        lines.append("  ".join([f"{title:<19}", *cells]))
    note = f" (data: {summary['data_note']})" if summary["data_note"] else ""
    mark = " ORACLE: the aggregator was told who is malicious." if summary["oracle"] else ""
    lines.append(f"{summary['status']} after {summary['rounds']} rounds{note}.{mark}")
    lines.append(f"run folder: {workdir}   curves: {workdir / 'curves.png'}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
