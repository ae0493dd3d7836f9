"""
The facts of pictures, found in idle time after an image was stored.

Rules:
- A fill only notes its image here, which costs no more than a place in a bounded queue. An image that finds the queue
  full is counted, and its facts are found when the API asks for them.
- One image at a time, in a derive process of the lowest priority.
- Facts belong to a digest. Records in a local folder get them as well, so that a reindex restores them. Records in a
  bucket do not: this would be one more PUT for each image, and the pixels tell the facts again. Nor does a record that
  other links may change: another process could be about to write it.
- An image whose pixels tell no facts is remembered, and not tried again before `FAILURE_TTL_S`.
- A removed image has no facts: none are written after its block, and the block deletes those that are there.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec
from cachetools import LRUCache, TTLCache

from imgkeep.core.confirmation import may_change
from imgkeep.core.errors import Busy, DeriveFailed, ImgkeepError, NotSupported, Removed, StorageError
from imgkeep.core.layout import REMOVED
from imgkeep.core.picture_facts import PictureFacts, read_picture_facts
from imgkeep.core.records import Digest, Format
from imgkeep.database.picture_facts import add_facts
from imgkeep.derived.messages import Facts, FactsJob, Refused
from imgkeep.derived.original_file import open_original

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Sequence

    from imgkeep.clock import Sleep
    from imgkeep.core.records import Record
    from imgkeep.database.picture_facts import PictureFactsTable
    from imgkeep.derived.messages import Answer
    from imgkeep.storage.interfaces import Spool, Store

    RunJob = Callable[[FactsJob, int], Awaitable[Answer]]

QUEUE_MAX: Final = 1000
"""Maximum number of images that wait: a minute of work, and 1 MB of records."""
BATCH_MAX: Final = 50
"""Maximum number of images of which the database is asked at once whether their facts are known."""
DELAY_S: Final = 0.5
"""Delay after a store, in which the answers of its fill go out."""
LOOKUP_TIMEOUT_S: Final = 1
"""Timeout for the lookup of the facts of one record, for an answer that goes out without them then."""
BUSY_DELAY_S: Final = 5
"""Delay after a derive process was busy, or the database failed."""
SETTLED_MAX: Final = 65_536
"""Maximum number of digests in memory that need no job; 150 bytes each, 10 MB."""
FAILURES_MAX: Final = 4096
"""Maximum number of failures in memory; 1 kB each, 4 MB."""
FAILURE_TTL_S: Final = 3600
"""Lifetime of a failure: a process may have failed because the machine had no time or memory for it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FactsLimits:
    """The limits of a job, as in `FactsJob`."""

    pixels_max: int
    frames_max: int
    rasterise_svg: bool
    timeout_s: float


class FactsFinder:
    """
    The finder of the facts of pictures. One per process.

    Attributes:
        dropped: Number of stored images that found no place in the queue.

    Args:
        store: The store of the originals.
        spool: Where originals are copied that are no file on this disk.
        table: The facts that are known.
        run_job: Has a derive process do a job on the file of a descriptor. Raises as `DeriveProcesses.run`.
        limits: The limits of a job.
        blocked: The digests of removed images.
        timer: Gives monotonic seconds.
        in_idle_time: Whether to find the facts of each image that was stored; else only those that the API asks for.
        in_records: Whether the records in the store get the facts.
    """

    def __init__(  # noqa: PLR0913 - all by keyword
        self,
        *,
        store: Store,
        spool: Spool,
        table: PictureFactsTable,
        run_job: RunJob,
        limits: FactsLimits,
        blocked: Container[Digest],
        timer: Callable[[], float],
        in_idle_time: bool = True,
        in_records: bool = False,
    ) -> None:
        self.dropped = 0
        self._store = store
        self._spool = spool
        self._table = table
        self._run_job = run_job
        self._limits = limits
        self._blocked = blocked
        self._is_wanted = in_idle_time
        self._is_on = False
        """Whether something takes images from the queue."""
        self._in_records = in_records
        self._queue: dict[Digest, Record] = {}
        self._is_filled = asyncio.Event()
        self._settled: LRUCache[Digest, bool] = LRUCache(SETTLED_MAX)
        self._failures: TTLCache[Digest, ImgkeepError] = TTLCache(FAILURES_MAX, FAILURE_TTL_S, timer=timer)
        self._searches: dict[Digest, asyncio.Task[PictureFacts]] = {}

    @property
    def waiting(self) -> int:
        """Number of images in the queue."""
        return len(self._queue)

    def note_stored(self, record: Record) -> None:
        """Note that an image was stored, whose facts may be unknown. Costs next to nothing, and never fails."""
        digest = record.digest
        if not self._is_on or digest in self._settled or digest in self._queue or self._is_out_of_reach(record):
            return
        if len(self._queue) >= QUEUE_MAX:
            self.dropped += 1
            return
        self._queue[digest] = record
        self._is_filled.set()

    async def add_to(self, records: Sequence[Record]) -> list[Record]:
        """
        Return records with their facts where these are known. Of a local store the other images come into the queue,
        as far as it has room; of a bucket each would be a request that is paid for.

        One record does not wait long for the database, which what the caller tells of it does not need otherwise.
        """
        complete = list(records)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOKUP_TIMEOUT_S if len(records) == 1 else None):
                complete = await self._table.add_to(records)
        if self._in_records:
            for record in complete[: QUEUE_MAX - len(self._queue)]:
                if record.picture is None and record.digest not in self._failures:
                    self._settled.pop(record.digest, None)  # they were lost, or removed and restored
                    self.note_stored(record)
        return complete

    async def find(self, record: Record) -> PictureFacts:
        """
        Return the facts of a stored image, which are found now if they are unknown.

        Raises:
            Removed: It was removed.
            NotSupported: The format cannot be decoded, or derive processes are not installed.
            DeriveFailed: The pixels cannot be decoded within the limits.
            Busy: Too many jobs wait.
            StorageError: The original cannot be read.
        """
        if record.picture is not None:
            return record.picture
        with suppress(StorageError):
            known = await self._table.find([record.digest])
            if known:
                return known[record.digest]
        return await self._search(record)

    async def run(self, sleep: Sleep) -> None:
        """Find the facts of the images in the queue, for ever; return at once if that is not wanted."""
        if not self._is_wanted:
            return
        self._is_on = True
        while True:
            await self._is_filled.wait()
            await sleep(DELAY_S)
            while self._queue:
                if not await self.find_queued():
                    await sleep(BUSY_DELAY_S)
            self._is_filled.clear()

    async def aclose(self) -> None:
        """End the searches that still run."""
        for task in (running := list(self._searches.values())):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def find_queued(self) -> bool:
        """Find the facts of some images of the queue; `False`: a process or the database had no time, retry later."""
        batch = list(islice(self._queue.values(), BATCH_MAX))
        try:
            known = await self._table.find([record.digest for record in batch])
            for record in batch:
                if record.digest not in known:
                    await self._find_queued(record)
                self._queue.pop(record.digest, None)
                self._settled[record.digest] = True
        except (Busy, StorageError):
            return False
        except NotSupported as error:
            log.info("facts of pictures not found", extra={"reason": str(error)})
            self._is_on = False
            self._queue.clear()
        return True

    async def _find_queued(self, record: Record) -> None:
        """Find the facts of an image, if it has any. Raises: Busy, NotSupported."""
        try:
            await self._search(record)
        except (Busy, NotSupported) as error:
            if not isinstance(error, _UndecodableFormat):
                raise
        except ImgkeepError:
            pass  # remembered where the image itself is the reason
        except Exception:  # no image may end the loop
            log.exception("facts of a picture failed unexpectedly", extra={"digest": record.digest})

    async def _search(self, record: Record) -> PictureFacts:
        """Return the facts of an image from its pixels, once for all concurrent callers. Raises as `find`."""
        digest = record.digest
        failure = self._failures.get(digest)
        if failure is not None:
            raise copy.copy(failure)
        task = self._searches.get(digest)
        if task is None:
            task = self._searches[digest] = asyncio.create_task(self._decode_and_keep(record))
            task.add_done_callback(partial(self._end_search, digest))
        return await asyncio.shield(task)

    def _end_search(self, digest: Digest, task: asyncio.Task[PictureFacts]) -> None:
        del self._searches[digest]
        if not task.cancelled():
            task.exception()  # marks it as retrieved: all callers may have left

    async def _decode_and_keep(self, record: Record) -> PictureFacts:
        try:
            facts = await self._decode(record)
        except (_UndecodableFormat, DeriveFailed) as error:
            self._failures[record.digest] = error
            raise
        # Before the search ends: a caller that has just missed them in the database finds the search.
        with suppress(StorageError):
            await self._table.put({record.digest: facts})
        if self._in_records:
            await self._put_into_record(record, facts)
        return facts

    async def _put_into_record(self, record: Record, facts: PictureFacts) -> None:
        with suppress(ImgkeepError):  # removed, replaced, or the disk is full: the database has the facts
            current = await self._store.find(record.key)
            # Another process may be about to write a record that other links change.
            if current is not None and current.digest == record.digest and not may_change(current):
                await self._store.put_record(add_facts(current, facts))

    async def _decode(self, record: Record) -> PictureFacts:
        limits = self._limits
        if self._is_out_of_reach(record):
            raise _UndecodableFormat(f"{record.format.name}: imgkeep draws it only if derive.svg = true")
        job = FactsJob(
            original_format=record.format.name,
            pixels_max=limits.pixels_max,
            frames_max=limits.frames_max,
            rasterise_svg=limits.rasterise_svg,
            timeout_s=limits.timeout_s,
        )
        body = await self._store.fetch(record.object_name, record.size)
        if body is None:
            raise StorageError("the original is missing: verify the store with `imgkeep verify`")
        async with open_original(body, self._spool) as descriptor:
            answer = await self._run_job(job, descriptor)
        if record.digest in self._blocked:
            raise Removed(REMOVED)
        if isinstance(answer, Refused):
            raise (_UndecodableFormat if answer.reason == "unsupported" else DeriveFailed)(answer.detail)
        facts = read_picture_facts(msgspec.structs.asdict(answer)) if isinstance(answer, Facts) else None
        if facts is None:
            raise DeriveFailed("the derive process gave no facts of the picture: report this as an error of imgkeep")
        return facts

    def _is_out_of_reach(self, record: Record) -> bool:
        return record.format is Format.SVG and not self._limits.rasterise_svg


class _UndecodableFormat(NotSupported):
    """The format of one image, and not the installation, is the reason."""
