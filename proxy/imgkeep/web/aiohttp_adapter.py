"""
Sends responses over aiohttp, for every request that the fast path does not answer.

It sends a body at the client's own speed. When a body breaks off, it breaks the connection off too, so that no client
takes a part for the whole.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from aiohttp import web

from imgkeep.core.errors import ImgkeepError
from imgkeep.web.client_presence import ClientPresence
from imgkeep.web.request_response import BodyRange, HttpResponse
from imgkeep.web.request_state import REQUEST_LOG

STALL_TIMEOUT_S: Final = 60
"""Timeout for a client that reads no piece of a body (nginx's `send_timeout`)."""
STALL_TIMEOUT: Final = web.AppKey("stall_timeout_s", float)
"""Replaces `STALL_TIMEOUT_S` in tests."""


def presence_of(request: web.Request) -> ClientPresence:
    """Return the presence of the client of a request; on a connection of another server it never leaves."""
    presence = getattr(request.protocol, "presence", None)
    return presence if isinstance(presence, ClientPresence) else ClientPresence()


def as_aiohttp_response(response: HttpResponse) -> web.Response:
    """Return a response without a range of an image as one of aiohttp's."""
    assert not isinstance(response.body, BodyRange)
    return web.Response(status=response.status, headers=response.headers, body=response.body)


async def send_body_range(request: web.Request, response: HttpResponse, body: BodyRange) -> web.StreamResponse:
    """Send a response with a range of a body at the client's own speed."""
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    transport = cast("asyncio.WriteTransport | None", request.transport)
    offset, piece, presence = body.start, body.first, presence_of(request)
    request_log, stall_timeout_s = request[REQUEST_LOG], request.app.get(STALL_TIMEOUT, STALL_TIMEOUT_S)
    if transport is None:
        await body.body.aclose()
        raise ConnectionResetError("the client has left")
    try:
        await stream.prepare(request)
        while piece:
            async with asyncio.timeout(stall_timeout_s):
                await stream.write(piece)
                await request.writer.drain()
            offset += len(piece)
            piece = await presence.wait(body.read(offset))
        async with asyncio.timeout(stall_timeout_s):
            await stream.write_eof()
    except Exception as error:
        # The status was sent long ago: a broken connection is the one thing left that every client understands.
        stream.force_close()
        transport.abort()
        if not isinstance(error, ImgkeepError | TimeoutError | ConnectionError):
            raise
        if isinstance(error, ImgkeepError):
            request_log.fail_with(error)
        else:
            request_log.code = "client_left"
    finally:
        request_log.sent = offset - body.start
        await body.body.aclose()
    return stream
