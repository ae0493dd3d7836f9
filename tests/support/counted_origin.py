"""An origin that is several hosts, counts what it is asked, and knows how much it was asked at once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from tests.support.images import png_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

PIECE_BYTES = 65_536
_SEEDS = count()


@dataclass
class CountedOrigin:
    """
    Gives each path its body, and takes messages.

    Attributes:
        addresses: Its hosts, all on one port.
        bodies: By path; any other one is 404.
        asked: How often each path was asked for.
        running: Number of requests under way, by host.
        running_max: The highest number so far, by host.
        answer_s: Seconds before the first byte.
        gate: What the first byte waits for; `None`: nothing.
        bytes_per_s: Speed of a body; `None`: as fast as it goes.
        started_s: When the first byte of a path went out first, by the monotonic clock.
        messages: Bodies that were posted.
    """

    addresses: Sequence[str]
    bodies: dict[str, bytes] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)
    running_max: Counter[str] = field(default_factory=Counter)
    answer_s: float = 0
    gate: asyncio.Event | None = None
    bytes_per_s: int | None = None
    started_s: dict[str, float] = field(default_factory=dict)
    messages: list[bytes] = field(default_factory=list)
    port: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def url(self, path: str, host: int = 0) -> str:
        return f"http://{self.addresses[host]}:{self.port}{path}"

    def gives(self, path: str, size: int = 2000, *, host: int = 0) -> str:
        """Give a path an image that no other path has, of whatever origin; return its URL."""
        self.bodies[path] = png_of(size, seed=next(_SEEDS))
        return self.url(path, host)

    def fetches(self, prefix: str = "/") -> int:
        """Return how many requests came for paths with a prefix."""
        return sum(number for path, number in self.asked.items() if path.startswith(prefix))

    def fetched_twice(self, prefix: str = "/") -> int:
        """Return how many paths with a prefix were asked for more than once."""
        return sum(number > 1 for path, number in self.asked.items() if path.startswith(prefix))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                await self._exchange(head, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _exchange(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, *fields = head.rstrip("\r\n").split("\r\n")
        method, target, _ = line.split(" ")
        path = target.partition("?")[0]
        if method == "POST":
            lengths = [int(text.partition(":")[2]) for text in fields if text.lower().startswith("content-length:")]
            self.messages.append(await reader.readexactly(lengths[0]))
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            return
        host = writer.get_extra_info("sockname")[0]
        self.asked[path] += 1
        self.running[host] += 1
        self.running_max[host] = max(self.running_max[host], self.running[host])
        try:
            await self._wait(reader)
            if self.gate is not None:
                await self.gate.wait()
            await self._answer(path, writer)
        finally:
            self.running[host] -= 1

    async def _wait(self, reader: asyncio.StreamReader) -> None:
        """Wait as long as an answer takes; a client that leaves meanwhile is not under way any more."""
        if not self.answer_s:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self.answer_s):
                await reader.read(1)  # what clients send now is their end: no request comes before the answer
                raise ConnectionResetError("the client has left")

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        body = self.bodies.get(path)
        status = "404 Not Found" if body is None else "200 OK"
        body = body or b"nothing here"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        self.started_s.setdefault(path, time.monotonic())
        if self.bytes_per_s is None:
            writer.write(body)
            await writer.drain()
            return
        for start in range(0, len(body), PIECE_BYTES):
            writer.write(body[start : start + PIECE_BYTES])
            await writer.drain()
            await asyncio.sleep(PIECE_BYTES / self.bytes_per_s)

    async def stop(self, servers: Sequence[asyncio.Server]) -> None:
        for server in servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def counted_origin(addresses: Sequence[str]) -> AsyncGenerator[CountedOrigin]:
    """Run an origin at these addresses of this machine until the end of the block."""
    origin = CountedOrigin(addresses)
    servers: list[asyncio.Server] = []
    try:
        for address in addresses:
            with suppress(OSError):  # of a closed port, which the assertion below tells
                servers.append(await asyncio.start_server(origin.serve, address, origin.port, backlog=1000))
                origin.port = servers[0].sockets[0].getsockname()[1]
        assert len(servers) == len(addresses), "the port of the first host is taken at another"
        yield origin
    finally:
        await origin.stop(servers)
