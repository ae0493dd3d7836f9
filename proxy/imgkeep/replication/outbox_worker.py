"""
Healing: what the fallback holds is copied to the primary as soon as that answers again, without being asked.

Rules:
- The fallback's folder is the truth about what waits, the outbox its order: what is in the one and not in the other is
  enlisted at start, so that neither a kill between two writes nor a lost database loses anything.
- The local copy goes when the primary was seen to have the image, and the row of the outbox goes last: whatever a kill
  leaves is done again, harmlessly.
- An outage is the breaker's affair and costs an image no attempt; an image that fails by itself waits longer each time.
- Where the primary keeps another image under the key, that one stays, unless ours is verified and it is not; ours is
  brought in as an object, because its permanent URL was handed out, and for the one link that brought it.
- Where the key was removed meanwhile, the same holds, and our bytes are not blocked for that: what a link brought here
  during an outage may be other bytes than the operator has removed.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from imgkeep.core.confirmation import Weight, key_of, own_identity, weigh
from imgkeep.core.errors import Busy, RemoteFault, Removed, StorageError
from imgkeep.core.layout import RECORDS, REMOVED
from imgkeep.core.records import Doubt, Record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from imgkeep.clock import Sleep
    from imgkeep.core.records import Backlog, Digest, Key, OutboxEntry
    from imgkeep.database.interfaces import ImageIndex, Outbox
    from imgkeep.replication.circuit_breaker import CircuitBreaker
    from imgkeep.storage.disk_cache import DiskCache
    from imgkeep.storage.local.store import LocalStore
    from imgkeep.storage.s3 import S3Store

CONCURRENT_MAX: Final = 6
"""Images at a time: enough to keep a line busy, few enough to leave room for visitors."""
BATCH: Final = 64
POLL_INTERVAL_S: Final = 1
"""How long a new image may lie before anybody looks, and the whole of the back-off's resolution."""
ENLIST_EVERY_S: Final = 600
"""In case a database that was away or full missed something."""
DELAY_MIN_S: Final = 2
DELAY_MAX_S: Final = 60

log = logging.getLogger(__name__)


class Keeps(Protocol):
    """Who wants to know where an image is now."""

    async def kept(self, record: Record) -> None: ...


class OutboxWorker:
    """Carries images from the fallback to the primary. One per process."""

    def __init__(  # noqa: PLR0913 - all by keyword, in one place
        self,
        *,
        primary: S3Store,
        fallback: LocalStore,
        cache: DiskCache,
        outbox: Outbox,
        database: ImageIndex,
        breaker: CircuitBreaker,
        image_service: Keeps,
        draw: Callable[[], float],
        counted: Callable[[bool], None],
        seen: Callable[[str], None],
        sleep: Sleep,
        refused: Container[Digest],
        forget: Callable[[Key], Awaitable[None]],
    ) -> None:
        self._refused = refused
        self._forget = forget
        self._sleep = sleep
        self._primary = primary
        self._fallback = fallback
        self._cache = cache
        self._outbox = outbox
        self._image_index = database
        self._breaker = breaker
        self._image_service = image_service
        self._draw = draw
        self._counted = counted
        self._seen = seen
        self.backlog: Backlog | None = None
        """As of the last look; `None` before the first."""

    async def run(self) -> None:
        """Enlist what waits, and carry it over, for ever."""
        loop = asyncio.get_running_loop()
        enlist_at = loop.time()
        while True:
            try:
                if loop.time() >= enlist_at:
                    await self.enlist()
                    enlist_at = loop.time() + ENLIST_EVERY_S
                self.backlog = await self._outbox.backlog()
                reason = self._breaker.in_full if self._breaker.reason is not None else None
                if reason is not None and self.backlog.images and reason != self.backlog.error:
                    await self._outbox.note(reason)
                if self._breaker.reason is None and await self.replicate_due():
                    continue
            except StorageError:
                pass  # the database or the disk of the fallback: they tell their own trouble
            except Exception:  # this loop must not end, whatever an answer holds
                log.exception("carrying images over failed as nobody foresaw")
            await self._sleep(POLL_INTERVAL_S)

    async def enlist(self) -> None:
        """Bring all that lies in the fallback into the outbox."""
        paths: list[str] = []
        async for path, _ in self._fallback.walk(RECORDS):
            paths.append(path)
            if len(paths) == BATCH:
                await self._enlist(paths)
                paths = []
        await self._enlist(paths)

    async def replicate_due(self) -> int:
        """Carry over some of what is due; return how many were tried."""
        due = await self._outbox.due(BATCH)
        places = asyncio.Semaphore(CONCURRENT_MAX)

        async def replicate(waiting: OutboxEntry) -> None:
            async with places:
                if self._breaker.reason is None:
                    await self._replicate(waiting)

        async with asyncio.TaskGroup() as group:
            for waiting in due:
                group.create_task(replicate(waiting))
        return len(due)

    async def _enlist(self, paths: list[str]) -> None:
        for _, record in await self._fallback.read_records(paths):
            if isinstance(record, Record):
                await self._image_index.put(replace(record, pending=True))

    async def _replicate(self, waiting: OutboxEntry) -> None:
        try:
            await self._carry(waiting)
        except (StorageError, Busy) as fault:
            self._counted(False)
            if isinstance(fault, RemoteFault):
                self._breaker.report_failure(fault)
            delay_s = min(DELAY_MIN_S * 2.0**waiting.attempts, DELAY_MAX_S) * (0.5 + self._draw())
            with suppress(StorageError):
                await self._outbox.postpone(
                    waiting, delay_s, fault.in_full if isinstance(fault, StorageError) else str(fault)
                )

    async def _carry(self, waiting: OutboxEntry) -> None:
        record = await self._fallback.find(waiting.key)
        try:
            await self._carry_over(waiting, record)
        except Removed:
            # While it waited an operator has removed its key, or its bytes, maybe on another node.
            if record is not None:
                await self._leave(record)
            await self._outbox.remove(waiting.key)

    async def _leave(self, record: Record) -> None:
        """Drop a record that must not be carried over, and the bytes where these are blocked."""
        if record.digest in self._refused:
            await self._fallback.delete_record(record.key)
            await self._fallback.delete_object(record.digest)
        else:
            await self._cache.move_from(self._fallback, record)
        await self._forget(record.key)

    async def _carry_over(self, waiting: OutboxEntry, record: Record | None) -> None:
        if record is None:
            await self._outbox.remove(waiting.key)  # another process has done it, or it was removed
            return
        if record.digest in self._refused:
            raise Removed(REMOVED)
        draft = await self._fallback.open_verified_draft(record.object_name)
        if draft is None and await self._primary.size_of(record.object_name) != record.size:
            log.error("an image was damaged before it reached the primary", extra={"key": record.key})
            if await self._cache.move_from(self._fallback, record):
                await self._outbox.remove(record.key)
            return
        try:
            # Without a draft the object was carried over already, under another record of the same bytes.
            standing = await self._primary.import_image(draft, record)
        finally:
            if draft is not None:
                await draft.aclose()
        self._seen(record.object_name)
        if standing.digest != record.digest and standing.doubts:
            standing = await self._set_beside(standing, record)
        # Not if another image was kept under the key meanwhile: it waits in its turn.
        if await self._cache.move_from(self._fallback, record):
            await self._image_service.kept(standing)
            self._counted(True)

    async def _set_beside(self, standing: Record, record: Record) -> Record:
        """Keep both of two images for their links, as a trial would have done; return what stands under their key."""
        replaces = weigh(standing, record) is Weight.REPLACE
        other, first = (standing, record) if replaces else (record, standing)
        is_another = other.brought_by not in {"", first.brought_by}
        if is_another and Doubt.PLAINTEXT not in other.doubts - first.doubts:
            own = own_identity(other.identity, other.brought_by)
            await self._primary.import_image(None, replace(other, key=key_of(own), identity=own))
            first = replace(first, doubts=first.doubts | {Doubt.CONTESTED})
        if first == standing:
            return standing
        return await self._primary.put_record(first, standing.digest if replaces else None)
