"""
Writes responses to a socket, without aiohttp: their heads, and their bodies as quickly as the client reads.

A cached response is head and body in one write. A handler's response may have a range of a body that still grows; if
the body breaks off, so does the connection, which every client understands.
"""

from __future__ import annotations

import logging
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import ImgkeepError
from imgkeep.core.http_headers import etag_matches
from imgkeep.core.range_header import Span, range_applies, read_range
from imgkeep.web.error_presentation import present_failure
from imgkeep.web.fastpath.request_head import NO_CONDITIONS
from imgkeep.web.image_headers import HIT_HEADERS, SERVER_NAME, SVG_CSP, YEAR_S
from imgkeep.web.request_response import BodyRange, encode_fields, encode_response_head

if TYPE_CHECKING:
    from asyncio import Transport, WriteTransport
    from collections.abc import Callable, Mapping

    from imgkeep.clock import Clock
    from imgkeep.storage.local.memory_cache import Bytes
    from imgkeep.web.error_presentation import Placeholder
    from imgkeep.web.fastpath.request_head import RequestConditions
    from imgkeep.web.fastpath.response_cache import CachedResponse
    from imgkeep.web.flow_control import FlowControl
    from imgkeep.web.request_response import HttpResponse, ImageRequest

STATUS_LINES: Final = {200: b"OK", 206: b"Partial Content", 304: b"Not Modified"}
"""Statuses of cached responses."""

_COMMON_FIELDS: Final = {name: value for name, value in HIT_HEADERS.items() if name != "Cache-Control"}
_COMMON: Final = encode_fields(_COMMON_FIELDS.items())
_SVG_COMMON: Final = encode_fields({**_COMMON_FIELDS, "Content-Security-Policy": SVG_CSP}.items())
_FOR_EVER: Final = encode_fields([("Cache-Control", HIT_HEADERS["Cache-Control"])])

log = logging.getLogger(__name__)


class ResponseWriter:
    """
    The writer of the responses of a server. It encodes the fields `Date` and `Server` once a second.

    Args:
        placeholder: The image of `delivery.placeholder`; `None`: not configured.
        clock: Returns the time for `Date`.
        timer: Returns monotonic seconds.
    """

    def __init__(self, placeholder: Placeholder | None, clock: Clock, timer: Callable[[], float]) -> None:
        self._placeholder = placeholder
        self._clock = clock
        self._timer = timer
        self._date_and_server = b""
        self._encoded_until = 0.0
        self._openings: dict[int, bytes] = {}
        """By status: the fields that all cached responses have, except `Cache-Control`."""
        self._svg_openings: dict[int, bytes] = {}

    async def send(
        self, request: ImageRequest, response: HttpResponse, transport: Transport | None, flow: FlowControl
    ) -> bool:
        """Send a handler's response; return whether the client was there to get it."""
        body = response.body
        if transport is None or transport.is_closing():
            request.request_log.code = "client_left"
            if isinstance(body, BodyRange):
                await body.body.aclose()
            return False
        if response.status >= HTTPStatus.BAD_REQUEST:
            method = "HEAD" if request.head else "GET"
            response = present_failure(response, method, request.fields, self._placeholder)
            body = response.body
        self._encode_date_and_server(self._timer())
        head = encode_response_head(response, self._date_and_server, head=request.head)
        if isinstance(body, BodyRange):
            await _send_body(transport, flow, head, body, request)
        elif body and not request.head:
            transport.writelines((head, body))
            request.request_log.sent = len(body)
        else:
            transport.write(head)
        return True

    def write_cached(
        self,
        cached: CachedResponse,
        conditions: RequestConditions,
        transport: WriteTransport,
        now: float,
        *,
        head: bool,
    ) -> tuple[int, int] | None:
        """
        Write a cached response, head and body in one go; return its status, and the number of bytes of its body.

        `None`: nothing was written, and a handler has to answer.
        """
        whole = cached.cache_entry.read_now()
        lasts = cached.permitted_until is None and cached.max_age_s == YEAR_S
        caching = _FOR_EVER if lasts else self._encode_caching(cached)
        if whole is None or caching is None:
            return None
        if now >= self._encoded_until:
            self._encode_date_and_server(now)
        openings = self._svg_openings if cached.is_svg else self._openings
        if conditions is not NO_CONDITIONS:
            if etag_matches(conditions.if_none_match or "", cached.etag):
                transport.write(b"".join((openings[304], caching, cached.fields, b"\r\n")))
                return 304, 0
            if conditions.range is not None and not head and range_applies(conditions.if_range, cached.etag):
                span = read_range(conditions.range, cached.size)
                if span == "unsatisfiable":
                    return None
                if span is not None:
                    return _write_span(cached, span, whole, transport, openings[206] + caching)
        length = b"Content-Length: %d\r\n\r\n" % cached.size
        opening = b"".join((openings[200], caching, cached.fields, cached.media_type, length))
        if head:
            transport.write(opening)
            return 200, 0
        transport.writelines((opening, whole))
        return 200, cached.size

    def _encode_caching(self, cached: CachedResponse) -> bytes | None:
        """Return `Cache-Control`; `None`: the permission to see the response has ended."""
        seconds = cached.max_age_s
        if cached.permitted_until is not None:
            seconds = min(seconds, int(cached.permitted_until - self._clock().timestamp()))
        if seconds >= YEAR_S:
            return _FOR_EVER
        return b"Cache-Control: public, max-age=%d\r\n" % seconds if seconds > 0 else None

    def _encode_date_and_server(self, now: float) -> None:
        """Encode the fields `Date` and `Server`, once a second."""
        if now < self._encoded_until:
            return
        time = self._clock().timestamp()
        self._encoded_until = now + 1 - time % 1
        self._date_and_server = encode_fields([("Date", formatdate(time, usegmt=True)), ("Server", SERVER_NAME)])
        for status, reason in STATUS_LINES.items():
            opening = b"HTTP/1.1 %d %b\r\n%b" % (status, reason, self._date_and_server)
            self._openings[status] = opening + _COMMON
            self._svg_openings[status] = opening + _SVG_COMMON


def encode_specific_fields(headers: Mapping[str, str]) -> bytes:
    """Encode the fields of a hit that differ between hits, except `Cache-Control`, which depends on the time."""
    specific = [(name, value) for name, value in headers.items() if name not in HIT_HEADERS]
    return encode_fields(specific)


async def _send_body(
    transport: Transport, flow: FlowControl, head: bytes, body: BodyRange, request: ImageRequest
) -> None:
    """Send a head and a range of a body at the client's own speed, which `flow` observes. Close the body."""
    request_log = request.request_log
    chunked = body.end is None
    offset, piece = body.start, body.first
    try:
        transport.writelines((head, *_frame(piece, chunked=chunked)))
        offset += len(piece)
        while piece and offset != body.end:
            if flow.busy:
                await flow.drain()
            piece = await request.presence.wait(body.read(offset))
            if transport.is_closing():
                request_log.code = "client_left"
                return
            transport.writelines(_frame(piece, chunked=chunked))
            offset += len(piece)
    except Exception as error:
        # The status was sent already, so only a broken connection tells every client about the failure.
        transport.abort()
        if isinstance(error, ImgkeepError):
            request_log.fail_with(error)
        elif isinstance(error, ConnectionError):
            request_log.code = "client_left"
        else:
            request_log.code = "internal_error"
            log.exception("unforeseen error")
    finally:
        request_log.sent = offset - body.start
        await body.body.aclose()


def _write_span(
    cached: CachedResponse, span: Span, whole: Bytes, transport: WriteTransport, opening: bytes
) -> tuple[int, int]:
    size = span.end - span.start
    extent = b"Content-Range: bytes %d-%d/%d\r\n" % (span.start, span.end - 1, cached.size)
    length = b"Content-Length: %d\r\n\r\n" % size
    head = b"".join((opening, cached.fields, cached.media_type, extent, length))
    transport.writelines((head, memoryview(whole)[span.start : span.end]))
    return 206, size


def _frame(piece: bytes, *, chunked: bool) -> tuple[bytes, ...]:
    """Return a piece with its framing; an empty piece is the last one (RFC 9112, 7.1)."""
    if not chunked:
        return (piece,)
    return (b"%x\r\n" % len(piece), piece, b"\r\n") if piece else (b"0\r\n\r\n",)
