"""HTTP by hand: what goes over the wire is what the test says, and what comes back is split and not interpreted."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.server import Imgkeep


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    """Names in lower case; a name that comes twice fails."""
    body: bytes


def port_of(imgkeep: Imgkeep) -> int:
    port = imgkeep.client.port
    assert port is not None
    return port


def target_of(url: str) -> str:
    return f"/img?src={quote(url, safe='')}"


def request(target: str, *fields: str, method: str = "GET", version: str = "1.1", close: bool = True) -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: 127.0.0.1", *fields]
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


async def talk(port: int, data: bytes, *, timeout_s: float = 20) -> bytes:
    """Send `data` and return everything until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(timeout_s):
            with suppress(ConnectionError):
                return await reader.read()
            return b""
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def split(data: bytes) -> Answer:
    """Split an answer that ends with the connection."""
    head, _, body = data.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for field in fields:
        name, _, value = field.partition(": ")
        assert name.lower() not in headers, f"{name} comes twice"
        headers[name.lower()] = value
    return Answer(int(line.split(" ")[1]), headers, body)


async def ask(imgkeep: Imgkeep, target: str, *fields: str, method: str = "GET", version: str = "1.1") -> Answer:
    return split(await talk(port_of(imgkeep), request(target, *fields, method=method, version=version)))


@dataclass
class RawConnection:
    """A connection that stays open."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, target: str, *fields: str, method: str = "GET") -> Answer:
        self.writer.write(request(target, *fields, method=method, close=False))
        return await self.answer(method=method)

    async def answer(self, *, method: str = "GET") -> Answer:
        async with asyncio.timeout(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            answer = split(head)
            if method == "HEAD" or answer.status == 304:
                return answer
            if answer.headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readline(), 16):
                    answer.body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readline()
            else:
                answer.body = await self.reader.readexactly(int(answer.headers.get("content-length", "0")))
            return answer

    async def is_closed(self) -> bool:
        async with asyncio.timeout(20):
            with suppress(ConnectionError):
                return await self.reader.read(1) == b""
            return True


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[RawConnection]:
    """Connect to imgkeep at `port`."""
    connection = RawConnection(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield connection
    finally:
        connection.writer.close()


async def get(imgkeep: Imgkeep, target: str, *fields: str, method: str = "GET", version: str = "1.1") -> Answer:
    """Ask on a connection that stays open, if the version of HTTP has such."""
    if version != "1.1":
        return await ask(imgkeep, target, *fields, method=method, version=version)
    async with connect(port_of(imgkeep)) as connection:
        return await connection.ask(target, *fields, method=method)
