"""
The local store: a folder with the stored layout, and a `partial` folder beside it where drafts grow.

Rules:
- All file work runs in threads of the store's own, so neither a slow disk nor a slow name server holds up the other.
- A file that is not there is a miss under a root that is in place; under a root that is gone it is a fault.
- What is found damaged is moved to `damaged/`, out of every reader's way, and never thrown away.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from hashlib import sha256
from secrets import token_hex
from typing import TYPE_CHECKING, Final, TypeVar

import aiofiles
from cachetools import LRUCache

from proxy.core.errors import StorageError
from proxy.core.model import Digest
from proxy.core.stored import (
    OBJECTS,
    RECORD_BYTES_MAX,
    RECORDS,
    RecordTooNew,
    RecordUnreadable,
    decode_record,
    encode_record,
    object_path,
    record_path,
)
from proxy.storage import disk, files
from proxy.storage.disk import LocalBody, LocalDraft, Threads
from proxy.storage.memory import MemoryBody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from proxy.core.model import Key, Record
    from proxy.ports import Body, Draft

PARTIAL: Final = "partial"
DAMAGED: Final = "damaged"

HOT_OBJECT_BYTES_MAX: Final = 1_048_576
"""A larger object is read in pieces: in memory it would push out many that are asked for more often."""

T = TypeVar("T")


class LocalStore:
    """Keeps images under `root`. Implements `ports.Store`, `ports.Spool`, `ports.Watched` and `ports.Archive`."""

    name = "local"

    def __init__(
        self, root: Path, *, hot_bytes_max: int = 0, free_bytes_min: int = 0, timeout_s: float = disk.TIMEOUT_S
    ) -> None:
        self.root = root
        self._free_bytes_min = free_bytes_min
        self._hot: LRUCache[str, bytes] = LRUCache(hot_bytes_max, getsizeof=len)
        self._threads = Threads(timeout_s=timeout_s)
        self._device: int | None = None

    async def open(self) -> None:
        """
        Lay out the root and sweep drafts that a crash left behind.

        Raises:
            StorageError: The folder can be neither made nor used.
        """
        await self._run(self._lay_out)
        await self._run(files.sweep, self.root / PARTIAL)

    async def aclose(self) -> None:
        self._threads.close()

    async def check(self) -> int:
        """
        Write, read and remove a probe; return the bytes that are free.

        Raises:
            StorageError: Something of that does not work.
        """
        return await self._run(self._probe)

    async def find(self, key: Key) -> Record | None:
        path = self.root / record_path(key)
        try:
            async with (
                asyncio.timeout(self._threads.timeout_s),
                aiofiles.open(path, "rb", executor=self._threads.pool) as file,
            ):
                data = await file.read(RECORD_BYTES_MAX)
            return _read_record(data, path.name)
        except FileNotFoundError:
            await self._run(self._insist_on_root)
            return None
        except RecordTooNew as error:
            raise StorageError(f"the record was {error}") from None
        except RecordUnreadable:
            await self._run(self._set_aside, path)
            return None
        except OSError as error:
            raise disk.fault(error) from None

    async def fetch(self, name: str, size: int | None) -> Body | None:
        hot = self._hot.get(name)
        if hot is not None:
            return MemoryBody(hot)
        body = await self._run(self._open, name, size)
        if isinstance(body, MemoryBody) and body.size <= self._hot.maxsize:
            self._hot[name] = body.data
        return body

    async def begin(self, size: int | None) -> LocalDraft:
        return await self._run(self._begin, size or 0)

    async def put(self, draft: Draft, record: Record, replaces: Digest | None = None) -> None:
        assert isinstance(draft, LocalDraft)
        await self._run(self._commit, draft, record, replaces)
        draft.kept = True

    async def delete(self, key: Key) -> None:
        await self._run(self._delete, self.root / record_path(key))

    def records(self) -> Iterator[tuple[str, Record | RecordUnreadable]]:
        for path in self._walk(RECORDS):
            try:
                yield path, _read_record((self.root / path).read_bytes(), path.rpartition("/")[2])
            except RecordUnreadable as error:
                yield path, error
            except FileNotFoundError:
                continue  # deleted since its folder was listed

    def objects(self) -> Iterator[str]:
        return self._walk(OBJECTS)

    def hash_object(self, path: str) -> Digest:
        with (self.root / path).open("rb") as file:
            return Digest(hashlib.file_digest(file, "sha256").hexdigest())

    def set_aside(self, path: str) -> None:
        self._set_aside(self.root / path)

    def _walk(self, folder: str) -> Iterator[str]:
        """Walk in a fixed order, one of the 256 folders in memory at a time. One that cannot be read is a fault."""
        self._insist_on_root()
        for number in range(256):
            try:
                names = sorted(path.name for path in (self.root / folder / f"{number:02x}").iterdir())
            except FileNotFoundError:
                continue
            yield from (f"{folder}/{number:02x}/{name}" for name in names)

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await self._threads.run(work, *args)

    def _lay_out(self) -> None:
        """
        Make the folders that are missing, but never on another file system than before: that would be the empty place
        under a volume that is not mounted, and what is kept there would vanish once it is.
        """
        folders = [self.root / folder for folder in (PARTIAL, OBJECTS, RECORDS)]
        if not all(folder.is_dir() for folder in folders):
            place = next(path for path in (self.root, *self.root.parents) if path.exists())
            if self._device not in {None, place.stat().st_dev}:
                raise StorageError("the file system of the store is not mounted")
            for folder in folders:
                files.make_folder(folder)
        self._device = self.root.stat().st_dev

    def _insist_on_root(self) -> None:
        if not (self.root / RECORDS).is_dir():
            raise StorageError("the folder of the store is gone")

    def _partial(self) -> Path:
        return self.root / PARTIAL / token_hex(8)

    def _probe(self) -> int:
        self._lay_out()
        probe = self._partial()
        with files.durable_partial(probe, b"probe"):
            if probe.read_bytes() != b"probe":
                raise OSError(errno.EIO, "")
        return shutil.disk_usage(self.root).free

    def _begin(self, size: int) -> LocalDraft:
        self._lay_out()
        if shutil.disk_usage(self.root).free - size < self._free_bytes_min:
            raise StorageError("less than store.free_bytes_min would be left free on the disk")
        path = self._partial()
        return LocalDraft(path, files.create_partial(path), self._threads)

    def _open(self, name: str, size: int | None) -> Body | None:
        path = self.root / object_path(name)
        digest = name.partition(".")[0]
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._insist_on_root()
            return None
        keep_open = False
        try:
            found = os.fstat(descriptor).st_size
            if found > HOT_OBJECT_BYTES_MAX:
                # Too large to be hashed at every read. When the sizes differ the hash decides which of them is wrong:
                # a record that lies must not cost us a good object.
                if found == size or size is None or disk.hash_all(descriptor, found) == digest:
                    keep_open = True
                    return LocalBody(descriptor, found, self._threads)
            else:
                data = disk.read_all(descriptor, found)
                if sha256(data).hexdigest() == digest:
                    return MemoryBody(data)
            # Another reader may have set it aside already, and a fill put a good one in its place.
            if files.is_named(descriptor, path):
                self._set_aside(path)
            return None
        finally:
            if not keep_open:
                os.close(descriptor)

    def _commit(self, draft: LocalDraft, record: Record, replaces: Digest | None) -> None:
        final = self.root / record_path(record.key)
        self._insist_on_ours(final, record.digest, replaces)
        draft.sync()
        # The record's bytes are on the disk before the body gets its name: a full disk is noticed with nothing done.
        partial = self._partial()
        with files.durable_partial(partial, encode_record(record)):
            files.publish(draft.path, self.root / object_path(record.object_name))
            if not files.publish_new(partial, final):
                self._insist_on_ours(final, record.digest, replaces)  # another process was quicker
                files.publish(partial, final)

    def _insist_on_ours(self, path: Path, *replaceable: Digest | None) -> None:
        """Refuse to overwrite what a newer version wrote, or another image than `replaceable` that is still there."""
        try:
            theirs = _read_record(path.read_bytes(), path.name)
        except FileNotFoundError:
            return
        except RecordTooNew as error:
            raise StorageError(f"the record was {error}") from None
        except RecordUnreadable:
            return
        if replaceable and theirs.digest not in replaceable and (self.root / object_path(theirs.object_name)).exists():
            raise StorageError("another image was kept under this link meanwhile")

    def _delete(self, path: Path) -> None:
        self._insist_on_ours(path)
        try:
            path.unlink()
        except FileNotFoundError:
            return
        files.sync_folder(path.parent)

    def _set_aside(self, path: Path) -> None:
        folder = self.root / DAMAGED
        files.make_folder(folder)
        try:
            files.publish(path, folder / f"{path.name}.{token_hex(4)}")
        except FileNotFoundError:
            return  # somebody else was quicker
        files.sync_folder(path.parent)


def _read_record(data: bytes, name: str) -> Record:
    """Read a record's JSON. Under another name than its key's it is a damaged file, not another image's record."""
    record = decode_record(data)
    if name != f"{record.key}.json":
        raise RecordUnreadable("the key is not that of the file's name")
    return record
