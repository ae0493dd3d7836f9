"""
Cache trust: until when this process may answer from its caches alone.

A process that shares its store with others learns of their changes from notices. While it may have missed some, its
caches are suspended: the response cache answers nothing, and every lookup asks the store for the record and for the
block of its digest. Where the store does not answer either, the process serves what it has, as long as all others are
cut off, too: a removal needs the database. A process that is cut off alone serves nothing then
(`cluster/nodes/isolation.py`).

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
        unchecked_until: The time until which this process may serve what it has where the store does not answer.

    Args:
        timer: Gives monotonic seconds.
    """

    __slots__ = ("_timer", "unchecked_until", "until")

    def __init__(self, timer: Callable[[], float], until: float = inf) -> None:
        self._timer = timer
        self.until = until
        self.unchecked_until = inf

    @property
    def holds(self) -> bool:
        """Whether the caches are trusted now."""
        return self._timer() < self.until

    @property
    def allows_unchecked(self) -> bool:
        """Whether this process may serve now what it has where the store does not answer."""
        return self._timer() < self.unchecked_until

    def suspend(self) -> None:
        """Suspend the caches from now on."""
        self.until = -inf
