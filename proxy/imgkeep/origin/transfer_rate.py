"""
How fast an origin sends.

Only the time that the origin lets us wait counts: what a disk or a reader takes is not its fault. One window follows
the other. The mean of all is not asked for, or a quick beginning would pay for a body that drips for the rest.
"""

from __future__ import annotations


class Pace:
    """
    The least rate at which an origin has to send: `bytes_per_s_min` (0: none) in every `grace_s` that it is waited for.
    """

    def __init__(self, bytes_per_s_min: int, grace_s: float) -> None:
        self._bytes_per_s_min = bytes_per_s_min
        self._grace_s = grace_s
        self._bytes = 0
        self._waited_s = 0.0

    def keeps(self, size: int, waited_s: float) -> bool:
        """Note that `size` bytes came after a wait of `waited_s`; return whether that is fast enough so far."""
        self._bytes += size
        self._waited_s += waited_s
        if self._waited_s < self._grace_s:
            return True
        fast = self._bytes >= self._bytes_per_s_min * self._waited_s
        self._bytes, self._waited_s = 0, 0.0
        return fast
