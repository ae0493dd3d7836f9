"""
Bodies in memory: the hottest objects, and the drafts that no disk can take. Both live on one budget each, in bytes.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

from imgkeep.core.errors import StorageError
from imgkeep.core.records import Digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap

    from imgkeep.storage.local.memory_cache import CacheEntry

T = TypeVar("T")


class MemoryBody:
    """A whole object in memory."""

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
    """Drafts in memory, `bytes_max` in all; what a draft may need is taken from the budget before it is used."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_left = bytes_max

    @property
    def bytes_left(self) -> int:
        return self._bytes_left

    async def begin(self, size: int | None) -> MemoryDraft:
        draft = MemoryDraft(self)
        draft.reserve(size or 0)
        return draft

    def take(self, size: int) -> None:
        """
        Take `size` bytes from the budget; negative: give them back.

        Raises:
            StorageError: So much is not left.
        """
        if size > self._bytes_left:
            raise StorageError("no store can take the image, and the memory set aside for that case is used up")
        self._bytes_left -= size


class MemoryDraft:
    """A draft that can be read by many and never be put."""

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
        if size > self._reserved:
            self._spool.take(size - self._reserved)
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
        """It is nobody's but ours."""

    async def aclose(self) -> None:
        self._spool.take(-self._reserved)
        self._reserved = 0
        self._data = bytearray()
