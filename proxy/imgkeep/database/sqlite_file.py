"""
The SQLite file: its checks without a connection, the change of its old name, and the quarantine of a damaged file.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final

from imgkeep.database.schema_upgrade import COMPATIBLE_FROM_MARK, RELEASED, describe_mismatch, is_compatible_newer

if TYPE_CHECKING:
    from pathlib import Path

MAGIC: Final = b"SQLite format 3\0"
"""The first bytes of every such file (https://www.sqlite.org/fileformat.html, 1.3)."""
TIMEOUT_S: Final = 2
"""Timeout for the lock of another process."""
NAME: Final = "imgkeep.db"
OLD_NAME: Final = "catalog.db"
"""The default name before the first release."""


log = logging.getLogger(__name__)


def find_file(path: Path) -> Path:
    """Return the file of a database: under its old name where this alone is there. Blocks."""
    old = path.with_name(OLD_NAME)
    return old if path.name == NAME and not path.exists() and old.exists() else path


def take_over(path: Path) -> Path:
    """
    Rename the file that has the old name, and return the file to open. Blocks.

    A file that another process has open keeps its name, and so does one that cannot be renamed: it is used as it is.
    """
    old = find_file(path)
    if old == path:
        return path
    with suppress(OSError, sqlite3.Error), closing(_connect(old, "mode=rw")) as connection:
        # Only the last connection can leave WAL. That moves the last rows into the file, and removes its companions.
        if connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",):
            connection.execute("BEGIN EXCLUSIVE")
            old.rename(path)
            log.info("database file renamed", extra={"from": str(old), "to": str(path)})
    return find_file(path)


def find_fault(path: Path) -> str | None:
    """
    Return why a file cannot be a database of this version; `None`: it can, or is not there.

    Makes, changes and locks nothing. Blocks.
    """
    try:
        if path.is_dir():
            return "is a folder, not a file"
        with path.open("rb") as file:
            begin = file.read(len(MAGIC))
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not begin:
        return None  # like a new one
    if begin != MAGIC:
        return "is no SQLite database; a start would quarantine it as a damaged database"
    return _find_version_fault(path)


def quarantine(path: Path, now: int) -> None:
    """Rename a damaged file and its companions, which stay beside it. Blocks. Raises: OSError."""
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(path.with_name(f"{path.name}.damaged-{now}{suffix}"))


def _find_version_fault(path: Path) -> str | None:
    try:
        # A reader would make the two companions, where there is nothing to read in them.
        in_use = all(path.with_name(f"{path.name}{suffix}").exists() for suffix in ("-wal", "-shm"))
        with closing(_connect(path, "mode=ro" if in_use else "mode=ro&immutable=1")) as connection:
            (version,) = connection.execute("SELECT version_num FROM alembic_version").fetchone() or (None,)
            compatible_from = None
            with suppress(sqlite3.OperationalError):  # another program's file has no such table
                query = "SELECT value FROM state WHERE name = ?"
                (compatible_from,) = connection.execute(query, [COMPATIBLE_FROM_MARK]).fetchone() or (None,)
    except sqlite3.Error:
        return None  # damaged, locked or of another program: the start reports what it finds
    if version is None or version in RELEASED or is_compatible_newer(version, compatible_from):
        return None
    return describe_mismatch(version)


def _connect(path: Path, options: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=TIMEOUT_S, isolation_level=None)
