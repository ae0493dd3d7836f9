"""
The memory of a derive process between two jobs.

Not all memory of a decoder comes back when its picture is done. What stays is missing in the address space for the next
picture, which would be refused for a file that it has nothing to do with. So a process ends when too much has stayed,
and its server starts another one.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from resource import getpagesize
from typing import Final

STAYING_SHARE: Final = 4
"""The share of the address space that may stay is a quarter, besides what the libraries took before the first job."""


class Memory:
    """The memory that a process had before its first job. `bytes_max`: maximum size of its address space."""

    def __init__(self, bytes_max: int) -> None:
        self._limit = _read_size() + bytes_max // STAYING_SHARE

    @property
    def is_worn(self) -> bool:
        """Whether too much has stayed, also after it was given back as far as possible."""
        if _read_size() <= self._limit:
            return False
        with suppress(AttributeError):  # not every C library has it
            ctypes.CDLL(None).malloc_trim(0)
        return _read_size() > self._limit


def _read_size() -> int:
    """Return the size of the address space; 0: the system does not tell, and limits it neither."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - a file of the kernel
        return int(file.read().split()[0]) * getpagesize()
