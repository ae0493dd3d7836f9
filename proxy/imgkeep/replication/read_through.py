"""
One read of an object of the primary, which copies it to this machine while any number of readers follow.

Rules:
- No reader has the last byte before the bytes were found to be those that the object's name says, so a body that is cut
  or wrong never passes for the image.
- A whole copy stays in the disk cache; a disk that takes nothing costs us the copy, and not the reader.
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
        body: Its head is resolved with whether the primary has the object, or with why it cannot tell.

    Args:
        name: The object `<digest>.<ext>`.
        fetch: Opens it at the primary.
        cache: Where the copy goes.
        memory: Where it goes when the disk fails.
        report_failure: Called with a fault of the primary.
        quarantine: Called with the name, and the digest of the bytes that the primary gave in place of those put.
    """

    def __init__(  # noqa: PLR0913 - the last two by keyword
        self,
        name: str,
        fetch: Callable[[], Awaitable[Body | None]],
        cache: DiskCache,
        memory: Spool,
        *,
        report_failure: Callable[[RemoteFault], None],
        quarantine: Callable[[str, Digest], Awaitable[None]],
    ) -> None:
        self.body: SharedBody[bool] = SharedBody(memory)
        self._name = name
        self._fetch = fetch
        self._cache = cache
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
        await body.begin(self._cache)
        body.head.set_result(True)
        while piece := await self._read(source, body.written):
            await body.write(piece)
            body.advance(body.written - 1)
        draft = body.draft
        if draft.digest != self._name.partition(".")[0]:
            await source.aclose()
            await self._quarantine(self._name, draft.digest)
            raise StorageError("the store gave other bytes than were put")
        await self._cache.put(draft, self._name)
        body.finish(draft.size)

    async def _read(self, source: Body, offset: int) -> bytes:
        try:
            return await source.read(offset, PIECE_BYTES)
        except RemoteFault as fault:
            self._report_failure(fault)
            raise
