"""The body of a stored object on the local disk: implements `Body` on an open file."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from imgkeep.storage.local import open_files

if TYPE_CHECKING:
    from pathlib import Path

    from imgkeep.storage.local.executor import DiskExecutor
    from imgkeep.storage.local.memory_cache import CacheEntry


class LocalBody:
    """An object that is open for reading in pieces. Implements `Body`."""

    def __init__(
        self, descriptor: int, size: int, executor: DiskExecutor, cache_entry: CacheEntry | None = None
    ) -> None:
        self._descriptor = descriptor
        self._executor = executor
        self.size = size
        self.cache_entry = cache_entry

    @property
    def descriptor(self) -> int:
        """The open file, for another process to map until `aclose`."""
        return self._descriptor

    async def wait_for_size(self) -> int:
        return self.size

    async def read(self, offset: int, size: int) -> bytes:
        return await open_files.read(self._descriptor, offset, min(size, self.size - offset), self._executor)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1  # the number may be another file's from now on
        os.close(descriptor)


def open_shared(path: Path, executor: DiskExecutor) -> LocalBody | None:
    """Open a file that grows: the process that writes it says how far. Blocks."""
    try:
        return LocalBody(os.open(path, os.O_RDONLY | os.O_CLOEXEC), sys.maxsize, executor)
    except FileNotFoundError:
        return None
