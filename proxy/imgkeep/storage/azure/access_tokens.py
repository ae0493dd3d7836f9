"""
Access tokens of Microsoft Entra ID for the storage account, from the credentials that azure-identity finds.

Rules:
- One call of the library is waited for at a time, in a thread of its own: the library blocks, and a hung metadata
  server must not hold up the end of the process.
- A call that takes too long is left to itself, and another one is made: the library has timeouts for single reads
  alone, so a server that drips would hold it for ever.
- A token is renewed before it ends; requests go on with the old one meanwhile, and when the renewal fails.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

from imgkeep.storage.bucket.errors import BucketError

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.clock import Clock

SCOPE: Final = "https://storage.azure.com/.default"
"""The same in all clouds ("Authorize with Microsoft Entra ID")."""
RENEW_BEFORE_S: Final = 300
"""Time before a token's end from which on a new one is requested: as azure-identity does."""
USABLE_S: Final = 30
"""Minimum rest of a token's life for a request: it has to arrive, and clocks differ."""
RETRY_AFTER_S: Final = 10
"""Interval of attempts to renew a token that still works."""
CALL_TIMEOUT_S: Final = 120
"""Timeout for a call of the library: it tries several credentials, one after the other and each twice."""
CALLS_MAX: Final = 3
"""Maximum number of calls of the library that have not ended: each holds a thread."""
COMMAND_TIMEOUT_S: Final = 10
"""Timeout for the command of a developer's tool that prints a token."""

_REMEDY: Final = "set AZURE_STORAGE_CONNECTION_STRING, or give this machine an identity or a login: docs/azure.md"


class AccessTokens:
    """
    The access token of this process.

    Args:
        timeout_s: Timeout for one that a request waits for, and for each request of the library.
        clock: Returns the time.
    """

    def __init__(self, *, timeout_s: float, clock: Clock) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._token = ""
        self._ends_at = 0.0
        self._tried_at = float("-inf")
        self._credential: Any = None
        self._is_refused = False
        self._calls = 0
        """Number of the calls of the library that have not ended."""
        self._renewal: asyncio.Future[None] | None = None

    async def get(self) -> str:
        """
        Return a token that works for a while.

        Raises:
            BucketError: There is none.
        """
        now = self._clock().timestamp()
        left_s = self._ends_at - now
        if left_s >= RENEW_BEFORE_S:
            return self._token
        if left_s >= USABLE_S:
            if now - self._tried_at >= RETRY_AFTER_S:
                self._start()
            return self._token
        try:
            # Less than the timeout of the request that waits, whose own message would blame the container.
            async with asyncio.timeout(self._timeout_s * 0.9):
                await asyncio.shield(self._start())
        except TimeoutError:
            raise BucketError("no credential of this machine gives an access token in time", remedy=_REMEDY) from None
        return self._token

    def drop(self) -> None:
        """Forget the token, and that the library has it: the service has refused it."""
        self._ends_at = 0.0
        self._is_refused = True

    async def aclose(self) -> None:
        renewal = self._renewal
        if renewal is not None:
            await asyncio.wait([renewal], timeout=self._timeout_s)
        if self._credential is not None and (renewal is None or renewal.done()):
            await asyncio.to_thread(self._credential.close)

    def _start(self) -> asyncio.Future[None]:
        if self._renewal is None:
            self._renewal = asyncio.ensure_future(self._renew())
            self._renewal.add_done_callback(self._end)
        return self._renewal

    def _end(self, renewal: asyncio.Future[None]) -> None:
        self._renewal = None
        if not renewal.cancelled():
            renewal.exception()  # a request that waits raises it; without one it may pass before the token ends

    async def _renew(self) -> None:
        self._tried_at = self._clock().timestamp()
        if self._calls >= CALLS_MAX:
            raise BucketError("calls for an access token do not end", remedy=_REMEDY)
        self._calls += 1
        limit = asyncio.timeout(CALL_TIMEOUT_S)
        try:
            async with limit:
                found = await _run_in_thread(self._call_library, self._end_call)
        except Exception as error:  # noqa: BLE001 - the library raises errors of all the libraries that it uses
            if limit.expired():
                self._credential = None  # the call goes on with it
            # Its messages have lines of each credential that was tried, with words of the services.
            raise BucketError(
                "no credential of this machine gives an access token", cause=type(error).__name__, remedy=_REMEDY
            ) from None
        self._token, self._ends_at = found

    def _end_call(self) -> None:
        self._calls -= 1

    def _call_library(self) -> tuple[str, float]:
        """Return a token and its end. Blocks."""
        # A third of a second of imports, and only where there is no key.
        from azure.identity import DefaultAzureCredential  # noqa: PLC0415

        if self._is_refused and self._credential is not None:
            # It would return the same token until that ends.
            self._credential.close()
            self._credential = None
        self._is_refused = False
        if self._credential is None:
            self._credential = DefaultAzureCredential(
                connection_timeout=self._timeout_s,
                read_timeout=self._timeout_s,
                retry_total=1,
                process_timeout=COMMAND_TIMEOUT_S,
            )
        token = self._credential.get_token(SCOPE)
        return token.token, float(token.expires_on)


async def _run_in_thread(work: Callable[[], tuple[str, float]], ended: Callable[[], None]) -> tuple[str, float]:
    """
    Run in a thread that the end of the process does not wait for, unlike those of `asyncio.to_thread`.

    `ended` is called when the thread has done its work, whether or not the caller still waits for it.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[tuple[str, float] | Exception] = loop.create_future()

    def settle(result: tuple[str, float] | Exception) -> None:
        ended()
        if not outcome.done():
            outcome.set_result(result)

    def run() -> None:
        result: tuple[str, float] | Exception
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - passed on
            result = error
        with suppress(RuntimeError):  # the loop is closed: nothing waits any more
            loop.call_soon_threadsafe(settle, result)

    try:
        Thread(target=run, name="azure-access-token", daemon=True).start()
    except RuntimeError:  # the system gives no more threads
        ended()
        raise
    result = await outcome
    if isinstance(result, Exception):
        raise result
    return result
