"""
ParseBudget of the event loop in which the parser of requests is given what clients have sent.

A step is `PARSE_STEP_BYTES` of one connection, and all connections together have `PARSE_TURN_BYTES` in a turn: however many send
what takes long to parse, hits and health checks wait for so much of it and no more. HttpServer take turns.
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
PARSE_TURN_BYTES: Final = 4096
"""Maximum number of bytes that are parsed in one turn: twenty common requests that are not for an image."""


class ParseBudget:
    """What all connections of a server have had parsed in this turn of the loop, and those that wait for the next."""

    __slots__ = ("_scheduled", "_taken", "_waiting")

    def __init__(self) -> None:
        self._taken = 0
        self._scheduled = False
        self._waiting: deque[Callable[[], int]] = deque()

    def take(self, size: int) -> bool:
        """Take bytes of this turn, if there are some left and none waits for them."""
        if self._waiting or self._taken >= PARSE_TURN_BYTES:
            return False
        self._taken += size
        self._schedule()
        return True

    def wait(self, step: Callable[[], int]) -> None:
        """Call `step` in a turn that has bytes left; it returns how many it has taken."""
        self._waiting.append(step)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """A turn begins."""
        self._scheduled = False
        self._taken = 0
        while self._waiting and self._taken < PARSE_TURN_BYTES:
            self._taken += self._waiting.popleft()()
        if self._waiting or self._taken:
            self._schedule()
