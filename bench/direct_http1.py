"""
GET requests over the connections of an aiohttp session, without the session: the rival of `origin/session.py`.

It writes the request as it is, and aiohttp's own parser reads the answer. It needs names of aiohttp that are not
public, so imgkeep does without it; `python -m bench origin-client` measures the cost of that.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from imgkeep.core.response_head import FIELDS_MAX
from imgkeep.origin.bounded_connection import HEAD_BYTES_MAX
from imgkeep.origin.session import READ_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.connector import Connection
    from multidict import CIMultiDictProxy
    from yarl import URL


@dataclass(slots=True)
class Response:
    """The head of an answer, and its body as it comes: the part of `aiohttp.ClientResponse` that the client uses."""

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


class DirectSession:
    """Takes the place of an `aiohttp.ClientSession` in an `OriginClient`."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._fields = _encode(session.headers)
        self._origins: dict[URL, aiohttp.ClientRequest] = {}

    @property
    def timeout(self) -> aiohttp.ClientTimeout:
        return self._session.timeout

    async def close(self) -> None:
        await self._session.close()

    async def get(
        self,
        url: URL,
        *,
        headers: Mapping[str, str],
        allow_redirects: bool,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> Response:
        """Send a request and return the head of the answer."""
        assert not allow_redirects
        head = f"GET {url.raw_path_qs} HTTP/1.1\r\nHost: {url.raw_authority}\r\n".encode("ascii")
        request = b"".join((head, self._fields, _encode(headers), b"\r\n"))
        connector = self._session.connector
        assert connector is not None
        connection = await connector.connect(self._describe(url.origin()), [], timeout)
        protocol, transport = connection.protocol, connection.transport
        assert protocol is not None
        assert transport is not None
        try:
            how: dict[str, Any] = {"max_line_size": HEAD_BYTES_MAX, "max_field_size": HEAD_BYTES_MAX}
            protocol.set_response_params(
                read_until_eof=True,
                auto_decompress=False,
                read_timeout=timeout.sock_read,
                read_bufsize=READ_BYTES,
                max_headers=FIELDS_MAX,
                **how,
            )
            transport.write(request)
            protocol.start_timeout()
            message, content = await protocol.read()
        except BaseException:
            connection.close()
            raise
        response = Response(message.code, message.headers, content, connection)
        content.on_eof(response.release)
        return response

    def _describe(self, origin: URL) -> aiohttp.ClientRequest:
        """Return what a connector asks about where to connect to."""
        described = self._origins.get(origin)
        if described is None:
            described = aiohttp.ClientRequest("GET", origin, loop=asyncio.get_running_loop(), session=self._session)
            self._origins[origin] = described
        return described


def _encode(fields: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
