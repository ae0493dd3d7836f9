"""
The memory cache: bytes of objects that the server can send at once, without waiting for a disk and without a thread.

Three sources of the bytes, the quickest first:
- copied: small objects, the most recently used ones;
- mapped: large objects, as files mapped into memory, whose bytes the kernel sends from its page cache;
- read: any other small object whose file the kernel happens to have in its page cache (`page_cache`).

Rules:
- The cache takes an object only after a check of its hash against its name (`disk`). Each later read of the file
  compares the inode's change time with that of the check, so a file that was altered or replaced is checked again.
- A slow reader must not hold a copy of anything large. So only small objects are copied, and large ones are mapped: all
  readers share the pages. Only the kernel reads a map: for a truncated file it returns an error, where a read by
  this process would end the process with SIGBUS. The kernel fills a truncated last page with zeros, so each use
  compares the size of the file.
- After the removal of its object an entry is empty, for every holder of the entry.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from imgkeep.core.errors import StorageError
from imgkeep.storage.local.page_cache import read_unchanged

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable
    from mmap import mmap
    from pathlib import Path

    from imgkeep.storage.local.page_cache import PageCacheReader

    Bytes = bytes | bytearray | memoryview
    Run = Callable[[Callable[[Path, int, int], bytearray | None], Path, int, int], Awaitable[bytearray | None]]

SMALL_BYTES_MAX: Final = 65_536
"""Maximum size of an object that is copied: a thousand slow readers of a thousand objects hold 64 MiB at most."""
MAPS_MAX: Final = 1024
"""Maximum number of maps: each costs a descriptor, and a process often has some thousands."""


class CacheEntry:
    """The bytes of the object at `path`. A reader may hold an entry for long; the cache may empty it at any time."""

    __slots__ = ("_cache", "_changed_ns", "data", "path", "size")

    def __init__(self, cache: MemoryCache, path: str, status: os.stat_result, data: Bytes) -> None:
        self.path = path
        self.size = status.st_size
        self.data: Bytes | None = data
        self._cache = cache
        self._changed_ns = status.st_ctime_ns

    def read_now(self) -> Bytes | None:
        """Return all bytes, which never change; `None`: they cannot be read at once. Never waits for a disk."""
        if isinstance(self.data, memoryview) and cast("mmap", self.data.obj).size() != self.size:
            self._cache.evict(self.path)
        if self.data is not None:
            self._cache.touch(self)
        elif self.size <= SMALL_BYTES_MAX:
            current = self._cache.find_same(self)
            if current is not None:
                return current.read_now()
            self.data = data = self._cache.files.read(self.path, self.size, self._changed_ns)
            if data is not None:
                self._cache.put(self)
            return data
        return self.data

    def load(self) -> Awaitable[None] | None:
        """Load the bytes into memory for `read_now`; `None`: that is not possible. Never raises."""
        would_stay = self._cache.takes(self.size) or self._cache.files.is_available
        return self._load() if self.data is None and self.size <= SMALL_BYTES_MAX and would_stay else None

    def is_of_the_same_file_as(self, other: CacheEntry) -> bool:
        """Tell whether both entries belong to the same state of the same file."""
        return (self.path, self.size, self._changed_ns) == (other.path, other.size, other._changed_ns)

    async def _load(self) -> None:
        cache = self._cache
        path, removals = cache.files.root / self.path, cache.removals
        with suppress(StorageError):  # the reader then opens the object, which reports the fault
            data = await cache.run(read_unchanged, path, self.size, self._changed_ns)
            if data is not None and self.data is None:
                self.data = data
                cache.put(self, removals)


class MemoryCache:
    """
    The entries that have bytes: up to `bytes_max` copied, and as many mapped. The least recently used are evicted.

    Args:
        run: Runs blocking work in a thread of the disk.
    """

    def __init__(self, bytes_max: int, files: PageCacheReader, run: Run) -> None:
        self.files = files
        self.run = run
        self._bytes_max = bytes_max
        self._copies: OrderedDict[str, CacheEntry] = OrderedDict()
        self._maps: OrderedDict[str, CacheEntry] = OrderedDict()
        self.copied_bytes = 0
        self.mapped_bytes = 0
        self.removals = 0
        """Number of removals so far."""

    def find(self, path: str) -> CacheEntry | None:
        """Return the entry of a small object whose bytes are in memory."""
        entry = self._copies.get(path)
        if entry is not None:
            self._copies.move_to_end(path)
        return entry

    def find_same(self, entry: CacheEntry) -> CacheEntry | None:
        """Return the cached entry of the same state of the same file."""
        other = self._entries_of_size(entry.size).get(entry.path)
        return other if other is not None and other.is_of_the_same_file_as(entry) else None

    def takes(self, size: int) -> bool:
        """Tell whether an object of this size would be cached."""
        return size <= self._bytes_max

    def touch(self, entry: CacheEntry) -> None:
        """Note that an object was used."""
        (self._copies if entry.size <= SMALL_BYTES_MAX else self._maps).move_to_end(entry.path)  # for every hit

    def put(self, entry: CacheEntry, removals: int | None = None) -> None:
        """
        Cache the bytes of an entry, and evict the least recently used ones.

        `removals`: the number of removals before the read of the bytes. After a further removal the bytes are not
        cached, because it may have removed this object.
        """
        data, entry.data = entry.data, None
        self.evict(entry.path)
        if not self.takes(entry.size) or removals not in {None, self.removals}:
            return
        entry.data = data
        self._entries_of_size(entry.size)[entry.path] = entry
        if entry.size <= SMALL_BYTES_MAX:
            self.copied_bytes += entry.size
            while self.copied_bytes > self._bytes_max:
                self.evict(next(iter(self._copies)))
        else:
            self.mapped_bytes += entry.size
            while self.mapped_bytes > self._bytes_max or len(self._maps) > MAPS_MAX:
                self.evict(next(iter(self._maps)))

    def remove(self, path: str) -> None:
        """Evict an object that is being removed."""
        self.removals += 1
        self.evict(path)

    def evict(self, path: str) -> None:
        """Evict the bytes of an object; readers that have them already go on."""
        entry = self._copies.pop(path, None)
        if entry is not None:
            self.copied_bytes -= entry.size
            entry.data = None
        entry = self._maps.pop(path, None)
        if entry is not None:
            self.mapped_bytes -= entry.size
            entry.data = None

    def _entries_of_size(self, size: int) -> OrderedDict[str, CacheEntry]:
        return self._copies if size <= SMALL_BYTES_MAX else self._maps
