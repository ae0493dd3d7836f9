"""
The number of stored images and the sum of their sizes, for the metrics.

The database counts them, in time that grows with their number. So a background task counts, the metrics show the last
count, and the next count waits long enough that counting takes a hundredth of the time at most.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.database import ImageIndex

COUNT_INTERVAL_S: Final = 60
"""Interval of counts. Prometheus asks two to four times within it."""
PAUSE_FACTOR: Final = 100
"""Length of the pause after a long count, in lengths of the count."""


class StoredTotals:
    """
    The last count.

    Attributes:
        images: The number of records.
        size: The sum of their sizes; an object that two records share counts twice.
    """

    def __init__(self, index: ImageIndex, timer: Callable[[], float]) -> None:
        self.images = 0
        self.size = 0
        self._index = index
        self._timer = timer
        self._due_at = timer()

    async def count_if_due(self) -> None:
        """Count, if a count is due. A fault of the database is reported by its health check."""
        began = self._timer()
        if began < self._due_at:
            return
        with suppress(StorageError):
            self.images, self.size = await self._index.count_images()
        now = self._timer()
        self._due_at = now + max(COUNT_INTERVAL_S, (now - began) * PAUSE_FACTOR)
