"""
The disk cache of a remote store: copies of its objects on the local disk, the least recently used evicted first.

Rules:
- No copy is authoritative: the cache checks the hash of a copy against its name before use. So no copy is fsynced, and
  any copy may vanish.
- The cache is on the disk of the fallback, so that an image moves between the two without being copied, and copies make
  room when new images need it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import StorageError
from imgkeep.core.layout import object_names
from imgkeep.storage.cache_index import CacheIndex
from imgkeep.storage.local import atomic_files
from imgkeep.storage.local.body import LocalBody
from imgkeep.storage.local.disk import HASHED_BYTES_MAX
from imgkeep.storage.local.draft import LocalDraft

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from imgkeep.core.records import Digest, Record
    from imgkeep.storage.cache_index import CacheShare
    from imgkeep.storage.interfaces import Body, Draft
    from imgkeep.storage.local.disk import Disk
    from imgkeep.storage.local.store import LocalStore

FOLDER: Final = "cache"


class DiskCache:
    """
    The copies on a disk. Implements `Spool`: its drafts can become copies.

    Args:
        bytes_max: Maximum size of the copies that this process counts; 0: nothing is cached.
        free_bytes_min: Bytes that drafts leave free on the disk.
        share: The share of this worker, where there are several.
    """

    def __init__(self, disk: Disk, bytes_max: int, *, free_bytes_min: int = 0, share: CacheShare | None = None) -> None:
        self._disk = disk
        self._bytes_max = bytes_max
        self._unverified: set[str] = set()
        """Large copies that were there at start: each is hashed once before use."""
        self._index = CacheIndex(
            disk,
            FOLDER,
            bytes_max,
            free_bytes_min=free_bytes_min,
            share=share,
            found=self._note_found,
            forgotten=self._unverified.discard,
        )
        disk.make_room_by(self._index.make_room)
        self.hits = 0
        self.misses = 0

    @property
    def bytes(self) -> int:
        return self._index.bytes

    async def open(self) -> None:
        """Start to count the copies on the disk, which has to be open."""
        await self._index.open()

    async def aclose(self) -> None:
        await self._index.aclose()

    async def wait_until_counted(self) -> None:
        """Wait until all copies that were there at start are counted."""
        await self._index.wait_until_counted()

    async def fetch(self, name: str, size: int | None) -> Body | None:
        """Open a copy. As `Store.fetch`, but a disk that fails is a miss."""
        try:
            body = await self._disk.open_object(self._path(name), name, size, discard=atomic_files.remove)
            if isinstance(body, LocalBody) and (name in self._unverified or name not in self._index):
                body = await self._verify(name, body)
        except StorageError:
            body = None
        if body is None:
            self.misses += 1
            self._index.forget(name)
        else:
            self.hits += 1
            if body.size is not None:
                await self._index.use(name, body.size)
        return body

    async def begin(self, size: int | None) -> LocalDraft:
        return await self._disk.begin(size)

    async def open_shared(self, path: Path) -> LocalBody | None:
        return await self._disk.open_shared(path)

    async def put(self, draft: Draft, name: str) -> None:
        """Make a finished draft the copy `<digest>.<ext>`, if the disk can; readers of the draft go on."""
        if not self._bytes_max or not isinstance(draft, LocalDraft) or draft.size > self._bytes_max:
            return
        with suppress(StorageError):
            await self._disk.run(_move, draft, self._disk.root / self._path(name))
            draft.is_published = True
            self._unverified.discard(name)
            await self._index.count(name, draft.size)

    async def delete(self, digest: Digest) -> None:
        """Delete the copy of an object. A failure of the disk is ignored: the digest is blocked."""
        names = object_names(digest)
        for name in names:
            self._index.forget(name)
        with suppress(StorageError):
            await self._disk.delete_files([self._path(name) for name in names])

    async def move_from(self, fallback: LocalStore, record: Record) -> bool:
        """
        Take an image over from the fallback: its record is deleted, its object becomes a copy here.

        `False`: the fallback has another record under the key now, and nothing was done.

        Raises:
            StorageError: The disk fails, and the image may still be in the fallback.
        """
        name = record.object_name
        path = self._disk.root / self._path(name) if record.size <= self._bytes_max else None
        moved = await fallback.move_out(record, path)
        if moved and path is not None:
            self._unverified.discard(name)
            await self._index.count(name, record.size)
        return moved

    async def count_copies(self, copies: Mapping[str, int]) -> None:
        """Count copies that another worker has brought or used, by name and size."""
        await self._index.count_announced(copies)

    def _path(self, name: str) -> str:
        return self._index.path_of(name)

    def _note_found(self, name: str, size: int) -> None:
        if size > HASHED_BYTES_MAX:
            self._unverified.add(name)

    async def _verify(self, name: str, body: LocalBody) -> LocalBody | None:
        """Hash a large copy of an earlier process once: after a power loss it may have its size and nothing else."""
        try:
            if await self._disk.hash_file(self._path(name)) == name.partition(".")[0]:
                self._unverified.discard(name)
                await self._index.count(name, body.size)
                return body
            await self._index.delete([name])
        except BaseException:
            await body.aclose()
            raise
        await body.aclose()
        return None


def _move(draft: LocalDraft, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    draft.make_file()
    draft.path.replace(to)
