"""
The local store: images in a folder with the stored layout.

Rules:
- Small images that arrive together become durable together (`group_commit`); every other write is durable by itself.
- A record whose file is damaged is asked for elsewhere (`recover`): its file is in quarantine then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from imgkeep.core.derived.names import DERIVED
from imgkeep.core.errors import Removed, StorageError
from imgkeep.core.layout import (
    BLOCKED,
    OBJECTS,
    RECORDS,
    REMOVED,
    block_path,
    encode_block,
    encode_tombstone,
    object_names,
    object_path,
    read_block_path,
    record_path,
)
from imgkeep.core.records import Tombstone
from imgkeep.storage.local.draft import LocalDraft
from imgkeep.storage.local.group_commit import GroupCommit
from imgkeep.storage.local.open_files import PIECE_BYTES
from imgkeep.storage.local.pictures import LocalPictures
from imgkeep.storage.local.store_files import DAMAGED, StoreFiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
    from datetime import datetime
    from mmap import mmap
    from pathlib import Path

    from imgkeep.core.layout import RecordUnreadable
    from imgkeep.core.records import Digest, Key, Record
    from imgkeep.storage.interfaces import Body, Draft, Spool
    from imgkeep.storage.local.disk import Disk

T = TypeVar("T")


async def _recover_nothing(_key: Key) -> None:
    """Know of no record."""


class LocalStore:
    """
    A store on a disk. Implements `ListableStore`. It opens and closes its disk.

    Args:
        recover: Returns what a damaged record said, from another place.
    """

    name = "local"
    local_drafts_only = True

    def __init__(self, disk: Disk, *, recover: Callable[[Key], Awaitable[Record | None]] = _recover_nothing) -> None:
        self.disk = disk
        self._recover = recover
        self._files = StoreFiles(disk)
        self.pictures = LocalPictures(disk, self._files)
        self._group_commit = GroupCommit(disk.root, disk.run, self._files.require_replaceable)

    async def open(self) -> None:
        """
        Open the disk, and find out what its file system can do.

        Raises:
            StorageError: The folder can neither be made nor used.
        """
        await self.disk.open()
        await self.disk.run(self._group_commit.open)

    async def aclose(self) -> None:
        await self.disk.aclose()

    async def check(self) -> int:
        """Check the disk. As `Disk.check`."""
        return await self.disk.check()

    # --- images

    async def find(self, key: Key) -> Record | None:
        found = await self.disk.executor.run_batched(self._files.find, record_path(key))
        if found == DAMAGED:
            return await self._recover(key)
        if isinstance(found, Tombstone):
            raise Removed(REMOVED)
        return found

    async def fetch(self, name: str, size: int | None) -> Body | None:
        return await self.disk.open_object(object_path(name), name, size, discard=self._files.quarantine)

    async def holds(self, name: str, size: int) -> bool:
        return await self.disk.executor.run_batched(self._files.holds, name, size)

    async def has_object(self, digest: Digest) -> bool:
        return await self.disk.run(self._files.has_any, _object_paths(digest))

    async def put(self, draft: Draft, record: Record, replaces: Digest | None = None) -> Record:
        assert isinstance(draft, LocalDraft)
        small = draft.small  # a thread that makes a file of it takes it away from the draft
        if small is not None and self._group_commit.is_available:
            return await self._group_commit.put(bytes(small), record, replaces)
        stored = await self.disk.run(self._files.put, draft, record, replaces)
        draft.is_published = True
        return stored

    async def put_record(self, record: Record, replaces: Digest | None = None) -> Record:
        await self.disk.run(self._files.put_record, record, replaces)
        return record

    async def put_object(self, draft: Draft, name: str) -> None:
        if isinstance(draft, LocalDraft) and self.disk.owns(draft):
            await self.disk.run(self._files.put_object, draft, name)
            draft.is_published = True
            return
        copy = await self.disk.begin(draft.size)
        try:
            while piece := await draft.read(copy.size, PIECE_BYTES):
                await copy.write(piece)
            if copy.digest != draft.digest:
                raise StorageError("a draft is not what it was")
            await self.put_object(copy, name)
        finally:
            await copy.aclose()

    async def delete_record(self, key: Key) -> None:
        """Delete a record, if there is one. Raises: StorageError."""
        await self.disk.run(self._files.delete_record, key)

    async def delete_object(self, digest: Digest) -> None:
        await self.disk.delete_files(_object_paths(digest))
        await self.pictures.delete_all(digest)

    async def move_out(self, record: Record, to: Path | None) -> bool:
        """
        Delete a record and move its object to `to`, or delete it; `False`: another record is there, which stays.

        Raises:
            StorageError: The disk fails, and the image may still be here.
        """
        return await self.disk.run(self._files.move_out, record, to)

    # --- marks of removals

    async def put_tombstone(self, tombstone: Tombstone) -> None:
        await self.disk.run(self._files.publish, record_path(tombstone.key), encode_tombstone(tombstone))

    async def find_tombstone(self, key: Key) -> Tombstone | None:
        return await self.disk.run(self._files.find_tombstone, key)

    async def delete_tombstone(self, tombstone: Tombstone) -> None:
        await self.disk.run(self._files.delete_tombstone, tombstone)

    async def block(self, digest: Digest, removed_at: datetime, keys: Collection[Key] = ()) -> None:
        await self.disk.run(self._files.publish, block_path(digest), encode_block(digest, removed_at, keys))

    async def unblock(self, digest: Digest) -> None:
        await self.disk.run(self._files.delete_block, block_path(digest))

    async def find_block(self, digest: Digest) -> Collection[Key] | None:
        return await self.disk.run(self._files.find_block, block_path(digest))

    async def list_blocked(self) -> set[Digest]:
        return {digest async for path, _ in self.walk(BLOCKED) if (digest := read_block_path(path)) is not None}

    # --- maintenance

    async def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        # A folder of 256 at a time. One that cannot be read is a fault.
        await self.disk.run(self.disk.require_root)
        if folder == DERIVED:
            async for entry in self.pictures.walk():
                yield entry
            return
        is_whole = folder in {OBJECTS, RECORDS, BLOCKED}
        for part in await self.disk.run(self.disk.list_parts, folder) if is_whole else [folder]:
            for entry in await self.disk.run(self._files.list_folder, part):
                yield entry

    async def read_records(self, paths: Sequence[str]) -> Sequence[tuple[str, Record | Tombstone | RecordUnreadable]]:
        return await self.disk.run(self._files.read_records, paths)

    async def hash_object(self, path: str) -> Digest | None:
        return await self.disk.hash_file(path)

    async def check_object(self, path: str, check: Callable[[bytes | mmap], T]) -> tuple[Digest, T] | None:
        return await self.disk.run(self._files.check_object, path, check)

    async def quarantine(self, path: str) -> None:
        await self.disk.run(self._files.quarantine, self.disk.root / path)

    async def open_draft(self, name: str, _spool: Spool) -> LocalDraft | None:
        return await self.disk.run(self._files.open_draft, name)

    async def open_verified_draft(self, name: str) -> LocalDraft | None:
        """Open an object as a draft; a damaged one is moved to quarantine: `None`. Raises: StorageError."""
        return await self.disk.run(self._files.open_verified_draft, name)


def _object_paths(digest: Digest) -> list[str]:
    return [object_path(name) for name in object_names(digest)]
