"""A file whose name does not tell its hash, open, and with that hash: a derived picture."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from imgkeep.core.records import Digest
from imgkeep.storage.local.body import LocalBody

if TYPE_CHECKING:
    import os

    from imgkeep.storage.memory import MemoryBody


@dataclass(frozen=True, slots=True)
class FileDigest:
    """
    The SHA-256 of a file, and the state of the file that has it.

    Attributes:
        inode: Number of its inode; 0 where only the bytes are known.
        changed_ns: Time of the inode's last change.
    """

    digest: Digest
    inode: int = 0
    changed_ns: int = 0

    @classmethod
    def of_bytes(cls, data: bytes | bytearray, status: os.stat_result | None = None) -> FileDigest:
        """Return that of small bytes, read from a file in this state."""
        digest = Digest(sha256(data).hexdigest())
        return cls(digest) if status is None else cls(digest, status.st_ino, status.st_ctime_ns)

    def is_of(self, status: os.stat_result) -> bool:
        """Tell whether a file is in the same state."""
        return (self.inode, self.changed_ns) == (status.st_ino, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """An open file, and its hash."""

    body: LocalBody | MemoryBody
    digest: FileDigest

    def close(self) -> None:
        """Close the file."""
        if isinstance(self.body, LocalBody):
            self.body.close()
