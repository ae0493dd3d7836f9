"""
The disk cache of a remote store: copies of its objects on the local disk, the least recently used evicted first.

Rules:
- No copy is authoritative: the cache checks the hash of a copy against its name before use. So no copy is fsynced, and
  any copy may vanish.
- The index serves eviction alone. A copy in the folder is found without it, so a restarted process has all its copies
  at once and counts them in the background.
- Each of several workers counts the copies in its share of the folders, and evicts there alone, so that every copy is
  counted once. A worker that brings or uses a copy of another share announces it, in batches (`CacheShare`).
- The cache is on the disk of the fallback, so that an image moves between the two without being copied, and copies make
  room when new images need it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import StorageError
from imgkeep.core.layout import object_names
from imgkeep.storage.local import atomic_files
from imgkeep.storage.local.body import LocalBody
from imgkeep.storage.local.disk import HASHED_BYTES_MAX
from imgkeep.storage.local.draft import LocalDraft

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from imgkeep.core.records import Digest, Record
    from imgkeep.storage.interfaces import Body, Draft
    from imgkeep.storage.local.disk import Disk
    from imgkeep.storage.local.store import LocalStore

FOLDER: Final = "cache"
BATCH: Final = 1000
"""Maximum number of copies that are counted in one iteration of the event loop."""
ANNOUNCE_INTERVAL_S: Final = 1
"""Interval of the announcements to other workers."""
ENTRIES_MAX: Final = 250_000
"""Maximum size of the index: an entry takes some 250 bytes, all 60 MB. Larger images reach `cache_bytes_max` first."""


@dataclass(frozen=True, slots=True)
class CacheShare:
    """
    The share of one worker.

    Attributes:
        announce: Sends names and sizes of copies to the workers in whose shares they are.
    """

    slot: int
    workers: int
    announce: Callable[[Mapping[str, int]], Awaitable[None]]

    def includes(self, number: int) -> bool:
        """Tell whether one of the 256 folders is in this share."""
        return number % self.workers == self.slot


class DiskCache:
    """
    The copies on a disk. Implements `Spool`: its drafts can become copies.

    Args:
        bytes_max: Maximum size of the copies that this process counts; 0: nothing is cached.
        free_bytes_min: Bytes that drafts leave free on the disk.
        share: The share of this worker, where there are several.
    """

    def __init__(self, disk: Disk, bytes_max: int, *, free_bytes_min: int = 0, share: CacheShare | None = None) -> None:
        self._share = share
        self._foreign: OrderedDict[str, int] = OrderedDict()
        """Sizes of copies in other shares that this worker has brought or read: they are verified."""
        self._announced: dict[str, int] = {}
        """The copies among them that are not announced yet."""
        self._announcing: asyncio.Task[None] | None = None
        self._disk = disk
        self._bytes_max = bytes_max
        self._free_bytes_min = free_bytes_min
        self._sizes: OrderedDict[str, int] = OrderedDict()
        """Sizes by name, the least recently used copy first."""
        self._unverified: set[str] = set()
        """Large copies that were there at start: each is hashed once before use."""
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._counting: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start to count the copies on the disk, which has to be open."""
        self._counting = asyncio.create_task(self._count_all())

    async def aclose(self) -> None:
        for task in (self._counting, self._announcing):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def wait_until_counted(self) -> None:
        """Wait until all copies that were there at start are counted."""
        if self._counting is not None:
            await asyncio.shield(self._counting)

    async def fetch(self, name: str, size: int | None) -> Body | None:
        """Open a copy. As `Store.fetch`, but a disk that fails is a miss."""
        try:
            body = await self._disk.open_object(_path(name), name, size, discard=atomic_files.remove)
            if isinstance(body, LocalBody) and (name in self._unverified or not self._knows(name)):
                body = await self._verify(name, body)
        except StorageError:
            body = None
        if body is None:
            self.misses += 1
            self._forget(name)
        else:
            self.hits += 1
            if name in self._sizes:
                self._sizes.move_to_end(name)
            elif body.size is not None:
                await self._count(name, body.size)  # left by an earlier process, and not counted yet
        return body

    async def begin(self, size: int | None) -> LocalDraft:
        try:
            return await self._disk.begin(size)
        except StorageError:
            if not await self._make_room(size or 0):
                raise
        return await self._disk.begin(size)

    async def open_shared(self, path: Path) -> LocalBody | None:
        return await self._disk.open_shared(path)

    async def put(self, draft: Draft, name: str) -> None:
        """Make a finished draft the copy `<digest>.<ext>`, if the disk can; readers of the draft go on."""
        if not self._bytes_max or not isinstance(draft, LocalDraft) or draft.size > self._bytes_max:
            return
        with suppress(StorageError):
            await self._disk.run(_move, draft, self._disk.root / _path(name))
            draft.is_published = True
            await self._count(name, draft.size)

    async def delete(self, digest: Digest) -> None:
        """Delete the copy of an object. A failure of the disk is ignored: the digest is blocked."""
        names = object_names(digest)
        for name in names:
            self._forget(name)
        with suppress(StorageError):
            await self._disk.delete_files([_path(name) for name in names])

    async def move_from(self, fallback: LocalStore, record: Record) -> bool:
        """
        Take an image over from the fallback: its record is deleted, its object becomes a copy here.

        `False`: the fallback has another record under the key now, and nothing was done.

        Raises:
            StorageError: The disk fails, and the image may still be in the fallback.
        """
        name = record.object_name
        path = self._disk.root / _path(name) if record.size <= self._bytes_max else None
        moved = await fallback.move_out(record, path)
        if moved and path is not None:
            await self._count(name, record.size)
        return moved

    async def count_copies(self, copies: Mapping[str, int]) -> None:
        """Count copies that another worker has brought or used, by name and size."""
        for name, size in copies.items():
            if self._is_ours(name):
                await self._count(name, size)

    # --- the index

    def _is_ours(self, name: str) -> bool:
        return self._share is None or self._share.includes(int(name[:2], 16))

    def _knows(self, name: str) -> bool:
        return name in self._sizes or name in self._foreign

    async def _count(self, name: str, size: int) -> None:
        """Count a copy, and evict others if there are too many bytes."""
        if self._share is not None and not self._is_ours(name):
            self._announce(self._share, name, size)
            return
        self._forget(name)
        self._sizes[name] = size
        self.bytes += size
        await self._evict_down_to(self._bytes_max)

    def _forget(self, name: str) -> None:
        self._unverified.discard(name)
        self._foreign.pop(name, None)
        self.bytes -= self._sizes.pop(name, 0)

    def _announce(self, share: CacheShare, name: str, size: int) -> None:
        self._foreign[name] = self._announced[name] = size
        self._foreign.move_to_end(name)
        if len(self._foreign) > ENTRIES_MAX:
            self._foreign.popitem(last=False)
        if self._announcing is None:
            self._announcing = asyncio.create_task(self._announce_all(share))

    async def _announce_all(self, share: CacheShare) -> None:
        try:
            while self._announced:
                await asyncio.sleep(ANNOUNCE_INTERVAL_S)
                batch, self._announced = self._announced, {}
                with suppress(StorageError):  # that worker counts them when it starts the next time
                    await share.announce(batch)
        finally:
            self._announcing = None

    # --- eviction

    async def _evict_down_to(self, bytes_max: int) -> None:
        evicted: list[str] = []
        while self._sizes and (self.bytes > bytes_max or len(self._sizes) > ENTRIES_MAX):
            name = next(iter(self._sizes))
            self._forget(name)
            evicted.append(name)
        if evicted:
            await self._disk.run(self._delete_all, evicted)

    def _delete_all(self, names: list[str]) -> None:
        for name in names:
            atomic_files.remove(self._disk.root / _path(name))

    async def _make_room(self, size: int) -> bool:
        """Evict copies until there is room for `size` new bytes; return whether any was evicted."""
        free = await self._disk.run(self._disk.free_bytes)
        lacking = self._free_bytes_min + size - free
        if lacking <= 0 or not self._sizes:
            return False
        await self._evict_down_to(max(0, self.bytes - lacking))
        return True

    # --- copies of an earlier process

    async def _verify(self, name: str, body: LocalBody) -> LocalBody | None:
        """Hash a large copy of an earlier process once: after a power loss it may have its size and nothing else."""
        try:
            if await self._disk.hash_file(_path(name)) == name.partition(".")[0]:
                await self._count(name, body.size)
                return body
            await self._disk.run(self._delete_all, [name])
        except BaseException:
            await body.aclose()
            raise
        await body.aclose()
        return None

    async def _count_all(self) -> None:
        """Count the copies that were there at start, without blocking the event loop for long."""
        found: list[tuple[float, str, int]] = []
        with suppress(StorageError):
            for part in await self._disk.run(self._disk.list_parts, FOLDER):
                if self._is_ours(part[-2:]):
                    found += await self._disk.run(self._list_copies, part)
            newest_first = await self._disk.run(lambda: sorted(found, reverse=True))
            for start in range(0, len(newest_first), BATCH):
                self._count_older(newest_first[start : start + BATCH])
                await asyncio.sleep(0)
            await self._evict_down_to(self._bytes_max)

    def _list_copies(self, part: str) -> list[tuple[float, str, int]]:
        """Return time of arrival or last use, name and size of every copy in a folder. Blocks."""
        found: list[tuple[float, str, int]] = []
        with suppress(FileNotFoundError):
            for path in (self._disk.root / part).iterdir():
                with suppress(FileNotFoundError):  # it was evicted meanwhile
                    status = path.stat()
                    found.append((max(status.st_mtime, status.st_atime), path.name, status.st_size))
        return found

    def _count_older(self, found: list[tuple[float, str, int]]) -> None:
        for _, name, size in found:
            if name in self._sizes:
                continue  # it came since the start
            self._sizes[name] = size
            self._sizes.move_to_end(name, last=False)
            self.bytes += size
            if size > HASHED_BYTES_MAX:
                self._unverified.add(name)


def _path(name: str) -> str:
    return f"{FOLDER}/{name[:2]}/{name}"


def _move(draft: LocalDraft, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    draft.make_file()
    draft.path.replace(to)
