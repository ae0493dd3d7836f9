"""
One remote_read: bring an object of the primary to this machine, once, while any number of readers follow.

Rules:
- Nobody gets the last byte before the bytes were found to be those that the object's name says, so a body that is cut
  or wrong is never taken for the image.
- What was recalled whole stays in the cache; a disk that takes nothing costs us that, and not the reader.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from imgkeep.core.errors import RemoteFault, StorageError
from imgkeep.images.drafts import continue_draft
from imgkeep.images.singleflight import Watermark

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.core.records import Digest
    from imgkeep.storage.disk_cache import DiskCache
    from imgkeep.storage.interfaces import Body, Draft, Spool

PIECE_BYTES: Final = 262_144


class Tower(Protocol):
    """Who wants to know what the primary did wrong."""

    def report_failure(self, fault: RemoteFault) -> None:
        """It failed."""

    async def quarantine_if_corrupt(self, name: str, digest: Digest) -> None:
        """It gave other bytes than were put: `digest` is theirs."""


class RemoteRead:
    """
    A flight of `collapse.SingleFlight`, and the body that its readers read from.

    Attributes:
        found: Resolved with whether the primary has the object, or with why it cannot tell.
    """

    def __init__(
        self, name: str, fetch: Callable[[], Awaitable[Body | None]], cache: DiskCache, memory: Spool, tower: Tower
    ) -> None:
        self.found: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._name = name
        self._fetch = fetch
        self._cache = cache
        self._memory = memory
        self._tower = tower
        self._watermark = Watermark()
        self._drafts: list[Draft] = []
        """The last one is written to; one before it is a disk's that failed, which readers may still be reading."""
        self._size: int | None = None
        self._holders = 1

    @property
    def size(self) -> int | None:
        return self._size

    @property
    def cache_entry(self) -> None:
        """Nothing is here yet."""

    async def wait_for_size(self) -> int:
        assert self._size is not None
        return self._size

    async def run(self) -> None:
        body = await self._fetch()
        if body is None:
            self.found.set_result(False)
            self._watermark.end()
            return
        try:
            await self._bring(body)
        finally:
            await body.aclose()

    def fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            error = StorageError("the server is being shut down")
        if not self.found.done():
            self.found.set_exception(error)
            self.found.exception()  # marks it as retrieved: all who waited may have left
        self._watermark.end(error)

    def hold(self) -> None:
        """Announce one more reader, who calls `aclose` when done."""
        self._holders += 1

    async def read(self, offset: int, size: int) -> bytes:
        height = await self._watermark.beyond(offset)
        size = min(size, height - offset)
        return await self._drafts[-1].read(offset, size) if size > 0 else b""

    async def aclose(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            for draft in reversed(self._drafts):
                await draft.aclose()

    async def _bring(self, body: Body) -> None:
        self._size = await body.wait_for_size()
        self._drafts.append(await self._begin(self._size))
        self.found.set_result(True)
        while piece := await self._read(body, self._drafts[-1].size):
            await self._take(piece)
            self._watermark.advance(self._drafts[-1].size - 1)
        draft = self._drafts[-1]
        if draft.digest != self._name.partition(".")[0]:
            await body.aclose()
            await self._tower.quarantine_if_corrupt(self._name, draft.digest)
            raise StorageError("the store gave other bytes than were put")
        await self._cache.keep(draft, self._name)
        self._watermark.advance(draft.size)
        self._watermark.end()

    async def _read(self, body: Body, offset: int) -> bytes:
        try:
            return await body.read(offset, PIECE_BYTES)
        except RemoteFault as fault:
            self._tower.report_failure(fault)
            raise

    async def _begin(self, size: int) -> Draft:
        try:
            return await self._cache.begin(size)
        except StorageError:
            return await self._memory.begin(size)

    async def _take(self, piece: bytes) -> None:
        try:
            await self._drafts[-1].write(piece)
        except StorageError:
            if len(self._drafts) > 1:
                raise
            self._drafts.append(await continue_draft(self._drafts[-1], self._memory, self._size, piece))
