"""
Cache trust: until when this process may answer from its caches alone.

A process that shares its store with others learns of their changes from notices. While it may have missed some, its
caches are suspended: the response cache answers nothing, and every lookup asks the store for the record and for the
block of its digest. Where the store does not answer either, the process serves what it has.

The hot path compares one number with the time that it has read anyway. So a process that was stopped for a minute
serves nothing old in its first request after that.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class CacheTrust:
    """
    The time until which the caches of this process are trusted. One per process.

    Attributes:
        until: That time, by the timer: for ever, unless other nodes change what is stored.

    Args:
        timer: Gives monotonic seconds.
    """

    __slots__ = ("_timer", "until")

    def __init__(self, timer: Callable[[], float], until: float = inf) -> None:
        self._timer = timer
        self.until = until

    @property
    def holds(self) -> bool:
        """Whether the caches are trusted now."""
        return self._timer() < self.until

    def suspend(self) -> None:
        """Suspend the caches from now on."""
        self.until = -inf
