"""HTTP/1.1 as bytes on a connection: heads as sent, bodies piece by piece, and the ways to end a connection."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PIECE_BYTES_MAX = 65_536


class Unmeasured(Enum):
    """The end of a body of unknown length."""

    CHUNKED = "chunked"
    CLOSE = "close"


Framing = int | Unmeasured


@dataclass(frozen=True, slots=True)
class Head:
    """The first line and the fields of a request or a response, spelled and ordered as they came."""

    line: str
    fields: tuple[tuple[str, str], ...] = ()

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> Head:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = text.removesuffix("\r\n\r\n").split("\r\n")
        parts = [field.partition(":") for field in fields]
        return cls(line, tuple((name, value.strip()) for name, _, value in parts))

    @property
    def status(self) -> int:
        return int(self.line.split(" ", 2)[1])

    def get(self, name: str) -> str:
        """Return the value of a field, `""` where there is none."""
        return next((value for field, value in self.fields if field.lower() == name.lower()), "")

    def without(self, name: str) -> Head:
        return Head(self.line, tuple(field for field in self.fields if field[0].lower() != name.lower()))

    def having(self, name: str, value: str) -> Head:
        """Return the head with this as the only field of the name."""
        return Head(self.line, (*self.without(name).fields, (name, value)))

    def encode(self) -> bytes:
        return "\r\n".join([self.line, *(f"{name}: {value}" for name, value in self.fields), "", ""]).encode("latin-1")

    @property
    def last(self) -> bool:
        """Whether the connection ends with this message."""
        return "close" in self.get("Connection").lower()

    def framing(self, *, otherwise: Framing) -> Framing:
        """Return how the body ends; `otherwise`, where no field tells."""
        if "chunked" in self.get("Transfer-Encoding").lower():
            return Unmeasured.CHUNKED
        return int(self.get("Content-Length") or -1) if self.get("Content-Length") else otherwise


def request_framing(head: Head) -> Framing:
    return head.framing(otherwise=0)


def response_framing(head: Head, method: str) -> Framing:
    """Return how the body of the response to a `method` ends (RFC 9112 section 6.3)."""
    if method == "HEAD" or head.status in {204, 304}:
        return 0
    return head.framing(otherwise=Unmeasured.CLOSE)


async def pieces(reader: asyncio.StreamReader, framing: Framing) -> AsyncIterator[bytes]:
    """
    Give a body as it arrives; trailers are read and dropped.

    Raises:
        IncompleteReadError: The connection ended before the body did.
    """
    if framing is Unmeasured.CLOSE:
        while piece := await reader.read(PIECE_BYTES_MAX):
            yield piece
    elif framing is Unmeasured.CHUNKED:
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            async for piece in _exactly(reader, size):
                yield piece
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
    else:
        async for piece in _exactly(reader, framing):
            yield piece


async def _exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size:
        piece = await reader.read(min(size, PIECE_BYTES_MAX))
        if not piece:
            raise asyncio.IncompleteReadError(piece, size)
        size -= len(piece)
        yield piece


def framed(piece: bytes, framing: Framing) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece) if framing is Unmeasured.CHUNKED else piece


def end_of_body(framing: Framing) -> bytes:
    return b"0\r\n\r\n" if framing is Unmeasured.CHUNKED else b""


@dataclass(frozen=True)
class Line:
    """A connection, seen from one end."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def connect(cls, host: str, port: int) -> Line:
        return cls(*await asyncio.open_connection(host, port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def swallow(self) -> None:
        """Read and drop what comes until the other side ends the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(PIECE_BYTES_MAX):
                pass

    async def finish(self) -> None:
        """
        Close with FIN.

        What still comes is read: closing on unread bytes is a reset, which may overtake what was sent before it.
        """
        with suppress(ConnectionError, OSError):
            self.writer.write_eof()
            await self.swallow()

    def reset(self) -> None:
        """Close with RST."""
        sock = self.writer.get_extra_info("socket")
        with suppress(OSError):  # it is closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()
