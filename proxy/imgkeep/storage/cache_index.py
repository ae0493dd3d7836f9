"""
The index of a cache on a disk: it counts the files of the cache, and evicts the least recently used ones.

Rules:
- The index serves eviction alone. A file in the folder is found without it, so a restarted process has all files at
  once and counts them in the background.
- Each of several workers counts the files in its share of the folders, and evicts there alone, so that every file is
  counted once. A worker that brings or uses a file of another share announces it, in batches (`CacheShare`).
- A file is at `<folder>/<2 hex>/<name>`, with the first two characters of its name. A name with a slash belongs to the
  group before it, whose files are in a folder of their own.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import StorageError
from imgkeep.storage.local import atomic_files

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from imgkeep.storage.local.disk import Disk

BATCH: Final = 1000
"""Maximum number of files that are counted in one iteration of the event loop."""
ANNOUNCE_INTERVAL_S: Final = 1
"""Interval of the announcements to other workers."""
ENTRIES_MAX: Final = 250_000
"""Maximum size of the index: an entry takes some 250 bytes, all 60 MB. Larger files reach the limit of bytes first."""


@dataclass(frozen=True, slots=True)
class CacheShare:
    """
    The share of one worker.

    Attributes:
        announce: Sends names and sizes of files to the workers in whose shares they are.
    """

    slot: int
    workers: int
    announce: Callable[[Mapping[str, int]], Awaitable[None]]

    def includes(self, number: int) -> bool:
        """Tell whether one of the 256 folders is in this share."""
        return number % self.workers == self.slot


def _ignore(*_what: object) -> None:
    """Do nothing: there is no callback."""


class CacheIndex:
    """
    The files of one cache.

    Attributes:
        bytes: Size of the files that this process counts.

    Args:
        disk: The disk of the files.
        folder: Their folder, under the root of the disk.
        bytes_max: Maximum size of the files that this process counts.
        group_max: Maximum number of files of one group; 0: there are no groups.
        free_bytes_min: Bytes that drafts leave free on the disk.
        share: The share of this worker, where there are several.
        found: Callback with name and size of a file that was there at start.
        forgotten: Callback with the name of a file that the index knows no more.
    """

    def __init__(  # noqa: PLR0913 - all but three by keyword
        self,
        disk: Disk,
        folder: str,
        bytes_max: int,
        *,
        group_max: int = 0,
        free_bytes_min: int = 0,
        share: CacheShare | None = None,
        found: Callable[[str, int], None] = _ignore,
        forgotten: Callable[[str], None] = _ignore,
    ) -> None:
        self.bytes = 0
        self._disk = disk
        self._folder = folder
        self._bytes_max = bytes_max
        self._group_max = group_max
        self._free_bytes_min = free_bytes_min
        self._share = share
        self._found = found
        self._forgotten = forgotten
        self._sizes: OrderedDict[str, int] = OrderedDict()
        """Sizes by name, the least recently used file first."""
        self._foreign: OrderedDict[str, int] = OrderedDict()
        """Sizes of files in other shares that this worker has brought or read."""
        self._groups: dict[str, OrderedDict[str, None]] = {}
        """The names of both, by their groups, the least recently used file first."""
        self._announced: dict[str, int] = {}
        """The files of other shares that are not announced yet."""
        self._announcing: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[None] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._sizes or name in self._foreign

    async def open(self) -> None:
        """Start to count the files on the disk, which has to be open."""
        self._counting = asyncio.create_task(self._count_all())

    async def aclose(self) -> None:
        for task in (self._counting, self._announcing):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    @property
    def is_complete(self) -> bool:
        """Whether each file on the disk is in the index: all are counted, and no other process adds some."""
        return self._share is None and self._counting is not None and self._counting.done()

    async def wait_until_counted(self) -> None:
        """Wait until all files that were there at start are counted."""
        if self._counting is not None:
            await asyncio.shield(self._counting)

    def path_of(self, name: str) -> str:
        """Return the path of a file, under the root of the disk."""
        return f"{self._folder}/{name[:2]}/{name}"

    def names_in(self, group: str) -> Sequence[str]:
        """Return the names of a group that this worker knows."""
        return list(self._groups.get(group, ()))

    async def use(self, name: str, size: int) -> None:
        """Note that a file was used, and count it if it is not counted yet."""
        if name in self._sizes:
            self._sizes.move_to_end(name)
            if self._group_max:
                self._groups[_group_of(name)].move_to_end(name)
        else:
            await self.count(name, size)

    async def count(self, name: str, size: int) -> None:
        """Count a file, and evict others if there are too many bytes or files."""
        if self._share is not None and not self._is_ours(name):
            self._announce(self._share, name, size)
            return
        self._remove(name)
        self._sizes[name] = size
        self.bytes += size
        self._add_to_group(name)
        await self._evict_from_group(_group_of(name))
        await self.evict_down_to(self._bytes_max)

    async def count_announced(self, files: Mapping[str, int]) -> None:
        """Count files that another worker has brought or used, by name and size."""
        for name, size in files.items():
            if self._is_ours(name):
                await self.count(name, size)

    def forget(self, name: str) -> None:
        """Forget a file that is not there any more."""
        self._remove(name)
        self._forgotten(name)

    async def evict_down_to(self, bytes_max: int) -> None:
        """Evict files until they have `bytes_max` bytes at most, and are not too many."""
        evicted: list[str] = []
        while self._sizes and (self.bytes > bytes_max or len(self._sizes) > ENTRIES_MAX):
            evicted.append(next(iter(self._sizes)))
            self.forget(evicted[-1])
        await self.delete(evicted)

    async def delete(self, names: Sequence[str]) -> None:
        """Delete files. One that a failing disk leaves there is counted again at the next start."""
        if names:
            with suppress(StorageError):
                await self._disk.run(self._delete_all, names)
            for name in names:  # a reader may have opened one while it was still there
                if name not in self:
                    self._forgotten(name)

    async def make_room(self, size: int) -> bool:
        """Evict files until there is room for `size` new bytes; return whether any was evicted."""
        free = await self._disk.run(self._disk.free_bytes)
        lacking = self._free_bytes_min + size - free
        if lacking <= 0 or not self._sizes:
            return False
        await self.evict_down_to(max(0, self.bytes - lacking))
        return True

    # --- names

    def _is_ours(self, name: str) -> bool:
        return self._share is None or self._share.includes(int(name[:2], 16))

    def _add_to_group(self, name: str, *, oldest: bool = False) -> None:
        if self._group_max:
            group = self._groups.setdefault(_group_of(name), OrderedDict())
            group[name] = None
            if oldest:
                group.move_to_end(name, last=False)

    def _remove(self, name: str) -> None:
        self.bytes -= self._sizes.pop(name, 0)
        self._foreign.pop(name, None)
        group = self._groups.get(_group_of(name))
        if group is not None:
            group.pop(name, None)
            if not group:
                del self._groups[_group_of(name)]

    async def _evict_from_group(self, group: str) -> None:
        """Evict files of a group that has too many."""
        evicted = self.names_in(group)[: -self._group_max] if self._group_max else ()
        for name in evicted:
            self.forget(name)
        await self.delete(evicted)

    def _announce(self, share: CacheShare, name: str, size: int) -> None:
        self._foreign[name] = self._announced[name] = size
        self._foreign.move_to_end(name)
        self._add_to_group(name)
        if len(self._foreign) > ENTRIES_MAX:
            self.forget(next(iter(self._foreign)))
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

    # --- files

    def _delete_all(self, names: Sequence[str]) -> None:
        for name in names:
            path = self._disk.root / self.path_of(name)
            atomic_files.remove(path)
            if self._group_max:
                remove_folder(path.parent)

    async def _count_all(self) -> None:
        """Count the files that were there at start, without blocking the event loop for long."""
        found: list[tuple[float, str, int]] = []
        with suppress(StorageError):
            for part in await self._disk.run(self._disk.list_parts, self._folder):
                if self._is_ours(part[-2:]):
                    found += await self._disk.run(self._list_files, part)
            newest_first = await self._disk.run(lambda: sorted(found, reverse=True))
            for start in range(0, len(newest_first), BATCH):
                self._count_older(newest_first[start : start + BATCH])
                await asyncio.sleep(0)
            await self.evict_down_to(self._bytes_max)

    def _list_files(self, part: str) -> list[tuple[float, str, int]]:
        """Return time of arrival or last use, name and size of every file in one of the 256 folders. Blocks."""
        root = self._disk.root / part
        if not self._group_max:
            return _list_folder(root, "")
        found: list[tuple[float, str, int]] = []
        with suppress(FileNotFoundError, NotADirectoryError):
            for group in os.listdir(root):  # noqa: PTH208 - names are wanted
                files = _list_folder(root / group, f"{group}/")
                if not files:
                    remove_folder(root / group)
                found += files
        return found

    def _count_older(self, found: Sequence[tuple[float, str, int]]) -> None:
        for _, name, size in found:
            if name in self._sizes:
                continue  # it came since the start
            self._sizes[name] = size
            self._sizes.move_to_end(name, last=False)
            self.bytes += size
            self._add_to_group(name, oldest=True)
            self._found(name, size)


def remove_folder(folder: Path) -> None:
    """Remove a folder if it is empty. Blocks."""
    with suppress(OSError):
        folder.rmdir()


def _group_of(name: str) -> str:
    return name.partition("/")[0]


def _list_folder(folder: Path, prefix: str) -> list[tuple[float, str, int]]:
    found: list[tuple[float, str, int]] = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # it was evicted meanwhile
                status = path.stat()
                found.append((max(status.st_mtime, status.st_atime), f"{prefix}{path.name}", status.st_size))
    return found
