"""
Open files on a disk that may be slow, full or hung: bodies to read from, drafts to append to, and the threads they use.

Rules:
- No file work on the event loop. Whoever waits may be cancelled or lose patience; the work in the thread ends all the
  same, and what it opened is closed then.
- An operating system error becomes a `StorageError` that names the trouble and no path.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING, Final, TypeVar

from proxy.core.errors import StorageError
from proxy.core.model import Digest
from proxy.storage import files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.storage.shelf import Held

TIMEOUT_S: Final = 30
"""A disk that takes longer is as good as gone. A spinning one that wakes up takes ten."""
PIECE_BYTES: Final = 1_048_576

T = TypeVar("T")


class Threads:
    """The threads of one disk, and the patience with it. A disk answers a few at a time: more would only wait."""

    def __init__(self, number: int = 8, *, timeout_s: float = TIMEOUT_S) -> None:
        self.pool = ThreadPoolExecutor(number, thread_name_prefix="disk")
        self.timeout_s = timeout_s

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """
        Run `work` in a thread.

        Raises:
            StorageError: It failed or took too long.
        """
        future = asyncio.get_running_loop().run_in_executor(self.pool, work, *args)
        try:
            async with asyncio.timeout(self.timeout_s):
                return await asyncio.shield(future)
        except TimeoutError:
            future.add_done_callback(_release)
            raise StorageError("the disk of the store does not answer") from None
        except asyncio.CancelledError:
            future.add_done_callback(_release)
            raise
        except OSError as error:
            raise fault(error) from None

    def close(self) -> None:
        """Take no more work; what runs ends by itself."""
        self.pool.shutdown(wait=False, cancel_futures=True)


class LocalBody:
    """An object that is open for reading in pieces."""

    def __init__(self, descriptor: int, size: int, threads: Threads, at_hand: Held | None = None) -> None:
        self._descriptor = descriptor
        self._threads = threads
        self.size = size
        self.at_hand = at_hand

    async def settle(self) -> int:
        return self.size

    async def read(self, offset: int, size: int) -> bytes:
        return await _read(self._descriptor, offset, min(size, self.size - offset), self._threads)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)


class LocalDraft:
    """A partial file that its fill appends to and others read from."""

    def __init__(self, path: Path, descriptor: int, threads: Threads) -> None:
        self.path = path
        self.kept = False
        self._descriptor = descriptor
        self._threads = threads
        self._hash = sha256()
        self._size = 0
        self._closed = False
        # Whoever waits for a write may be cancelled, the thread that writes may not: were the descriptor closed under
        # it, its bytes could end up in the file that gets the same number next.
        self._lock = Lock()

    @property
    def size(self) -> int:
        return self._size

    @property
    def digest(self) -> Digest:
        return Digest(self._hash.hexdigest())

    async def write(self, data: bytes) -> None:
        await self._threads.run(self._append, data)
        self._size += len(data)

    async def read(self, offset: int, size: int) -> bytes:
        return await _read(self._descriptor, offset, min(size, self._size - offset), self._threads)

    async def judge(self, verdict: Callable[[bytearray | mmap.mmap], T]) -> T:
        return await self._threads.run(self._judge, verdict)

    def catch_up(self) -> None:
        """Take note of what is in the file already. Blocks."""
        while piece := os.pread(self._descriptor, PIECE_BYTES, self._size):
            self._hash.update(piece)
            self._size += len(piece)

    def sync(self) -> None:
        """Make the bytes durable. Blocks."""
        with self._lock:
            self._insist_on_open()
            os.fsync(self._descriptor)

    async def aclose(self) -> None:
        with suppress(StorageError):  # a draft that cannot be removed is swept at the next start
            await self._threads.run(self.close)

    def _append(self, data: bytes) -> None:
        # Hashed only once written: after a fault the draft is what it was before.
        with self._lock:
            self._insist_on_open()
            files.write_all(self._descriptor, data)
            self._hash.update(data)

    def _insist_on_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "")

    def _judge(self, verdict: Callable[[bytearray | mmap.mmap], T]) -> T:
        with mmap.mmap(self._descriptor, self._size, access=mmap.ACCESS_READ) as view:
            return verdict(view)

    def close(self) -> None:
        try:
            with self._lock:
                self._closed = True
                os.close(self._descriptor)
        finally:
            if not self.kept:
                files.remove(self.path)


def _release(future: asyncio.Future[T]) -> None:
    result = None if future.cancelled() or future.exception() else future.result()
    if isinstance(result, (LocalBody, LocalDraft)):
        result.close()


async def _read(descriptor: int, offset: int, size: int, threads: Threads) -> bytes:
    if size <= 0:
        return b""
    data = await threads.run(os.pread, descriptor, size, offset)
    if not data:
        raise StorageError("a file of the store is shorter than it was")
    return data


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


def hash_all(descriptor: int, size: int) -> str:
    digest = sha256()
    for offset in range(0, size, PIECE_BYTES):
        digest.update(os.pread(descriptor, PIECE_BYTES, offset))
    return digest.hexdigest()


def fault(error: OSError) -> StorageError:
    """Name the trouble without the path."""
    return StorageError(f"the disk of the store failed: {os.strerror(error.errno or errno.EIO)}")
