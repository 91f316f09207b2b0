"""Puts finished runs side by side: a table of A, ASR, R, V and a picture of the curves.

python -m fedjax_spmc.compare WORKDIR ... [--png=FILE]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from fedjax_spmc.config import method_title
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.run import guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    usage = "usage: python -m fedjax_spmc.compare WORKDIR ... [--png=FILE]"
    folders = [word for word in arguments if not word.startswith("-")]
    flags = {word.partition("=")[0]: word.partition("=")[2] for word in arguments if word.startswith("-")}
    if {"--help", "-h"} & flags.keys():
        print(__doc__)
        return 0
    for flag, value in flags.items():
        if flag != "--png" or not value:
            raise ConfigError(f"{flag} is no flag of this command or lacks its value; {usage}.")
    if not folders:
        raise ConfigError(f"no run folder is given; {usage}.")

    from fedjax_spmc import experiment, metrics, plots

    results = {folder: experiment.load(folder) for folder in folders}
    print("mean of the last five evaluated rounds, percent")
    width = max(len(method_title(result.config)) for result in results.values())
    print("  ".join(["method".ljust(width), *[f"{name:>7}" for name in metrics.PRINTED], "rounds  run folder"]))
    for folder, result in results.items():
        summary = metrics.summarise(result.history)
        cells = [f"{'-':>7}" if summary[name] is None else f"{summary[name]:7.2f}" for name in metrics.PRINTED]
        print("  ".join([method_title(result.config).ljust(width), *cells, f"{len(result.history):>6}  {folder}"]))
    if "--png" in flags:
        titles = [method_title(result.config) for result in results.values()]
        named = [
            title if titles.count(title) == 1 else f"{title}\n{folder}"
            for title, folder in zip(titles, results, strict=True)
        ]
        histories = [result.history for result in results.values()]
        plots.curves(dict(zip(named, histories, strict=True)), Path(flags["--png"]))
        print(f"curves: {flags['--png']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
