"""
The local store: a folder with the stored layout, and a `partial` folder beside it where drafts grow.

Rules:
- All file work runs in threads of the store's own, so neither a slow disk nor a slow name server holds up the other.
- A file that is not there is a miss under a root that is in place; under a root that is gone it is a fault.
- What is found damaged is moved to `damaged/`, out of every reader's way, and never thrown away.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from secrets import token_hex
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from imgkeep.config import absolute
from imgkeep.core.errors import Conflict, Removed, StorageError, WrittenByNewer
from imgkeep.core.layout import (
    OBJECTS,
    RECORD_BYTES_MAX,
    RECORDS,
    REFUSED,
    REMOVED,
    RecordTooNew,
    RecordUnreadable,
    encode_record,
    encode_refusal,
    encode_tombstone,
    object_names,
    object_path,
    read_record,
    read_refusal_keys,
    read_refusal_path,
    record_path,
    refusal_path,
)
from imgkeep.core.records import Digest, Tombstone
from imgkeep.storage.local import atomic_files as files
from imgkeep.storage.local import draft as disk
from imgkeep.storage.local import removal_marks as marks
from imgkeep.storage.local.draft import LocalBody, LocalDraft
from imgkeep.storage.local.executor import TIMEOUT_S, DiskExecutor
from imgkeep.storage.local.group_commit import GroupCommit
from imgkeep.storage.local.memory_cache import SMALL_BYTES_MAX, CacheEntry, MemoryCache
from imgkeep.storage.local.page_cache import PageCacheReader
from imgkeep.storage.memory import MemoryBody

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
    from datetime import datetime
    from mmap import mmap
    from pathlib import Path

    from imgkeep.core.records import Key, Record
    from imgkeep.storage.interfaces import Body, Draft, Spool

PARTIAL: Final = "partial"
DAMAGED: Final = "damaged"

HASHED_BYTES_MAX: Final = 1_048_576
"""A larger object takes too long to be hashed at every opening: its size has to do."""

ROOM_S: Final = 1
"""So long a look for room on the disk is believed. Who looks for a record in vain looks for room as well."""

DAMAGED_RECORD: Final = "damaged"

_PART: Final = re.compile("[0-9a-f]{2}")

T = TypeVar("T")


async def _remember_nothing(_key: Key) -> None:
    """Know of no record."""


class LocalStore:
    """A store in a folder, `root`. Implements `ListableStore`."""

    name = "local"
    local_drafts_only = True

    def __init__(
        self,
        root: Path,
        *,
        hot_bytes_max: int = 0,
        free_bytes_min: int = 0,
        timeout_s: float = TIMEOUT_S,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root
        self._root = str(root)
        self._timer = timer
        self._free_bytes_min = free_bytes_min
        self._partial_folder = root / PARTIAL
        self._cached_files = PageCacheReader(root)
        self.memory_cache = MemoryCache(hot_bytes_max, self._cached_files, self.run)
        self.place = f"folder {absolute(root)}"
        self._threads = DiskExecutor(timeout_s=timeout_s, place=self.place)
        self._commits = GroupCommit(root, self.run, self._insist_on_ours)
        self.remember: Callable[[Key], Awaitable[Record | None]] = _remember_nothing
        """Is asked what a damaged record said."""
        self._device: int | None = None
        self._room = 0
        """Bytes that new drafts may take, as seen at `_room_seen_at`."""
        self._room_seen_at = -math.inf

    async def open(self) -> None:
        """
        Lay out the root and sweep drafts that a crash left behind.

        Raises:
            StorageError: The folder can be neither made nor used.
        """
        await self.run(self._lay_out)
        await self.run(self._cached_files.open)
        await self.run(self._commits.open)
        await self.run(files.sweep, self.root / PARTIAL)

    async def aclose(self) -> None:
        self._threads.close()

    async def check(self) -> int:
        """
        Write, read and remove a probe; return the bytes that are free.

        Raises:
            StorageError: Something of that does not work.
        """
        return await self.run(self._probe)

    async def find(self, key: Key) -> Record | None:
        found = await self._threads.run_batched(self._find, record_path(key))
        if found == DAMAGED_RECORD:
            return await self.remember(key)
        if isinstance(found, Tombstone):
            raise Removed(REMOVED)
        return found

    async def fetch(self, name: str, size: int | None) -> Body | None:
        return await self.fetch_at(object_path(name), name, size)

    async def holds(self, name: str, size: int) -> bool:
        return await self._threads.run_batched(self._holds, self.root / object_path(name), size)

    async def fetch_at(self, path: str, name: str, size: int | None, *, is_copy: bool = False) -> Body | None:
        """Open the object `name` that lies at `path` under the root; damage is set aside, that of a copy removed."""
        held = self.memory_cache.find(path)
        if held is not None and isinstance(held.data, bytes | bytearray):
            return MemoryBody(held.data, held)
        forgotten = self.memory_cache.forgotten
        body = await self.run(self._open, path, name, size, is_copy)
        if body is not None and body.cache_entry is not None:
            standing = self.memory_cache.standing(body.cache_entry)
            if standing is not None:
                body.cache_entry = standing  # many links lead to one object: they share what they have at hand
            else:
                self.memory_cache.put(body.cache_entry, forgotten)
        return body

    async def begin(self, size: int | None) -> LocalDraft:
        if self._timer() - self._room_seen_at > ROOM_S:
            await self.run(self._look_for_room)
        if self._room < (size or 0):
            raise StorageError("less than store.free_bytes_min would be left free on the disk")
        self._room -= size or 0
        return LocalDraft(self._partial_folder, None, self._threads)

    async def open_shared(self, path: Path) -> LocalBody | None:
        return await self.run(disk.open_shared, path, self._threads)

    async def put(self, draft: Draft, record: Record, replaces: Digest | None = None) -> Record:
        assert isinstance(draft, LocalDraft)
        small = draft.small  # a thread that makes a file of it takes it away from the draft
        if small is not None and self._commits.works:
            await self._commits.put(bytes(small), encode_record(record), record, replaces)
            return record
        await self.run(self._commit, draft, record, replaces)
        draft.kept = True
        return record

    async def put_object(self, draft: Draft, name: str) -> None:
        if isinstance(draft, LocalDraft) and self.takes(draft):
            await self.run(self._commit_object, draft, name)
            draft.kept = True
            return
        copy = await self.begin(draft.size)
        try:
            while piece := await draft.read(copy.size, disk.PIECE_BYTES):
                await copy.write(piece)
            if copy.digest != draft.digest:
                raise StorageError("a draft is not what it was")
            await self.put_object(copy, name)
        finally:
            await copy.aclose()

    async def put_record(self, record: Record, replaces: Digest | None = None) -> Record:
        await self.run(self._commit_record, record, replaces)
        return record

    async def delete(self, key: Key) -> None:
        await self.run(self._delete, self.root / record_path(key))

    async def put_tombstone(self, tombstone: Tombstone) -> None:
        await self.run(self._publish, record_path(tombstone.key), encode_tombstone(tombstone))

    async def block(self, digest: Digest, removed_at: datetime, keys: Collection[Key] = ()) -> None:
        await self.run(self._publish, refusal_path(digest), encode_refusal(digest, removed_at, keys))

    async def list_blocked(self) -> set[Digest]:
        return {digest async for path, _ in self.walk(REFUSED) if (digest := read_refusal_path(path)) is not None}

    async def find_block(self, digest: Digest) -> Collection[Key] | None:
        return await self.run(self._find_block, self.root / refusal_path(digest))

    async def unblock(self, digest: Digest) -> None:
        await self.run(self._unblock, self.root / refusal_path(digest))

    async def find_tombstone(self, key: Key) -> Tombstone | None:
        found = await self.run(self._read_place, self.root / record_path(key))
        return found if isinstance(found, Tombstone) else None

    async def delete_tombstone(self, tombstone: Tombstone) -> None:
        await self.run(self._delete_if, tombstone.key, lambda found: found == tombstone)

    async def has_object(self, digest: Digest) -> bool:
        return await self.run(self._has_object, [self.root / object_path(name) for name in object_names(digest)])

    async def delete_object(self, digest: Digest) -> None:
        await self.forget_at([object_path(name) for name in object_names(digest)])

    async def forget_at(self, paths: Sequence[str]) -> None:
        """Remove objects, or copies of them, wherever they lie under the root."""
        for path in paths:
            self.memory_cache.forget(path)
        try:
            await self.run(self._remove_all, paths)
        finally:
            for path in paths:  # whoever asked while the files were still there
                self.memory_cache.forget(path)

    def takes(self, draft: Draft) -> bool:
        return isinstance(draft, LocalDraft) and draft.folder == self._partial_folder

    async def open_verified_draft(self, name: str) -> LocalDraft | None:
        return await self.run(self._open_verified_draft, name)

    async def open_draft(self, name: str, _spool: Spool) -> LocalDraft | None:
        return await self.run(self._open_draft, name)

    async def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        """Walk one of the 256 folders after the other, or just one. One that cannot be read is a fault."""
        await self.run(self._insist_on_root)
        whole = folder in {OBJECTS, RECORDS, REFUSED}
        for part in await self.run(self.list_parts, folder) if whole else [folder]:
            for entry in await self.run(self._list, part):
                yield entry

    async def read_records(self, paths: Sequence[str]) -> Sequence[tuple[str, Record | Tombstone | RecordUnreadable]]:
        return await self.run(self._read_records, paths)

    async def hash_object(self, path: str) -> Digest | None:
        return await self.run(self._hash, self.root / path)

    async def check_object(self, path: str, check: Callable[[bytes | mmap], T]) -> tuple[Digest, T] | None:
        return await self.run(self._judge, self.root / path, check)

    async def quarantine(self, path: str) -> None:
        await self.run(self._quarantine, self.root / path)

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Run `work` in a thread of this disk. Raises `StorageError` if it fails or takes too long."""
        return await self._threads.run(work, *args)

    def _find(self, place: str) -> Record | Tombstone | Literal["damaged"] | None:
        try:
            descriptor = os.open(f"{self._root}/{place}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._insist_on_root()
            with suppress(OSError):  # whoever begins a draft looks again, and tells
                self._see_room()  # what is not here is going to come
            return None
        try:
            data = disk.read_all(descriptor, RECORD_BYTES_MAX)
        finally:
            os.close(descriptor)
        try:
            return read_record(data, place.rpartition("/")[2])
        except RecordTooNew as error:
            raise WrittenByNewer(f"the record was {error}") from None
        except RecordUnreadable:
            self._quarantine(self.root / place)
            return DAMAGED_RECORD

    def list_parts(self, folder: str) -> list[str]:
        """Return those of the 256 folders that there are: of a small store few, and each costs a look. Blocks."""
        try:
            names = os.listdir(self.root / folder)  # noqa: PTH208 - names are wanted
        except FileNotFoundError:
            return []
        return sorted(f"{folder}/{name}" for name in names if _PART.fullmatch(name))

    def _list(self, folder: str) -> list[tuple[str, int]]:
        try:
            found = [(f"{folder}/{path.name}", path.stat().st_size) for path in (self.root / folder).iterdir()]
        except FileNotFoundError:
            return []  # nobody has been kept here yet, or left while we looked
        return sorted(found)

    def _read_records(self, paths: Sequence[str]) -> list[tuple[str, Record | Tombstone | RecordUnreadable]]:
        found: list[tuple[str, Record | Tombstone | RecordUnreadable]] = []
        for path in paths:
            try:
                found.append((path, read_record((self.root / path).read_bytes(), path.rpartition("/")[2])))
            except RecordUnreadable as error:
                found.append((path, error))
            except FileNotFoundError:
                continue  # deleted since its folder was listed
        return found

    def _hash(self, path: Path) -> Digest | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return Digest(disk.hash_all(descriptor, os.fstat(descriptor).st_size))
        finally:
            os.close(descriptor)

    def _judge(self, path: Path, check: Callable[[bytes | mmap], T]) -> tuple[Digest, T] | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return disk.judge_all(descriptor, os.fstat(descriptor).st_size, check)
        finally:
            os.close(descriptor)

    def _lay_out(self) -> None:
        """
        Make the folders that are missing, but never on another file system than before: that would be the empty place
        under a volume that is not mounted, and what is kept there would vanish once it is.
        """
        folders = [self.root / folder for folder in (PARTIAL, OBJECTS, RECORDS)]
        if not all(folder.is_dir() for folder in folders):
            place = next(path for path in (self.root, *self.root.parents) if path.exists())
            if self._device not in {None, place.stat().st_dev}:
                raise StorageError("the file system of the store is not mounted")
            for folder in folders:
                files.make_folder(folder)
        self._device = self.root.stat().st_dev

    def _find_block(self, path: Path) -> frozenset[Key] | None:
        try:
            return read_refusal_keys(path.read_bytes())
        except FileNotFoundError:
            self._insist_on_root()
            return None

    def _unblock(self, path: Path) -> None:
        try:
            path.unlink()
        except FileNotFoundError:
            self._insist_on_root()
            return
        files.sync_folder(path.parent)

    def _read_place(self, path: Path) -> Record | Tombstone | None:
        found = marks.read_place(path)
        if found is None:
            self._insist_on_root()
        return found

    def _delete_if(self, key: Key, wanted: Callable[[Record | Tombstone], bool]) -> None:
        if not marks.delete_if(self.root / record_path(key), self._partial(), wanted):
            self._insist_on_root()

    def _has_object(self, paths: Sequence[Path]) -> bool:
        found = any(path.exists() for path in paths)
        if not found:
            self._insist_on_root()
        return found

    def _insist_on_root(self) -> None:
        if not os.path.isdir(f"{self._root}/{RECORDS}"):  # noqa: PTH112 - every miss comes by here
            raise StorageError("the folder of the store is gone")

    def _partial(self) -> Path:
        return self._partial_folder / token_hex(8)

    def _probe(self) -> int:
        self._lay_out()
        probe = self._partial()
        with files.durable_partial(probe, b"probe"):
            if probe.read_bytes() != b"probe":
                raise OSError(errno.EIO, "")
        return shutil.disk_usage(self.root).free

    def _holds(self, path: Path, size: int) -> bool:
        try:
            return path.stat().st_size == size
        except FileNotFoundError:
            self._insist_on_root()
            return False

    def _look_for_room(self) -> None:
        """See whether the disk takes new drafts, and how many bytes of them. Blocks."""
        self._lay_out()
        self._see_room()

    def _see_room(self) -> None:
        self._room_seen_at = -math.inf
        status = os.statvfs(f"{self._root}/{PARTIAL}")
        if status.f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, "")
        if status.f_files and not status.f_favail:
            raise OSError(errno.ENOSPC, "")
        self._room = status.f_bavail * status.f_frsize - self._free_bytes_min
        self._room_seen_at = self._timer()

    def _open(
        self,
        place: str,
        name: str,
        size: int | None,
        is_copy: bool,  # noqa: FBT001
    ) -> LocalBody | MemoryBody | None:
        path = self.root / place
        digest = name.partition(".")[0]
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._insist_on_root()
            return None
        keep_open = False
        try:
            status = os.fstat(descriptor)
            found = status.st_size
            if found <= SMALL_BYTES_MAX:
                data = disk.read_all(descriptor, found)
                if sha256(data).hexdigest() == digest:
                    return MemoryBody(data, CacheEntry(self.memory_cache, place, status, data))
            # Beyond some size hashing takes too long. When the sizes differ the hash decides which of them is wrong: a
            # record that lies must not cost us a good object.
            elif (found > HASHED_BYTES_MAX and size in {found, None}) or disk.hash_all(descriptor, found) == digest:
                keep_open = True
                # What is sent from a map is read on the event loop where the kernel has dropped it: from a disk of this
                # machine in no time, and from one behind a network perhaps never.
                mappable = self._cached_files.works and self.memory_cache.takes(found)
                mapped = disk.map_all(descriptor, found) if mappable else None
                held = None if mapped is None else CacheEntry(self.memory_cache, place, status, mapped)
                return LocalBody(descriptor, found, self._threads, held)
            # Another reader may have set it aside already, and a fill put a good one in its place.
            if files.is_named(descriptor, path):
                files.remove(path) if is_copy else self._quarantine(path)
            return None
        finally:
            if not keep_open:
                os.close(descriptor)

    def _commit(self, draft: LocalDraft, record: Record, replaces: Digest | None) -> None:
        final = self.root / record_path(record.key)
        self._insist_on_ours(final, record.digest, replaces)
        draft.sync()
        # The record's bytes are on the disk before the body gets its name: a full disk is noticed with nothing done.
        partial = self._partial()
        with files.durable_partial(partial, encode_record(record)):
            files.publish(draft.path, self.root / object_path(record.object_name))
            self._publish_record(partial, final, record.digest, replaces)

    def _commit_object(self, draft: LocalDraft, name: str) -> None:
        draft.sync()
        files.publish(draft.path, self.root / object_path(name))

    def _commit_record(self, record: Record, replaces: Digest | None) -> None:
        final = self.root / record_path(record.key)
        self._insist_on_ours(final, record.digest, replaces)
        partial = self._partial()
        with files.durable_partial(partial, encode_record(record)):
            self._publish_record(partial, final, record.digest, replaces)

    def _publish_record(self, partial: Path, final: Path, *replaceable: Digest | None) -> None:
        if not files.publish_new(partial, final):
            self._insist_on_ours(final, *replaceable)  # another process was quicker
            files.publish(partial, final)

    def _open_verified_draft(self, name: str) -> LocalDraft | None:
        draft = self._open_draft(name)
        if draft is None or draft.digest == name.partition(".")[0]:
            return draft
        draft.close()
        self._quarantine(draft.path)
        return None

    def _open_draft(self, name: str) -> LocalDraft | None:
        path = self.root / object_path(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._insist_on_root()
            return None
        draft = LocalDraft(path.parent, descriptor, self._threads, path.name)
        draft.kept = True
        try:
            draft.catch_up()
        except BaseException:
            draft.close()
            raise
        return draft

    def move_out(self, record: Record, to: Path | None) -> bool:
        """
        Remove a record and move its object to `to`, or nowhere. Blocks.

        False: another record lies there now, and nothing was done.
        """
        path = self.root / record_path(record.key)
        try:
            if read_record(path.read_bytes(), path.name) != replace(record, pending=False):
                return False
        except (FileNotFoundError, RecordUnreadable):
            pass
        # The record first: an object without one is only an orphan.
        files.remove(path)
        files.sync_folder(path.parent)
        place = self.root / object_path(record.object_name)
        if to is None:
            files.remove(place)
        else:
            with suppress(FileNotFoundError):  # another record of the same bytes took it along
                place.replace(to)
        return True

    def _insist_on_ours(self, path: Path, *replaceable: Digest | None) -> None:
        """Refuse to overwrite what a newer version wrote, or another image than `replaceable` that is still there."""
        try:
            theirs = read_record(path.read_bytes(), path.name)
        except FileNotFoundError:
            return
        except RecordTooNew as error:
            raise WrittenByNewer(f"the record was {error}") from None
        except RecordUnreadable:
            return
        if isinstance(theirs, Tombstone):
            raise Removed(REMOVED)
        if replaceable and theirs.digest not in replaceable and (self.root / object_path(theirs.object_name)).exists():
            raise Conflict("another image was kept under this link meanwhile")

    def _publish(self, path: str, data: bytes) -> None:
        self._insist_on_root()
        partial = self._partial()
        with files.durable_partial(partial, data):
            files.publish(partial, self.root / path)

    def _remove_all(self, paths: Sequence[str]) -> None:
        for path in paths:
            files.remove(self.root / path)

    def _delete(self, path: Path) -> None:
        self._insist_on_ours(path)
        try:
            path.unlink()
        except FileNotFoundError:
            return
        files.sync_folder(path.parent)

    def _quarantine(self, path: Path) -> None:
        folder = self.root / DAMAGED
        files.make_folder(folder)
        try:
            files.publish(path, folder / f"{path.name}.{token_hex(4)}")
        except FileNotFoundError:
            return  # somebody else was quicker
        files.sync_folder(path.parent)
