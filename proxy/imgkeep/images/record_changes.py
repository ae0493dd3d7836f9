"""Record changes: when the record of a key changes, drops it from memory and notifies the other processes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from imgkeep.core.errors import StorageError
from imgkeep.core.records import Key

if TYPE_CHECKING:
    from imgkeep.core.records import Record
    from imgkeep.images.record_cache import RecordCache
    from imgkeep.images.record_sharing import RecordSharing


class RecordChanges:
    """Announces changes of the records of keys."""

    def __init__(self, records: RecordCache, sharing: RecordSharing) -> None:
        self.records = records
        self._changed = sharing.changed
        self._all_changed = sharing.all_changed
        self._notifier = sharing.notifier

    async def note_stored(self, record: Record, *, is_first: bool = False) -> None:
        """
        Pass on that a record is stored. It is durable, and no reader has the last byte of its image yet.

        Args:
            record: The record.
            is_first: Whether a lookup has just found no other record under its key. Any process may know an older one
                otherwise, whether this one does or not.
        """
        known = self.records.cached(record.key)
        self.records.put(record)
        self._changed(record.key)
        await self.records.index(record)
        if known != record and not (is_first and known is None):
            if self._notifier is not None:
                await self.records.settle_index()  # the others look there
            await self.notify_peers(record.key)

    def forget(self, key: Key) -> None:
        """Drop the record or the tombstone of a key from memory."""
        self.records.forget(key)
        self._changed(key)

    def forget_all(self) -> None:
        """Drop all records and tombstones from memory."""
        self.records.forget_all()
        self._all_changed()

    async def notify_peers(self, name: str) -> None:
        """Tell other processes that another image is stored under a key, or what `Confirmer.learn` understands."""
        if self._notifier is not None:
            with suppress(StorageError):  # their entries expire (`web/fastpath/response_cache.py`)
                await self._notifier.notify(changed=[Key(name)])
