"""
The cache of derived pictures: files on the disk of the stores, the least recently used evicted first.

    derived/<2 hex>/<digest of the original>/<options>.<ext>

Rules:
- A picture can be made again, so the cache may lose any of them, and a disk that fails is a miss. A picture is written
  whole or not at all, with fsync, so it is used without a check of its bytes, but for its end when a process first
  opens it (`cut_pictures.py`): nothing but this cache knows their hash.
- A derive process writes into memory (`PictureDraft`). So it never waits for the disk of the stores, and a picture that
  no disk takes is answered from there, within `MEMORY_BYTES_MAX`.
- No original has more than `PER_ORIGINAL_MAX` pictures here: a client that asks one image for ten thousand sizes evicts
  none of another image.
- The files are shared by all workers of a machine. The memory cache of the disk has pictures beside originals.
- The pictures of a blocked digest go at once, and none comes back: `put` writes the file before it looks for the block,
  and a process notes a block before it drops the pictures. So either the look finds the block, or the file is there
  when the pictures are dropped.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache

from imgkeep.core.errors import Removed, StorageError
from imgkeep.core.layout import REMOVED
from imgkeep.derived.cut_pictures import is_cut
from imgkeep.derived.messages import PICTURE_BYTES_MAX
from imgkeep.derived.picture_drafts import PictureDraft
from imgkeep.storage.cache_index import CacheIndex
from imgkeep.storage.local import atomic_files
from imgkeep.storage.memory import MemorySpool

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping
    from pathlib import Path

    from imgkeep.core.derived.names import PictureName
    from imgkeep.core.records import Digest
    from imgkeep.derived.picture_drafts import Data
    from imgkeep.storage.cache_index import CacheShare
    from imgkeep.storage.interfaces import Body
    from imgkeep.storage.local.body import LocalBody
    from imgkeep.storage.local.disk import Disk
    from imgkeep.storage.local.memory_cache import CacheEntry
    from imgkeep.storage.local.opened_file import FileDigest
    from imgkeep.storage.memory import MemoryBody

FOLDER: Final = "derived"
PER_ORIGINAL_MAX: Final = 128
"""Maximum number of pictures of one original: the 21 widths of the ladder in three formats, and as many presets."""
MEMORY_BYTES_MAX: Final = PICTURE_BYTES_MAX
"""Maximum size of the pictures that no disk has taken and clients still read: any one of them."""
UNSTORED_BYTES_MAX: Final = 33_554_432
"""Maximum size of the pictures that no disk has taken and the next request may want."""
UNSTORED_ENTRY_BYTES: Final = 1024
"""Memory of each of these besides its bytes."""
HASHED_AT_ONCE_MAX: Final = 1_048_576
"""Maximum size of a picture that is hashed on the event loop: half a millisecond."""
DIGESTS_MAX: Final = 20_000
"""Maximum number of hashes that are remembered, 400 bytes each: another one is found anew, in a thread."""


@dataclass(frozen=True, slots=True)
class FoundPicture:
    """
    A picture, open for reading.

    Attributes:
        body: Its bytes; the holder closes it. None at all: the picture would not have been smaller than the original.
        etag: Its entity tag, strong: of these bytes.
    """

    body: Body
    etag: str


class PictureCache:
    """
    The pictures on the disk of one machine.

    Attributes:
        blocked: The digests of removed originals, which have no pictures.
        hits: Number of look-ups that found a picture.
        misses: Number of those that found none.

    Args:
        disk: The disk of the stores.
        bytes_max: Maximum size of the pictures that this process counts; 0: none is on the disk.
        free_bytes_min: Bytes that pictures leave free on the disk.
        share: The share of this worker, where there are several.
    """

    def __init__(self, disk: Disk, bytes_max: int, *, free_bytes_min: int = 0, share: CacheShare | None = None) -> None:
        self.blocked: Container[Digest] = frozenset()
        self.hits = 0
        self.misses = 0
        self._disk = disk
        self._bytes_max = bytes_max
        self._index = CacheIndex(
            disk,
            FOLDER,
            bytes_max,
            group_max=PER_ORIGINAL_MAX,
            free_bytes_min=free_bytes_min,
            share=share,
            forgotten=self._forget_bytes,
        )
        disk.make_room_by(self._index.make_room)
        self._digests: LRUCache[str, FileDigest] = LRUCache(DIGESTS_MAX)
        """The hashes of files, by path."""
        self._memory = MemorySpool(MEMORY_BYTES_MAX)
        self._when_dropped: list[Callable[[Digest], None]] = []
        self._unstored: LRUCache[PictureName, tuple[Data, str]] = LRUCache(UNSTORED_BYTES_MAX, getsizeof=_weigh)
        """Pictures that no disk has taken, with their entity tags."""

    @property
    def bytes(self) -> int:
        """Size of the pictures that this process counts."""
        return self._index.bytes

    async def open(self) -> None:
        """Start to count the pictures on the disk, which has to be open."""
        await self._index.open()

    async def aclose(self) -> None:
        await self._index.aclose()

    async def wait_until_counted(self) -> None:
        """Wait until all pictures that were there at start are counted."""
        await self._index.wait_until_counted()

    async def measure(self) -> int:
        """Return the size of all pictures on the disk, whichever process counts them. Raises: StorageError."""
        return await self._disk.run(_measure, self._disk.root / FOLDER)

    def may_have(self, name: PictureName) -> bool:
        """Return whether `find` might find a picture, without a look at the disk."""
        return not self._index.is_complete or _key_of(name) in self._index or name in self._unstored

    async def find(self, name: PictureName) -> FoundPicture | None:
        """Open a picture; `None`: it is not there, its original was removed, or the disk fails."""
        found = await self._find_on_disk(name) or self._find_unstored(name)
        if found is not None and name.digest in self.blocked:  # maybe since a moment ago
            await found.body.aclose()
            found = None
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    async def begin(self) -> PictureDraft:
        """Begin a picture."""
        return PictureDraft()

    async def put(self, draft: PictureDraft, name: PictureName) -> FoundPicture:
        """
        Take a picture that is whole, and open it. The caller closes the draft.

        Raises:
            Removed: Its original was removed.
            StorageError: The disk does not take it, and the memory for such pictures is used up.
        """
        data = draft.read()
        found = await self._put_on_disk(data, name)
        if name.digest in self.blocked:
            if found is not None:
                await found.body.aclose()
            await self.drop(name.digest)
            raise Removed(REMOVED)
        if found is None:
            etag = _make_etag(await _hash(data))
            found = self._open_in_memory(data, etag)
            if len(data) + UNSTORED_ENTRY_BYTES <= UNSTORED_BYTES_MAX:
                self._unstored[name] = data, etag
        return found

    async def drop(self, digest: Digest) -> None:
        """Delete all pictures of an original, from memory too. A disk that fails is ignored: the digest is blocked."""
        for name in [name for name in self._unstored if name.digest == digest]:
            del self._unstored[name]
        folder = self._index.path_of(digest)
        known = self._index.names_in(digest)
        self._forget_all(digest)
        with suppress(StorageError):
            await self._disk.run(shutil.rmtree, self._disk.root / folder, True)
        for call in self._when_dropped:
            call(digest)
        self._forget_all(digest)  # for readers that opened one while it was still there
        for key in known:  # for cached responses that read one while it was still there
            self._forget_bytes(key)

    def when_dropped(self, call: Callable[[Digest], None]) -> None:
        """Call `call` with the digest of each original whose pictures are dropped."""
        self._when_dropped.append(call)

    async def count_announced(self, pictures: Mapping[str, int]) -> None:
        """Count pictures that another worker has made or used, by name and size."""
        await self._index.count_announced(pictures)

    async def _find_on_disk(self, name: PictureName) -> FoundPicture | None:
        key = _key_of(name)
        if not self._bytes_max:
            return None
        path = self._index.path_of(key)
        known = self._digests.get(path)
        try:
            opened = await self._disk.open_file(path, known)
        except StorageError:
            return None
        if opened is None:
            self._index.forget(key)
            return None
        try:
            if opened.digest != known and await self._is_cut(name, opened.body):
                await opened.body.aclose()
                self._index.forget(key)
                return None
            self._digests[path] = opened.digest
            await self._index.use(key, opened.body.size)
        except BaseException:
            await opened.body.aclose()
            raise
        return FoundPicture(opened.body, _make_etag(opened.digest.digest))

    async def _is_cut(self, name: PictureName, body: LocalBody | MemoryBody) -> bool:
        """Return whether a picture that this process has not seen before is cut off, and no copy of it may be used."""
        try:
            cut = await is_cut(name, body.size, body.read)
        except StorageError:
            cut = True
        if cut:
            self._forget_bytes(_key_of(name))
        return cut

    async def _put_on_disk(self, data: Data, name: PictureName) -> FoundPicture | None:
        """Write a picture to the disk; `None`: that is not possible."""
        if len(data) > self._bytes_max or not self._bytes_max:
            return None
        key = _key_of(name)
        try:
            await self._disk.reserve(len(data))
            await self._disk.run(self._write, data, self._disk.root / self._index.path_of(key))
        except StorageError:
            return None
        self._forget_bytes(key)
        await self._index.count(key, len(data))
        return await self._find_on_disk(name)

    def _write(self, data: Data, path: Path) -> None:
        """Write a picture: whole or not at all. Blocks."""
        partial = self._disk.partial_path()
        with atomic_files.durable_partial(partial, data):
            try:
                partial.replace(path)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(path)

    def _find_unstored(self, name: PictureName) -> FoundPicture | None:
        unstored = self._unstored.get(name)
        with suppress(StorageError):
            return None if unstored is None else self._open_in_memory(*unstored)
        return None

    def _open_in_memory(self, data: Data, etag: str) -> FoundPicture:
        self._memory.reserve(len(data))
        return FoundPicture(UnstoredBody(data, self._memory), etag)

    def _forget_all(self, digest: Digest) -> None:
        for key in self._index.names_in(digest):
            self._index.forget(key)
        # Counts as a removal also where no picture is known: another worker may have made some.
        self._disk.memory_cache.remove(self._index.path_of(digest))

    def _forget_bytes(self, key: str) -> None:
        path = self._index.path_of(key)
        self._digests.pop(path, None)
        self._disk.memory_cache.evict(path)


class UnstoredBody:
    """A picture that no disk has taken, in memory as long as it is read. Implements `Body`."""

    def __init__(self, data: Data, memory: MemorySpool) -> None:
        self._data = data
        self._memory = memory
        self.cache_entry: CacheEntry | None = None

    @property
    def size(self) -> int:
        return len(self._data)

    async def wait_for_size(self) -> int:
        return len(self._data)

    async def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    async def aclose(self) -> None:
        self._memory.reserve(-len(self._data))


def _measure(folder: Path) -> int:
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # it was evicted meanwhile
                size += os.stat(f"{place}/{name}").st_size  # noqa: PTH116 - of each of many
    return size


def _key_of(name: PictureName) -> str:
    return f"{name.digest}/{name.file_name}"


def _make_etag(digest: str) -> str:
    return f'"{digest[:32]}"'


async def _hash(data: Data) -> str:
    if len(data) <= HASHED_AT_ONCE_MAX:
        return sha256(data).hexdigest()
    return (await asyncio.to_thread(sha256, data)).hexdigest()


def _weigh(unstored: tuple[Data, str]) -> int:
    return len(unstored[0]) + UNSTORED_ENTRY_BYTES
