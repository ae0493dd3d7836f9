"""
The rate at which an origin sends.

The time that counts is the wait for the origin: a slow disk or reader is not its fault. One window follows the other,
and the mean over all does not count, or a quick beginning would pay for a body that drips for the rest.
"""

from __future__ import annotations


class TransferRate:
    """
    The least rate of an origin.

    Args:
        bytes_per_s_min: Minimum rate; 0: there is none.
        grace_s: Length of a window, in seconds of waiting.
    """

    def __init__(self, bytes_per_s_min: int, grace_s: float) -> None:
        self._bytes_per_s_min = bytes_per_s_min
        self._grace_s = grace_s
        self._bytes = 0
        self._waited_s = 0.0

    def is_enough_after(self, size: int, waited_s: float) -> bool:
        """Count `size` bytes that came after a wait of `waited_s`; return whether the rate is enough so far."""
        self._bytes += size
        self._waited_s += waited_s
        if self._waited_s < self._grace_s:
            return True
        is_enough = self._bytes >= self._bytes_per_s_min * self._waited_s
        self._bytes, self._waited_s = 0, 0.0
        return is_enough
