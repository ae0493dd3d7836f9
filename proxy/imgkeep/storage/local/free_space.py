"""Free space: measures the disk, and reserves bytes for new drafts above `store.free_bytes_min`."""

from __future__ import annotations

import errno
import math
import os
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MEASUREMENT_TTL_S: Final = 1
"""Maximum age of a valid measurement. A lookup that misses measures as well."""


class FreeSpace:
    """
    The bytes that new drafts in `folder` may take.

    Args:
        bytes_min: Bytes that stay free on the disk.
        timer: Gives monotonic seconds.
    """

    def __init__(self, folder: Path, bytes_min: int, timer: Callable[[], float]) -> None:
        self._folder = str(folder)
        self._bytes_min = bytes_min
        self._timer = timer
        self._bytes = 0
        self._measured_at = -math.inf

    @property
    def is_known(self) -> bool:
        """Whether the last measurement is still believed."""
        return self._timer() - self._measured_at <= MEASUREMENT_TTL_S

    def measure(self) -> None:
        """Measure whether the disk takes new drafts, and how many bytes of them. Blocks. Raises: OSError."""
        self._measured_at = -math.inf
        status = os.statvfs(self._folder)
        if status.f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, "")
        if status.f_files and not status.f_favail:
            raise OSError(errno.ENOSPC, "")
        self._bytes = status.f_bavail * status.f_frsize - self._bytes_min
        self._measured_at = self._timer()

    def reserve(self, size: int) -> None:
        """
        Reserve room for a draft, until the next measurement.

        Raises:
            StorageError: There is none.
        """
        if self._bytes < size:
            raise StorageError("less than store.free_bytes_min would be left free on the disk")
        self._bytes -= size
