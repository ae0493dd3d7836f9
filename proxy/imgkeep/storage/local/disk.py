"""
The disk that a local store and a disk cache share: open files, drafts, free space and the memory cache of its objects.

Rules:
- All file work runs in threads of the disk's own, so a slow disk and a slow name server do not delay each other.
- A file that is missing under an intact root is a miss; under a root that is gone it is a fault.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from contextlib import suppress
from hashlib import sha256
from secrets import token_hex
from typing import TYPE_CHECKING, Final, TypeVar

from imgkeep.config import absolute
from imgkeep.core.errors import StorageError
from imgkeep.core.layout import OBJECTS, RECORDS
from imgkeep.core.records import Digest
from imgkeep.storage.local import atomic_files, body, open_files
from imgkeep.storage.local.body import LocalBody
from imgkeep.storage.local.draft import LocalDraft
from imgkeep.storage.local.executor import TIMEOUT_S, DiskExecutor
from imgkeep.storage.local.free_space import FreeSpace
from imgkeep.storage.local.memory_cache import SMALL_BYTES_MAX, CacheEntry, MemoryCache
from imgkeep.storage.local.opened_file import FileDigest, OpenedFile
from imgkeep.storage.local.page_cache import PageCacheReader
from imgkeep.storage.memory import MemoryBody

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

PARTIAL: Final = "partial"

HASHED_BYTES_MAX: Final = 1_048_576
"""Maximum size of an object that is hashed whenever it is opened: a larger one takes too long, and its size counts."""

_PART: Final = re.compile("[0-9a-f]{2}")

T = TypeVar("T")


class Disk:
    """
    A folder with the stored layout, and a folder `partial` beside it for drafts.

    Args:
        root: The folder.
        memory_bytes_max: Maximum size of the memory cache.
        free_bytes_min: Bytes that drafts leave free.
        timeout_s: Timeout for one piece of file work.
        timer: Gives monotonic seconds.
    """

    def __init__(
        self,
        root: Path,
        *,
        memory_bytes_max: int = 0,
        free_bytes_min: int = 0,
        timeout_s: float = TIMEOUT_S,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root
        self.place = f"folder {absolute(root)}"
        self._root = str(root)
        self._partial_folder = root / PARTIAL
        self.executor = DiskExecutor(timeout_s=timeout_s, place=self.place)
        self._free_space = FreeSpace(self._partial_folder, free_bytes_min, timer)
        self._page_cache = PageCacheReader(root)
        self.memory_cache = MemoryCache(memory_bytes_max, self._page_cache, self.run)
        self._device: int | None = None
        self._room_makers: list[Callable[[int], Awaitable[bool]]] = []

    async def open(self) -> None:
        """
        Make the folders that are missing, and sweep drafts that a crash left behind.

        Raises:
            StorageError: The folder cannot be made or used.
        """
        await self.run(self._make_folders)
        await self.run(self._page_cache.open)
        await self.run(atomic_files.sweep, self._partial_folder)

    async def aclose(self) -> None:
        self.executor.close()

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Run `work` in a thread of this disk. Raises `StorageError` if it fails or takes too long."""
        return await self.executor.run(work, *args)

    async def check(self) -> int:
        """
        Write, read and remove a probe; return the bytes that are free.

        Raises:
            StorageError: One of these steps fails.
        """
        return await self.run(self._probe)

    # --- drafts

    async def begin(self, size: int | None) -> LocalDraft:
        """Begin a draft. As `Spool.begin`."""
        await self.reserve(size or 0)
        return LocalDraft(self._partial_folder, None, self.executor)

    async def reserve(self, size: int) -> None:
        """
        Reserve room for `size` new bytes; the caches on this disk make some if need be.

        Raises:
            StorageError: There is none, or the disk is not usable.
        """
        try:
            if not self._free_space.is_known:
                await self.run(self._measure_free_space)
            self._free_space.reserve(size)
        except StorageError:
            for make_room in self._room_makers:
                if await make_room(size):
                    await self.run(self._measure_free_space)
                    with suppress(StorageError):
                        self._free_space.reserve(size)
                        return
            raise

    def make_room_by(self, make_room: Callable[[int], Awaitable[bool]]) -> None:
        """
        Call `make_room` before a reservation fails: it evicts files until there is room for so many new bytes, and
        returns whether it evicted any. The last one added is the first one called.
        """
        self._room_makers.insert(0, make_room)

    async def open_shared(self, path: Path) -> LocalBody | None:
        """Open a draft of another process. As `Spool.open_shared`."""
        return await self.run(body.open_shared, path, self.executor)

    def owns(self, draft: object) -> bool:
        """Tell whether a draft is on this disk, so that its file can become an object without being copied."""
        return isinstance(draft, LocalDraft) and draft.folder == self._partial_folder

    def partial_path(self) -> Path:
        """Return a new name for a file that is not whole yet."""
        return self._partial_folder / token_hex(8)

    # --- objects

    async def open_object(
        self, path: str, name: str, size: int | None, *, discard: Callable[[Path], None]
    ) -> LocalBody | MemoryBody | None:
        """
        Open the object `name` at `path` under the root; `size` is the size in its record, if the caller has one.

        `None`: it is not there, or it was damaged and went to `discard`, which blocks.
        """
        held = self._find_held(path)
        if held is not None:
            return held
        removals = self.memory_cache.removals
        opened = await self.run(self._open, path, name, size, discard)
        self._hold(opened, removals)
        return opened

    async def open_file(self, path: str, known: FileDigest | None) -> OpenedFile | None:
        """
        Open a file at `path` under the root whose name does not tell its hash; `None`: it is not there.

        Args:
            path: A file that was written whole or not at all.
            known: The hash that was found before, with the state of the file then; `None`: it is not known.
        """
        held = self._find_held(path)
        if held is not None:
            return OpenedFile(held, known or FileDigest.of_bytes(held.data))
        removals = self.memory_cache.removals
        opened = await self.run(self._open_file, path, known)
        if opened is not None:
            self._hold(opened.body, removals)
        return opened

    def _find_held(self, path: str) -> MemoryBody | None:
        """Return the body of a small object whose bytes are in memory."""
        held = self.memory_cache.find(path)
        if held is None or not isinstance(held.data, bytes | bytearray):
            return None
        return MemoryBody(held.data, held)

    def _hold(self, opened: LocalBody | MemoryBody | None, removals: int) -> None:
        """Put the bytes of an object into the memory cache, unless they are there, or an object was removed since."""
        if opened is not None and opened.cache_entry is not None:
            current = self.memory_cache.find_same(opened.cache_entry)
            if current is not None:
                opened.cache_entry = current  # many links lead to one object: they share its bytes
            else:
                self.memory_cache.put(opened.cache_entry, removals)

    def open_as_draft(self, path: Path) -> LocalDraft | None:
        """Open a stored file as a draft that another store can take; `None`: it is not there. Blocks."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.require_root()
            return None
        opened = LocalDraft(path.parent, descriptor, self.executor, path.name)
        opened.is_published = True
        try:
            opened.catch_up()
        except BaseException:
            opened.close()
            raise
        return opened

    async def hash_file(self, path: str) -> Digest | None:
        """Return the SHA-256 of a file; `None`: it is not there."""
        return await self.run(self._hash, self.root / path)

    async def delete_files(self, paths: Sequence[str]) -> None:
        """Delete files, also from the memory cache."""
        for path in paths:
            self.memory_cache.remove(path)
        try:
            await self.run(self._delete_all, paths)
        finally:
            for path in paths:  # for readers that opened one while it was still there
                self.memory_cache.remove(path)

    # --- blocking steps, for threads of this disk

    def require_root(self) -> None:
        """Raise `StorageError` if the root is gone, where a file is missing. Blocks."""
        if not os.path.isdir(f"{self._root}/{RECORDS}"):  # noqa: PTH112 - every miss passes here
            raise StorageError("the folder of the store is gone")

    def expect_draft(self) -> None:
        """Measure the free space after a miss, because a fill follows. Blocks."""
        with suppress(OSError):  # `begin` measures again, and reports
            self._free_space.measure()

    def list_parts(self, folder: str) -> list[str]:
        """Return those of the 256 folders that exist: a small store has few, and each costs a call. Blocks."""
        try:
            names = os.listdir(self.root / folder)  # noqa: PTH208 - names are wanted
        except FileNotFoundError:
            return []
        return sorted(f"{folder}/{name}" for name in names if _PART.fullmatch(name))

    def free_bytes(self) -> int:
        """Return the bytes that are free. Blocks."""
        return shutil.disk_usage(self.root).free

    def _make_folders(self) -> None:
        """
        Make the folders that are missing, but never on another file system than before.

        That would be the empty folder under a volume that is not mounted, and mounting the volume would hide what was
        stored there.
        """
        folders = [self.root / folder for folder in (PARTIAL, OBJECTS, RECORDS)]
        if not all(folder.is_dir() for folder in folders):
            nearest = next(path for path in (self.root, *self.root.parents) if path.exists())
            if self._device not in {None, nearest.stat().st_dev}:
                raise StorageError("the file system of the store is not mounted")
            for folder in folders:
                atomic_files.make_folder(folder)
        self._device = self.root.stat().st_dev

    def _probe(self) -> int:
        self._make_folders()
        probe = self.partial_path()
        with atomic_files.durable_partial(probe, b"probe"):
            if probe.read_bytes() != b"probe":
                raise OSError(errno.EIO, "")
        return self.free_bytes()

    def _measure_free_space(self) -> None:
        self._make_folders()
        self._free_space.measure()

    def _open_descriptor(self, path: Path) -> int | None:
        """Open a file; `None`: it is not there, while the root is."""
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.require_root()
            return None

    def _open(
        self, path: str, name: str, size: int | None, discard: Callable[[Path], None]
    ) -> LocalBody | MemoryBody | None:
        full_path = self.root / path
        digest = name.partition(".")[0]
        descriptor = self._open_descriptor(full_path)
        if descriptor is None:
            return None
        keep_open = False
        try:
            status = os.fstat(descriptor)
            found = status.st_size
            if found <= SMALL_BYTES_MAX:
                data = open_files.read_all(descriptor, found)
                if sha256(data).hexdigest() == digest:
                    return MemoryBody(data, CacheEntry(self.memory_cache, path, status, data))
            # Hashing a large object takes too long. When the sizes differ, the hash decides which of them is wrong: a
            # wrong record must not cost a good object.
            elif (found > HASHED_BYTES_MAX and size in {found, None}) or open_files.hash_all(
                descriptor, found
            ) == digest:
                keep_open = True
                return LocalBody(descriptor, found, self.executor, self._map(path, descriptor, status))
            # Another reader may have discarded it already, and a fill put a good one in its place.
            if atomic_files.is_named(descriptor, full_path):
                discard(full_path)
            return None
        finally:
            if not keep_open:
                os.close(descriptor)

    def _open_file(self, path: str, known: FileDigest | None) -> OpenedFile | None:
        descriptor = self._open_descriptor(self.root / path)
        if descriptor is None:
            return None
        keep_open = False
        try:
            status = os.fstat(descriptor)
            size = status.st_size
            if size <= SMALL_BYTES_MAX:
                data = open_files.read_all(descriptor, size)
                body = MemoryBody(data, CacheEntry(self.memory_cache, path, status, data))
                return OpenedFile(body, FileDigest.of_bytes(data, status))
            if known is None or not known.is_of(status):
                known = FileDigest(Digest(open_files.hash_all(descriptor, size)), status.st_ino, status.st_ctime_ns)
            keep_open = True
            return OpenedFile(LocalBody(descriptor, size, self.executor, self._map(path, descriptor, status)), known)
        finally:
            if not keep_open:
                os.close(descriptor)

    def _map(self, path: str, descriptor: int, status: os.stat_result) -> CacheEntry | None:
        """
        Map a large object into memory, if the memory cache takes it.

        The event loop reads a mapped page that the kernel has dropped: in no time from a disk of this machine, and
        perhaps never from one behind a network, so objects there are not mapped.
        """
        if not self._page_cache.is_available or not self.memory_cache.takes(status.st_size):
            return None
        mapped = open_files.map_all(descriptor, status.st_size)
        return None if mapped is None else CacheEntry(self.memory_cache, path, status, mapped)

    def _hash(self, path: Path) -> Digest | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return Digest(open_files.hash_all(descriptor, os.fstat(descriptor).st_size))
        finally:
            os.close(descriptor)

    def _delete_all(self, paths: Sequence[str]) -> None:
        for path in paths:
            atomic_files.remove(self.root / path)
