"""
Concurrency limits with bounded queues: so many fetches in all and per host, so many waiting, and no more.

A host that hangs fills its own gate and queue and leaves the rest to others. The host's gate comes first, so that
whoever waits for a slow host does not hold one of the places that all share.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Self

from proxy.core.errors import Busy

if TYPE_CHECKING:
    from types import TracebackType

QUEUE_PER_PLACE: Final = 4
"""A queue of four times the places is served within a few fetches; longer, and clients give up before their turn."""


class Gate:
    """`places` at a time, `QUEUE_PER_PLACE * places` waiting."""

    def __init__(self, places: int) -> None:
        self._semaphore = asyncio.Semaphore(places)
        self._queue_max = places * QUEUE_PER_PLACE
        self.waiting = 0
        self.users = 0

    async def enter(self) -> None:
        """
        Wait for a place and hold it until `leave`.

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

    def leave(self) -> None:
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

    def enter(self, host: str) -> Place:
        """
        Wait for a place at the host and among all, and hold both: `async with gates.enter(host) as place`.

        Raises:
            Busy: A queue is full.
        """
        return Place(self, host)

    async def enter_all(self) -> None:
        await self._all.enter()

    def leave_all(self) -> None:
        self._all.leave()

    async def enter_host(self, host: str) -> None:
        gate = self._hosts.get(host)
        if gate is None:
            gate = self._hosts[host] = Gate(self._places_per_host)
        gate.users += 1
        try:
            await gate.enter()
        except BaseException:
            self._forget(host, gate)
            raise

    def leave_host(self, host: str) -> None:
        gate = self._hosts[host]
        gate.leave()
        self._forget(host, gate)

    def _forget(self, host: str, gate: Gate) -> None:
        gate.users -= 1
        if gate.users == 0:
            del self._hosts[host]


class Place:
    """A place at one host at a time: redirects lead to others, which have their limits too."""

    def __init__(self, gates: Gates, host: str) -> None:
        self._gates = gates
        self._first = host
        self._host: str | None = None

    async def __aenter__(self) -> Self:
        await self.move(self._first)
        try:
            await self._gates.enter_all()
        except BaseException:
            self._leave_host()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gates.leave_all()
        self._leave_host()

    async def move(self, host: str) -> None:
        """
        Wait for a place at `host`.

        Raises:
            Busy: Its queue is full.
        """
        if host != self._host:
            # The old place is left first: two fetches that waited for each other's would wait for ever.
            self._leave_host()
            await self._gates.enter_host(host)
            self._host = host

    def _leave_host(self) -> None:
        host, self._host = self._host, None
        if host is not None:
            self._gates.leave_host(host)
