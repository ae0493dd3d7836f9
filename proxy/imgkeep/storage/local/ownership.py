"""
The owner of a store, so that no command leaves files there which the service cannot read.

Rules:
- Only its owner can read a new file (umask 077). So the user who writes into a store must be the one who runs the
  service.
- The folders in a store give its owner, because the service has made them; a volume's own folder may belong to root,
  and be writable for the service by its group.
- Before these folders exist, the data folder gives the owner, or its nearest parent. That counts for root alone: the
  system tells other users what they may do.
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
"""Names that a service creates in its folder at start."""


def find_owner(folder: Path, *others: Path) -> int | None:
    """
    Return the user id of a store's owner; `None`: there is no store yet. Blocks.

    Args:
        folder: The data folder.
        others: Files of the service elsewhere, such as the database.
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
    """Return the folder, or its nearest parent that exists."""
    return next((each for each in (folder, *folder.absolute().parents) if os.path.lexists(each)), folder)


def refusal(folder: Path, *others: Path, server_helps: bool) -> str | None:
    """
    Return why this user must not write into a store, and the remedy; `None`: the user may. Blocks.

    Args:
        folder: The data folder.
        others: As for `find_owner`.
        server_helps: Whether the command could ask a running server instead.
    """
    owner = find_owner(folder, *others)
    if owner is None or owner == os.geteuid() or _maps_users(folder, owner):
        return None
    name = name_user(owner)
    remedy = f"run this as that user (sudo -u {name} imgkeep ...)"
    if server_helps:
        remedy += ", or let the running server do it (--server URL)"
    nearest = _find_nearest(folder)
    subject = f"the store in {folder.absolute()}" if nearest == folder else f"the folder {nearest}"
    user = name_user(os.geteuid())
    return f"{subject} belongs to user {name}, whose service could not read what {user} makes there: {remedy}"


def _maps_users(folder: Path, owner: int) -> bool:
    """Tell whether files of this process belong to the owner anyway, as on network file systems that know one user."""
    with suppress(OSError), TemporaryFile(dir=_find_nearest(folder)) as file:
        return os.fstat(file.fileno()).st_uid == owner
    return False


def name_user(user: int) -> str:
    """Return the name of a user, or `#` and the number where it has none, as sudo reads it."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"#{user}"
