"""Bodies in memory, and drafts in memory for bytes that no disk can take."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

from imgkeep.core.errors import StorageError
from imgkeep.core.records import Digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap
    from pathlib import Path

    from imgkeep.storage.local.memory_cache import CacheEntry

T = TypeVar("T")


class MemoryBody:
    """A whole object in memory. Implements `Body`."""

    def __init__(self, data: bytes | bytearray, cache_entry: CacheEntry | None = None) -> None:
        self.data = data
        self.cache_entry = cache_entry

    @property
    def size(self) -> int:
        return len(self.data)

    async def wait_for_size(self) -> int:
        return len(self.data)

    async def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    async def aclose(self) -> None:
        return


class MemorySpool:
    """Drafts in memory, `bytes_max` in all. A draft reserves what it may need before it uses it. Implements `Spool`."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_left = bytes_max

    @property
    def bytes_left(self) -> int:
        return self._bytes_left

    async def begin(self, size: int | None) -> MemoryDraft:
        draft = MemoryDraft(self)
        draft.reserve(size or 0)
        return draft

    async def open_shared(self, _path: Path) -> None:
        """Find nothing: no other process writes into this memory."""

    def reserve(self, size: int) -> None:
        """
        Reserve `size` bytes; negative: release them.

        Raises:
            StorageError: Fewer are left.
        """
        if size > self._bytes_left:
            raise StorageError("no store can take the image, and the memory for such images is used up")
        self._bytes_left -= size


class MemoryDraft:
    """A draft that many can read and that is never put. Implements `Draft`."""

    def __init__(self, spool: MemorySpool) -> None:
        self._spool = spool
        self._data = bytearray()
        self._reserved = 0

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def digest(self) -> Digest:
        return Digest(sha256(self._data).hexdigest())

    def reserve(self, size: int) -> None:
        """Reserve `size` bytes in all. Raises as `MemorySpool.reserve`."""
        if size > self._reserved:
            self._spool.reserve(size - self._reserved)
            self._reserved = size

    async def write(self, data: bytes) -> None:
        self.reserve(len(self._data) + len(data))
        self._data += data

    async def read(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size])

    async def check(self, check: Callable[[bytearray | mmap], T]) -> T:
        return await asyncio.to_thread(check, self._data)

    def check_blocking(self, check: Callable[[bytearray | mmap], T]) -> T:
        return check(self._data)

    async def share_file(self) -> None:
        """Share nothing: the bytes are in this process."""

    async def aclose(self) -> None:
        self._spool.reserve(-self._reserved)
        self._reserved = 0
        self._data = bytearray()
