"""
How many images are stored, and how many bytes they have, for the metrics.

The database counts them, in time that grows with their number. So a count is taken in the background, the metrics show
the last one, and the next one waits long enough that counting takes a hundredth of the time at most.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT_EVERY_S: Final = 60
"""Interval of counts. Prometheus asks two to four times in it."""
SHARE: Final = 100
"""A count that took long is followed by a pause that is so many times as long."""


class Countable(Protocol):
    """An image index."""

    async def count_images(self) -> tuple[int, int]:
        """Return the number of images, and the sum of their sizes in bytes. Raises: StorageError."""


class StoredTotals:
    """
    The last count.

    Attributes:
        images: How many records there are.
        size: The sum of their sizes; an object that two records share counts twice.
    """

    def __init__(self, index: Countable, timer: Callable[[], float]) -> None:
        self.images = 0
        self.size = 0
        self._index = index
        self._timer = timer
        self._look_at = timer()

    async def look(self) -> None:
        """Count, if it is time; a database that fails tells its own trouble."""
        began = self._timer()
        if began < self._look_at:
            return
        with suppress(StorageError):
            self.images, self.size = await self._index.count_images()
        now = self._timer()
        self._look_at = now + max(COUNT_EVERY_S, (now - began) * SHARE)
