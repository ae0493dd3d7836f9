"""
A bucket in memory that costs little: `python -m bench.s3_server PORT`. It checks no signature.

It has what imgkeep calls while it stores and serves small images: GET with ranges, HEAD, PUT with `If-None-Match`,
DELETE and lists of one page.
"""

from __future__ import annotations

import asyncio
import sys
from hashlib import md5
from typing import Final, cast
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

import uvloop

OBJECTS: Final[dict[str, tuple[bytes, str]]] = {}
"""Bytes and ETag by path."""
PHRASES: Final = {200: "OK", 204: "No Content", 206: "Partial Content", 404: "Not Found", 412: "Precondition Failed"}


class Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self) -> None:
        self._data = b""
        self._needed = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= self._needed and (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].decode("latin-1")
            line, _, rest = head.partition("\r\n")
            fields = {
                name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest.split("\r\n"))
            }
            size = int(fields.get("content-length", "0"))
            if len(self._data) < end + 4 + size:
                if not self._needed and "expect" in fields:
                    self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._needed = end + 4 + size
                return
            body, self._data, self._needed = self._data[end + 4 : end + 4 + size], self._data[end + 4 + size :], 0
            method, target, _ = line.split(" ")
            self._answer(method, target, fields, body)

    def _answer(self, method: str, target: str, fields: dict[str, str], body: bytes) -> None:
        path, _, query = target.partition("?")
        key = unquote(path)
        found = OBJECTS.get(key)
        if method == "PUT":
            if found is not None and "if-none-match" in fields:
                self._fail(412, "PreconditionFailed")
                return
            tag = f'"{md5(body, usedforsecurity=False).hexdigest()}"'
            OBJECTS[key] = (body, tag)
            self._respond(200, f"ETag: {tag}\r\n", b"")
        elif method == "DELETE":
            OBJECTS.pop(key, None)
            self._respond(204, "", b"")
        elif query:
            self._list(key, parse_qs(query, keep_blank_values=True))
        elif found is None:
            self._fail(404, "NoSuchKey", headless=method == "HEAD")
        elif method == "HEAD":
            self._respond(200, f"ETag: {found[1]}\r\n", b"", size=len(found[0]))
        else:
            start, _, last = fields.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = found[0][int(start) : int(last) + 1 if last else None]
            more = f"Content-Range: bytes {start}-{int(start) + len(part) - 1}/{len(found[0])}\r\n"
            is_part = "range" in fields
            self._respond(206 if is_part else 200, f"ETag: {found[1]}\r\n{more if is_part else ''}", part)

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        if "uploads" in query:
            self._respond(200, "", b"<ListMultipartUploadsResult></ListMultipartUploadsResult>")
            return
        start = f"{bucket.rstrip('/')}/{query.get('prefix', [''])[0]}"
        names = sorted(name for name in OBJECTS if name.startswith(start))[: int(query.get("max-keys", ["1000"])[0])]
        cut = len(bucket.rstrip("/")) + 1
        items = "".join(
            f"<Contents><Key>{escape(name[cut:])}</Key><Size>{len(OBJECTS[name][0])}</Size></Contents>"
            for name in names
        )
        self._respond(
            200, "", f"<ListBucketResult><KeyCount>{len(names)}</KeyCount>{items}</ListBucketResult>".encode()
        )

    def _fail(self, status: int, code: str, *, headless: bool = False) -> None:
        body = f"<Error><Code>{code}</Code></Error>".encode()
        self._respond(status, "", b"" if headless else body)

    def _respond(self, status: int, fields: str, body: bytes, *, size: int | None = None) -> None:
        length = len(body) if size is None else size
        head = f"HTTP/1.1 {status} {PHRASES[status]}\r\n{fields}Content-Length: {length}\r\n\r\n"
        self._send(head.encode("latin-1") + body)

    def _send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
