"""
HTTP/1.1 requests over the connections of an aiohttp session's connector, without the session.

A session makes an object of everything that a request may have, and handles cookies, redirects and traces that imgkeep
does not use; that costs a fetch some 30 % of its time (`python -m bench origin-client`). This module writes the request
as it is, and aiohttp's own parser reads the response. Connections, TLS, addresses and timeouts are aiohttp's.
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
"""Maximum number of origins whose description for the connector stays in memory; 3 kB each."""


@dataclass(slots=True)
class Http1Response:
    """The head of a response, and its body as it comes."""

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


class Http1Client:
    """
    Sends GET requests with the header fields of a session.

    Args:
        session: Its connector and header fields are used.
        limits: For aiohttp's parser: `read_bufsize`, `max_line_size`, `max_field_size`, `max_headers`.
    """

    def __init__(self, session: aiohttp.ClientSession, **limits: int) -> None:
        self._session = session
        self._fields = _encode(session.headers)
        self._limits = limits
        self._origins: LRUCache[tuple[str, str], aiohttp.ClientRequest] = LRUCache(ORIGINS_MAX)

    async def get(self, source: Source, conditions: Mapping[str, str], limits: aiohttp.ClientTimeout) -> Http1Response:
        """
        Send a request and return the head of the response.

        The request target is that of `source`, byte for byte: a signature may cover its very spelling.

        Raises:
            aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, TimeoutError, ValueError: As a session.
        """
        head = f"GET {source.target} HTTP/1.1\r\nHost: {source.authority}\r\n".encode("ascii")
        request = b"".join((head, self._fields, _encode(conditions), b"\r\n"))
        origin = self._describe(source)
        try:
            return await self._send(origin, request, limits)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            # An origin may close an idle connection just when a request uses it again.
            return await self._send(origin, request, limits)

    async def _send(
        self, origin: aiohttp.ClientRequest, request: bytes, limits: aiohttp.ClientTimeout
    ) -> Http1Response:
        connector = self._session.connector
        if connector is None:
            raise aiohttp.ClientConnectionError("the session is closed")
        connection = await connector.connect(origin, [], limits)
        try:
            protocol, transport = _ends_of(connection)
            protocol.set_response_params(
                read_until_eof=True, auto_decompress=False, read_timeout=limits.sock_read, **cast("Any", self._limits)
            )
            transport.write(request)
            protocol.start_timeout()
            message, content = await protocol.read()  # `OriginConnection` limits the time until the head is whole
        except BaseException:
            connection.close()
            raise
        response = Http1Response(message.code, message.headers, content, connection)
        content.on_eof(response.release)
        return response

    def _describe(self, source: Source) -> aiohttp.ClientRequest:
        """Return the description of an origin that a connector needs."""
        key = (source.scheme, source.authority)
        origin = self._origins.get(key)
        if origin is None:
            url = URL(f"{source.scheme}://{source.authority}/", encoded=True)
            origin = aiohttp.ClientRequest("GET", url, loop=asyncio.get_running_loop(), session=self._session)
            self._origins[key] = origin
        return origin


def _ends_of(connection: Connection) -> tuple[ResponseHandler, asyncio.Transport]:
    protocol, transport = connection.protocol, connection.transport
    # Bytes that came before the request have ended the connection.
    if protocol is None or transport is None or protocol.exception() is not None:
        raise aiohttp.ServerDisconnectedError
    return protocol, transport


def _encode(fields: Mapping[str, str]) -> bytes:
    for value in fields.values():
        if "\r" in value or "\n" in value:
            raise ValueError("a header field has more than one line")
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
