"""
Requests to the HTTP API of a service, over one aiohttp session: for clients that sign each request themselves.

Rules:
- An attempt that reaches no server, or that the service answers with a passing failure, is made once more.
- No redirect is followed, no cookie is stored, no body is decompressed, and `~/.netrc` is not read.
- A response holds its slot until its body is read or closed; a failure holds none.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from imgkeep.core.errors import ImgkeepError
from imgkeep.storage.bucket.body import DraftPart
from imgkeep.storage.bucket.connection_causes import cause_of
from imgkeep.storage.bucket.errors import SILENT, UNREACHABLE, BucketError
from imgkeep.storage.bucket.request_limits import ATTEMPTS_MAX, REQUESTS_MAX
from imgkeep.storage.bucket.response_stream import ResponseStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
    from ssl import SSLContext

    from imgkeep.storage.bucket.request_limits import RequestLimits

PASSING: Final = frozenset({429, 500, 502, 503, 504})
"""Statuses of failures that may have passed a moment later."""
RETRY_DELAY_S: Final = 0.2
"""Delay before the second attempt, while a client may be waiting."""
ERROR_BYTES_MAX: Final = 65_536
"""Maximum number of bytes of an error response that are read; services send some hundred."""
IDLE_CONNECTION_S: Final = 20
"""Time for which an idle connection stays open: shorter than services keep theirs."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """
    A request, signed: its URL and header fields are secret. `url` is encoded already; a `body` that is no bytes is read
    again by every attempt.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | AsyncIterable[bytes] | None = None


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response with a status from 200 to 299. Its holder closes the stream."""

    status: int
    headers: Mapping[str, str]
    stream: ResponseStream


class HttpRequests:
    """
    Sends requests to one bucket.

    Args:
        limits: The limits of the bucket.
        refuse: Returns the error that a response means: its status, header fields, and the beginning of its body.
        ssl_context: The certificates to trust; `None`: those of the system.
    """

    def __init__(
        self,
        limits: RequestLimits,
        refuse: Callable[[int, Mapping[str, str], bytes], BucketError],
        *,
        ssl_context: SSLContext | None = None,
    ) -> None:
        self._limits = limits
        self._refuse = refuse
        self._ssl_context = ssl_context
        self._session: aiohttp.ClientSession | None = None
        self._proxies: dict[URL, URL | None] = {}

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=REQUESTS_MAX,
                keepalive_timeout=IDLE_CONNECTION_S,
                ssl=True if self._ssl_context is None else self._ssl_context,
            ),
            timeout=aiohttp.ClientTimeout(),  # `RequestLimits` has the timeout
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            # With `trust_env` aiohttp reads ~/.netrc for every request, and fails where it names the host.
            trust_env=False,
        )

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def open_response(
        self, operation: str, make: Callable[[], Awaitable[HttpRequest]], body: object = None
    ) -> HttpResponse:
        """
        Send a request and return the response once its head is there.

        Args:
            operation: Its name in the metrics.
            make: Returns the signed request, for each attempt anew.
            body: The body that it will send, if that is a `DraftPart`.

        Raises:
            BucketError: As `refuse` says, or no server answers within `timeout_s`.
            StorageError: The draft cannot be read.
            Busy: Too many other requests are under way.
        """
        await self._limits.acquire_slot()
        try:
            return await self._limits.run(operation, lambda: self._attempt(make, body), body)
        except BaseException:
            self._limits.release_slot()
            raise

    async def call(
        self, operation: str, make: Callable[[], Awaitable[HttpRequest]], size_max: int, body: object = None
    ) -> tuple[HttpResponse, bytes]:
        """Send a request and read up to `size_max` bytes of the response. As `open_response`."""
        response = await self.open_response(operation, make, body)
        return response, await response.stream.read_all(size_max)

    async def _attempt(self, make: Callable[[], Awaitable[HttpRequest]], body: object) -> HttpResponse:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            is_last = attempt == ATTEMPTS_MAX
            request = await make()
            assert request.body is body or not isinstance(request.body, DraftPart)
            try:
                response = await self._send(request)
            except (aiohttp.ClientConnectionError, ConnectionError):
                if is_last or (isinstance(body, DraftPart) and body.failure is not None):
                    raise
            else:
                if HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                    stream = ResponseStream(_Content(response), self._limits.timeout_s, self._limits.release_slot)
                    return HttpResponse(response.status, response.headers, stream)
                data = await _read_error(response)
                if is_last or response.status not in PASSING:
                    raise self._refuse(response.status, response.headers, data)
            await asyncio.sleep(RETRY_DELAY_S)
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, request: HttpRequest) -> aiohttp.ClientResponse:
        if self._session is None or self._session.closed:
            raise BucketError("the connections to the bucket are closed", general=False)
        url = URL(request.url, encoded=True)
        origin = url.origin()
        if origin not in self._proxies:
            self._proxies[origin] = find_proxy(url)
        return await self._session.request(
            request.method,
            url,
            headers=request.headers,
            data=request.body,
            allow_redirects=False,
            proxy=self._proxies[origin],
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type"),
        )


class _Content:
    """The body of a response, as `ResponseStream` reads it. Its connection is used again if it was read to the end."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def read(self, size: int) -> bytes:
        return await self._response.content.read(size)

    def close(self) -> None:
        self._response.close()


async def _read_error(response: aiohttp.ClientResponse) -> bytes:
    """Read the beginning of an error response: as much as comes, because the status alone says a lot."""
    data = bytearray()
    try:
        with suppress(aiohttp.ClientError, ConnectionError):
            while len(data) < ERROR_BYTES_MAX and (piece := await response.content.read(ERROR_BYTES_MAX - len(data))):
                data += piece
    finally:
        response.close()
    return bytes(data)


def find_proxy(url: URL) -> URL | None:
    """Return the HTTP proxy for a URL, as the services' own programs find it: HTTPS_PROXY, HTTP_PROXY and NO_PROXY."""
    proxy = URL(getproxies().get(url.scheme, ""))
    if proxy.scheme not in {"http", "https"} or not proxy.host or proxy_bypass(url.host or ""):
        return None
    return proxy


def translate_http_error(error: Exception, *, foreign: str) -> Exception:
    """Return any error of a request as one of imgkeep; `foreign`: the message for an answer of another server."""
    if isinstance(error, ImgkeepError):
        return error
    if isinstance(error, TimeoutError):
        return BucketError(SILENT)
    if isinstance(error, (aiohttp.ClientError, OSError)):
        return BucketError(UNREACHABLE, cause=cause_of(error))
    return BucketError(foreign)
