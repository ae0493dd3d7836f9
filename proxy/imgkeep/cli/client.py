"""
A client for the API of a running imgkeep.

Rules:
- The token goes to the named server and nowhere else: the client follows no redirect.
- An answer has a maximum length, and one that is not from the API is an error.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from imgkeep.cli.errors import ServerError
from imgkeep.config import ConfigError
from imgkeep.core.errors import SourceRejected
from imgkeep.core.source_url import read_base

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ANSWER_BYTES_MAX: Final = 67_108_864
"""Maximum length of an answer: ten thousand results of a job take about 8 MB."""
TIMEOUT_S: Final = 60
"""Timeout for each request. The longest, 10,000 links of a job, takes a few seconds."""
CONNECT_TIMEOUT_S: Final = 10
"""Timeout for a connection: the command reports a silent host soon."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client for one server. `base`: the URL of the server; `token`: for its API."""

    base: str
    token: str | None = field(repr=False)

    @property
    def place(self) -> str:
        """Host and port of the server, for messages."""
        return urlsplit(self.base).netloc

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[aiohttp.ClientSession]:
        """Open connections for several requests."""
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            yield session

    async def request(self, session: aiohttp.ClientSession, method: str, path: str, **how: Any) -> dict[str, Any]:
        """
        Return the JSON object of the answer, with `success` true or false.

        Raises:
            ServerError: No server answers, or another program does.
        """
        url = f"{self.base.rstrip('/')}{path}"
        try:
            async with session.request(method, url, allow_redirects=False, **how) as response:
                status, body = response.status, await _read(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ServerError(f"--server: no answer from {self.place}: {_cause(error)}") from None
        answer: object = None
        with suppress(ValueError):
            answer = msgspec.json.decode(body)
        if not isinstance(answer, dict):
            raise ServerError(f"--server: what answers at {self.place} is not the API of imgkeep (status {status})")
        return answer

    async def call_api(self, session: aiohttp.ClientSession, method: str, path: str, **how: Any) -> dict[str, Any]:
        """
        Return the JSON object of a successful answer.

        Raises:
            ServerError: The API refuses the request, or as `request`.
        """
        answer = await self.request(session, method, path, **how)
        if not answer.pop("success", False):
            raise ServerError(f"the server at {self.place} says: {answer.get('detail', 'nothing')}")
        return answer


def _cause(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "it took too long"
        case aiohttp.ClientConnectorCertificateError():
            return f"its certificate is not valid: {error.certificate_error}"
        case aiohttp.ClientConnectorDNSError():
            return "its name does not resolve to an address"
        case aiohttp.ClientConnectorError() if error.os_error.errno and error.os_error.errno > 0:
            return os.strerror(error.os_error.errno)
        case aiohttp.ClientSSLError():
            return "it speaks no TLS; is it http:// ?"
        case _:
            return str(error) or type(error).__name__


def check_server_url(url: str) -> None:
    """
    Check the value of `--server`.

    Raises:
        ConfigError: It is not the URL of a server.
    """
    try:
        read_base(url)
    except SourceRejected:
        got = "" if "@" in url else f", got {url!r}"  # it may hold a password
        raise ConfigError(f"--server: expected a URL like http://127.0.0.1:8080{got}") from None


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise ServerError("the answer of the server is too long")
    return bytes(body)


def pin_address(url: str, host: str) -> str:
    """
    Return a URL with `localhost` replaced by the address that imgkeep listens on. That name has two addresses on most
    machines; at the other one a program of another user may listen, and would receive the token.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname != "localhost":  # https: the certificate is for the name
            return url
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return url
    any_address = {"": "127.0.0.1", "localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - values of `server.host`
    address = any_address.get(host, host)
    return parts._replace(netloc=f"[{address}]{port}" if ":" in address else f"{address}{port}").geturl()
