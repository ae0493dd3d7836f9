"""
Carries responses over aiohttp: the way of every request that the fast path does not answer.

A body is sent at the client's own speed. When a body breaks off, the connection is broken off too, so that no client
takes a part for the whole.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from aiohttp import web

from imgkeep.core.errors import ImgkeepError
from imgkeep.web.client_presence import ClientPresence
from imgkeep.web.context import REQUEST_LOG
from imgkeep.web.messages import BodyRange, HttpResponse

STALL_TIMEOUT_S: Final = 60
"""Timeout for a client that takes no piece of a body (nginx's `send_timeout`)."""
STALL_TIMEOUT: Final = web.AppKey("stall_timeout_s", float)
"""Replaces `STALL_TIMEOUT_S` in tests."""


def presence_of(request: web.Request) -> ClientPresence:
    """Return what tells whether the client of a request is still there; on connections that are not ours it stays."""
    presence = getattr(request.protocol, "presence", None)
    return presence if isinstance(presence, ClientPresence) else ClientPresence()


def as_aiohttp_response(answer: HttpResponse) -> web.Response:
    """Return an answer without a part of an image as one of aiohttp's."""
    assert not isinstance(answer.body, BodyRange)
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


async def send_body_range(request: web.Request, answer: HttpResponse, part: BodyRange) -> web.StreamResponse:
    """Send an answer with a part of a body at the client's own speed."""
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    transport = cast("asyncio.WriteTransport | None", request.transport)
    offset, piece, presence = part.start, part.first, presence_of(request)
    stall_timeout_s = request.app.get(STALL_TIMEOUT, STALL_TIMEOUT_S)
    if transport is None:
        await part.body.aclose()
        raise ConnectionResetError("the client has left")
    try:
        await response.prepare(request)
        while piece:
            async with asyncio.timeout(stall_timeout_s):
                await response.write(piece)
                await request.writer.drain()
            offset += len(piece)
            piece = await presence.wait(part.read(offset))
        async with asyncio.timeout(stall_timeout_s):
            await response.write_eof()
    except Exception as error:
        # The status is long gone; a connection that breaks is the one thing left that every client understands.
        response.force_close()
        transport.abort()
        if not isinstance(error, ImgkeepError | TimeoutError | ConnectionError):
            raise
        if isinstance(error, ImgkeepError):
            request[REQUEST_LOG].fail_with(error)
        else:
            request[REQUEST_LOG].code = "client_left"
    finally:
        request[REQUEST_LOG].sent = offset - part.start
        await part.body.aclose()
    return response
