"""
Concurrency limits with bounded queues: so many fetches in all and per host, so many waiting, and no more.

A host that hangs fills its own gate and queue and leaves the rest to others. The host's gate comes first, so that
whoever waits for a slow host does not hold one of the places that all share.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

from proxy.core.errors import Busy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

QUEUE_PER_PLACE: Final = 4
"""A queue of four times the places is served within a few fetches; longer, and clients give up before their turn."""


class Gate:
    """`places` at a time, `QUEUE_PER_PLACE * places` waiting."""

    def __init__(self, places: int) -> None:
        self._semaphore = asyncio.Semaphore(places)
        self._queue_max = places * QUEUE_PER_PLACE
        self.waiting = 0
        self.users = 0

    @asynccontextmanager
    async def enter(self) -> AsyncGenerator[None]:
        """
        Wait for a place and hold it.

        Raises:
            Busy: The queue is full.
        """
        if self._semaphore.locked() and self.waiting >= self._queue_max:
            raise Busy("too many images are being fetched at the moment", retry_after_s=2)
        self.waiting += 1
        try:
            await self._semaphore.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._semaphore.release()


class Gates:
    """The gate that all share, and one per host as long as somebody uses it."""

    def __init__(self, places: int, places_per_host: int) -> None:
        self._all = Gate(places)
        self._places_per_host = places_per_host
        self._hosts: dict[str, Gate] = {}

    @property
    def waiting(self) -> int:
        return self._all.waiting + sum(gate.waiting for gate in self._hosts.values())

    @asynccontextmanager
    async def enter(self, host: str) -> AsyncGenerator[Place]:
        """
        Wait for a place at the host and among all, and hold both.

        Raises:
            Busy: A queue is full.
        """
        async with AsyncExitStack() as at_host:
            place = Place(self, at_host)
            await place.move(host)
            async with self._all.enter():
                yield place

    @asynccontextmanager
    async def enter_host(self, host: str) -> AsyncGenerator[None]:
        gate = self._hosts.setdefault(host, Gate(self._places_per_host))
        gate.users += 1
        try:
            async with gate.enter():
                yield
        finally:
            gate.users -= 1
            if gate.users == 0:
                del self._hosts[host]


class Place:
    """A place at one host at a time: redirects lead to others, which have their limits too."""

    def __init__(self, gates: Gates, at_host: AsyncExitStack) -> None:
        self._gates = gates
        self._at_host = at_host
        self._host: str | None = None

    async def move(self, host: str) -> None:
        """
        Wait for a place at `host`.

        Raises:
            Busy: Its queue is full.
        """
        if host == self._host:
            return
        # The old place is left first: two fetches that waited for each other's would wait for ever.
        self._host = None
        await self._at_host.aclose()
        await self._at_host.enter_async_context(self._gates.enter_host(host))
        self._host = host
