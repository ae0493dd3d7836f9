"""
The derived pictures in the store of the originals, with `derive.store`: nodes and a CDN share them there.

    v1/derived/<digest of the original>/<options>.<ext>

Rules:
- Any picture there can be made again. So a store that is away is a miss, and a picture that it does not take now is
  uploaded with a later request. No client waits for an upload.
- No original has more than `PER_ORIGINAL_MAX` pictures there: nothing evicts them. Further ones stay in the caches.
- An empty picture, which says that its format is not smaller, stays in the caches too: some services take none.
- A client is redirected only to a picture that this process was recently told is there.
- A removal deletes them with the object. An upload that crosses the removal finds the block behind its PUT
  (`storage/picture_files.py`). A service may carry an upload out after its node gave it up: this process deletes the
  pictures of a removed original again, if it has put some, until the store has answered. `imgkeep verify` deletes what
  is left by then.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache, TTLCache

from imgkeep.core.errors import Busy, Removed, StorageError
from imgkeep.derived.cut_pictures import is_cut
from imgkeep.derived.messages import PICTURE_BYTES_MAX
from imgkeep.derived.original_file import PIECE_BYTES
from imgkeep.derived.picture_cache import PER_ORIGINAL_MAX
from imgkeep.storage.memory import MemorySpool

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from imgkeep.clock import Sleep
    from imgkeep.core.derived.names import PictureName
    from imgkeep.core.records import Digest
    from imgkeep.derived.picture_cache import PictureCache
    from imgkeep.derived.picture_drafts import PictureDraft
    from imgkeep.images.object_urls import ObjectUrl, ObjectUrls
    from imgkeep.storage.picture_files import PictureFiles

UPLOADS_CONCURRENT_MAX: Final = 4
UPLOADS_WAITING_MAX: Final = 1000
"""Maximum number of uploads that wait; further pictures are uploaded with a later request."""
UPLOAD_BYTES_MAX: Final = 67_108_864
"""Maximum memory of the uploads under way; a picture that is larger stays in the caches."""
FETCH_TIMEOUT_S: Final = 5
"""Timeout for a picture from the store: to make it takes less."""
SEEN_MAX: Final = 20_000
"""Maximum number of originals of which this process knows the pictures, or their number."""
PRESENT_TTL_S: Final = 3600
"""Time for which this process relies on a picture that it saw in the store: an operator may empty it."""
ABSENT_TTL_S: Final = 30
"""Time for which a picture that was not there is not asked for again; this process finds at once what it puts."""
RETRY_INTERVAL_S: Final = 60
"""Interval of attempts to delete pictures of removed originals while the store is away."""

log = logging.getLogger(__name__)


class PictureStore:
    """
    The pictures in the store. One per process.

    Attributes:
        urls: Where clients are redirected to for a picture, by its path; `None`: nowhere.
        uploads: Number of pictures that were uploaded.
        failures: Number of those that were not.

    Args:
        files: The store; `None`: `derive.store` is off, and this finds and stores nothing.
        cache: Has the pictures that are uploaded.
        timer: Gives monotonic seconds.
        sleep: Waits between attempts.
    """

    def __init__(
        self, files: PictureFiles | None, cache: PictureCache, *, timer: Callable[[], float], sleep: Sleep
    ) -> None:
        self.urls: ObjectUrls | None = None
        self.uploads = 0
        self.failures = 0
        self._files = files
        self._cache = cache
        self._sleep = sleep
        self._memory = MemorySpool(UPLOAD_BYTES_MAX)
        self._present: TTLCache[Digest, set[str]] = TTLCache(SEEN_MAX, PRESENT_TTL_S, timer=timer)
        """The file names of the pictures that the store was seen to have."""
        self._absent: TTLCache[str, bool] = TTLCache(SEEN_MAX, ABSENT_TTL_S, timer=timer)
        """The paths of those that it was seen not to have."""
        self._tried: TTLCache[str, bool] = TTLCache(SEEN_MAX, ABSENT_TTL_S, timer=timer)
        """The paths of those that it did not take a moment ago, or need not take: they are not tried again at once."""
        self._counts: LRUCache[Digest, int] = LRUCache(SEEN_MAX)
        """The numbers of pictures of an original in the store."""
        self._waiting: dict[str, PictureName] = {}
        """The uploads that wait or are under way, by path."""
        self._uploads: asyncio.Queue[PictureName] = asyncio.Queue()
        self._uploaders = 0
        self._late: set[Digest] = set()
        """Removed originals whose pictures this process may have put after the removal."""
        self._tasks: set[asyncio.Task[None]] = set()
        if files is not None:
            cache.when_dropped(self._note_dropped)

    async def aclose(self) -> None:
        """Give up the uploads: every picture can be uploaded again."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def fetch_into(self, name: PictureName, draft: PictureDraft) -> bool:
        """Copy a picture from the store into a draft; `False`: it is not there, or the store does not tell in time."""
        if self._files is None or name.path in self._absent:
            return False
        with suppress(StorageError, Busy, TimeoutError):
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                if await self._copy(self._files, name, draft):
                    self._note_present(name)
                    return True
                self._absent[name.path] = True
        draft.clear()
        return False

    def put_later(self, name: PictureName) -> None:
        """Upload a picture that is in the cache, behind the answer and unless the store has it."""
        if self._files is None or self._is_present(name) or name.path in self._waiting or name.path in self._tried:
            return
        if len(self._waiting) >= UPLOADS_WAITING_MAX:
            self.failures += 1
            return
        self._waiting[name.path] = name
        self._uploads.put_nowait(name)
        if self._uploaders < UPLOADS_CONCURRENT_MAX:
            self._uploaders += 1
            self._start(self._upload_all(self._files))

    async def wait_until_uploaded(self) -> None:
        """Wait until the uploads that `put_later` has begun have ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def url_of(self, name: PictureName, *, head: bool = False) -> ObjectUrl | None:
        """Return where to redirect a client (`head`: for a HEAD request); `None`: the picture has to be served."""
        return None if self._files is None or self.urls is None else await self.urls.find(name.path, head=head)

    async def has(self, name: PictureName) -> bool:
        """Tell whether the store has a picture, as far as it answers."""
        if self._files is None or self._is_present(name) or name.path in self._absent:
            return self._is_present(name)
        try:
            is_there = await self._files.has(name)
        except (StorageError, Busy):
            return False
        if is_there:
            self._note_present(name)
        elif not self._is_present(name):  # it may have been put meanwhile
            self._absent[name.path] = True
        return is_there

    def _is_present(self, name: PictureName) -> bool:
        return name.file_name in self._present.get(name.digest, ())

    def _note_present(self, name: PictureName) -> None:
        self._absent.pop(name.path, None)
        self._present.setdefault(name.digest, set()).add(name.file_name)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _copy(self, files: PictureFiles, name: PictureName, draft: PictureDraft) -> bool:
        body = await files.fetch(name)
        if body is None:
            return False
        try:
            size = await body.wait_for_size()
            offset = 0
            while offset < size <= PICTURE_BYTES_MAX and (data := await body.read(offset, PIECE_BYTES)):
                offset = draft.write(data, offset)
        finally:
            await body.aclose()
        if not 0 < offset == size:
            return False
        if await is_cut(name, size, draft.read_piece):
            await files.delete_all(name.digest)  # no other node is to use it, nor a client that is sent there
            return False
        return True

    # --- uploads

    async def _upload_all(self, files: PictureFiles) -> None:
        """Upload what waits. No await between the last look for more and the end, so that no upload is left waiting."""
        try:
            while not self._uploads.empty():
                await self._try_upload(files, self._uploads.get_nowait())
        finally:
            self._uploaders -= 1

    async def _try_upload(self, files: PictureFiles, name: PictureName) -> None:
        try:
            await self._upload(files, name)
        except Removed:
            pass
        except (StorageError, Busy) as fault:
            self.failures += 1
            self._tried[name.path] = True
            log.debug("picture not stored", extra={"digest": name.digest, "reason": str(fault)})
        finally:
            del self._waiting[name.path]

    async def _upload(self, files: PictureFiles, name: PictureName) -> None:
        if name.digest not in self._counts:
            self._counts[name.digest] = await files.count(name.digest, PER_ORIGINAL_MAX)
        found = None if self._counts[name.digest] >= PER_ORIGINAL_MAX else await self._cache.find(name)
        if found is None:
            self._tried[name.path] = True
            return
        try:
            size = await found.body.wait_for_size()
            draft = await self._memory.begin(size)
            try:
                while data := await found.body.read(draft.size, PIECE_BYTES):
                    await draft.write(data)
                if size and not await files.has(name):
                    await files.put(draft, name)
            finally:
                await draft.aclose()
        finally:
            await found.body.aclose()
        if size == 0:
            self._tried[name.path] = True
        else:
            self.uploads += 1
            self._counts[name.digest] = self._counts.get(name.digest, 0) + 1
            self._note_present(name)

    # --- removals

    def _note_dropped(self, digest: Digest) -> None:
        """Forget the pictures of a removed original, and delete those that this process may have put meanwhile."""
        is_known = self._present.pop(digest, None) is not None
        is_known |= any(name.digest == digest for name in self._waiting.values())
        self._counts.pop(digest, None)
        if is_known and self._files is not None and digest not in self._late:
            self._late.add(digest)
            self._start(self._delete_late(self._files, digest))

    async def _delete_late(self, files: PictureFiles, digest: Digest) -> None:
        try:
            while digest in self._cache.blocked:
                with suppress(StorageError, Busy):
                    await files.delete_all(digest)
                    return
                await self._sleep(RETRY_INTERVAL_S)
        finally:
            self._late.discard(digest)
