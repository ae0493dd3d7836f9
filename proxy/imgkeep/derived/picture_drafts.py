"""The file in memory into which a derive process writes a picture, before a disk takes it."""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from contextlib import suppress
from typing import Final, TypeAlias

from imgkeep.core.errors import StorageError
from imgkeep.derived.messages import PICTURE_BYTES_MAX
from imgkeep.storage.local import open_files
from imgkeep.storage.local.memory_cache import SMALL_BYTES_MAX

_SEALS: Final = (
    getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0) | getattr(fcntl, "F_SEAL_WRITE", 0)
)

Data: TypeAlias = bytes | mmap.mmap
"""The bytes of a picture in memory."""


class PictureDraft:
    """
    An empty file in memory for the bytes of one picture.

    Attributes:
        descriptor: Its descriptor, open until `aclose`. The process that writes leaves its offset undefined.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("picture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())

    def write(self, data: bytes, offset: int) -> int:
        """Write some bytes, which takes no disk; return where they end."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written
        return offset

    async def read_piece(self, offset: int, size: int) -> bytes:
        """Read some bytes."""
        return os.pread(self.descriptor, size, offset)

    def clear(self) -> None:
        """Make the file empty again. Raises: StorageError: A derive process has made that impossible."""
        try:
            os.ftruncate(self.descriptor, 0)
        except OSError:
            raise StorageError("a derive process has sealed the file of its picture") from None

    def read(self) -> Data:
        """
        Return the bytes that are in the file now; they stay valid after `aclose`.

        Raises:
            StorageError: There are too many.
        """
        is_sealed = self._seal()
        size = os.fstat(self.descriptor).st_size
        if size > PICTURE_BYTES_MAX:
            raise StorageError("the derived picture is too large: ask for a smaller one")
        if size > SMALL_BYTES_MAX and is_sealed:  # small ones are copied: a process may have only so many maps
            with suppress(OSError):
                return mmap.mmap(self.descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        return open_files.read_all(self.descriptor, size)

    def _seal(self) -> bool:
        """
        Make sure that the file stays as it is: a derive process that a hostile original has taken over may still have
        it, and reading the map of a file that becomes shorter would end this process.

        `False`: not on this system, or not while that process has mapped the file to write.
        """
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except (AttributeError, OSError):
            return False
        return True

    async def aclose(self) -> None:
        os.close(self.descriptor)
