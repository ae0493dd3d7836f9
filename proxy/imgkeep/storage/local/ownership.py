"""
Whose a store is, so that no command leaves files there which the service cannot read.

Rules:
- New files are their maker's alone (umask 077). So who writes into a store must be the user who runs the service.
- The folders in a store tell its owner, because the service has made them; a volume's own folder may be root's, and
  writable for the service by its group.
- Before there are any, the folder tells, or the one that it would be made in. Only root is held to that: to others the
  system tells what they may do.
"""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

INSIDE: Final = ("v1", "partial", "api-token", "cache")
"""What a service makes in its folder at start."""


def find_owner(folder: Path, *others: Path) -> int | None:
    """
    Return the user id of a store's owner; `None`: there is no store yet. Blocks.

    Args:
        folder: The data folder.
        others: Files of the service elsewhere, as a database is.
    """
    for path in (*(folder / name for name in INSIDE), *others):
        with suppress(OSError):
            return path.lstat().st_uid
    nearest = _find_nearest(folder)
    if os.geteuid() == 0 or (nearest == folder and not os.access(folder, os.X_OK)):
        with suppress(OSError):
            return nearest.stat().st_uid
    return None


def _find_nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    return next((each for each in (folder, *folder.absolute().parents) if os.path.lexists(each)), folder)


def refusal(folder: Path, *others: Path, server_helps: bool) -> str | None:
    """
    Return why this user must not write into a store, and the remedy; `None`: it may. Blocks.

    Args:
        folder: The data folder.
        others: As of `find_owner`.
        server_helps: Whether the command could ask a running server instead.
    """
    owner = find_owner(folder, *others)
    if owner is None or owner == os.geteuid() or _gives_away(folder, owner):
        return None
    name = name_user(owner)
    remedy = f"run this as that user (sudo -u {name} imgkeep ...)"
    if server_helps:
        remedy += ", or let the running server do it (--server URL)"
    nearest = _find_nearest(folder)
    what = f"the store in {folder.absolute()}" if nearest == folder else f"the folder {nearest}"
    maker = name_user(os.geteuid())
    return f"{what} belongs to user {name}, whose service could not read what {maker} makes there: {remedy}"


def _gives_away(folder: Path, owner: int) -> bool:
    """Whether files that we make are the owner's all the same, as on network file systems that know one user."""
    with suppress(OSError), TemporaryFile(dir=_find_nearest(folder)) as file:
        return os.fstat(file.fileno()).st_uid == owner
    return False


def name_user(user: int) -> str:
    """Return the name of a user, or `#` and the number where it has none, as sudo reads it."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"#{user}"
