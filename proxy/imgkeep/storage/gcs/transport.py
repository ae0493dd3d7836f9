"""The requests of Google's library for tokens and signatures: with one timeout for all, and without endless retries."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NoReturn, Self
from urllib.parse import urlsplit

import requests
from google.auth.exceptions import TransportError
from google.auth.transport import Request
from google.auth.transport.requests import Request as RequestsRequest

from imgkeep.storage.bucket.connection_causes import cause_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.auth.transport import Response


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


class Transport(Request):
    """
    The requests of one piece of work of the library, in a thread.

    Args:
        timeout_s: Timeout for all of them together.
    """

    def __init__(self, timeout_s: float) -> None:
        self._ends_at = time.monotonic() + timeout_s
        self._session = requests.Session()
        self._send = RequestsRequest(self._session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

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
        Send a request.

        Raises:
            Unanswered: No server answers, or no time is left.
        """
        host = urlsplit(url).hostname or ""
        left_s = self._ends_at - time.monotonic()
        if left_s <= 0:
            raise Unanswered(host, "no answer in time")
        wait_s = min(left_s, timeout or left_s)
        try:
            response: Response = self._send(
                url, method, body, headers, timeout=wait_s, allow_redirects=False, **options
            )
        except TransportError as error:
            timed_out = isinstance(error.__cause__, requests.Timeout)
            raise Unanswered(host, "no answer in time" if timed_out else cause_of(error)) from None
        return response
