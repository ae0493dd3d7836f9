"""
The API of a running imgkeep, as commands with `--server` call it.

Rules:
- The token goes to the server that was named and nowhere else: no redirect is followed.
- An answer has a limit, and one that is not the API's says so instead of being guessed at.
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
"""Ten thousand results of a job take about 8 MB."""
TIMEOUT_S: Final = 60
"""Timeout for each request. The longest, 10,000 links of a job, takes a few seconds."""
CONNECT_TIMEOUT_S: Final = 10
"""Timeout for a connection: a host that answers nothing is told soon."""


@dataclass(frozen=True, slots=True)
class Client:
    """A running imgkeep: where it is, and what its API takes."""

    base: str
    token: str | None = field(repr=False)

    @property
    def place(self) -> str:
        """Where the server is, for messages: host and port."""
        return urlsplit(self.base).netloc

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[aiohttp.ClientSession]:
        """Open connections for several requests."""
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            yield session

    async def ask(self, session: aiohttp.ClientSession, method: str, path: str, **how: Any) -> dict[str, Any]:
        """
        Return the JSON object that the API answers, `success` or not.

        Raises:
            ServerError: There is no server, or it answers something else.
        """
        url = f"{self.base.rstrip('/')}{path}"
        try:
            async with session.request(method, url, allow_redirects=False, **how) as response:
                status, body = response.status, await _read(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ServerError(f"--server: no answer from {self.place}: {_cause(error)}") from None
        told: object = None
        with suppress(ValueError):
            told = msgspec.json.decode(body)
        if not isinstance(told, dict):
            raise ServerError(f"--server: what answers at {self.place} is not the API of imgkeep (status {status})")
        return told

    async def call_api(self, session: aiohttp.ClientSession, method: str, path: str, **how: Any) -> dict[str, Any]:
        """
        Do the same, and take no refusal.

        Raises:
            ServerError: Also where the API refuses.
        """
        told = await self.ask(session, method, path, **how)
        if not told.pop("success", False):
            raise ServerError(f"the server at {self.place} says: {told.get('detail', 'nothing')}")
        return told


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
    Check what `--server` names.

    Raises:
        ConfigError: It is no URL of a server.
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
    Return a URL with the address at which we listen in the place of `localhost`. That name has two addresses on most
    machines, and at the one that we do not use another user may listen, and be shown the token.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname != "localhost":  # https: the certificate is for the name
            return url
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return url
    any_address = {"": "127.0.0.1", "localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what it may be
    address = any_address.get(host, host)
    return parts._replace(netloc=f"[{address}]{port}" if ":" in address else f"{address}{port}").geturl()
