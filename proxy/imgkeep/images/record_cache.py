"""
Record cache: looks records up in this order: memory, image index, store.

The store decides: the image index is a view that may lag, and memory drops the records that other processes change.
While this process may have missed such a change (`cache_trust.py`), a lookup asks the store for the record and for the
block of its digest; memory answers only where the store does not, and not where others may go on removing images.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache, TTLCache

from imgkeep.core.confirmation import may_change
from imgkeep.core.errors import Removed, StorageError, Unchecked
from imgkeep.core.layout import REMOVED
from imgkeep.images.lease_preparation import NOTHING_TO_PREPARE

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from imgkeep.core.records import Digest, Key, Record
    from imgkeep.database import ImageIndex
    from imgkeep.images.lease_preparation import LeasePreparation
    from imgkeep.images.record_sharing import RecordSharing
    from imgkeep.storage.interfaces import Store

RECORDS_BYTES_MAX: Final = 67_108_864
"""Maximum size of the records in memory: some 60,000 of them, fewer when their links are long."""
RECORD_BYTES: Final = 800
"""Size of a record in memory, without its identity."""

PROVISIONAL_MAX: Final = 16_384
PROVISIONAL_TTL_S: Final = 300
"""For records that another node may confirm, split or replace; 1 kB each, 16 MB."""

TOMBSTONES_MAX: Final = 65_536
TOMBSTONES_TTL_S: Final = 60
"""
Lifetime of an entry for a key with a tombstone; 150 bytes each, 10 MB. It ends with the interval in which a node
learns that another node has undone a removal (`blocked_digests.REFRESH_INTERVAL_S`).
"""

log = logging.getLogger(__name__)


class _Lookup:
    """A running lookup."""

    __slots__ = ("is_current",)

    def __init__(self) -> None:
        self.is_current = True


class RecordCache:
    """
    Finds records.

    Args:
        in_flight: Keys for which a fill runs: a fill starts after a lookup.
        timer: Gives monotonic seconds.
        sharing: How memory stays what the store has.
    """

    def __init__(
        self,
        store: Store,
        image_index: ImageIndex,
        in_flight: Container[str],
        timer: Callable[[], float],
        sharing: RecordSharing,
    ) -> None:
        self._sharing = sharing
        self._trust = sharing.trust
        self._store = store
        self._image_index = image_index
        self._in_flight = in_flight
        self._records: LRUCache[Key, Record] = LRUCache(
            RECORDS_BYTES_MAX, getsizeof=lambda record: RECORD_BYTES + len(record.identity)
        )
        self._provisional: TTLCache[Key, Record] = TTLCache(PROVISIONAL_MAX, PROVISIONAL_TTL_S, timer=timer)
        """Records that another node may confirm, split or replace."""
        self._rechecked: TTLCache[Key, bool] = TTLCache(PROVISIONAL_MAX, PROVISIONAL_TTL_S, timer=timer)
        """Keys in memory whose record was recently read from the store again."""
        self._lookups: dict[Key, set[_Lookup]] = {}
        """Running lookups: their results are out of date if the key changes meanwhile."""
        self._tombstones: TTLCache[Key, bool] = TTLCache(TOMBSTONES_MAX, TOMBSTONES_TTL_S, timer=timer)
        """Keys that have a tombstone in the store."""
        self._block_checks: dict[Digest, asyncio.Task[None]] = {}

    async def find(self, key: Key, preparation: LeasePreparation = NOTHING_TO_PREPARE) -> Record | None:
        """
        Return the record under a key, whether its object is there or not. Raises as `Store.find`.

        `preparation` begins where only the store can still have the record.
        """
        if self._trust is not None and not self._trust.holds:
            return await self._find_in_store_first(key, preparation)
        record = self.cached(key) or await self._find(key, preparation)
        return record or self.cached(key)  # a fill may have ended during this lookup

    def cached(self, key: Key) -> Record | None:
        """Return the record that is in memory, if one is."""
        return self._records.get(key) or self._provisional.get(key)

    async def recheck(self, record: Record) -> Record:
        """
        Return the store's own record of an image, if the record in memory does not stand for the link.

        A record in memory may be old: another node may have confirmed, split or replaced it. So the cache asks the
        store again, once per key in an interval.

        Raises:
            Removed: It was removed meanwhile.
        """
        key = record.key
        if key in self._rechecked or may_change(record):
            return record
        self._rechecked[key] = True
        try:
            current = await self._store.find(key)
        except StorageError:
            return record  # the known record is better than none
        cached = self.cached(key)
        if cached is not None and cached is not record:
            return cached  # a fill has ended meanwhile
        if current is None or current == record:
            return record
        self.put(current)
        await self.index(current, is_adopted=True)
        return current

    def put(self, record: Record) -> None:
        """Put a record into memory."""
        self._outdate_lookups(record.key)
        self._remember(record)

    async def index(self, record: Record, *, is_adopted: bool = False) -> None:
        """Put a record into the image index. `is_adopted`: as `ImageIndex.put`."""
        try:
            await self._image_index.put(record, is_adopted=is_adopted)
        except StorageError:
            return  # a view that lags: the next lookup that has to ask the store corrects it

    def forget(self, key: Key) -> None:
        """Drop the record or the tombstone of a key from memory."""
        self._outdate_lookups(key)
        self._records.pop(key, None)
        self._provisional.pop(key, None)
        self._tombstones.pop(key, None)
        self._image_index.doubt(key)

    def forget_all(self) -> None:
        """Drop all records and tombstones from memory."""
        for key in list(self._lookups):
            self._outdate_lookups(key)
        for cache in (self._records, self._provisional, self._tombstones, self._rechecked):
            cache.clear()

    async def settle_index(self) -> None:
        """Wait until other processes find in the image index what was put there, as far as the database answers."""
        await self._image_index.flush()

    async def learn_block(self, digest: Digest) -> None:
        """
        Ask the store whether a digest is blocked, unless memory has every block; the store may not answer.

        Raises:
            Unchecked: It does not, and the digest may have been blocked elsewhere.
        """
        if self._trust is None or self._trust.holds:
            return
        check = self._block_checks.get(digest)
        if check is None:
            check = self._block_checks[digest] = asyncio.create_task(self._check_block(digest))
            check.add_done_callback(partial(self._end_check, digest))
        await asyncio.shield(check)

    async def find_another(self, lacking: Record) -> Record | None:
        """Return the store's own record where it names another object than the one that is missing or damaged."""
        key = lacking.key
        log.error("object missing or damaged", extra={"key": key, "digest": lacking.digest})
        record = await self._store.find(key)
        if record is None or record.digest == lacking.digest:
            if self.cached(key) is lacking:  # and not what a fill has stored since
                self.forget(key)
            return None
        return record

    async def _find(self, key: Key, preparation: LeasePreparation) -> Record | None:
        if key in self._in_flight:
            return None  # the fill puts its record into memory
        lookup = _Lookup()
        self._lookups.setdefault(key, set()).add(lookup)
        try:
            record = await self._look_up(key, preparation)
        finally:
            self._end_lookup(key, lookup)
        if record is not None and lookup.is_current:
            self._remember(record)
        return record

    def _end_lookup(self, key: Key, lookup: _Lookup) -> None:
        self._lookups[key].discard(lookup)
        if not self._lookups[key]:
            del self._lookups[key]

    async def _find_in_store_first(self, key: Key, preparation: LeasePreparation) -> Record | None:
        """Return the record of the store; where the store does not answer, what this process knows."""
        known = self.cached(key)
        if known is None and key in self._in_flight:
            return None  # the fill puts its record into memory
        if known is None:
            preparation.begin()
        lookup = _Lookup()
        self._lookups.setdefault(key, set()).add(lookup)
        try:
            record = await self._store.find(key)
        except StorageError as fault:
            self._require_unchecked_allowed(fault)
            record = self.cached(key) or await self._find_in_index(key)
            if record is None:
                raise
        except Removed:
            if lookup.is_current:
                self.forget(key)
            raise
        finally:
            self._end_lookup(key, lookup)
        if not lookup.is_current:
            record = self.cached(key) or record  # a fill has ended during this lookup
        elif record is not None and record != known:
            self._remember(record)
        if record is not None:
            await self.learn_block(record.digest)
        return record

    async def _check_block(self, digest: Digest) -> None:
        try:
            keys = await self._store.find_block(digest)
        except StorageError as fault:
            self._require_unchecked_allowed(fault)
            return
        if keys is not None:
            await self._sharing.learn_blocked([digest])

    def _require_unchecked_allowed(self, fault: StorageError) -> None:
        if self._trust is not None and not self._trust.allows_unchecked:
            raise Unchecked(
                "this node is cut off from its cluster and cannot tell what was removed: retry later"
            ) from fault

    def _end_check(self, digest: Digest, check: asyncio.Task[None]) -> None:
        del self._block_checks[digest]
        if not check.cancelled():
            check.exception()  # marks it as retrieved: all callers may have left

    async def _look_up(self, key: Key, preparation: LeasePreparation) -> Record | None:
        # Where a record is a file on this disk, the image index is no shorter way to it.
        record = None if self._store.local_drafts_only else await self._find_in_index(key)
        if record is not None and may_change(record):
            try:
                return await self._store.find(key) or record
            except StorageError:
                return record  # the known record is better than none
        if record is None and key not in self._in_flight:
            record = await self._find_in_store(key, preparation)
            if record is not None:
                await self.index(record, is_adopted=True)
        return record

    def _remember(self, record: Record) -> None:
        cache, other = (self._provisional, self._records) if may_change(record) else (self._records, self._provisional)
        other.pop(record.key, None)
        cache[record.key] = record
        self._sharing.remembered(record)

    def _outdate_lookups(self, key: Key) -> None:
        for lookup in self._lookups.get(key, ()):
            lookup.is_current = False

    async def _find_in_store(self, key: Key, preparation: LeasePreparation) -> Record | None:
        if key in self._tombstones:
            raise Removed(REMOVED)
        preparation.begin()
        try:
            return await self._store.find(key)
        except Removed:
            self._tombstones[key] = True
            raise

    async def _find_in_index(self, key: Key) -> Record | None:
        try:
            return await self._image_index.find(key)
        except StorageError:
            return None  # the store knows as well, only slower; the database reports its own fault
