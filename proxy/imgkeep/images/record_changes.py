"""Record changes: when the record of a key changes, drops it from memory and notifies the other workers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from imgkeep.core.errors import StorageError
from imgkeep.core.records import Key

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Record
    from imgkeep.images.interfaces import Peers
    from imgkeep.images.record_cache import RecordCache


class RecordChanges:
    """
    Announces changes of the records of keys.

    Args:
        changed: Callback with every key whose record has changed, or whose image has moved.
        peers: The other workers; `None`: there are none.
    """

    def __init__(self, records: RecordCache, changed: Callable[[Key], None], peers: Peers | None) -> None:
        self.records = records
        self._changed = changed
        self._peers = peers

    async def note_stored(self, record: Record) -> None:
        """Pass on that a record is stored. It is durable, and no reader has the last byte of its image yet."""
        known = self.records.cached(record.key)
        self.records.put(record)
        self._changed(record.key)
        await self.records.index(record)
        if known is not None and known != record:
            await self.notify_peers(record.key)

    def forget(self, key: Key) -> None:
        """Drop the record or the tombstone of a key from memory."""
        self.records.forget(key)
        self._changed(key)

    async def notify_peers(self, name: str) -> None:
        """Tell other workers that another image is stored under a key, or what `Confirmer.learn` understands."""
        if self._peers is not None:
            with suppress(StorageError):  # their entries expire (`web/fastpath/response_cache.py`)
                await self._peers.notify(changed=[Key(name)])
