"""Data sets: what there is and where, and preparing them.

    python -m fedjax_spmc.data list [--data_dir=DIR]
    python -m fedjax_spmc.data prepare NAME [--data_dir=DIR]      # downloads; needs TensorFlow

Exit codes: 0 done, 1 the download failed, 2 bad input (one sentence says what).
"""

import sys
from collections.abc import Sequence

from fedjax_spmc import commands
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.data.dataset import Source
from fedjax_spmc.data.prepare import DownloadError
from fedjax_spmc.errors import DataError
from fedjax_spmc.registry import datasets
from fedjax_spmc.startup import interrupts
from fedjax_spmc.terminal import note, show


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.make("data")
    return run_command(parser, lambda flags: _data(parser, flags), arguments)


def _data(parser: Parser, flags: Flags) -> int:
    data_dir = flags["data_dir"]
    match flags.positional:
        case ["list"]:
            width = max(map(len, datasets.names())) + 2
            for name in datasets.names():
                show(f"{name:{width}}{_where(datasets.make(name, data_dir=data_dir))}")
        case ["prepare", name]:
            datasets.factory(name, "NAME")
            interrupts(at_once=False)  # a download is tidied up
            try:
                show(datasets.make(name, data_dir=data_dir).prepare())
            except DownloadError as error:
                note(str(error))
                return 1
        case ["prepare"]:
            raise parser.refusal("prepare needs the NAME of a data set")
        case _:
            given = " ".join(flags.positional) or "nothing"
            raise parser.refusal(f"{given} is given, list or prepare NAME is needed")
    return 0


def _where(source: Source) -> str:
    try:
        return source.where()
    except DataError as error:
        return f"not usable: {error}"


if __name__ == "__main__":
    sys.exit(main())
