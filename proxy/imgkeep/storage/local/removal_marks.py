"""
Marks of removals in a local store, and the deletion of a file that may have been replaced meanwhile. It blocks.

POSIX deletes by name and not by content. So a file is first moved to a partial name, where no other process writes, and
only then examined:

1. A reads a tombstone and decides to delete it. B, another process, deletes it too, and a fill puts a record there.
2. A moves the file away, reads it, and sees a record instead of the tombstone.
3. A puts it back. If another file had taken the place meanwhile, a tombstone would replace it, and a record would not:
   the newer file stays, and no removal is lost.

A crash between 2 and 3 loses a record and no object; the next request brings the record back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.core.errors import WrittenByNewer
from imgkeep.core.layout import RecordTooNew, RecordUnreadable, read_record
from imgkeep.core.records import Tombstone
from imgkeep.storage.local import atomic_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgkeep.core.records import Record


def read_place(path: Path, name: str | None = None) -> Record | Tombstone | None:
    """
    Return the record or tombstone at a path; `None`: there is none, or it is unreadable.

    Raises:
        WrittenByNewer: A newer version wrote it.
    """
    try:
        return read_record(path.read_bytes(), name or path.name)
    except RecordTooNew as error:
        raise WrittenByNewer(f"the record was {error}") from None
    except (FileNotFoundError, RecordUnreadable):
        return None


def delete_if(path: Path, partial: Path, wanted: Callable[[Record | Tombstone], bool]) -> bool:
    """Delete the record or tombstone at `path` if it is `wanted`, durably, by way of `partial`; tell whether it was."""
    found = read_place(path)
    if found is None or not wanted(found):
        return False
    try:
        path.rename(partial)
    except FileNotFoundError:
        return False
    try:
        found = read_place(partial, path.name)
        if found is None or not wanted(found):
            if not atomic_files.publish_new(partial, path) and isinstance(found, Tombstone):
                atomic_files.publish(partial, path)
            return False
    finally:
        atomic_files.remove(partial)
    atomic_files.sync_folder(path.parent)
    return True
