"""`python -m fedjax_spmc.data prepare NAME [--data_dir=DIR]` and `python -m fedjax_spmc.data list [--data_dir=DIR]`."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from fedjax_spmc.data.dataset import Source
from fedjax_spmc.data.prepare import DownloadError
from fedjax_spmc.errors import ConfigError, DataError, UserError
from fedjax_spmc.registry import datasets


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}; see `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m fedjax_spmc.data", description="Data sets: what there is, and preparing them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{prepare,list}")
    prepare = commands.add_parser("prepare", help="download a data set and write it as array_record (needs TensorFlow)")
    prepare.add_argument("name", metavar="NAME", help="a data set, such as cifar10")
    listing = commands.add_parser("list", help="the data sets and where each is found")
    for command in (prepare, listing):
        command.add_argument(
            "--data_dir",
            metavar="DIR",
            help="folder of prepared data sets (default: $TFDS_DATA_DIR, then ~/tensorflow_datasets)",
        )
    return parser


def _where(source: Source) -> str:
    try:
        return source.where()
    except DataError as error:
        return f"not usable: {error}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 the download failed, 2 the user can mend it."""
    try:
        args = _parser().parse_args(argv)
        if args.command == "list":
            for name in datasets.names():
                print(f"{name:14}{_where(datasets.make(name, data_dir=args.data_dir))}")
        else:
            datasets.factory(args.name, "NAME")
            print(datasets.make(args.name, data_dir=args.data_dir).prepare())
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except DownloadError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
