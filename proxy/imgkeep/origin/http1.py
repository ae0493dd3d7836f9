"""
GET requests over the connections of an aiohttp session's connector, without the session.

A session makes an object of everything that a request may have, and follows cookies, redirects and traces that we do
not want; that costs as much as the rest of a fetch. Here the request is written as it is, and what comes back is read
by aiohttp's own parser. Connections, TLS, addresses and time limits are aiohttp's: a session and a wire share them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import aiohttp
from cachetools import LRUCache
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection
    from multidict import CIMultiDictProxy

    from imgkeep.core.records import Source

ORIGINS_MAX: Final = 1024
"""So many origins are remembered as the connector wants to have them described; 3 kB each."""


@dataclass(slots=True)
class Response:
    """The head of an answer, and its body as it comes."""

    status: int
    headers: CIMultiDictProxy[str]
    content: aiohttp.StreamReader
    _connection: Connection | None

    @property
    def content_length(self) -> int | None:
        value = self.headers.get("Content-Length")
        return None if value is None else int(value)

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def release(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()


class Wire:
    """
    Sends requests with the header fields `fields`.

    Args:
        session: Whose connector and time limits are used.
        limits: For `aiohttp`'s parser: `read_bufsize`, `max_line_size`, `max_field_size`.
    """

    def __init__(self, session: aiohttp.ClientSession, fields: Mapping[str, str], **limits: int) -> None:
        self._session = session
        self._fields = _encode(fields)
        self._limits = limits
        self._origins: LRUCache[tuple[str, str], aiohttp.ClientRequest] = LRUCache(ORIGINS_MAX)

    async def get(
        self, source: Source, conditions: Mapping[str, str], connect_timeout_s: float | None = None
    ) -> Response:
        """
        Send a request and return the head of the answer. `connect_timeout_s`: instead of the session's own.

        Raises:
            aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, TimeoutError, ValueError: As a session.
        """
        head = f"GET {source.target} HTTP/1.1\r\nHost: {source.authority}\r\n".encode("ascii")
        request = b"".join((head, self._fields, _encode(conditions), b"\r\n"))
        origin = self._describe(source)
        try:
            return await self._send(origin, request, connect_timeout_s)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            # An origin may close a connection that it kept open at the very moment when we use it again.
            return await self._send(origin, request, connect_timeout_s)

    async def _send(self, origin: aiohttp.ClientRequest, request: bytes, connect_timeout_s: float | None) -> Response:
        connector, timeout = self._session.connector, self._session.timeout
        if connect_timeout_s is not None:
            timeout = aiohttp.ClientTimeout(
                total=None, connect=connect_timeout_s, sock_connect=connect_timeout_s, sock_read=timeout.sock_read
            )
        if connector is None:
            raise aiohttp.ClientConnectionError("the session is closed")
        connection = await connector.connect(origin, [], timeout)
        try:
            protocol, transport = _ends_of(connection)
            protocol.set_response_params(
                read_until_eof=True, auto_decompress=False, read_timeout=timeout.sock_read, **cast("Any", self._limits)
            )
            transport.write(request)
            protocol.start_timeout()
            # The parser's own time limit begins anew with every byte, and interim answers end it.
            async with asyncio.timeout(timeout.sock_read):
                message, content = await protocol.read()
        except BaseException:
            connection.close()
            raise
        response = Response(message.code, message.headers, content, connection)
        content.on_eof(response.release)
        return response

    def _describe(self, source: Source) -> aiohttp.ClientRequest:
        """Return what a connector asks about where to connect to."""
        key = (source.scheme, source.authority)
        origin = self._origins.get(key)
        if origin is None:
            url = URL(f"{source.scheme}://{source.authority}/", encoded=True)
            origin = aiohttp.ClientRequest("GET", url, loop=asyncio.get_running_loop(), session=self._session)
            self._origins[key] = origin
        return origin


def _ends_of(connection: Connection) -> tuple[ResponseHandler, asyncio.Transport]:
    protocol, transport = connection.protocol, connection.transport
    # What came before anything was asked for has ended the connection.
    if protocol is None or transport is None or protocol.exception() is not None:
        raise aiohttp.ServerDisconnectedError
    return protocol, transport


def _encode(fields: Mapping[str, str]) -> bytes:
    for value in fields.values():
        if "\r" in value or "\n" in value:
            raise ValueError("a header field has more than one line")
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
