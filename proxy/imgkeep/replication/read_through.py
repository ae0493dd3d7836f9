"""
Read-through: one read of an object of the primary, which copies the object to this machine for any number of readers.

Rules:
- The read holds the last byte back until the hash of all bytes is the digest in the object's name. So no reader takes a
  truncated or wrong body for the image.
- A whole copy stays in the disk cache. If the disk fails, the readers get the object and no copy stays. With
  `store.exclusive` the bytes are in memory as long as they are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import RemoteFault, StorageError
from imgkeep.images.shared_body import SharedBody
from imgkeep.images.singleflight import Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.core.records import Digest
    from imgkeep.storage.disk_cache import DiskCache
    from imgkeep.storage.interfaces import Body, Spool

PIECE_BYTES: Final = 262_144
"""Size of the pieces in which an object is read."""


class RemoteRead(Call):
    """
    A read of one object, which runs once and feeds the body that its readers read from.

    Attributes:
        body: The body of the readers. Its head tells whether the primary has the object, or fails with the fault.

    Args:
        name: The object `<digest>.<ext>`.
        fetch: Opens it at the primary.
        cache: The disk cache, which takes the copy.
        spool: The spool that takes the bytes while readers read them: the cache, or the memory.
        memory: The spool that takes the bytes when the disk fails.
        report_failure: Callback with a fault of the primary.
        quarantine: Callback with the name, and the digest of the wrong bytes that the primary returned.
    """

    def __init__(  # noqa: PLR0913 - all but two by keyword
        self,
        name: str,
        fetch: Callable[[], Awaitable[Body | None]],
        *,
        cache: DiskCache,
        spool: Spool,
        memory: Spool,
        report_failure: Callable[[RemoteFault], None],
        quarantine: Callable[[str, Digest], Awaitable[None]],
    ) -> None:
        self.body: SharedBody[bool] = SharedBody(memory)
        self._name = name
        self._fetch = fetch
        self._cache = cache
        self._spool = spool
        self._report_failure = report_failure
        self._quarantine = quarantine

    async def run(self) -> None:
        source = await self._fetch()
        if source is None:
            self.body.head.set_result(False)
            self.body.end()
            return
        try:
            await self._copy(source)
        finally:
            await source.aclose()

    def fail(self, error: BaseException) -> None:
        self.body.fail(error)

    async def aclose(self) -> None:
        await self.body.aclose()

    async def _copy(self, source: Body) -> None:
        body = self.body
        body.size = await source.wait_for_size()
        await body.begin(self._spool)
        body.head.set_result(True)
        while piece := await self._read(source, body.written):
            await body.write(piece)
            body.advance(body.written - 1)
        draft = body.draft
        if draft.digest != self._name.partition(".")[0]:
            await source.aclose()
            await self._quarantine(self._name, draft.digest)
            raise StorageError("the primary store returned other bytes than were stored: retry the request")
        await self._cache.put(draft, self._name)
        body.finish(draft.size)

    async def _read(self, source: Body, offset: int) -> bytes:
        try:
            return await source.read(offset, PIECE_BYTES)
        except RemoteFault as fault:
            self._report_failure(fault)
            raise
