"""Waiting for facts that set no event: files, counters, other threads and other processes."""

from __future__ import annotations

import asyncio
import time
from inspect import isawaitable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S: Final = 30.0
"""Timeout for a fact, on a machine that is busy with other tests."""
INTERVAL_S: Final = 0.01
"""Interval between two looks."""


async def until(fact: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
    """Wait until `fact`, a function or a coroutine function, returns something true."""
    async with asyncio.timeout(within_s):
        while not await _look(fact):  # noqa: ASYNC110 - no event tells of these facts
            await asyncio.sleep(INTERVAL_S)


async def _look(fact: Callable[[], object]) -> object:
    found = fact()
    return await found if isawaitable(found) else found


def block_until(fact: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
    """Do the same where there is no event loop."""
    end = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < end, "the fact does not come true"
        time.sleep(INTERVAL_S)
