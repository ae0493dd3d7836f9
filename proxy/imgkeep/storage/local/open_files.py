"""Functions to read open files: from the page cache if it has the bytes, else in a thread of the disk executor."""

from __future__ import annotations

import asyncio
import mmap
import os
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Final, TypeVar

from imgkeep.core.errors import StorageError
from imgkeep.core.records import Digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.storage.local.executor import DiskExecutor

PIECE_BYTES: Final = 1_048_576
NO_WAIT: Final = getattr(os, "RWF_NOWAIT", None)
"""Flag to read from the kernel's page cache only (man 2 preadv2); `None`: this system has none."""

T = TypeVar("T")


async def read(descriptor: int, offset: int, size: int, executor: DiskExecutor) -> bytes:
    """
    Read up to `size` bytes from `offset` on.

    Raises:
        StorageError: The file is shorter, or the disk fails.
    """
    if size <= 0:
        return b""
    data = _read_cached(descriptor, offset, size)
    if data:
        await asyncio.sleep(0)  # a reader is not served to the end before other readers get their first byte
        return data
    data = await executor.run(os.pread, descriptor, size, offset)
    if not data:
        raise StorageError("a file of the store is shorter than it was")
    return data


def _read_cached(descriptor: int, offset: int, size: int) -> bytes | None:
    """Read what the page cache has of a file, without waiting for a disk; `None`: nothing, or it cannot tell."""
    if NO_WAIT is None:
        return None
    data = bytearray(size)
    try:
        length = os.preadv(descriptor, (data,), offset, NO_WAIT)
    except OSError:
        return None
    del data[length:]
    return bytes(data)


def read_all(descriptor: int, size: int) -> bytes:
    """Read a file to its end, or up to `size` bytes. Blocks."""
    data = bytearray()
    while len(data) < size and (piece := os.pread(descriptor, size - len(data), len(data))):
        data += piece
    return bytes(data)


def map_all(descriptor: int, size: int) -> memoryview | None:
    """Map a file into memory and read its pages; `None`: the system has no room for another map. Blocks."""
    with suppress(OSError):
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        return memoryview(mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ))
    return None


def check_all(descriptor: int, size: int, check: Callable[[bytes | mmap.mmap], T]) -> tuple[Digest, T]:
    """Return the digest of a file, and `check(all its bytes)`. Blocks."""
    digest = Digest(hash_all(descriptor, size))
    if size == 0:
        return digest, check(b"")  # nothing can be mapped
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as body:
        return digest, check(body)


def hash_all(descriptor: int, size: int) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Blocks."""
    digest = sha256()
    for offset in range(0, size, PIECE_BYTES):
        digest.update(os.pread(descriptor, PIECE_BYTES, offset))
    return digest.hexdigest()
