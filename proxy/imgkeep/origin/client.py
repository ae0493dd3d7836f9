"""
Fetching: redirects followed hop by hop, failures retried with back-off, everything bounded.

What aiohttp leaves to its user and is settled here (measured on 3.14): it follows redirects without asking, decodes
content codings without a limit, reports a close-delimited body that was cut as complete, and would give a connection
back to the pool after an early end. Its error messages hold URLs, so they are never passed on.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from imgkeep.core.errors import (
    Busy,
    ImgkeepError,
    InvalidSource,
    LoopDetected,
    OriginError,
    OriginRefused,
    OriginTimeout,
    RedirectForbidden,
    SourceForbidden,
    SourceNotFound,
    TooLarge,
    Yielded,
)
from imgkeep.core.http_headers import CDN_ID, is_whole_range, read_retry_after
from imgkeep.core.policy import judge
from imgkeep.core.records import Validator
from imgkeep.core.redirect_location import Ambiguous, read_location
from imgkeep.core.response_head import FIELDS_MAX
from imgkeep.origin.bounded_connection import HEAD_BYTES_MAX, FramingError, OriginConnection
from imgkeep.origin.concurrency import FetchLimiter
from imgkeep.origin.content_encoding import Decoder, Places, make_pool, read_codings
from imgkeep.origin.cookies import Cookies
from imgkeep.origin.demand import Demand, NotModified
from imgkeep.origin.http1 import Response, Wire
from imgkeep.origin.ssrf_guard import AddressRefused, OwnAddress
from imgkeep.origin.transfer_rate import Pace

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence

    from imgkeep.clock import Clock
    from imgkeep.config import Fetch
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Source
    from imgkeep.origin.concurrency import FetchSlot
    from imgkeep.origin.ssrf_guard import AddressGuard

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
READ_BYTES: Final = 65_536
VALIDATOR_CHARS_MAX: Final = 256
"""Real ones have a tenth of that."""
RETRY_DELAY_S: Final = 0.25
"""Before the first retry, doubled for each next one, with up to as much again at random."""
BRISK_CONNECT_TIMEOUT_S: Final = 2
"""For https where plain http is the other way: a client waits meanwhile, and a handshake takes three round trips."""
REFUSAL_TIMEOUT_S: Final = 5
"""Timeout for the body of an error: it explains something at best."""
BEGINNING_BYTES: Final = 4096
"""Maximum size of `OriginResponse.beginning`: enough to tell a page, and for what it says at its beginning."""
BODILESS: Final = frozenset({204, 205, 304})
RETRY_AFTER_WAIT_MAX_S: Final = 5
"""A client waits meanwhile. An origin that wants us to wait longer is told to the client instead."""


class OriginClient:
    """
    The client of the servers behind source URLs, with one shared session.

    Args:
        draw: Gives random numbers from 0 to 1.
        is_gone: Tells of a URL on the way whether a picture of its service stands there for those that are no more.
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
        self._places = Places()
        self.limiter = FetchLimiter(settings.concurrent_max, settings.per_host_max, refused=refused)
        fields = {
            "Accept": settings.accept or "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": user_agent,
            "Via": f"1.1 {CDN_ID}",
            "CDN-Loop": CDN_ID,
        }
        limits = {
            "read_bufsize": READ_BYTES,
            # One field may be the whole head, whose bytes the connection counts.
            "max_line_size": HEAD_BYTES_MAX,
            "max_field_size": HEAD_BYTES_MAX,
            "max_headers": FIELDS_MAX,
        }
        connector = aiohttp.TCPConnector(
            resolver=guard,
            socket_factory=guard.connect,
            ssl=ssl_context or True,
            limit=0,  # the limiter limit, and with a bounded queue
        )
        # A private name of aiohttp: tests/origin/test_connection.py fails when an upgrade changes what it means.
        factory: partial[Any] = partial(OriginConnection, asyncio.get_running_loop())
        connector._factory = factory  # noqa: SLF001
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=fields,
            timeout=aiohttp.ClientTimeout(
                total=None,  # ours, over redirects and retries
                connect=settings.connect_timeout_s,
                sock_connect=settings.connect_timeout_s,
                sock_read=settings.read_timeout_s,
            ),
            auto_decompress=False,
            trust_env=False,
            **cast("Any", limits),
        )
        self._wire = Wire(self._session, fields, **limits)

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
        has_place = yielded = False

        def stop() -> None:
            nonlocal yielded
            if not limit.expired():
                yielded = True
                limit.reschedule(asyncio.get_running_loop().time())

        limit = asyncio.timeout(self._settings.total_timeout_s)
        try:
            async with limit, self.limiter.enter(source.host, demand or Demand(), stop) as place:
                has_place = True
                attempts = 1 if fail_fast else self._settings.retries_max + 1
                hops = _Hops(
                    min(BRISK_CONNECT_TIMEOUT_S, self._settings.connect_timeout_s) if fail_fast else None,
                    demand.refusal_size if demand else None,
                )
                response = await self._ask_until_answered(source, _conditions(known), place, attempts, hops)
                try:
                    answer = self._read_head(response, plaintext=hops.plaintext)
                    async with self._places.hold(answer.places):
                        yield answer
                finally:
                    # Never back to the pool: after an early end the rest of the body would still be on its way. A
                    # body that was read to its end has given its connection back already.
                    response.close()
        except TimeoutError:
            if yielded:
                raise Yielded("the fetch was stopped for another one") from None
            if not has_place:
                raise Busy("too many images are being fetched at the moment", retry_after_s=2) from None
            raise OriginTimeout("the origin took longer than fetch.total_timeout_s") from None

    async def post(self, source: Source, body: bytes, headers: Mapping[str, str]) -> int:
        """Post to a webhook: the same addresses are refused as for images, whatever the host lists say."""
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
            raise _connect_error(error) from None
        except (aiohttp.ClientError, ValueError, OSError):
            raise OriginError("the connection failed, or it does not speak HTTP") from None

    async def _ask_until_answered(
        self, source: Source, conditions: Mapping[str, str], place: FetchSlot, attempts: int, hops: _Hops
    ) -> Response:
        """Retry what may be better next time, as long as no byte of a body was read."""
        for attempt in range(attempts):
            try:
                return await self._ask(source, conditions, place, hops)
            except OriginError as error:
                delay = self._delay(error, attempt)
                if delay is None or attempt == attempts - 1:
                    raise
            await asyncio.sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    def _delay(self, error: OriginError, attempt: int) -> float | None:
        """Return the seconds to wait before another attempt; `None`: no attempt would help."""
        if type(error) is not OriginError:
            return None
        if error.origin_status is not None and error.origin_status != 429 and error.origin_status < 500:
            return None
        if error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= RETRY_AFTER_WAIT_MAX_S else None
        return RETRY_DELAY_S * 2.0**attempt * (1 + self._draw())

    async def _ask(self, source: Source, conditions: Mapping[str, str], place: FetchSlot, hops: _Hops) -> Response:
        """Follow redirects and return an answer that carries a body."""
        hops.plaintext = False
        asked = source.host
        for _ in range(self._settings.redirects_max + 1):
            await place.move(source.host)
            self._insist_not_gone(source)
            hops.plaintext = hops.plaintext or source.scheme != "https"
            fields = {**conditions, **hops.cookies.fields(source)}
            try:
                response = await self._send(source, fields, hops.connect_timeout_s)
            except SourceForbidden as error:
                raise error if source.host == asked else RedirectForbidden(str(error)) from None
            except OriginError as error:
                error.elsewhere = source.host != asked
                raise
            if response.status >= 300:
                hops.cookies.take(source, response.headers.getall("Set-Cookie", ()))
            location = response.headers.getall("Location", ())
            if response.status not in REDIRECTS or not any(value.strip() for value in location):
                try:
                    self._check_status(response, conditional=bool(conditions))
                except OriginError as error:
                    error.refusal, error.refusal_broke_off = await self._read_refusal(response, hops)
                    response.close()
                    raise
                except BaseException:
                    response.close()
                    raise
                return response
            response.close()
            source = self._judge_redirect(source, location)
        raise _Final(f"the origin redirects more than fetch.redirects_max ({self._settings.redirects_max}) times")

    async def _send(self, source: Source, fields: Mapping[str, str], connect_timeout_s: float | None) -> Response:
        loop = asyncio.get_running_loop()
        start, outcome = loop.time(), "error"
        try:
            # The target goes on the wire as it is, because a signature may cover its very spelling.
            response = await self._wire.get(source, fields, connect_timeout_s)
            outcome = f"{response.status // 100}xx"
        except TimeoutError:
            outcome = "timeout"
            raise OriginTimeout("the origin did not connect or answer in time") from None
        except aiohttp.ClientConnectorError as error:
            raise _connect_error(error) from None
        except FramingError as error:
            raise _Final(str(error)) from None
        except (aiohttp.ClientError, HttpProcessingError, ValueError, OSError):
            raise OriginError("the connection to the origin failed, or it does not speak HTTP") from None
        finally:
            self._fetched(outcome, loop.time() - start)
        return response

    def _judge_redirect(self, source: Source, location: Sequence[str]) -> Source:
        try:
            # aiohttp has decoded what was UTF-8; the bytes are what counts.
            target = read_location([value.encode("utf-8", "surrogateescape") for value in location], source)
        except Ambiguous as error:
            raise _Final(str(error)) from None
        except InvalidSource:
            raise RedirectForbidden("the origin redirects to something that is not an http(s) URL") from None
        self._insist_not_gone(target)
        reason = judge(target, self._policy)
        if reason is not None:
            raise RedirectForbidden(f"the origin redirects to a refused address: {reason}")
        return target

    def _insist_not_gone(self, source: Source) -> None:
        if self._is_gone(source):
            raise SourceNotFound("the origin shows a picture in the place of one that it does not have")

    def _check_status(self, response: Response, *, conditional: bool) -> None:
        status = response.status
        if status == 304 and conditional:
            raise NotModified
        # Browsers show what comes with any of these, also with redirects that lead nowhere or that they do not follow.
        if 200 <= status < 400 and status not in BODILESS:
            return
        if status in {404, 410}:
            raise SourceNotFound(f"the origin says {status}", origin_status=status)
        if status in {401, 403}:
            raise OriginRefused(f"the origin says {status}", origin_status=status)
        if status == 508:
            raise LoopDetected("the origin found a loop")
        retry_after_s = None
        if status in {429, 503}:
            retry_after_s = read_retry_after(response.headers.get("Retry-After"), self._clock())
        raise OriginError(f"the origin says {status}", origin_status=status, retry_after_s=retry_after_s)

    def _read_head(self, response: Response, *, plaintext: bool) -> OriginResponse:
        decoder = read_codings(response.headers.getall("Content-Encoding", []), self._pool)
        size = response.content_length
        if size is not None and size > self._settings.body_bytes_max:
            raise TooLarge("the image is larger than fetch.body_bytes_max")
        return OriginResponse(response, self._settings, decoder, plaintext=plaintext)

    async def _read_refusal(self, response: Response, hops: _Hops) -> tuple[bytes, bool]:
        """Return what is wanted of what came with an error, or what of it came in time, and whether it broke off."""
        size = 0 if hops.refusal_size is None or response.status < 400 else hops.refusal_size(response.status)
        body, broke_off = bytearray(), False
        if size == 0:
            return b"", False
        try:
            async with asyncio.timeout(REFUSAL_TIMEOUT_S):
                answer = self._read_head(response, plaintext=False)
                async with self._places.hold(answer.places):
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
    """How the way to an answer is taken, and what it was like."""

    connect_timeout_s: float | None
    refusal_size: Callable[[int], int] | None = None
    plaintext: bool = False
    cookies: Cookies = field(default_factory=Cookies)


class OriginResponse:
    """
    A successful answer whose body has not been read.

    Attributes:
        size: Size of the body where the framing declares it (RFC 9112, 6.2).
        validator: What the origin takes to tell whether the image changed.
        plaintext: Whether any hop on the way to it, redirects included, was not encrypted.
        media_type: The origin's name for its type, in lower case and without parameters; empty: the origin gives none.
        is_part: Whether its status calls it a part, though we asked for the whole; it may be the whole all the same.
        beginning: The first bytes of the body, once some have come: a few kilobytes at most.
    """

    def __init__(self, response: Response, settings: Fetch, decoder: Decoder | None, *, plaintext: bool) -> None:
        self.plaintext = plaintext
        self._response = response
        self._settings = settings
        self._body_bytes_max = settings.body_bytes_max
        self._decoder = decoder
        self.size = response.content_length if decoder is None else None
        self.is_part = response.status == 206 and not is_whole_range(response.headers.get("Content-Range", ""))
        self.places = 0 if decoder is None else decoder.places
        self.media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self.beginning = b""
        self._received = 0
        etag, modified = (_printable(response.headers.get(name)) for name in ("ETag", "Last-Modified"))
        self.validator = Validator(etag, modified) if etag or modified else None

    @property
    def is_coding_cut(self) -> bool:
        """Whether the end of a coding was not seen."""
        return self._decoder is not None and self._decoder.applied and not self._decoder.proved

    @property
    def framed(self) -> bool:
        if self.is_part:
            return False
        if self._decoder is not None and self._decoder.applied:
            return self._decoder.proved
        # aiohttp raises when less comes than the framing says, but a connection that simply closes says nothing, and
        # so it is when anything but `chunked` comes last (RFC 9112, 6.3).
        last_coding = ",".join(self._response.headers.getall("Transfer-Encoding", [])).rpartition(",")[2]
        return self._response.content_length is not None or last_coding.strip().lower() == "chunked"

    @property
    def at_hand(self) -> int:
        # A decoder may work on what has come for as long as it takes.
        return 0 if self._decoder is not None else self._response.content.total_bytes - self._received

    async def chunks(self) -> AsyncIterator[bytes]:
        # Both sides of a coding have a limit: a bomb comes out of little, and endless empty blocks give nothing.
        body = self._receive()
        async for chunk in body if self._decoder is None else self._decoder.decode(body):
            if self._received == 0:
                self.beginning = chunk[:BEGINNING_BYTES]
            self._received += len(chunk)
            if self._received > self._body_bytes_max:
                raise TooLarge("the image is larger than fetch.body_bytes_max")
            yield chunk
        if self._received == 0:
            raise OriginError("the origin sent an empty answer", origin_status=self._response.status)

    async def _receive(self) -> AsyncIterator[bytes]:
        received = 0
        pace = Pace(self._settings.bytes_per_s_min, self._settings.rate_grace_s)
        length, read, now = (
            self._response.content_length,
            self._response.content.readany,
            asyncio.get_running_loop().time,
        )
        try:
            while True:
                began = now()
                chunk = await read()
                if not chunk:
                    return
                received += len(chunk)
                if self._decoder is not None and received > self._body_bytes_max:
                    raise TooLarge("the image is larger than fetch.body_bytes_max")
                # Only the time that the origin lets us wait counts, never what disk and readers take.
                if not pace.keeps(len(chunk), now() - began) and received != length:
                    raise OriginTimeout("the origin sends more slowly than fetch.bytes_per_s_min")
                yield chunk
        except TimeoutError:
            raise OriginTimeout("the origin paused for longer than fetch.read_timeout_s") from None
        except FramingError as error:
            raise OriginError(str(error)) from None
        except (aiohttp.ClientError, OSError, RuntimeError):
            # RuntimeError: what aiohttp's stream says when the framing became nonsense while nobody was reading.
            raise OriginError("the origin's answer broke off") from None


def _conditions(known: Validator | None) -> dict[str, str]:
    """Return the fields of a conditional request; the tag alone where there is one (RFC 9110, 13.1.3)."""
    if known is None:
        return {}
    if known.etag:
        return {"If-None-Match": known.etag}
    return {"If-Modified-Since": known.modified} if known.modified else {}


def _printable(value: str | None) -> str | None:
    """Return a validator that can be kept and sent again; an origin may write anything."""
    sane = value is not None and len(value) <= VALIDATOR_CHARS_MAX and value.isascii() and value.isprintable()
    return value if sane else None


class _Final(OriginError):
    """A failure that another attempt would only repeat."""


def _connect_error(error: aiohttp.ClientConnectorError) -> Exception:
    if isinstance(error, aiohttp.ClientSSLError):
        return _Final("the origin has no valid certificate, or TLS failed otherwise")
    cause = error.os_error
    if isinstance(cause, AddressRefused):
        return SourceForbidden(f"the source is refused: {cause.strerror}")
    if isinstance(cause, OwnAddress):
        return LoopDetected("the source is this server")
    if cause.errno in {errno.EMFILE, errno.ENFILE}:
        return Busy("the server has no file descriptor left for another connection", retry_after_s=2)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return OriginError("the name of the origin cannot be resolved")
    return OriginError("no connection to the origin could be made")
