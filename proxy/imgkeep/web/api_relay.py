"""
The API of several workers: whichever is asked, the one answers that works for all.

Rules:
- What goes to it is a message of ours, and never the client's own: the method, the target, the fields in `FIELDS`, and
  what was judged of the request here (`Admission`). The body is framed anew, so no length that a client declares and no
  coding of it is ever read between workers.
- A connection that carried a body is not used again; see `Peers.ask` and `side_door.py`, which each see to it.
- What it answers is counted here, where the client is. An end that is cut off stays one.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict

from imgkeep.cluster.peers import OUTCOME, RETRY_INTERVAL_S, UNREACHABLE_TIMEOUT_S
from imgkeep.core.errors import Busy, InvalidRequest
from imgkeep.web.admission import API_PREFIX
from imgkeep.web.aiohttp_adapter import STALL_TIMEOUT, STALL_TIMEOUT_S, as_aiohttp_response
from imgkeep.web.api.context import API
from imgkeep.web.context import ADMISSION, REQUEST_LOG
from imgkeep.web.error_responses import PROBLEM, accepts_page, present_failure
from imgkeep.web.messages import HttpResponse
from imgkeep.web.request_body import READ_TIMEOUT_S, body_timeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from imgkeep.cluster.peers import Peers
    from imgkeep.web.context import RequestLog

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FIELDS: Final = ("Content-Type",)
"""Of a client's fields those that handlers of the API read."""
JUDGED: Final = "Imgkeep-Admission"
"""In a request to another worker: `Admission`, as JSON."""
BODILESS: Final = frozenset({"GET", "HEAD", "DELETE"})
"""A body means nothing to these, and is left unread."""

NOT_PASSED_BACK: Final = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "date", "server", OUTCOME.lower()}
)

# Also of the absolute form (RFC 9112, 3.2.2).
_PATH: Final = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)?[^?#]*")
_PATH_CHARACTERS: Final = "/%-._~!$&'()*+,;=:@"
_ASCII: Final = "".join(map(chr, range(0x21, 0x7F)))
_NOTED: Final = msgspec.json.Decoder(tuple[str | None, str, str | None, str | None, str | None, str | None])
"""Code, outcome, key, host, provider and detail, as the other worker has noted them."""


class _Body:
    """
    The body of a client's request, piece by piece.

    Attributes:
        error: Why it ended before its end, where that is the client's fault.
    """

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self.error: Exception | None = None
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                # The other worker has limits too, and hears of the request with its first piece.
                async with asyncio.timeout(READ_TIMEOUT_S):
                    piece = await self._content.readany()
                if not piece:
                    return
                yield piece
        except TimeoutError:
            self.error = body_timeout()
            raise
        except Exception:
            self.error = InvalidRequest("the body is not what its head says")
            raise


@web.middleware
async def relay(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Have the worker answer a request to the API that works for all: maybe ourselves."""
    peers = request.app[API].peers
    if peers is None or ADMISSION not in request:
        return await handler(request)
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + UNREACHABLE_TIMEOUT_S
    while True:
        holder = peers.find_leader()
        if holder == peers.name:
            return await handler(request)
        try:
            if holder is not None:
                return await _pass_on(request, peers, holder)
        except aiohttp.ClientConnectorError:
            pass  # it is dead, or has left
        except (aiohttp.ClientError, OSError):
            if request.method not in BODILESS:  # it may have been acted upon
                raise Busy("the worker that answers the API cannot be reached", retry_after_s=1) from None
        if loop.time() > give_up_at:
            raise Busy("no worker answers the API at the moment", retry_after_s=1)
        await asyncio.sleep(RETRY_INTERVAL_S)


def read_target(request: web.Request) -> str:
    """
    Return the path that the route was found by, and what follows it as it came. Bytes beyond ASCII are percent-encoded:
    that is the same to who reads it there.

    Raises:
        InvalidRequest: It is none of the API.
    """
    # What the router compares: decoded, but for %2F and %25, so that /%61pi is /api here and there.
    path = quote(request.rel_url.path_safe.encode("utf-8", "surrogateescape"), safe=_PATH_CHARACTERS)
    rest = quote(_PATH.sub("", request.raw_path, count=1).encode("utf-8", "surrogateescape"), safe=_ASCII)
    target = f"{path}{rest}"
    if not target.startswith(API_PREFIX):
        raise InvalidRequest("the request target is not one of the API")
    return target


async def _pass_on(request: web.Request, peers: Peers, holder: str) -> web.StreamResponse:
    """
    HttpResponse with what another worker answers.

    Raises:
        aiohttp.ClientError, OSError: It said nothing.
    """
    fields = CIMultiDict((name, request.headers[name]) for name in FIELDS if name in request.headers)
    fields[JUDGED] = msgspec.json.encode(request[ADMISSION]).decode()
    body = _Body(request.content) if request.body_exists and request.method not in BODILESS else None
    try:
        answer = await peers.ask(holder, request.method, read_target(request), fields, body)
    except (aiohttp.ClientError, OSError):
        if body is not None and body.error is not None:
            raise body.error from None
        raise
    async with answer:
        if OUTCOME not in answer.headers:  # every handler's answer says it
            raise Busy("the worker that answers the API does not take the request", retry_after_s=1)
        kept = CIMultiDict(_take_notes(answer, request[REQUEST_LOG]))
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=kept)
        if request.method == "HEAD" or answer.status in {204, 304}:
            return response
        if kept.get("Content-Type") == PROBLEM and accepts_page(request.method, request.headers):
            # The other worker is told nothing of what this client reads. A problem of ours is small.
            kept.popall("Content-Length", None)
            failure = HttpResponse(answer.status, dict(kept), await answer.read())
            return as_aiohttp_response(present_failure(failure, request.method, request.headers))
        await _stream(request, response, answer)
        return response


def _take_notes(answer: aiohttp.ClientResponse, request_log: RequestLog) -> list[tuple[str, str]]:
    """Note what the other worker has noted, and return the fields that are passed back."""
    noted = _NOTED.decode(answer.headers[OUTCOME])
    (
        request_log.code,
        request_log.outcome,
        request_log.key,
        request_log.host,
        request_log.provider,
        request_log.detail,
    ) = noted
    return [(name, value) for name, value in answer.headers.items() if name.lower() not in NOT_PASSED_BACK]


async def _stream(request: web.Request, response: web.StreamResponse, answer: aiohttp.ClientResponse) -> None:
    """Pass the body of an answer on. As in `delivery.py`, a status that has gone out is taken back by a broken end."""
    request_log, stall_timeout_s = request[REQUEST_LOG], request.app.get(STALL_TIMEOUT, STALL_TIMEOUT_S)
    transport = cast("asyncio.WriteTransport | None", request.transport)
    if transport is None:
        raise ConnectionResetError("the client has left")
    request_log.sent = 0
    try:
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            async with asyncio.timeout(stall_timeout_s):
                await response.write(piece)
                await request.writer.drain()
            request_log.sent += len(piece)
        async with asyncio.timeout(stall_timeout_s):
            await response.write_eof()
    except aiohttp.ClientError:
        response.force_close()
        transport.abort()
        request_log.code = "cut_short"
    except (ConnectionError, TimeoutError):
        response.force_close()
        transport.abort()
        request_log.code = "client_left"
