"""What follows when another image is stored under a key, or none: memory changes, here and in other workers."""

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
    Passes on changes of what is stored under keys.

    Args:
        changed: Called with every key under which another image is stored, or whose image is elsewhere.
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
        """Drop what memory says of a key: that an image is stored, or that it was removed."""
        self.records.forget(key)
        self._changed(key)

    async def notify_peers(self, name: str) -> None:
        """Tell other workers that another image is stored under a key, or what `Confirmer.learn` understands."""
        if self._peers is not None:
            with suppress(StorageError):  # they look again after a while (`web/fastpath/response_cache.py`)
                await self._peers.notify(changed=[Key(name)])
