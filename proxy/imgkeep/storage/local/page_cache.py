"""
Reads of small files from the kernel's page cache, on the event loop, without ever waiting for a disk.

Two calls of Linux promise that: `openat2` with `RESOLVE_CACHED` (5.12, man 2 openat2) looks a name up only where that
needs no input or output, and `preadv2` with `RWF_NOWAIT` (4.14, man 2 preadv2) reads only pages that are cached. Both
fail with `EAGAIN` otherwise, and the caller reads in a thread. Opening a file on a network file system, or on one of
another process, may still ask a server, so only files on the types in `LOCAL` are read in this way. Where the system
has neither call, or a sandbox forbids them, no file is read in this way, and nothing else changes.

Python's `os` has the second call and not the first, so the first goes through ctypes: the C library's `syscall`, with
the interpreter's lock held, because a call that cannot wait ends sooner than the lock could be released and taken back.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Final

LOCAL: Final = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs"})

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")

_OPENAT2: Final = 437
"""The same on every architecture: it is younger than the unified table of numbers."""
_RESOLVE_CACHED: Final = 0x20
_AT_FDCWD: Final = -100


class _How(ctypes.Structure):
    """`struct open_how` (man 2 openat2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class PageCacheReader:
    """The page cache of the files under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = os.fsencode(root) + b"/"
        self.is_available = False
        how = _How(os.O_RDONLY | os.O_CLOEXEC, 0, _RESOLVE_CACHED)
        self._arguments = ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
        self._number, self._here = ctypes.c_long(_OPENAT2), ctypes.c_int(_AT_FDCWD)
        self._call = ctypes.PyDLL(None).syscall if sys.platform == "linux" else None

    def open(self) -> None:
        """Find out whether this system and file system support it. Blocks; the root has to be there."""
        if self._call is None:
            return
        try:
            mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
        except OSError:
            return
        if type_of(self.root.resolve(), mounts) not in LOCAL:
            return
        descriptor = self._open(b".")
        if descriptor >= 0:
            os.close(descriptor)
            self.is_available = True

    def read(self, path: str, size: int, changed_ns: int) -> bytearray | None:
        """
        Return the `size` bytes of a file, if all are cached and its inode has not changed since `changed_ns`.
        """
        if not self.is_available:
            return None
        descriptor = self._open(path.encode())
        if descriptor < 0:
            return None
        try:
            return _read(descriptor, size, changed_ns, os.RWF_NOWAIT)
        except OSError:  # not in the cache, or a file system that cannot say
            return None
        finally:
            os.close(descriptor)

    def _open(self, path: bytes) -> int:
        assert self._call is not None
        descriptor: int = self._call(self._number, self._here, self._prefix + path, *self._arguments)
        return descriptor


def read_unchanged(path: Path, size: int, changed_ns: int) -> bytearray | None:
    """Return the `size` bytes of a file whose inode has not changed since `changed_ns`. Blocks. Raises: OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return _read(descriptor, size, changed_ns)
    finally:
        os.close(descriptor)


def _read(descriptor: int, size: int, changed_ns: int, flags: int = 0) -> bytearray | None:
    status = os.fstat(descriptor)
    if status.st_ctime_ns != changed_ns or status.st_size != size:
        return None
    data = bytearray(size)
    return data if os.preadv(descriptor, (data,), 0, flags) == size else None


def type_of(path: Path, mounts: str) -> str | None:
    """Return the type of the file system that `path` is on, by the `mounts` of man 5 proc_pid_mountinfo."""
    best, found = Path(), None
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        if rest:
            point = Path(_ESCAPE.sub(lambda escape: chr(int(escape[1], 8)), fields.split(" ")[4]))
            # Of several mounts at one path the last one counts.
            if path.is_relative_to(point) and len(point.parts) >= len(best.parts):
                best, found = point, rest.partition(" ")[0]
    return found
