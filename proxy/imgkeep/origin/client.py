"""
The client of the servers behind source URLs: redirects followed hop by hop, failures retried with back-off, every step
bounded.

A connection whose body was not read to its end never goes back to the pool: the rest of the body would still be on its
way. aiohttp's error messages hold URLs, so none goes into an error of this program.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from imgkeep.core.errors import (
    Busy,
    ImgkeepError,
    InvalidSource,
    OriginError,
    OriginTimeout,
    RedirectForbidden,
    SourceForbidden,
    SourceNotFound,
    TooLarge,
    Yielded,
)
from imgkeep.core.policy import judge
from imgkeep.core.redirect_location import Ambiguous, read_location
from imgkeep.origin.bounded_connection import FramingError
from imgkeep.origin.concurrency import FetchLimiter
from imgkeep.origin.content_encoding import WindowSlots, make_pool, read_codings
from imgkeep.origin.cookies import Cookies
from imgkeep.origin.demand import Demand
from imgkeep.origin.failures import PermanentError, check_status, explain_connect_error
from imgkeep.origin.http1 import Http1Client, Http1Response
from imgkeep.origin.response import OriginResponse
from imgkeep.origin.retry_policy import retry_delay_s
from imgkeep.origin.session import PARSER_LIMITS, make_timeout, open_session

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from imgkeep.clock import Clock
    from imgkeep.config import Fetch
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Source, Validator
    from imgkeep.origin.concurrency import FetchSlot
    from imgkeep.origin.ssrf_guard import AddressGuard

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
FAIL_FAST_CONNECT_TIMEOUT_S: Final = 2
"""
Timeout for a connection by https where plain http is the other way: a client waits, and a handshake takes three round
trips.
"""
REFUSAL_TIMEOUT_S: Final = 5
"""Timeout for the body of an error: it explains something at best."""


class OriginClient:
    """
    Fetches images and calls webhooks, over one shared session.

    Args:
        draw: Returns random numbers from 0 to 1.
        fetched: Receives the outcome of each request, as a class of statuses, and its seconds.
        refused: Receives the name of the limit by which a fetch was refused.
        is_gone: Tells of a URL whether its service serves a placeholder there for images that no longer exist.
    """

    def __init__(  # noqa: PLR0913 - the composition root hands over what this edge must not reach for itself
        self,
        *,
        settings: Fetch,
        policy: Policy,
        guard: AddressGuard,
        clock: Clock,
        draw: Callable[[], float],
        ssl_context: ssl.SSLContext | None,
        user_agent: str,
        fetched: Callable[[str, float], None],
        refused: Callable[[str], None] = lambda _: None,
        is_gone: Callable[[Source], bool] = lambda _: False,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._clock = clock
        self._draw = draw
        self._fetched = fetched
        self._is_gone = is_gone
        self._pool = make_pool()
        self._window_slots = WindowSlots()
        self.limiter = FetchLimiter(settings.concurrent_max, settings.per_host_max, refused=refused)
        self._session = open_session(settings, guard, ssl_context=ssl_context, user_agent=user_agent)
        self._http1 = Http1Client(self._session, **PARSER_LIMITS)
        connect_timeout_s = min(FAIL_FAST_CONNECT_TIMEOUT_S, settings.connect_timeout_s)
        self._fast_limits = make_timeout(settings, connect_timeout_s)

    async def aclose(self) -> None:
        await self._session.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def fetch(
        self,
        source: Source,
        known: Validator | None = None,
        demand: Demand | None = None,
        *,
        fail_fast: bool = False,
    ) -> AsyncGenerator[OriginResponse]:
        """
        Ask for the image: follow redirects, judge every hop, and retry failures within the time limits.

        Args:
            source: The image.
            known: The validator of the bytes that are stored already.
            demand: The client that causes the fetch; `None`: this program, whose fetches never yield.
            fail_fast: Whether to connect quickly and retry nothing: the caller has another way to the image.

        Raises:
            NotModified: The image is the one that `known` stands for (RFC 9110, 13.1).
            SourceForbidden, LoopDetected: Policy refuses a hop.
            OriginError: The origin failed; the subclass says how.
            Busy: A limit on concurrency or its queue is reached.
            Yielded: Another fetch needed the slot, and `demand` yields.
        """
        has_slot = yielded = False

        def stop() -> None:
            nonlocal yielded
            if not limit.expired():
                yielded = True
                limit.reschedule(asyncio.get_running_loop().time())

        limit = asyncio.timeout(self._settings.total_timeout_s)
        try:
            async with limit, self.limiter.enter(source.host, demand or Demand(), stop) as slot:
                has_slot = True
                hops = self._plan_hops(demand, fail_fast=fail_fast)
                response = await self._ask_until_answered(source, _conditions(known), slot, hops)
                try:
                    answer = self._read_head(response, plaintext=hops.plaintext)
                    async with self._window_slots.hold(answer.window_slots):
                        yield answer
                finally:
                    response.close()  # one whose body was read to its end has given its connection back already
        except TimeoutError:
            if yielded:
                raise Yielded("the fetch was stopped for another one") from None
            if not has_slot:
                raise Busy("too many images are being fetched at the moment", retry_after_s=2) from None
            raise OriginTimeout("the origin took longer than fetch.total_timeout_s") from None

    async def post(self, source: Source, body: bytes, headers: Mapping[str, str]) -> int:
        """
        Post JSON to a webhook, follow no redirect, and return the status. The addresses that are refused for images are
        refused here too, whatever the host lists say.

        Raises:
            SourceForbidden: Policy refuses the address.
            OriginError: It did not answer.
        """
        reason = judge(source, replace(self._policy, hosts_allowed=None))
        if reason is not None:
            raise SourceForbidden(f"the address is refused: {reason}")
        try:
            async with (
                asyncio.timeout(self._settings.read_timeout_s),
                self._session.post(
                    URL(source.url, encoded=True),
                    data=body,
                    headers={**headers, "Content-Type": "application/json", "Accept": "*/*"},
                    allow_redirects=False,
                ) as response,
            ):
                response.close()
                return response.status
        except TimeoutError:
            raise OriginTimeout("it did not connect or answer in time") from None
        except aiohttp.ClientConnectorError as error:
            raise explain_connect_error(error) from None
        except (aiohttp.ClientError, ValueError, OSError):
            raise OriginError("the connection failed, or it does not speak HTTP") from None

    def _plan_hops(self, demand: Demand | None, *, fail_fast: bool) -> _Hops:
        refusal_size = demand.refusal_size if demand else None
        if fail_fast:
            return _Hops(self._fast_limits, 1, refusal_size)
        return _Hops(self._session.timeout, self._settings.retries_max + 1, refusal_size)

    async def _ask_until_answered(
        self, source: Source, conditions: Mapping[str, str], slot: FetchSlot, hops: _Hops
    ) -> Http1Response:
        """Retry a failure that may pass, as long as no byte of a body was read."""
        for attempt in range(hops.attempts):
            try:
                return await self._ask(source, conditions, slot, hops)
            except OriginError as error:
                delay_s = retry_delay_s(error, attempt, self._draw())
                if delay_s is None or attempt == hops.attempts - 1:
                    raise
            await asyncio.sleep(delay_s)
        raise AssertionError("the last attempt returns or raises")

    async def _ask(self, source: Source, conditions: Mapping[str, str], slot: FetchSlot, hops: _Hops) -> Http1Response:
        """Follow redirects and return an answer that carries a body."""
        hops.plaintext = False
        asked = source.host
        for _ in range(self._settings.redirects_max + 1):
            await slot.move(source.host)
            self._require_not_gone(source)
            hops.plaintext = hops.plaintext or source.scheme != "https"
            fields = {**conditions, **hops.cookies.fields(source)}
            try:
                response = await self._send(source, fields, hops.limits)
            except SourceForbidden as error:
                raise error if source.host == asked else RedirectForbidden(str(error)) from None
            except OriginError as error:
                error.elsewhere = source.host != asked
                raise
            if response.status >= 300:
                hops.cookies.take(source, response.headers.getall("Set-Cookie", ()))
            location = response.headers.getall("Location", ())
            if response.status not in REDIRECTS or not any(value.strip() for value in location):
                await self._check_answer(response, hops, conditional=bool(conditions))
                return response
            response.close()
            source = self._judge_redirect(source, location)
        raise PermanentError(
            f"the origin redirects more than fetch.redirects_max ({self._settings.redirects_max}) times"
        )

    async def _send(self, source: Source, fields: Mapping[str, str], limits: aiohttp.ClientTimeout) -> Http1Response:
        loop = asyncio.get_running_loop()
        start, outcome = loop.time(), "error"
        try:
            response = await self._http1.get(source, fields, limits)
            outcome = f"{response.status // 100}xx"
        except TimeoutError:
            outcome = "timeout"
            raise OriginTimeout("the origin did not connect or answer in time") from None
        except aiohttp.ClientConnectorError as error:
            raise explain_connect_error(error) from None
        except FramingError as error:
            raise PermanentError(str(error)) from None
        except (aiohttp.ClientError, HttpProcessingError, ValueError, OSError):
            raise OriginError("the connection to the origin failed, or it does not speak HTTP") from None
        finally:
            self._fetched(outcome, loop.time() - start)
        return response

    async def _check_answer(self, response: Http1Response, hops: _Hops, *, conditional: bool) -> None:
        """Check the status, and close an answer that is refused. Raises as `check_status`."""
        try:
            check_status(response, self._clock, conditional=conditional)
        except OriginError as error:
            error.refusal, error.refusal_broke_off = await self._read_refusal(response, hops)
            response.close()
            raise
        except BaseException:
            response.close()
            raise

    def _judge_redirect(self, source: Source, location: Sequence[str]) -> Source:
        try:
            # aiohttp has decoded what was UTF-8; the bytes are what counts.
            target = read_location([value.encode("utf-8", "surrogateescape") for value in location], source)
        except Ambiguous as error:
            raise PermanentError(str(error)) from None
        except InvalidSource:
            raise RedirectForbidden("the origin redirects to something that is not an http(s) URL") from None
        self._require_not_gone(target)
        reason = judge(target, self._policy)
        if reason is not None:
            raise RedirectForbidden(f"the origin redirects to a refused address: {reason}")
        return target

    def _require_not_gone(self, source: Source) -> None:
        if self._is_gone(source):
            raise SourceNotFound("the origin serves a placeholder in place of an image that it does not have")

    def _read_head(self, response: Http1Response, *, plaintext: bool) -> OriginResponse:
        decoder = read_codings(response.headers.getall("Content-Encoding", []), self._pool)
        size = response.content_length
        if size is not None and size > self._settings.body_bytes_max:
            raise TooLarge("the image is larger than fetch.body_bytes_max")
        return OriginResponse(response, self._settings, decoder, plaintext=plaintext)

    async def _read_refusal(self, response: Http1Response, hops: _Hops) -> tuple[bytes, bool]:
        """Return the body of an error, as much of it as is wanted and came in time, and whether it broke off."""
        size = 0 if hops.refusal_size is None or response.status < 400 else hops.refusal_size(response.status)
        body, broke_off = bytearray(), False
        if size == 0:
            return b"", False
        try:
            async with asyncio.timeout(REFUSAL_TIMEOUT_S):
                answer = self._read_head(response, plaintext=False)
                async with self._window_slots.hold(answer.window_slots):
                    async for chunk in answer.chunks():
                        body += chunk
                        if len(body) >= size:
                            break
                broke_off = answer.is_coding_cut
        except (TimeoutError, ImgkeepError):
            broke_off = True  # the status tells enough
        return bytes(body[:size]), broke_off


@dataclass(slots=True)
class _Hops:
    """How a fetch takes its way to the answer, and what the way was like."""

    limits: aiohttp.ClientTimeout
    attempts: int
    refusal_size: Callable[[int], int] | None = None
    plaintext: bool = False
    cookies: Cookies = field(default_factory=Cookies)


def _conditions(known: Validator | None) -> dict[str, str]:
    """Return the fields of a conditional request; the tag alone where there is one (RFC 9110, 13.1.3)."""
    if known is None:
        return {}
    if known.etag:
        return {"If-None-Match": known.etag}
    return {"If-Modified-Since": known.modified} if known.modified else {}
