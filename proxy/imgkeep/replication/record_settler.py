"""
The record settler: reads records of the bucket again that another node may have overwritten, and adopts what stands.

`storage/bucket/records.py` says which records these are, and why one more read is enough. A process reads what it has
put, and on a service without conditional PUT every record that comes into its memory: so neither a kill nor a command
that ends leaves an index with a record that lost.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import Busy, Removed, StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.clock import Sleep
    from imgkeep.core.records import Key, Record
    from imgkeep.database import ImageIndex
    from imgkeep.images.record_changes import RecordChanges
    from imgkeep.storage.bucket.unsettled_records import UnsettledRecords

INTERVAL_S: Final = 5
CONCURRENT_MAX: Final = 8
"""Maximum number of records that are read at once: clients do not wait for them."""

log = logging.getLogger(__name__)


class RecordSettler:
    """
    Reads unsettled records again. One per process.

    Args:
        unsettled: The records of the primary that have to be read again.
        read_again: Returns the record of the primary, by a request that begins then. Raises as `Store.find`.
        image_index: The index that takes the records.
        changes: Announces the records.
    """

    def __init__(
        self,
        unsettled: UnsettledRecords,
        read_again: Callable[[Key], Awaitable[Record | None]],
        image_index: ImageIndex,
        changes: RecordChanges,
    ) -> None:
        self._unsettled = unsettled
        self._read_again = read_again
        self._image_index = image_index
        self._changes = changes

    async def run(self, sleep: Sleep) -> None:
        """Read the records that are due in an interval, for ever."""
        while True:
            await sleep(INTERVAL_S)
            try:
                await self.settle_due(asyncio.get_running_loop().time())
            except Exception:  # no answer may end this loop
                log.exception("record settler failed unexpectedly")

    async def settle_due(self, now: float) -> None:
        """Read the records again that are due at `now`, on the loop's clock."""
        due = iter(self._unsettled.take_due(now))

        async def work() -> None:
            for record in due:
                try:
                    await self._settle(record)
                except Exception:  # the others are still due
                    log.exception("record not read again", extra={"key": record.key})
                    self._unsettled.note_put(record)

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENT_MAX):
                group.create_task(work())

    async def _settle(self, record: Record) -> None:
        key = record.key
        try:
            current = await self._read_again(key)
        except Removed:
            await self._drop(key)
            return
        except (StorageError, Busy):
            if key not in self._unsettled:
                self._unsettled.note_put(record)
            return
        cached = self._changes.records.cached(key)
        if current is None or current == record or key in self._unsettled or (cached is not None and cached.pending):
            return  # nothing has changed, or this node has put another record meanwhile, which is read again later
        log.info("record of another node adopted", extra={"key": key})
        await self._changes.note_stored(current)
        await self._tell(key)

    async def _drop(self, key: Key) -> None:
        """Forget the record of a key that got a tombstone."""
        if key in self._unsettled:
            return
        self._changes.forget(key)
        try:
            await self._image_index.drop([key])
        except StorageError:
            return  # a view that lags: the tombstone counts
        await self._tell(key)

    async def _tell(self, key: Key) -> None:
        """Tell the other workers, which look into the database then."""
        await self._image_index.flush()
        await self._changes.notify_peers(key)
