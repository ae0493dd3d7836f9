"""
RecordCache of what is kept, looked up in this order: memory, database, store.

The store's own word is the last: the database is a view that may lag, and memory forgets what others have changed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache, TTLCache

from imgkeep.core.confirmation import may_change
from imgkeep.core.errors import Removed, StorageError
from imgkeep.core.layout import REMOVED

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from imgkeep.core.records import Key, Record
    from imgkeep.database.interfaces import ImageIndex
    from imgkeep.storage.interfaces import Store

RECORDS_BYTES_MAX: Final = 67_108_864
"""For the records held in memory: some 60,000 of them, fewer when their links are long."""
RECORD_BYTES: Final = 800
"""What a record takes in memory, its identity left out."""

PROVISIONAL_MAX: Final = 16_384
PROVISIONAL_TTL_S: Final = 300
"""For records that another node may confirm, split or replace; 1 kB each, 16 MB."""

TOMBSTONES_MAX: Final = 65_536
TOMBSTONES_TTL_S: Final = 60
"""
Lifetime of the memory that a key has a tombstone, 150 bytes each, 10 MB: within it another node notices that a removal
was undone, as soon as it notices one of the digests that are blocked no longer (`removal.REFRESH_EVERY_S`).
"""

log = logging.getLogger(__name__)


class _Lookup:
    """A look-up that is under way."""

    __slots__ = ("is_current",)

    def __init__(self) -> None:
        self.is_current = True


class RecordCache:
    """
    Finds records.

    Args:
        in_flight: Keys for which something is being fetched: whoever departed has looked already.
        timer: Gives monotonic seconds.
    """

    def __init__(
        self, store: Store, database: ImageIndex, in_flight: Container[str], timer: Callable[[], float]
    ) -> None:
        self._store = store
        self._image_index = database
        self._in_flight = in_flight
        self._held: LRUCache[Key, Record] = LRUCache(
            RECORDS_BYTES_MAX, getsizeof=lambda record: RECORD_BYTES + len(record.identity)
        )
        self._provisional: TTLCache[Key, Record] = TTLCache(PROVISIONAL_MAX, PROVISIONAL_TTL_S, timer=timer)
        """Those of which another node may learn more."""
        self._reviewed: TTLCache[Key, bool] = TTLCache(PROVISIONAL_MAX, PROVISIONAL_TTL_S, timer=timer)
        """Keys of which the store was asked lately, though a record was held."""
        self._lookups: dict[Key, set[_Lookup]] = {}
        """Look-ups under way: what changes meanwhile is not what they bring."""
        self._tombstones: TTLCache[Key, bool] = TTLCache(TOMBSTONES_MAX, TOMBSTONES_TTL_S, timer=timer)
        """Keys under which the store was seen to have a tombstone."""

    async def find(self, key: Key) -> Record | None:
        """Return the record under a key, whether its object is there or not. Raises as `Store.find`."""
        record = self.at_hand(key) or await self._find(key)
        return record or self.at_hand(key)  # a fill may have landed while we looked elsewhere

    def at_hand(self, key: Key) -> Record | None:
        """Return the record that is held in memory, if one is."""
        return self._held.get(key) or self._provisional.get(key)

    async def review(self, record: Record) -> Record:
        """
        Return what the store says of an image whose record, as it is held, does not stand for a link. RecordCache that most
        links may rely on are held for good, and another node may have learned more: now and then it is asked.

        Raises:
            Removed: It was removed meanwhile.
        """
        key = record.key
        if key in self._reviewed or may_change(record):
            return record
        self._reviewed[key] = True
        try:
            current = await self._store.find(key)
        except StorageError:
            return record  # what is known here is better than nothing
        held = self.at_hand(key)
        if held is not None and held is not record:
            return held  # a fill has landed meanwhile
        if current is None or current == record:
            return record
        self.hold(current)
        await self.note(current)
        return current

    def hold(self, record: Record) -> None:
        """Have a record at hand from now on."""
        self._outdate(record.key)
        self._put(record)

    async def note(self, record: Record) -> None:
        """Put a record in the database."""
        try:
            await self._image_index.put(record)
        except StorageError:
            return  # a view that lags: the next look-up that has to ask the store mends it

    def forget(self, key: Key) -> None:
        """Hold nothing in memory that says that an image is kept, or that it was removed."""
        self._outdate(key)
        self._held.pop(key, None)
        self._provisional.pop(key, None)
        self._tombstones.pop(key, None)

    async def find_another(self, lacking: Record) -> Record | None:
        """The object of a record is missing or damaged: the store's own record may name another, newer one."""
        key = lacking.key
        log.error("object missing or damaged", extra={"key": key, "digest": lacking.digest})
        record = await self._store.find(key)
        if record is None or record.digest == lacking.digest:
            if self.at_hand(key) is lacking:  # and not what a fill has stored since
                self.forget(key)
            return None
        return record

    async def _find(self, key: Key) -> Record | None:
        if key in self._in_flight:
            return None  # what is brought will be found in memory
        look = _Lookup()
        self._lookups.setdefault(key, set()).add(look)
        try:
            record = await self._look(key)
        finally:
            self._lookups[key].discard(look)
            if not self._lookups[key]:
                del self._lookups[key]
        if record is not None and look.is_current:
            self._put(record)
        return record

    async def _look(self, key: Key) -> Record | None:
        # Where a record is a file on this disk, the database is no shorter way to it.
        record = None if self._store.local_drafts_only else await self._find_in_image_index(key)
        if record is not None and may_change(record):
            try:
                return await self._store.find(key) or record
            except StorageError:
                return record  # what is known here is better than nothing
        if record is None and key not in self._in_flight:
            record = await self._find_in_store(key)
            if record is not None:
                await self.note(record)
        return record

    def _put(self, record: Record) -> None:
        held, other = (self._provisional, self._held) if may_change(record) else (self._held, self._provisional)
        other.pop(record.key, None)
        held[record.key] = record

    def _outdate(self, key: Key) -> None:
        for look in self._lookups.get(key, ()):
            look.is_current = False

    async def _find_in_store(self, key: Key) -> Record | None:
        if key in self._tombstones:
            raise Removed(REMOVED)
        try:
            return await self._store.find(key)
        except Removed:
            self._tombstones[key] = True
            raise

    async def _find_in_image_index(self, key: Key) -> Record | None:
        try:
            return await self._image_index.find(key)
        except StorageError:
            return None  # the store knows as well, only slower; the database tells its own trouble
