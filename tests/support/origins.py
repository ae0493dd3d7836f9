"""An origin on loopback that does what it is told to, byte by byte, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Script = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request, and the means to answer it."""

    method: str
    target: str
    headers: dict[str, str]
    writer: asyncio.StreamWriter
    number: int
    """How many requests for this path came before."""
    reader: asyncio.StreamReader | None = None

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(
        self, body: bytes, *, status: str = "200 OK", headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        """Answer properly, with `Content-Length` (of `length` instead, where that is given)."""
        fields = {"Content-Length": str(len(body) if length is None else length), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await self.send(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)

    async def send_head(self, *fields: str, status: str = "200 OK") -> None:
        await self.send("\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode())

    async def gone(self) -> None:
        """Wait until the other side has closed the connection."""
        assert self.reader is not None
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def finish(self) -> None:
        """Close with FIN."""
        self.writer.close()

    def reset(self) -> None:
        """Close with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class FakeOrigin:
    """
    Answers each path with its script; unknown paths with 404.

    Attributes:
        seen: Every exchange so far.
        connections: How many connections were accepted.
    """

    scripts: dict[str, Script] = field(default_factory=dict)
    seen: list[Exchange] = field(default_factory=list)
    connections: int = 0
    server: asyncio.Server | None = None
    ssl: Any = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.ssl)

    async def stop(self) -> None:
        """Stop listening and break all connections off."""
        if self.server is not None:
            self.server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def port(self) -> int:
        assert self.server is not None
        return int(self.server.sockets[0].getsockname()[1])

    def url(self, path: str) -> str:
        return f"{'https' if self.ssl else 'http'}://127.0.0.1:{self.port}{path}"

    def on(self, path: str, script: Script) -> str:
        """Answer `path` with `script`; return its URL."""
        self.scripts[path] = script
        return self.url(path)

    def gives(self, path: str, body: bytes, **how: Any) -> str:
        """Answer `path` with `body`, properly; return its URL."""

        async def script(exchange: Exchange) -> None:
            await exchange.answer(body, **how)

        return self.on(path, script)

    def asked(self, path: str) -> int:
        """Return how often `path` was asked for, whatever its query."""
        return sum(exchange.target.partition("?")[0] == path for exchange in self.seen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.rstrip("\r\n").split("\r\n")
        method, target, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (item.partition(":") for item in fields)}
        path = target.partition("?")[0]
        exchange = Exchange(method, target, headers, writer, self.asked(path), reader)
        self.seen.append(exchange)
        script = self.scripts.get(path)
        if script is None:
            await exchange.answer(b"nothing here", status="404 Not Found")
        else:
            await script(exchange)
        return not writer.is_closing()


def gated_body(body: bytes, gate: asyncio.Event, *, ahead: int, declared: bool = True) -> Script:
    """Answer with the first `ahead` bytes, and with the rest when the gate opens."""

    async def script(exchange: Exchange) -> None:
        if declared:
            await exchange.send_head(f"Content-Length: {len(body)}")
            await exchange.send(body[:ahead])
            await gate.wait()
            await exchange.send(body[ahead:])
        else:
            await exchange.send_head("Transfer-Encoding: chunked")
            await exchange.send(b"%x\r\n%b\r\n" % (ahead, body[:ahead]))
            await gate.wait()
            await exchange.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - ahead, body[ahead:]))

    return script
