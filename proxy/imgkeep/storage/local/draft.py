"""Open files on a disk that may be slow, full or hung: bodies to read from, and drafts to append to."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import sys
from contextlib import suppress
from hashlib import sha256
from secrets import token_hex
from threading import Lock
from typing import TYPE_CHECKING, Final, TypeVar

from imgkeep.core.errors import StorageError
from imgkeep.core.records import Digest
from imgkeep.storage.local import atomic_files as files
from imgkeep.storage.local.executor import fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from hashlib import _Hash as Hash
    from pathlib import Path

    from imgkeep.storage.local.executor import DiskExecutor
    from imgkeep.storage.local.memory_cache import CacheEntry

PIECE_BYTES: Final = 1_048_576
CACHED_ONLY: Final = getattr(os, "RWF_NOWAIT", None)
"""Read what is in the kernel's cache, or say that it is not (man 2 preadv2). Not every system can do that."""
SMALL_BYTES_MAX: Final = 65_536
"""A draft needs no file up to this size: sixty-four fetches at a time hold 4 MiB."""

T = TypeVar("T")


class LocalBody:
    """An object that is open for reading in pieces."""

    def __init__(
        self, descriptor: int, size: int, threads: DiskExecutor, cache_entry: CacheEntry | None = None
    ) -> None:
        self._descriptor = descriptor
        self._threads = threads
        self.size = size
        self.cache_entry = cache_entry

    async def wait_for_size(self) -> int:
        return self.size

    async def read(self, offset: int, size: int) -> bytes:
        return await _read(self._descriptor, offset, min(size, self.size - offset), self._threads)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1  # the number may be another file's from now on
        os.close(descriptor)


def open_shared(path: Path, threads: DiskExecutor) -> LocalBody | None:
    """Open a file that grows; how far, is known to whoever told of it. Blocks."""
    try:
        return LocalBody(os.open(path, os.O_RDONLY | os.O_CLOEXEC), sys.maxsize, threads)
    except FileNotFoundError:
        return None


class LocalDraft:
    """
    What its fill appends to and others read from: bytes in memory as long as they are few, then a partial file.

    Attributes:
        folder: Where its file is, or will be.
        small: The bytes while there is no file.
        kept: Whether the file has another owner by now.
    """

    def __init__(self, folder: Path, descriptor: int | None, threads: DiskExecutor, name: str | None = None) -> None:
        self.folder = folder
        self._name = name
        self.kept = False
        self.small: bytearray | None = bytearray() if descriptor is None else None
        self._descriptor = descriptor
        self._threads = threads
        self._hash: Hash | None = None
        """Of what is in the file."""
        self._laid_open = False
        """Whether more bytes go into the file, few as they may be."""
        self._size = 0
        self._closed = False
        # Whoever waits for a write may be cancelled, the thread that writes may not: were the descriptor closed under
        # it, its bytes could end up in the file that gets the same number next.
        self._lock = Lock()

    @property
    def size(self) -> int:
        return self._size

    @property
    def path(self) -> Path:
        """Where its file is. Most drafts never have one, and no name either."""
        if self._name is None:
            self._name = token_hex(8)
        return self.folder / self._name

    @property
    def digest(self) -> Digest:
        known = sha256(self.small or b"") if self._hash is None else self._hash
        return Digest(known.hexdigest())

    async def write(self, data: bytes) -> None:
        if self.small is not None and not self._laid_open and self._size + len(data) <= SMALL_BYTES_MAX:
            self.small += data
        else:
            await self._threads.run(self._append, data)
        self._size += len(data)

    async def read(self, offset: int, size: int) -> bytes:
        if self.small is not None:
            return bytes(self.small[offset : min(offset + size, self._size)])
        assert self._descriptor is not None
        return await _read(self._descriptor, offset, min(size, self._size - offset), self._threads)

    async def check(self, check: Callable[[bytearray | mmap.mmap], T]) -> T:
        return await self._threads.run(self.check_blocking, check)

    def check_blocking(self, check: Callable[[bytearray | mmap.mmap], T]) -> T:
        small = self.small
        if small is not None:
            return check(small)
        with self._map() as view:
            return check(view)

    async def share_file(self) -> Path:
        # At once, because the thread copies what is in memory, and more may come meanwhile.
        self._laid_open = True
        if self.small is not None:
            await self._threads.run(self.make_file)
        return self.path

    def catch_up(self) -> None:
        """Take note of what is in the file already. Blocks."""
        assert self._descriptor is not None
        self._hash = sha256()
        while piece := os.pread(self._descriptor, PIECE_BYTES, self._size):
            self._hash.update(piece)
            self._size += len(piece)

    def sync(self) -> None:
        """Make the bytes durable, in a file. Blocks."""
        with self._lock:
            os.fsync(self._file())

    def make_file(self) -> None:
        """See to it that there is a file. Blocks."""
        with self._lock:
            self._file()

    async def aclose(self) -> None:
        if self.small is not None:
            self.close()
            return
        with suppress(StorageError):  # a draft that cannot be removed is swept at the next start
            await self._threads.run(self.close)

    def _append(self, data: bytes) -> None:
        # Hashed only once written: after a fault the draft is what it was before.
        with self._lock:
            files.write_all(self._file(), data)
            assert self._hash is not None
            self._hash.update(data)

    def _file(self) -> int:
        """Return the file's descriptor; there is a file from then on."""
        if self._closed:
            raise OSError(errno.EBADF, "")
        if self._descriptor is None:
            assert self.small is not None
            descriptor = files.create_partial(self.path)
            try:
                files.write_all(descriptor, self.small)
            except BaseException:
                os.close(descriptor)
                files.remove(self.path)
                raise
            self._hash = sha256(self.small)
            self._descriptor = descriptor
            self.small = None  # last, because readers on the event loop look at it
        return self._descriptor

    def _map(self) -> mmap.mmap:
        with self._lock:
            try:
                return mmap.mmap(self._file(), self._size, access=mmap.ACCESS_READ)
            except OSError as error:
                raise fault(error) from None

    def close(self) -> None:
        try:
            with self._lock:
                self._closed = True
                if self._descriptor is not None:
                    os.close(self._descriptor)
        finally:
            if not self.kept and self._descriptor is not None:
                files.remove(self.path)


async def _read(descriptor: int, offset: int, size: int, threads: DiskExecutor) -> bytes:
    if size <= 0:
        return b""
    data = _read_cached(descriptor, offset, size)
    if data:
        await asyncio.sleep(0)  # whoever is ahead is not served to the end before others get their first byte
        return data
    data = await threads.run(os.pread, descriptor, size, offset)
    if not data:
        raise StorageError("a file of the store is shorter than it was")
    return data


def _read_cached(descriptor: int, offset: int, size: int) -> bytes | None:
    """Return what the kernel has at hand of a file, and wait for no disk; `None`: nothing, or nobody can say."""
    if CACHED_ONLY is None:
        return None
    data = bytearray(size)
    try:
        length = os.preadv(descriptor, (data,), offset, CACHED_ONLY)
    except OSError:
        return None
    del data[length:]
    return bytes(data)


def read_all(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := os.pread(descriptor, size - len(data), len(data))):
        data += piece
    return bytes(data)


def map_all(descriptor: int, size: int) -> memoryview | None:
    """Map a file into memory, its pages read already; `None`: the system has no room for another map."""
    with suppress(OSError):
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        return memoryview(mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ))
    return None


def judge_all(descriptor: int, size: int, check: Callable[[bytes | mmap.mmap], T]) -> tuple[Digest, T]:
    """Return the digest of a file, and what `check` says of all its bytes."""
    digest = Digest(hash_all(descriptor, size))
    if size == 0:
        return digest, check(b"")  # nothing can be mapped
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as body:
        return digest, check(body)


def hash_all(descriptor: int, size: int) -> str:
    digest = sha256()
    for offset in range(0, size, PIECE_BYTES):
        digest.update(os.pread(descriptor, PIECE_BYTES, offset))
    return digest.hexdigest()
