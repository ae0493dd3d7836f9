"""Records that another node may be about to overwrite: a node reads each of them again (`records.py` says why)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from imgkeep.core.records import Key, Record

PUT_WINDOW_S: Final = 20
"""
Maximum time from the beginning of a check to the end of the PUT that relies on it. It depends on no setting, because
the nodes of a bucket may have different ones.
"""
SETTLE_AFTER_S: Final = 30
"""
Time after which a record is read again: a PUT that its node has given up within `PUT_WINDOW_S` may still be on its way
through the service for some seconds.
"""
UNSETTLED_MAX: Final = 100_000
"""Maximum number of records that wait, 1 kB each; a node stores some hundred a second at most."""


class UnsettledRecords:
    """The records that this node has put or seen, each until it is due to be read again."""

    def __init__(self) -> None:
        self._records: OrderedDict[Key, tuple[float, Record]] = OrderedDict()
        """Each with the time on the loop's clock, in this order."""

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: object) -> bool:
        return key in self._records

    def note_put(self, record: Record) -> None:
        """Note that a PUT without a condition has ended."""
        self._records.pop(record.key, None)
        self._records[record.key] = asyncio.get_running_loop().time() + SETTLE_AFTER_S, record
        if len(self._records) > UNSETTLED_MAX:
            self._records.popitem(last=False)

    def note_seen(self, record: Record) -> None:
        """Note that this node uses a record from now on."""
        waiting = self._records.get(record.key)
        if waiting is None or waiting[1] != record:
            self.note_put(record)

    def take_due(self, now: float) -> list[Record]:
        """Return the records that are due, each once."""
        due: list[Record] = []
        while self._records:
            key = next(iter(self._records))
            time, record = self._records[key]
            if time > now:
                break
            due.append(record)
            del self._records[key]
        return due
