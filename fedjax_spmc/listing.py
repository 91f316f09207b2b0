"""Lists what a config can name: flags only, the text is made in `config/listing.py`.

python -m fedjax_spmc.listing [GROUP] [--plugins=NAME,...]
"""

import sys
from collections.abc import Sequence

from fedjax_spmc import commands
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.nearest import did_you_mean
from fedjax_spmc.startup import Imports
from fedjax_spmc.terminal import show


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.make("list")
    return run_command(parser, lambda flags: _list(parser, flags), arguments)


def _list(parser: Parser, flags: Flags) -> int:
    groups = flags.positional or ["all"]
    known = ("all", *commands.GROUPS)
    for group in groups:
        if group not in known:
            meant = did_you_mean(group, known)
            raise ConfigError(
                f"{group} is no group: {f'{meant} It' if meant else 'it'} must be one of {', '.join(known)}."
            )
    with Imports():
        from fedjax_spmc import registry
        from fedjax_spmc.config.listing import listing

    registry.load_plugins(flags["plugins"])
    show("\n\n".join(listing(group) for group in groups))
    return 0


if __name__ == "__main__":
    sys.exit(main())
