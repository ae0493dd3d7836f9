"""
Protocols of the stores: `Store` and `ListableStore`, `Spool` and `Draft` for writing, `Body` for reading.

Rules for an implementation:
- A miss is `None`; a fault is a typed error of `core.errors`; a fault is never reported as a miss.
- No call blocks the event loop, and every call ends: a call that may hang has a time limit of its own.
- A large body is never held whole in memory: it is read in pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence
    from datetime import datetime
    from mmap import mmap
    from pathlib import Path

    from imgkeep.core.layout import RecordUnreadable
    from imgkeep.core.records import Digest, Key, Record, Tombstone
    from imgkeep.storage.local.memory_cache import CacheEntry

T = TypeVar("T")


class Body(Protocol):
    """
    The bytes of an image, which may still arrive. Other readers may read the same ones at the same time.

    The holder calls `aclose` when done, exactly once.
    """

    async def read(self, offset: int, size: int) -> bytes:
        """
        Return between 1 and `size` bytes from `offset` on; nothing at the end.

        Raises:
            ImgkeepError: The bytes cannot be read; those already returned must not pass for the whole.
        """

    async def aclose(self) -> None: ...

    @property
    def size(self) -> int | None:
        """The size in bytes; `None` while it is unknown."""

    @property
    def cache_entry(self) -> CacheEntry | None:
        """The same bytes for later readers, where the store can give them at once."""

    async def wait_for_size(self) -> int:
        """Wait until the size is certain and return it. Raises as `read` does."""


class Draft(Protocol):
    """
    Bytes on their way into a store: append-only, readable by many while it grows, gone unless it is put.

    The fill that began it owns it, and calls `aclose` once its last reader has left; that removes a draft that was not
    put.
    """

    @property
    def size(self) -> int:
        """Bytes written so far."""

    @property
    def digest(self) -> Digest:
        """SHA-256 of the bytes written so far."""

    async def write(self, data: bytes) -> None:
        """
        Append `data`.

        Raises:
            StorageError: It could not be written. The bytes before them can still be read.
        """

    async def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on."""

    async def check(self, check: Callable[[bytearray | mmap], T]) -> T:
        """Return `check(all bytes written so far)`, from a thread of the store. For the store's own work alone."""

    def check_blocking(self, check: Callable[[bytearray | mmap], T]) -> T:
        """
        Return `check(all bytes written so far)`. Blocks for as long as `check` takes; may go on after `aclose`.

        Raises:
            StorageError: The bytes cannot be read.
        """

    async def share_file(self) -> Path | None:
        """
        Return the file that holds the bytes from now on, up to `size`; `None`: they are in memory.

        Raises:
            StorageError: The file cannot be made.
        """

    async def aclose(self) -> None: ...


class Spool(Protocol):
    """A place where drafts are written, and where those of other processes on this machine can be read."""

    async def begin(self, size: int | None) -> Draft:
        """
        Begin a draft of `size` bytes, where the size is known.

        Raises:
            StorageError: There is no room, or the place is not usable.
        """

    async def open_shared(self, path: Path) -> Body | None:
        """
        Open a draft that another process shares, to read as far as that process says; `None`: the file is gone.

        Raises:
            StorageError: It cannot be opened.
        """


class Store(Protocol):
    """
    The durable store: objects by digest, records by key (`docs/architecture.md`, stored layout).

    Attributes:
        name: Its name in answers of the API: `local`, `s3`, ...
        local_drafts_only: Whether it takes only drafts of the disk that it is on.
    """

    name: str
    local_drafts_only: bool

    async def find(self, key: Key) -> Record | None:
        """
        Return the record under a key.

        Raises:
            Removed: There is a tombstone.
            Unreachable: The primary cannot tell, and an image that is fetched meanwhile may be put.
            StorageError: The store cannot tell.
        """

    async def fetch(self, name: str, size: int | None) -> Body | None:
        """
        Open the object `<digest>.<ext>` for reading; `size` is the size in its record, where the caller has one.

        `None`: the object is not there, or it was found damaged and was moved to quarantine.

        Raises:
            Unreachable, StorageError: As `find`.
        """

    async def holds(self, name: str, size: int) -> bool:
        """
        Tell whether the object is there and has this size, without reading it.

        Raises:
            Unreachable, StorageError: As `find`.
        """

    async def has_object(self, digest: Digest) -> bool:
        """
        Tell whether bytes are stored, whatever their extension.

        Raises:
            StorageError: The store cannot tell.
        """

    async def put(self, draft: Draft, record: Record, replaces: Digest | None = None) -> Record:
        """
        Store a finished draft and its record: whole or not at all, the body before the record, durable on return.

        Another image that is stored under the key stays, unless `replaces` is its digest or its object is gone. Without
        `replaces` the record of the same image stays, too, with its validator (`core.confirmation.adopt`). Returns the
        record as it stands now: `pending` if the image has to wait for the primary.

        Raises:
            Removed: There is a tombstone, or the bytes are blocked.
            Conflict: Another image is stored under the key and has to stay.
            StorageError: The image is not stored; nothing partial remains under a final name.
        """

    async def put_record(self, record: Record, replaces: Digest | None = None) -> Record:
        """
        Write a record whose object is there already; durable on return. Else as `put`.

        Raises:
            Removed, Conflict, StorageError: As `put`.
        """

    async def delete_object(self, digest: Digest) -> None:
        """
        Delete an object, whatever its extension, and the derived pictures in this store that were made from it.

        Raises:
            StorageError: It may still be there.
        """

    async def put_tombstone(self, tombstone: Tombstone) -> None:
        """
        Put a tombstone in the place of a record, whatever is there; durable on return.

        Raises:
            StorageError: The tombstone is not put.
        """

    async def find_tombstone(self, key: Key) -> Tombstone | None:
        """
        Return the tombstone that is in the place of a record.

        Raises:
            StorageError: The store cannot tell.
        """

    async def delete_tombstone(self, tombstone: Tombstone) -> None:
        """
        Delete this very tombstone; a record, or a later tombstone, in its place stays. Durable on return.

        Raises:
            StorageError: It may still be there.
        """

    async def block(self, digest: Digest, removed_at: datetime, keys: Collection[Key] = ()) -> None:
        """
        Block a digest until `unblock`; durable on return. The object stays: `delete_object` removes it.

        `keys` are those that get a tombstone together with the block: an undo finds them by `find_block`.

        Raises:
            StorageError: The digest may be blocked.
        """

    async def unblock(self, digest: Digest) -> None:
        """
        Undo `block`; durable on return.

        Raises:
            StorageError: The digest may still be blocked.
        """

    async def find_block(self, digest: Digest) -> Collection[Key] | None:
        """
        Return the keys that got a tombstone together with the block of a digest; `None`: the digest is not blocked.

        Raises:
            StorageError: The store cannot tell.
        """

    async def list_blocked(self) -> Collection[Digest]:
        """
        Return all blocked digests.

        Raises:
            StorageError: The store cannot tell.
        """


class ListableStore(Store, Protocol):
    """A store that maintenance can list, verify and copy. Paths are those of the stored layout."""

    def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        """Yield path and size of every file below `v1/objects`, `v1/records` or one folder in them, in path order."""

    async def read_records(self, paths: Sequence[str]) -> Sequence[tuple[str, Record | Tombstone | RecordUnreadable]]:
        """Read records and tombstones; leave out those that were deleted meanwhile."""

    async def hash_object(self, path: str) -> Digest | None:
        """Read an object and hash it; `None`: it was deleted meanwhile."""

    async def check_object(self, path: str, check: Callable[[bytes | mmap], T]) -> tuple[Digest, T] | None:
        """Read an object; return its digest and `check(all its bytes)`, from a thread. `None`: it was deleted."""

    async def quarantine(self, path: str) -> None:
        """Move a damaged file out of every reader's way, without deleting it."""

    async def open_draft(self, name: str, spool: Spool) -> Draft | None:
        """
        Open the object `<digest>.<ext>` as a draft that another store can take, damaged or not; `None`: there is none.

        A store that has no disk copies the object into a draft of `spool`. The caller calls `aclose`.
        """

    async def put_object(self, draft: Draft, name: str) -> None:
        """
        Store a finished draft as the object `<digest>.<ext>`: whole or not at all, durable on return.

        Raises:
            StorageError: It is not stored.
        """
