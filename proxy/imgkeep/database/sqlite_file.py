"""
What can be told of a SQLite file without opening the database: nothing is made, changed or locked.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

from imgkeep.database.schema import KNOWN

if TYPE_CHECKING:
    from pathlib import Path

MAGIC: Final = b"SQLite format 3\0"
"""How every such file begins (https://www.sqlite.org/fileformat.html, 1.3)."""
TIMEOUT_S: Final = 2


def find_fault(path: Path) -> str | None:
    """Return why a file can be no database of this version; `None`: it can, or is not there. Blocks."""
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
        return None  # as one that is new
    if begin != MAGIC:
        return "is no SQLite database; a start would move it out of the way as a damaged database"
    return _find_version_fault(path)


def _find_version_fault(path: Path) -> str | None:
    try:
        # A reader would make the two files beside it, where there is nothing to read in them.
        in_use = all(path.with_name(f"{path.name}{suffix}").exists() for suffix in ("-wal", "-shm"))
        uri = f"{path.absolute().as_uri()}?mode=ro{'' if in_use else '&immutable=1'}"
        with closing(sqlite3.connect(uri, uri=True, timeout=TIMEOUT_S)) as connection:
            version = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return None  # damaged, locked or of another program: what a start makes of it is told then
    if version is None or version[0] in KNOWN:
        return None
    return f"was written by a newer version of imgkeep (schema {version[0]}), or is no database"
