"""
A delivery as an HTTP response: validators, ranges, HEAD, and the bytes at the client's own speed.

Hit and miss take the same way: a body that is still growing only waits longer for its next bytes. When one breaks
off, the connection is broken off too, so that no client takes a part for the whole.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final, cast

from aiohttp import HttpVersion11, web

from proxy.core.errors import ImgkeepError
from proxy.core.headers import Span, cache_status, etag_matches, range_applies, read_range
from proxy.service.keep import Outcome
from proxy.web.prepared import LOOK_AGAIN_S, Prepared, encode_fields
from proxy.web.site import NOTES, SITE, YEAR_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.ports import Body
    from proxy.service.keep import Delivery, Redirect, Referral

PIECE_BYTES: Final = 32_768
"""What a slow reader holds in memory at most; the rest waits in the file."""

REDIRECT_MAX_AGE_S: Final = 300
"""So long a change of configuration may take to reach everybody."""

UNSENT_BYTES_MAX: Final = 131_072
"""In the kernel, per connection, beyond what is on its way: enough to keep a fast line busy between two pieces."""

FIXED_HEADERS: Final = {
    "Cache-Control": f"public, max-age={YEAR_S}, immutable",
    "Accept-Ranges": "bytes",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
}

CACHE_STATUS: Final = {
    Outcome.HIT: cache_status("hit"),
    Outcome.STORED: cache_status("fwd=uri-miss", "stored"),
    Outcome.COLLAPSED: cache_status("fwd=uri-miss", "collapsed"),
    Outcome.UNKEPT: cache_status("fwd=uri-miss", "detail=not-stored"),
}


COMMON_HEADERS: Final = {**FIXED_HEADERS, "Cache-Status": CACHE_STATUS[Outcome.HIT]}
"""Of a hit, whatever the image."""


def redirect(request: web.Request, to: Redirect) -> web.Response:
    """Send the client to the source itself, for a while: whether it stays there is not in our hands."""
    request[NOTES].outcome = "redirect"
    headers = {
        "Location": to.url,
        "Cache-Control": f"public, max-age={REDIRECT_MAX_AGE_S}",
        "Cache-Status": cache_status("fwd=uri-miss", "detail=redirect"),
        "Access-Control-Allow-Origin": "*",
        "Referrer-Policy": "no-referrer",
    }
    return web.Response(status=request.app[SITE].redirect_status, headers=headers)


def refer(request: web.Request, to: Referral) -> web.Response:
    """
    Send the client to where the object is, unless it has it already.

    Without an `ETag`: a client that revalidates a redirect would go on using the link it holds.
    """
    notes = request[NOTES]
    if etag_matches(_field(request, "If-None-Match") or "", to.etag):
        notes.outcome = Outcome.HIT.value
        headers = {**_fixed_headers(request), "ETag": to.etag, "Cache-Status": cache_status("hit")}
        return web.Response(status=304, headers=headers)
    notes.outcome = "redirect"
    site = request.app[SITE]
    max_age_s = min(to.address.max_age_s, _permitted_s(request))
    headers = {
        "Location": to.address.url,
        "Cache-Control": f"{'private' if to.address.private else 'public'}, max-age={max_age_s}",
        "Cache-Status": cache_status("hit"),
        "Content-Location": to.permanent_url or site.own_url(to.object_name),
        "Access-Control-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return web.Response(status=site.redirect_status, headers=headers)


async def respond(request: web.Request, delivery: Delivery) -> web.StreamResponse:
    """Answer with a delivery, and close its body."""
    notes = request[NOTES]
    notes.key, notes.outcome = delivery.key, delivery.outcome.value
    try:
        return await _respond(request, delivery)
    finally:
        await delivery.body.aclose()


async def _respond(request: web.Request, delivery: Delivery) -> web.StreamResponse:
    headers = _headers(request, delivery)
    body = delivery.body
    _prepare(request, delivery, headers)
    if etag_matches(_field(request, "If-None-Match") or "", delivery.etag):
        return web.Response(status=304, headers=headers)
    size = body.size
    wanted = _field(request, "Range") if request.method == "GET" else None
    if wanted is not None and not range_applies(_field(request, "If-Range"), delivery.etag):
        wanted = None
    if size is None and (wanted is not None or request.version < HttpVersion11):
        # HTTP/1.0 has no way to say that a body of unknown size was cut.
        size = await body.settle()
    headers["Content-Type"] = delivery.format.media_type
    span = None if wanted is None or size is None else read_range(wanted, size)
    if span == "unsatisfiable":
        del headers["Content-Type"]
        headers |= {"Content-Range": f"bytes */{size}", "Cache-Control": "no-store"}
        return web.Response(status=416, headers=headers)
    if isinstance(span, Span):
        headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{size}"
        return await _send(request, web.StreamResponse(status=206, headers=headers), body, span.start, span.end)
    return await _send(request, web.StreamResponse(headers=headers), body, 0, size)


def _field(request: web.Request, name: str) -> str | None:
    """Return a field's value, its lines combined (RFC 9110, 5.3); `None` if it is absent."""
    lines = request.headers.getall(name, [])
    return ", ".join(lines) if lines else None


def _permitted_s(request: web.Request) -> int:
    """Return for how many seconds caches may show the answer: until our signature ends, where one was needed."""
    end = request[NOTES].permitted_until
    return YEAR_S if end is None else max(0, int(end - request.app[SITE].clock().timestamp()))


def _fixed_headers(request: web.Request) -> dict[str, str]:
    seconds = _permitted_s(request)
    return FIXED_HEADERS if seconds >= YEAR_S else {**FIXED_HEADERS, "Cache-Control": f"public, max-age={seconds}"}


def _headers(request: web.Request, delivery: Delivery) -> dict[str, str]:
    headers = {
        **_fixed_headers(request),
        "ETag": delivery.etag,
        "Cache-Status": CACHE_STATUS[delivery.outcome],
        "Content-Disposition": f'inline; filename="{delivery.name}"',
    }
    if delivery.object_name is not None:
        headers["Content-Location"] = delivery.permanent_url or request.app[SITE].own_url(delivery.object_name)
    return headers


def _prepare(request: web.Request, delivery: Delivery, headers: Mapping[str, str]) -> None:
    """Spare later requests for the same target the way here, where all that they need is at hand."""
    body, resource = delivery.body, request.match_info.route.resource
    site = request.app[SITE]
    # No await between the question whether it stands and the table, which is told of every change from then on.
    if body.at_hand is None or body.size is None or resource is None or not site.keeper.is_current(delivery):
        return
    answer = Prepared(
        route=resource.canonical,
        key=delivery.key,
        etag=delivery.etag,
        fields=site.prepared.own_fields(headers),
        media_type=encode_fields([("Content-Type", delivery.format.media_type)]),
        size=body.size,
        at_hand=body.at_hand,
        look_again_at=site.timer() + LOOK_AGAIN_S,
        until=request[NOTES].permitted_until,
    )
    site.prepared.prepare(request.raw_path.encode("utf-8", "surrogateescape"), answer)


async def _send(
    request: web.Request, response: web.StreamResponse, body: Body, start: int, end: int | None
) -> web.StreamResponse:
    """Send the bytes from `start` to `end`, to the body's own end where that is not known yet."""
    if end is not None:
        response.content_length = end - start
    if request.method == "HEAD":
        return response
    # Before the status goes out: what fails here can still be told as a typed error.
    piece = await body.read(start, _piece_size(start, end))
    transport = cast("asyncio.WriteTransport | None", request.transport)
    if transport is None:
        raise ConnectionResetError("the client has left")
    offset = start
    stall_timeout_s = request.app[SITE].stall_timeout_s
    try:
        await response.prepare(request)
        while piece:
            async with asyncio.timeout(stall_timeout_s):
                await response.write(piece)
                await request.writer.drain()
            offset += len(piece)
            piece = await body.read(offset, _piece_size(offset, end))
        async with asyncio.timeout(stall_timeout_s):
            await response.write_eof()
    except Exception as error:
        # The status is long gone; a connection that breaks is the one thing left that every client understands.
        response.force_close()
        transport.abort()
        if not isinstance(error, ImgkeepError | TimeoutError | ConnectionError):
            raise
        request[NOTES].code = error.code if isinstance(error, ImgkeepError) else "client_left"
    finally:
        request[NOTES].sent = offset - start
    return response


def limit_kernel_buffer(transport: asyncio.WriteTransport) -> None:
    """Let the kernel hold little that is not on its way yet: it would take megabytes."""
    sock = transport.get_extra_info("socket")
    if hasattr(socket, "TCP_NOTSENT_LOWAT") and sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)


def _piece_size(offset: int, end: int | None) -> int:
    return PIECE_BYTES if end is None else min(PIECE_BYTES, end - offset)
