"""Paths as users write them: `~` is the home folder, or an error, and never a folder of that name."""

import os
from pathlib import Path

from fedjax_spmc.errors import UserError


class NoHomeError(UserError):
    """A path begins with `~`, and nothing says where that is."""


def expanded(path: str | os.PathLike[str], label: str) -> Path:
    """A path with the home folder in place of `~` or `~NAME`.

    Args:
        path: as it was given; a folder that is called so is `./~`.
        label: names it in the error: "workdir".

    Raises:
        NoHomeError: HOME is not set and the user has no entry of its own, or there is no user NAME.
    """
    given = os.fspath(path)
    found = os.path.expanduser(given)
    if found.startswith("~"):
        raise NoHomeError(
            f"{label} = {given!r} is not allowed: nothing says which folder {given.partition('/')[0]} is (HOME is not "
            "set, or there is no such user); it must be written in full."
        )
    return Path(found)
