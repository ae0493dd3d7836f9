"""
Parse budget: how many bytes aiohttp's parser of requests gets in one iteration of the event loop.

A step is `PARSE_STEP_BYTES` of one connection, and all connections together have `PARSE_ITERATION_BYTES` in an
iteration: however many clients send what takes long to parse, hits and health checks wait for so much of it and no
more. The connections that wait get one step each, in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PARSE_STEP_BYTES: Final = 2048
"""
Maximum number of bytes that are parsed at once where chunks or heads may follow one another: 340 chunks of one byte,
which take some two milliseconds. The bytes of a body of known length cost nothing and go in one step.
"""
PARSE_ITERATION_BYTES: Final = 4096
"""Maximum number of bytes that are parsed in one iteration: twenty common requests that are not for an image."""


class ParseBudget:
    """Budget of all connections in this iteration of the event loop, and those that wait for the next one."""

    __slots__ = ("_is_scheduled", "_spent", "_waiting")

    def __init__(self) -> None:
        self._spent = 0
        self._is_scheduled = False
        self._waiting: deque[Callable[[], int]] = deque()

    def spend(self, size: int) -> bool:
        """Spend bytes of this iteration if some are left and no connection waits; return whether that was so."""
        if self._waiting or self._spent >= PARSE_ITERATION_BYTES:
            return False
        self._spent += size
        self._schedule()
        return True

    def enqueue(self, step: Callable[[], int]) -> None:
        """Call `step` in the first iteration that has bytes left for it; it returns how many it has spent."""
        self._waiting.append(step)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_iteration)

    def _begin_iteration(self) -> None:
        self._is_scheduled = False
        self._spent = 0
        while self._waiting and self._spent < PARSE_ITERATION_BYTES:
            self._spent += self._waiting.popleft()()
        if self._waiting or self._spent:
            self._schedule()
