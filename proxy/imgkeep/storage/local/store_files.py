"""
The files of a local store: records, objects and marks of removals. All of it blocks, and runs in threads of the disk.

Rules:
- A body is durable before its record gets its name, so a record always has its object.
- Before a call replaces a record, it reads it: a tombstone, a record of a newer version, and the record of another
  image whose object is still there stay.
- Damaged files are moved to `damaged/`, out of every reader's way, and are never deleted.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from secrets import token_hex
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from imgkeep.core.confirmation import adopt
from imgkeep.core.errors import Conflict, Removed, WrittenByNewer
from imgkeep.core.layout import (
    RECORD_BYTES_MAX,
    REMOVED,
    RecordTooNew,
    RecordUnreadable,
    encode_record,
    object_path,
    read_block_keys,
    read_record,
    record_path,
)
from imgkeep.core.records import Tombstone
from imgkeep.storage.local import atomic_files, open_files, removal_marks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from mmap import mmap
    from pathlib import Path

    from imgkeep.core.records import Digest, Key, Record
    from imgkeep.storage.local.disk import Disk
    from imgkeep.storage.local.draft import LocalDraft

DAMAGED: Final = "damaged"

T = TypeVar("T")


class StoreFiles:
    """The files of the store on a disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._root = disk.root

    # --- records

    def find(self, path: str) -> Record | Tombstone | Literal["damaged"] | None:
        """Return the record or tombstone at a path; move a damaged record to quarantine."""
        try:
            descriptor = os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._disk.require_root()
            self._disk.expect_draft()
            return None
        try:
            data = open_files.read_all(descriptor, RECORD_BYTES_MAX)
        finally:
            os.close(descriptor)
        try:
            return read_record(data, path.rpartition("/")[2])
        except RecordTooNew as error:
            raise WrittenByNewer(f"the record was {error}") from None
        except RecordUnreadable:
            self.quarantine(self._root / path)
            return DAMAGED

    def read_records(self, paths: Sequence[str]) -> list[tuple[str, Record | Tombstone | RecordUnreadable]]:
        """Read records and tombstones; leave out those that were deleted meanwhile."""
        found: list[tuple[str, Record | Tombstone | RecordUnreadable]] = []
        for path in paths:
            try:
                found.append((path, read_record((self._root / path).read_bytes(), path.rpartition("/")[2])))
            except RecordUnreadable as error:
                found.append((path, error))
            except FileNotFoundError:
                continue
        return found

    def require_replaceable(self, path: Path, *replaceable: Digest | None) -> Record | None:
        """
        Return the record at a path, which may be replaced.

        Raises:
            Removed: A tombstone is there.
            WrittenByNewer: A newer version wrote it.
            Conflict: It is of another image than `replaceable`, and the object of that image is still there.
        """
        try:
            current = read_record(path.read_bytes(), path.name)
        except FileNotFoundError:
            return None
        except RecordTooNew as error:
            raise WrittenByNewer(f"the record was {error}") from None
        except RecordUnreadable:
            return None
        if isinstance(current, Tombstone):
            raise Removed(REMOVED)
        if replaceable and current.digest not in replaceable and self._object(current).exists():
            raise Conflict("another image was stored under this link meanwhile")
        return current

    def put(self, draft: LocalDraft, record: Record, replaces: Digest | None) -> Record:
        """Store a draft of this disk and its record; return the record that stands."""
        final = self._root / record_path(record.key)
        standing = self.require_replaceable(final, record.digest, replaces)
        draft.sync()
        if standing is not None and replaces is None:
            record = adopt(standing, record) or record
            if record == standing:
                atomic_files.publish(draft.path, self._object(record))
                return record
        # The record's bytes are on the disk before the body gets its name: a full disk is noticed with nothing done.
        partial = self._disk.partial_path()
        with atomic_files.durable_partial(partial, encode_record(record)):
            atomic_files.publish(draft.path, self._object(record))
            return self._publish_record(partial, final, record, replaces)

    def put_record(self, record: Record, replaces: Digest | None) -> None:
        """Store a record whose object is there already."""
        final = self._root / record_path(record.key)
        self.require_replaceable(final, record.digest, replaces)
        partial = self._disk.partial_path()
        with atomic_files.durable_partial(partial, encode_record(record)):
            # Never adopts what stands: the caller has read it, and changes it.
            self._publish_record(partial, final, record, replaces or record.digest)

    def delete_record(self, key: Key) -> None:
        """Delete a record, if there is one."""
        path = self._root / record_path(key)
        self.require_replaceable(path)
        try:
            path.unlink()
        except FileNotFoundError:
            return
        atomic_files.sync_folder(path.parent)

    def move_out(self, record: Record, to: Path | None) -> bool:
        """Delete a record, and move its object to `to` or delete it; `False`: another record is there, which stays."""
        if to is not None:
            to.parent.mkdir(parents=True, exist_ok=True)
        path = self._root / record_path(record.key)
        try:
            if read_record(path.read_bytes(), path.name) != replace(record, waits_at=None):
                return False
        except (FileNotFoundError, RecordUnreadable):
            pass
        # The record first: an object without one is only an orphan.
        atomic_files.remove(path)
        atomic_files.sync_folder(path.parent)
        if to is None:
            atomic_files.remove(self._object(record))
        else:
            with suppress(FileNotFoundError):  # a call for another record of the same bytes has moved it
                self._object(record).replace(to)
        return True

    def _publish_record(self, partial: Path, final: Path, record: Record, replaces: Digest | None) -> Record:
        """Give a record its name; return the record that stands."""
        if not atomic_files.publish_new(partial, final):
            standing = self.require_replaceable(final, record.digest, replaces)  # another process has stored one
            if standing is not None and replaces is None and adopt(standing, record) == standing:
                return standing
            atomic_files.publish(partial, final)
        return record

    # --- objects

    def put_object(self, draft: LocalDraft, name: str) -> None:
        """Store a draft of this disk as an object."""
        draft.sync()
        atomic_files.publish(draft.path, self._root / object_path(name))

    def holds(self, name: str, size: int) -> bool:
        """Tell whether an object is there and has this size."""
        try:
            return (self._root / object_path(name)).stat().st_size == size
        except FileNotFoundError:
            self._disk.require_root()
            return False

    def has_any(self, paths: Sequence[str]) -> bool:
        """Tell whether one of these files is there."""
        found = any((self._root / path).exists() for path in paths)
        if not found:
            self._disk.require_root()
        return found

    def check_object(self, path: str, check: Callable[[bytes | mmap], T]) -> tuple[Digest, T] | None:
        """Return the digest of an object and `check(all its bytes)`; `None`: it is not there."""
        try:
            descriptor = os.open(self._root / path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return open_files.check_all(descriptor, os.fstat(descriptor).st_size, check)
        finally:
            os.close(descriptor)

    def open_draft(self, name: str) -> LocalDraft | None:
        """Open an object as a draft that another store can take, damaged or not; `None`: it is not there."""
        return self._disk.open_as_draft(self._root / object_path(name))

    def open_verified_draft(self, name: str) -> LocalDraft | None:
        """Open an object as `open_draft`; a damaged one is moved to quarantine, and `None` returned."""
        opened = self.open_draft(name)
        if opened is None or opened.digest == name.partition(".")[0]:
            return opened
        opened.close()
        self.quarantine(opened.path)
        return None

    def _object(self, record: Record) -> Path:
        return self._root / object_path(record.object_name)

    # --- marks of removals

    def publish(self, path: str, data: bytes) -> None:
        """Write a file, whatever is at its path."""
        self._disk.require_root()
        partial = self._disk.partial_path()
        with atomic_files.durable_partial(partial, data):
            atomic_files.publish(partial, self._root / path)

    def find_block(self, path: str) -> frozenset[Key] | None:
        """Return the keys that a block names; `None`: there is no block."""
        try:
            return read_block_keys((self._root / path).read_bytes())
        except FileNotFoundError:
            self._disk.require_root()
            return None

    def delete_block(self, path: str) -> None:
        """Delete a block, if there is one."""
        full_path = self._root / path
        try:
            full_path.unlink()
        except FileNotFoundError:
            self._disk.require_root()
            return
        atomic_files.sync_folder(full_path.parent)

    def find_tombstone(self, key: Key) -> Tombstone | None:
        """Return the tombstone in the place of a record."""
        found = removal_marks.read_place(self._root / record_path(key))
        if found is None:
            self._disk.require_root()
        return found if isinstance(found, Tombstone) else None

    def delete_tombstone(self, tombstone: Tombstone) -> None:
        """Delete this very tombstone."""
        path = self._root / record_path(tombstone.key)
        if not removal_marks.delete_if(path, self._disk.partial_path(), lambda found: found == tombstone):
            self._disk.require_root()

    # --- every file

    def list_folder(self, folder: str) -> list[tuple[str, int]]:
        """Return path and size of every file in a folder, in path order."""
        try:
            paths = list((self._root / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []  # nothing was stored here yet, or this is no folder of ours
        found: list[tuple[str, int]] = []
        for path in paths:
            with suppress(FileNotFoundError):  # it was deleted meanwhile
                found.append((f"{folder}/{path.name}", path.stat().st_size))
        return sorted(found)

    def quarantine(self, path: Path) -> None:
        """Move a damaged file to `damaged/`."""
        folder = self._root / DAMAGED
        atomic_files.make_folder(folder)
        try:
            atomic_files.publish(path, folder / f"{path.name}.{token_hex(4)}")
        except FileNotFoundError:
            return  # another process was quicker
        atomic_files.sync_folder(path.parent)
