"""
The API of a running imgkeep, as commands with `--server` call it.

Rules:
- The token goes to the server that was named and nowhere else: no redirect is followed.
- An answer has a limit, and one that is not the API's says so instead of being guessed at.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from proxy.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ANSWER_BYTES_MAX: Final = 67_108_864
"""Ten thousand results of a job take about 8 MB."""
UNREACHABLE: Final = "the server that --server names cannot be reached, or is no imgkeep"


class ServerError(StorageError):
    """The server that was named does not do what it was asked for."""


@dataclass(frozen=True, slots=True)
class Client:
    """A running imgkeep: where it is, and what its API takes."""

    base: str
    token: str | None = field(repr=False)

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[aiohttp.ClientSession]:
        """Open connections for several requests."""
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        async with aiohttp.ClientSession(headers=headers) as session:
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
                body = await _read(response)
                told: object = msgspec.json.decode(body)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise ServerError(UNREACHABLE) from None
        if not isinstance(told, dict):
            raise ServerError(UNREACHABLE)
        return told

    async def insist(self, session: aiohttp.ClientSession, method: str, path: str, **how: Any) -> dict[str, Any]:
        """
        Do the same, and take no refusal.

        Raises:
            ServerError: Also where the API refuses.
        """
        told = await self.ask(session, method, path, **how)
        if not told.pop("success", False):
            raise ServerError(f"the server says: {told.get('detail', 'nothing')}")
        return told


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
