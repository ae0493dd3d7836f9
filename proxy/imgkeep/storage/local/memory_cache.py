"""
What is at hand: bytes of objects that can be given at once, without waiting for a disk and without a thread.

Three ways, the quickest first:
- in memory: small objects, those asked for last;
- mapped: large objects, as files mapped into memory, whose bytes the kernel sends from its own cache;
- cached: any other small object whose file the kernel happens to have in its cache (`cached.py`).

Rules:
- An object comes here only once its bytes were found to be what its name says (`local.py`). Each later reading of the
  file compares the inode's change time with that of then, so what was altered or replaced is looked at anew.
- A slow reader must not hold a copy of anything large. So only what is small is copied, and what is large is mapped:
  all readers share the pages. Nothing here looks into a map: only the kernel does, which answers a file that was cut
  short with an error, where we would die of SIGBUS. What is missing of the last page would pass for zeros, so the
  file's size is compared each time.
- Whoever has a handle finds it empty once its object was removed.
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
"""An object up to this size is copied: a thousand slow readers of a thousand objects hold 64 MiB at most."""
MAPS_MAX: Final = 1024
"""A map costs a descriptor, and a process often has some thousands."""


class CacheEntry:
    """A handle on the bytes of the object at `path`."""

    __slots__ = ("_changed_ns", "_shelf", "data", "path", "size")

    def __init__(self, memory_cache: MemoryCache, path: str, status: os.stat_result, data: Bytes) -> None:
        self.path = path
        self.size = status.st_size
        self.data: Bytes | None = data
        self._shelf = memory_cache
        self._changed_ns = status.st_ctime_ns

    def read_now(self) -> Bytes | None:
        if isinstance(self.data, memoryview) and cast("mmap", self.data.obj).size() != self.size:
            self._shelf.drop(self.path)
        if self.data is not None:
            self._shelf.touch(self)
        elif self.size <= SMALL_BYTES_MAX:
            standing = self._shelf.standing(self)
            if standing is not None:
                return standing.read_now()
            self.data = data = self._shelf.files.read(self.path, self.size, self._changed_ns)
            if data is not None:
                self._shelf.put(self)
            return data
        return self.data

    def is_of_the_same_file_as(self, other: CacheEntry) -> bool:
        return (self.path, self.size, self._changed_ns) == (other.path, other.size, other._changed_ns)

    def load(self) -> Awaitable[None] | None:
        would_stay = self._shelf.takes(self.size) or self._shelf.files.works
        return self._load() if self.data is None and self.size <= SMALL_BYTES_MAX and would_stay else None

    async def _load(self) -> None:
        memory_cache = self._shelf
        path, forgotten = memory_cache.files.root / self.path, memory_cache.forgotten
        with suppress(StorageError):  # then whoever asks goes the long way, which tells
            data = await memory_cache.run(read_unchanged, path, self.size, self._changed_ns)
            if data is not None and self.data is None:
                self.data = data
                memory_cache.put(self, forgotten)


class MemoryCache:
    """The handles that hold bytes: up to `bytes_max` in memory, and as many mapped. `run` works in a thread."""

    def __init__(self, bytes_max: int, files: PageCacheReader, run: Run) -> None:
        self.files = files
        self.run = run
        self._bytes_max = bytes_max
        self._copies: OrderedDict[str, CacheEntry] = OrderedDict()
        self._maps: OrderedDict[str, CacheEntry] = OrderedDict()
        self.copied_bytes = 0
        self.memory_cache_mapped_bytes = 0
        self.forgotten = 0
        """How often something was removed."""

    def find(self, path: str) -> CacheEntry | None:
        """Return the handle of a small object whose bytes are in memory."""
        held = self._copies.get(path)
        if held is not None:
            self._copies.move_to_end(path)
        return held

    def standing(self, held: CacheEntry) -> CacheEntry | None:
        """Return the handle that holds the bytes of the same file already."""
        other = (self._copies if held.size <= SMALL_BYTES_MAX else self._maps).get(held.path)
        return other if other is not None and other.is_of_the_same_file_as(held) else None

    def takes(self, size: int) -> bool:
        """Whether an object of this size would be held."""
        return size <= self._bytes_max

    def touch(self, held: CacheEntry) -> None:
        """Note that an object was asked for."""
        (self._copies if held.size <= SMALL_BYTES_MAX else self._maps).move_to_end(held.path)

    def put(self, held: CacheEntry, forgotten: int | None = None) -> None:
        """
        Hold the bytes that a handle has, and let go of those that were not asked for the longest.

        `forgotten` is what it was when they were looked for: if something was removed since, it may have been these.
        """
        data, held.data = held.data, None
        self.drop(held.path)
        if not self.takes(held.size) or forgotten not in {None, self.forgotten}:
            return
        held.data = data
        if held.size <= SMALL_BYTES_MAX:
            self._copies[held.path] = held
            self.copied_bytes += held.size
            while self.copied_bytes > self._bytes_max:
                self.drop(next(iter(self._copies)))
        else:
            self._maps[held.path] = held
            self.memory_cache_mapped_bytes += held.size
            while self.memory_cache_mapped_bytes > self._bytes_max or len(self._maps) > MAPS_MAX:
                self.drop(next(iter(self._maps)))

    def forget(self, path: str) -> None:
        """Let go of an object that is being removed."""
        self.forgotten += 1
        self.drop(path)

    def drop(self, path: str) -> None:
        """Let go of an object's bytes; readers who have them already go on."""
        held = self._copies.pop(path, None)
        if held is not None:
            self.copied_bytes -= held.size
            held.data = None
        held = self._maps.pop(path, None)
        if held is not None:
            self.memory_cache_mapped_bytes -= held.size
            held.data = None
