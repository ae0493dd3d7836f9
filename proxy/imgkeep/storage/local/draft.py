"""
Drafts of the local store, on a disk that may be slow, full or hung.

`sync` makes a draft durable; `atomic_files` gives it its name; `StoreFiles.put` holds the order.
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress
from hashlib import sha256
from secrets import token_hex
from threading import Lock
from typing import TYPE_CHECKING, Final, TypeVar

from imgkeep.core.errors import StorageError
from imgkeep.core.records import Digest
from imgkeep.storage.local import atomic_files, open_files
from imgkeep.storage.local.executor import fault
from imgkeep.storage.local.open_files import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from hashlib import _Hash as Hash
    from pathlib import Path

    from imgkeep.storage.local.executor import DiskExecutor

SMALL_BYTES_MAX: Final = 65_536
"""Maximum size of a draft that needs no file: sixty-four fetches at a time hold 4 MiB."""

T = TypeVar("T")


class LocalDraft:
    """
    A draft: bytes in memory while they are few, then a partial file. Implements `Draft`.

    Attributes:
        folder: Folder of its file.
        small: The bytes while there is no file.
        is_published: Whether its file has a final name, so that the draft must not delete it.
    """

    def __init__(self, folder: Path, descriptor: int | None, executor: DiskExecutor, name: str | None = None) -> None:
        self.folder = folder
        self._name = name
        self.is_published = False
        self.small: bytearray | None = bytearray() if descriptor is None else None
        self._descriptor = descriptor
        self._executor = executor
        self._hash: Hash | None = None
        """Hash of the bytes in the file."""
        self._is_shared = False
        """Whether another process reads the file, so that all bytes go into it, however few."""
        self._size = 0
        self._closed = False
        # A caller may be cancelled during a write, and its thread goes on. If the descriptor were closed meanwhile, the
        # bytes could end up in the next file that gets the same number.
        self._lock = Lock()

    @property
    def size(self) -> int:
        return self._size

    @property
    def path(self) -> Path:
        """Path of its file. Most drafts never have a file, and so no name either."""
        if self._name is None:
            self._name = token_hex(8)
        return self.folder / self._name

    @property
    def descriptor(self) -> int | None:
        """Its open file, for another process to map until `aclose`; `None`: it has none."""
        return self._descriptor

    @property
    def digest(self) -> Digest:
        known = sha256(self.small or b"") if self._hash is None else self._hash
        return Digest(known.hexdigest())

    async def write(self, data: bytes) -> None:
        if self.small is not None and not self._is_shared and self._size + len(data) <= SMALL_BYTES_MAX:
            self.small += data
        else:
            await self._executor.run(self._append, data)
        self._size += len(data)

    async def read(self, offset: int, size: int) -> bytes:
        if self.small is not None:
            return bytes(self.small[offset : min(offset + size, self._size)])
        assert self._descriptor is not None
        return await open_files.read(self._descriptor, offset, min(size, self._size - offset), self._executor)

    async def check(self, check: Callable[[bytearray | mmap.mmap], T]) -> T:
        return await self._executor.run(self.check_blocking, check)

    def check_blocking(self, check: Callable[[bytearray | mmap.mmap], T]) -> T:
        small = self.small
        if small is not None:
            return check(small)
        with self._map() as view:
            return check(view)

    async def share_file(self) -> Path:
        # At once, because the thread copies the bytes in memory, and more bytes may arrive meanwhile.
        self._is_shared = True
        if self.small is not None:
            await self._executor.run(self.make_file)
        return self.path

    def catch_up(self) -> None:
        """Hash the bytes that are in the file already. Blocks."""
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
        """Write the bytes into a file, if there is none yet. Blocks."""
        with self._lock:
            self._file()

    async def aclose(self) -> None:
        if self.small is not None:
            self.close()
            return
        with suppress(StorageError):  # a draft that cannot be removed is swept at the next start
            await self._executor.run(self.close)

    def _append(self, data: bytes) -> None:
        # Hashed only once written: after a fault the draft is what it was before.
        with self._lock:
            atomic_files.write_all(self._file(), data)
            assert self._hash is not None
            self._hash.update(data)

    def _file(self) -> int:
        """Return the descriptor of the file; make the file if there is none."""
        if self._closed:
            raise OSError(errno.EBADF, "")
        if self._descriptor is None:
            assert self.small is not None
            descriptor = atomic_files.create_partial(self.path)
            try:
                atomic_files.write_all(descriptor, self.small)
            except BaseException:
                os.close(descriptor)
                atomic_files.remove(self.path)
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
            if not self.is_published and self._descriptor is not None:
                atomic_files.remove(self.path)
