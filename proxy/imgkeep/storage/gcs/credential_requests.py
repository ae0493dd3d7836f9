"""
The requests of Google's library for tokens and signatures, which it makes in threads.

The event loop sends them: so one timeout ends them all, however slowly a server answers, an answer has a maximum size,
and neither `~/.netrc` nor a redirect decides where a secret goes. The library's own transport has a timeout for each
read alone, and a server that drips would hold its thread for ever.
"""

from __future__ import annotations

import asyncio
import ssl
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

import aiohttp
from google.auth.transport import Request, Response
from yarl import URL

from imgkeep.storage.bucket.connection_causes import cause_of
from imgkeep.storage.bucket.http_requests import find_proxy

if TYPE_CHECKING:
    from collections.abc import Mapping

ANSWER_BYTES_MAX: Final = 262_144
"""Maximum size of an answer; a token has some thousand bytes."""
LOOP_DELAY_S: Final = 1
"""Time after the timeout in which the event loop has to say so; one that has ended says nothing."""


class Unanswered(Exception):
    """
    A server for credentials does not answer.

    It is no `TransportError`, because the library would sleep and repeat after one.

    Attributes:
        host: The server.
        cause: Why, in the words of the system.
    """

    def __init__(self, host: str, cause: str) -> None:
        super().__init__(f"{host}: {cause}")
        self.host = host
        self.cause = cause


class _Answer(Response):
    """An answer, whole."""

    def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self._status = status
        self._headers = headers
        self._data = data

    @property
    def status(self) -> int:
        return self._status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._headers

    @property
    def data(self) -> bytes:
        return self._data


class Transport(Request):
    """
    The requests of one piece of work of the library. A task of the event loop makes it, and a thread uses it.

    Args:
        timeout_s: Timeout for all of them together.
    """

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._ends_at = self._loop.time() + timeout_s

    def __deepcopy__(self, _memo: object) -> NoReturn:
        # The library copies a transport for requests of its own in the background, and leaves them out where it cannot.
        raise TypeError("a transport ends with the work that it is for")

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Response:
        """
        Send a request. Blocks.

        Raises:
            Unanswered: No server answers, or no time is left.
        """
        host = urlsplit(url).hostname or ""
        left_s = self._ends_at - self._loop.time()
        wait_s = min(left_s, timeout or left_s)
        if wait_s <= 0:
            raise Unanswered(host, "no answer in time")
        context = _make_context(options.get("cert"))
        request = self._send(url, method, body, headers or {}, wait_s, context)
        try:
            sent = asyncio.run_coroutine_threadsafe(request, self._loop)
        except RuntimeError:
            request.close()
            raise Unanswered(host, "the process ends") from None
        try:
            return sent.result(wait_s + LOOP_DELAY_S)
        except (TimeoutError, CancelledError):
            sent.cancel()
            raise Unanswered(host, "no answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unanswered(host, cause_of(error)) from None

    @staticmethod
    async def _send(  # noqa: PLR0913, PLR0917 - the parts of a request
        url: str,
        method: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
        context: ssl.SSLContext | None,
    ) -> Response:
        async with (
            asyncio.timeout(timeout_s),
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            ) as session,
            session.request(
                method,
                url,
                data=body,
                headers={"Accept-Encoding": "identity", **headers},
                allow_redirects=False,
                proxy=find_proxy(URL(url)),
                ssl=context or True,
            ) as response,
        ):
            data = bytearray()
            while len(data) < ANSWER_BYTES_MAX and (piece := await response.content.read(ANSWER_BYTES_MAX - len(data))):
                data += piece
            return _Answer(response.status, response.headers, bytes(data))


def _make_context(cert: tuple[str, str] | None) -> ssl.SSLContext | None:
    """Return a context with the certificate of a workload, where the file with credentials has one."""
    if cert is None:
        return None
    context = ssl.create_default_context()
    context.load_cert_chain(*cert)
    return context
