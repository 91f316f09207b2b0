"""Paths as users write them: `~` is the home folder, or an error, and never a folder of that name."""

import os
from pathlib import Path

from fedjax_spmc.errors import ConfigError, UserError


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


def file_to_write(path: str | os.PathLike[str], label: str) -> Path:
    """A path, `expanded`, that a command writes at its end, looked at before the work begins.

    Raises:
        NoHomeError: as `expanded`.
        ConfigError: it is a folder, its folder is not there, or one of them may not be written.
    """
    found = expanded(path, label)
    if os.path.isdir(found):
        reason = "it is a folder"
    elif not os.path.isdir(found.parent):
        reason = f"{found.parent} is no folder"
    else:
        reason = "" if os.access(found if os.path.exists(found) else found.parent, os.W_OK) else "it may not be written"
    if reason:
        raise ConfigError(f"{label} = {str(found)!r} is not allowed ({reason}): it must be a file that you may write.")
    return found


def closed_to_writing(path: Path) -> str:
    """Why files cannot be made in a folder, which need not be there yet; "" where they can."""
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not os.path.isdir(there):
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK) else f"{there} may not be written"


def folder_to_write(path: str | os.PathLike[str], label: str) -> Path:
    """A path, `expanded`, of a folder that a command writes at its end, looked at before the work begins.

    Raises:
        NoHomeError: as `expanded`.
        ConfigError: it is, or is in, no folder that may be written.
    """
    found = expanded(path, label)
    reason = closed_to_writing(found)
    if reason:
        must = "it must be a folder that you may write"
        raise ConfigError(f"{label} = {str(found)!r} is not allowed ({reason}): {must}.")
    return found
