"""
The outbox worker: uploads the images of the fallback to the primary, as soon as the primary works again.

Rules:
- The fallback's folder decides which images wait; the outbox holds their order. At start and in an interval the worker
  enlists the images that the outbox lacks. So neither a kill between two writes nor a lost database loses an image.
- The worker deletes the local record after the primary has the image, and the row of the outbox last. An upload that a
  kill interrupts is repeated, which is idempotent.
- In an outage the worker does not try to upload, because the circuit breaker is open. After a failed upload a probe
  shows whether the fault is the primary's or the image's own. The primary's does not count as a failed attempt. After
  an image's own the delay of that image doubles, and no other image waits.
- If the primary has another image under the key, that image stays, unless the local image is confirmed and it is not.
  The local image is stored as an object, because clients have its permanent URL, and under the one link that brought
  it.
- If the bytes are blocked, as this process knows or as the primary finds after the upload of the object, the worker
  deletes them in both stores.
- An entry whose image is not in the fallback any more was settled before a kill, or its disk was lost. What the primary
  has not either is lost: its row leaves the image index, unless another node has it, too.
- If an operator removed the key meanwhile and the local bytes are not blocked, the worker still uploads the object: a
  link may have brought other bytes here during the outage than the operator removed.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from imgkeep.core.backoff import backoff_s
from imgkeep.core.confirmation import Comparison, compare_records, key_of, own_identity
from imgkeep.core.errors import Busy, Conflict, RemoteFault, Removed, StorageError
from imgkeep.core.layout import RECORDS, REMOVED
from imgkeep.core.records import Doubt, Record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from imgkeep.clock import Sleep
    from imgkeep.core.records import Digest, Key, OutboxEntry
    from imgkeep.database import ImageIndex, Outbox
    from imgkeep.replication.tiered_store import TieredStore
    from imgkeep.storage.local.store import LocalStore

CONCURRENT_MAX: Final = 6
"""Maximum number of concurrent uploads: enough to use the network, few enough to leave bandwidth for clients."""
BATCH: Final = 64
"""Maximum number of images in one read of the outbox."""
POLL_INTERVAL_S: Final = 1
"""Interval of reads of the outbox: a new image waits that long at most. It is also the resolution of the back-off."""
ENLIST_INTERVAL_S: Final = 600
"""Interval of enlisting the fallback: an unreachable or full database may have missed an image."""
DELAY_MIN_S: Final = 2
"""Delay after the first failed upload of an image."""
DELAY_MAX_S: Final = 60
"""Maximum delay after a fault that may concern other images: a full disk, too many requests."""
OWN_DELAY_MAX_S: Final = 3600
"""Maximum delay for an image that alone cannot be stored: an operator has to help, or a newer primary."""

log = logging.getLogger(__name__)


class OutboxWorker:
    """
    Uploads images from the fallback to the primary. Only the leader's `run` is running.

    Args:
        tiered_store: The primary, its disk cache and its circuit breaker.
        fallback: The store of the images that wait.
        outbox: The order of the uploads.
        image_index: The index that takes the enlisted records.
        blocked_digests: The digests of removed images.
        uploaded: Receives the record that the primary has under the key then.
        dropped: Receives the key of an image that is dropped: an operator removed it, or its disk was lost.
        draw: Returns a random number from 0 to 1.
        sleep: Waits for a number of seconds.
        count: Counts an attempt by whether it succeeded.
    """

    def __init__(  # noqa: PLR0913 - all by keyword, in one place
        self,
        *,
        tiered_store: TieredStore,
        fallback: LocalStore,
        outbox: Outbox,
        image_index: ImageIndex,
        blocked_digests: Container[Digest],
        uploaded: Callable[[Record], Awaitable[None]],
        dropped: Callable[[Key], Awaitable[None]],
        draw: Callable[[], float],
        sleep: Sleep,
        count: Callable[[bool], None],
    ) -> None:
        self._tiered_store = tiered_store
        self._primary = tiered_store.primary
        self._cache = tiered_store.cache
        self._breaker = tiered_store.breaker
        self._fallback = fallback
        self._outbox = outbox
        self._image_index = image_index
        self._blocked_digests = blocked_digests
        self._uploaded = uploaded
        self._dropped = dropped
        self._draw = draw
        self._sleep = sleep
        self._count = count

    async def run(self) -> None:
        """Enlist and upload the images of the fallback, for ever."""
        loop = asyncio.get_running_loop()
        next_enlist = loop.time()
        while True:
            try:
                if loop.time() >= next_enlist:
                    await self.enlist()
                    next_enlist = loop.time() + ENLIST_INTERVAL_S
                backlog = await self._outbox.backlog()
                outage = self._tiered_store.outage
                if outage is not None and backlog.images and outage != backlog.error:
                    await self._outbox.note_error(outage)
                if outage is None and await self.replicate_due():
                    continue
            except StorageError:
                pass  # the database or the disk of the fallback: they report their own failures
            except Exception:  # no answer may end this loop
                log.exception("outbox worker failed unexpectedly")
            await self._sleep(POLL_INTERVAL_S)

    async def enlist(self) -> None:
        """Bring every record of the fallback into the outbox."""
        paths: list[str] = []
        async for path, _ in self._fallback.walk(RECORDS):
            paths.append(path)
            if len(paths) == BATCH:
                await self._enlist(paths)
                paths = []
        await self._enlist(paths)

    async def replicate_due(self) -> int:
        """Upload some of the images that are due; return how many the worker tried."""
        due = await self._outbox.due(BATCH)
        permits = asyncio.Semaphore(CONCURRENT_MAX)

        async def replicate(entry: OutboxEntry) -> None:
            async with permits:
                if self._breaker.reason is None:
                    await self._replicate(entry)

        async with asyncio.TaskGroup() as group:
            for entry in due:
                group.create_task(replicate(entry))
        return len(due)

    async def _enlist(self, paths: list[str]) -> None:
        found = [each for _, each in await self._fallback.read_records(paths) if isinstance(each, Record)]
        known = await self._image_index.find_all([record.key for record in found])
        for record in found:
            if record.key not in known:
                await self._image_index.put(replace(record, waits_at=""))
        # A row that is there may be of another node, and newer: the upload decides between the two.
        await self._outbox.add([replace(record, waits_at="") for record in found if record.key in known])

    async def _replicate(self, entry: OutboxEntry) -> None:
        try:
            await self._replicate_unless_removed(entry)
        except (StorageError, Busy) as fault:
            self._count(False)
            with suppress(StorageError):
                await self._postpone(entry, fault)

    async def _postpone(self, entry: OutboxEntry, fault: StorageError | Busy) -> None:
        error = fault.in_full if isinstance(fault, StorageError) else str(fault)
        is_remote = isinstance(fault, RemoteFault)
        if is_remote and not await self._breaker.check():
            await self._outbox.postpone(entry, DELAY_MIN_S, error, counts=False)
            return
        is_own = isinstance(fault, Conflict) or (isinstance(fault, RemoteFault) and not fault.general)
        longest_s = OWN_DELAY_MAX_S if is_own else DELAY_MAX_S
        delay_s = backoff_s(entry.attempts, first_s=DELAY_MIN_S, longest_s=longest_s, draw=self._draw())
        if is_own:
            facts = {"key": entry.key, "attempts": entry.attempts + 1, "retry_s": round(delay_s), "reason": error}
            log.error("upload of one image failed", extra=facts)
            error = f"image {entry.key}: {error}"
        await self._outbox.postpone(entry, delay_s, error)

    async def _replicate_unless_removed(self, entry: OutboxEntry) -> None:
        record = await self._fallback.find(entry.key)
        try:
            if record is not None:
                await self._upload(record)
            elif await self._primary.find(entry.key) is not None:
                await self._outbox.remove(entry.key)
            else:
                log.error("image lost before its upload", extra={"key": entry.key})
                await self._outbox.drop_lost(entry.key)
                await self._dropped(entry.key)
        except Removed:
            # An operator has removed its key or its bytes meanwhile, maybe on another node.
            if record is not None:
                await self._drop(record)
            await self._outbox.remove(entry.key)

    async def _drop(self, record: Record) -> None:
        """Drop a record that must not be uploaded, and its bytes where they are blocked."""
        if await self._is_blocked(record.digest):
            # An upload that this worker gave up may have been carried out since.
            await self._primary.delete_object(record.digest)
            await self._fallback.delete_record(record.key)
            await self._fallback.delete_object(record.digest)
        else:
            await self._cache.move_from(self._fallback, record)
        await self._image_index.drop([record.key])
        await self._dropped(record.key)

    async def _is_blocked(self, digest: Digest) -> bool:
        return digest in self._blocked_digests or await self._primary.find_block(digest) is not None

    async def _upload(self, record: Record) -> None:
        if record.digest in self._blocked_digests:
            raise Removed(REMOVED)
        draft = await self._fallback.open_verified_draft(record.object_name)
        if draft is None and await self._primary.size_of(record.object_name) != record.size:
            if await self._is_blocked(record.digest):
                raise Removed(REMOVED)  # it was dropped under another record of the same bytes
            log.error("image damaged before its upload", extra={"key": record.key})
            if await self._cache.move_from(self._fallback, record):
                await self._outbox.remove(record.key)
            return
        try:
            # Without a draft the object was uploaded already, under another record of the same bytes.
            standing = await self._primary.import_image(draft, record)
        finally:
            if draft is not None:
                await draft.aclose()
        self._tiered_store.note_present(record.object_name)
        if standing.digest != record.digest and standing.doubts:
            standing = await self._keep_both(standing, record)
        # Not if a fill has stored another image under the key meanwhile: that one has an entry of its own.
        if await self._cache.move_from(self._fallback, record):
            await self._uploaded(standing)
            self._count(True)

    async def _keep_both(self, standing: Record, record: Record) -> Record:
        """Store each of two images for its links, as a second fill would; return the record that the key has then."""
        replaces = compare_records(standing, record) is Comparison.REPLACE
        other, first = (standing, record) if replaces else (record, standing)
        is_another = other.brought_by not in {"", first.brought_by}
        if is_another and Doubt.PLAINTEXT not in other.doubts - first.doubts:
            own = own_identity(other.identity, other.brought_by)
            await self._primary.import_image(None, replace(other, key=key_of(own), identity=own))
            first = first.with_doubts(first.doubts | {Doubt.CONTESTED})
        if first == standing:
            return standing
        return await self._primary.put_record(first, standing.digest if replaces else None)
