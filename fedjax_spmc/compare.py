"""Puts finished runs side by side: a table of A, ASR, R, V and a picture of the curves.

python -m fedjax_spmc.compare WORKDIR ... [--png=FILE]

A picture holds 24 runs; of more folders it shows the first.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_spmc import commands
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import quoted
from fedjax_spmc.paths import file_to_write
from fedjax_spmc.startup import Imports
from fedjax_spmc.terminal import show

LONGEST_NAME = 48
"""Characters of a folder's name over a panel."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.make("compare")
    return run_command(parser, lambda flags: _compare(parser, flags), arguments)


def _compare(parser: Parser, flags: Flags) -> int:
    if not flags.positional:
        raise parser.refusal("no run folder is given")
    png = None if flags["png"] is None else file_to_write(flags["png"], "--png")
    if png is not None and png.suffix.lower() != ".png":
        raise ConfigError(f"--png = {quoted(str(png))} is not allowed: it must be a file name that ends in .png.")

    with Imports():
        from fedjax_spmc import experiment, metrics, registry
        from fedjax_spmc.config import flatten, method_title, run_title
        from fedjax_spmc.record import plots, remarks
        from fedjax_spmc.record.judgement import judgement, timing
        from fedjax_spmc.report.settings import MARKS
        from fedjax_spmc.setup import is_oracle

    registry.load_plugins(flags["plugins"])
    results = {folder: experiment.load(folder) for folder in flags.positional}
    noted = {folder: remarks.of_folder(folder, result.config, result.history) for folder, result in results.items()}
    show("mean of the last five evaluated rounds, or of as many as there are (mean of), percent")
    width = max(len(method_title(result.config)) for result in results.values())
    heads = [*[f"{name:>7}" for name in metrics.PRINTED], "rounds", "mean of", "notes", "run folder"]
    show("  ".join(["method".ljust(width), *heads]))
    for folder, result in results.items():
        summary = metrics.summarise(result.history)
        cells = [f"{'-':>7}" if summary[name] is None else f"{summary[name]:7.2f}" for name in metrics.PRINTED]
        letters = "o" * is_oracle(result.config) + "".join(remark.letter for remark in noted[folder])
        played = result.history[-1]["round"] + 1 if result.history else 0
        cells += [f"{played:>6}", f"{summary['mean_of']:>7}", f"{letters:<5}", folder]
        show("  ".join([method_title(result.config).ljust(width), *cells]))
    for folder, result in results.items():
        if result.config.evaluation.confidence > 0:
            confidence = result.config.evaluation.confidence
            show(f"   {folder}: evaluation.confidence = {confidence}, predictions below are rejected.")
        if is_oracle(result.config):
            show(f"o  {folder}: {MARKS['o']}.")
        for remark in noted[folder]:
            show(f"{remark.letter}  {folder}: {remark.sentence}")
    averaging = _averaging(results)
    for folder, result in results.items():
        name = method_title(result.config)
        name = name if [method_title(one.config) for one in results.values()].count(name) == 1 else folder
        numbers = metrics.summarise(result.history)
        when = timing(flatten(result.config), [line["round"] for line in result.history])
        show(f"{name}: {judgement(numbers['A'], numbers['ASR'], noted[folder], averaging[folder], when)}")
    if png is not None:
        titles = [run_title(result.config) for result in results.values()]
        named = [
            title if titles.count(title) == 1 else f"{title}\n{_end_of(folder)}"
            for title, folder in zip(titles, results, strict=True)
        ]
        histories = [result.history for result in results.values()]
        plots.curves(dict(zip(named, histories, strict=True)), png)
        most = plots.MAX_PANELS
        show(f"curves: {png}" + (f" (the first {most} of {len(results)} runs)" if len(results) > most else ""))
    return 0


def _averaging(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Folder -> A of plain averaging, of runs beside one that differs in nothing but the method."""
    from fedjax_spmc import config as configs
    from fedjax_spmc import metrics
    from fedjax_spmc.record.judgement import averaging_beside

    def conditions(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {path: flat[path] for path in configs.result_fields(flat) if not configs.belongs_to_method(path)}

    flat = {folder: configs.flatten(result.config) for folder, result in results.items()}
    known = {folder: conditions(fields) for folder, fields in flat.items()}
    accuracy = {folder: metrics.summarise(result.history)["A"] for folder, result in results.items()}
    plain = [folder for folder in results if configs.is_averaging(flat[folder])]
    return {
        folder: averaging_beside(
            [(flat[other], accuracy[other]) for other in plain if other != folder and known[other] == known[folder]]
        )
        for folder in results
    }


def _end_of(folder: str) -> str:
    """As much of the end of a folder's name as fits over a panel."""
    return folder if len(folder) <= LONGEST_NAME else f"...{folder[3 - LONGEST_NAME :]}"


if __name__ == "__main__":
    sys.exit(main())
