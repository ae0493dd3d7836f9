"""
The API of several workers: the leader answers, whichever worker a client asks. Both ends of a relayed request.

Rules:
- A relayed request is a message of this program, never the client's own: the method, the target, the fields in
  `FIELDS`, and what the worker that has the client has judged (`Admission`). The body is framed anew: no worker reads
  a length that a client declares, or a coding of it, from another worker.
- A connection that has carried a body carries no other request: `WorkerPeers` and `worker_api.py` each see to that.
- The worker that has the client counts and logs what the leader answers. A body that is cut off stays cut off.
- The leader judges nothing anew (`receive_relayed`).
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict

from imgkeep.cluster.workers.peers import RETRY_INTERVAL_S, UNREACHABLE_TIMEOUT_S
from imgkeep.core.errors import Busy, InvalidRequest
from imgkeep.web.admission import API_PREFIX, reject_content_codings
from imgkeep.web.aiohttp_adapter import STALL_TIMEOUT, STALL_TIMEOUT_S, as_aiohttp_response
from imgkeep.web.api.api_services import API
from imgkeep.web.error_presentation import PROBLEM, accepts_page, present_failure
from imgkeep.web.error_to_problem import problem_middleware
from imgkeep.web.request_body import READ_TIMEOUT_S, body_timeout
from imgkeep.web.request_response import HttpResponse
from imgkeep.web.request_state import ADMISSION, REQUEST_LOG, Admission, RequestLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from imgkeep.cluster.workers.peers import WorkerPeers

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FIELDS: Final = ("Content-Type",)
"""The fields of a client that handlers of the API read."""
BODILESS: Final = frozenset({"GET", "HEAD", "DELETE"})
"""Methods without a meaning for a body, which stays unread."""

ADMISSION_FIELD: Final = "Imgkeep-Admission"
"""In relayed requests: `Admission`, as JSON."""
OUTCOME_FIELD: Final = "Imgkeep-Outcome"
"""In answers to them: what the access log of the worker that has the client says."""

NOT_PASSED_BACK: Final = frozenset(
    {
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "date", "server"),
        OUTCOME_FIELD.lower(),
    }
)

# Also of the absolute form (RFC 9112, 3.2.2).
_PATH: Final = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)?[^?#]*")
_PATH_CHARACTERS: Final = "/%-._~!$&'()*+,;=:@"
_ASCII: Final = "".join(map(chr, range(0x21, 0x7F)))
_OUTCOME: Final = msgspec.json.Decoder(tuple[str | None, str, str | None, str | None, str | None, str | None])
"""Code, outcome, key, host, provider and detail of a `RequestLog`."""


class _Body:
    """
    The body of a client's request, piece by piece.

    Attributes:
        error: Why it ended too early, where that is the client's fault.
    """

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self.error: Exception | None = None
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                # The leader has limits too, and sees the request with its first piece.
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
    """Have the leader answer a request to the API: another worker, or this one."""
    peers = request.app[API].relay_peers
    if peers is None or ADMISSION not in request:
        return await handler(request)
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + UNREACHABLE_TIMEOUT_S
    while True:
        leader = peers.find_leader()
        if leader == peers.name:
            return await handler(request)
        try:
            if leader is not None:
                return await _pass_on(request, peers, leader)
        except aiohttp.ClientConnectorError:
            pass  # it has ended
        except (aiohttp.ClientError, OSError):
            if request.method not in BODILESS:  # the leader may have acted upon it
                raise Busy("the worker that answers the API cannot be reached", retry_after_s=1) from None
        if loop.time() > give_up_at:
            raise Busy("no worker answers the API at the moment", retry_after_s=1)
        await asyncio.sleep(RETRY_INTERVAL_S)


def receive_relayed(app: web.Application) -> None:
    """Have the peer API of a worker take relayed requests; the routes of the API are added besides."""
    app.middlewares.extend([_keep_log, problem_middleware, _admit_relayed])
    app.on_response_prepare.append(_send_outcome)


@web.middleware
async def _keep_log(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Take the place of the access log: the worker that has the client writes it."""
    request[REQUEST_LOG] = RequestLog()
    try:
        return await handler(request)
    except ConnectionError:
        return web.Response(status=499)


@web.middleware
async def _admit_relayed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Take the place of `admission`: accept what the worker that has the client has judged."""
    reject_content_codings(request)
    resource = request.match_info.route.resource
    if resource is not None and resource.canonical.startswith(API_PREFIX):
        try:
            request[ADMISSION] = msgspec.json.decode(request.headers.get(ADMISSION_FIELD, ""), type=Admission)
        except msgspec.DecodeError:
            raise InvalidRequest("the request carries no admission") from None
    return await handler(request)


async def _send_outcome(request: web.Request, response: web.StreamResponse) -> None:
    log = request.get(REQUEST_LOG)
    if log is not None:
        response.headers[OUTCOME_FIELD] = json.dumps(
            [log.code, log.outcome, log.key, log.host, log.provider, log.detail]
        )


def read_target(request: web.Request) -> str:
    """
    Return the path of the route, and the rest of the target unchanged. Bytes beyond ASCII are percent-encoded:
    the leader reads the same.

    Raises:
        InvalidRequest: It is none of the API.
    """
    # The path as the router compares it: decoded, but for %2F and %25, so that /%61pi is /api for both workers.
    path = quote(request.rel_url.path_safe.encode("utf-8", "surrogateescape"), safe=_PATH_CHARACTERS)
    rest = quote(_PATH.sub("", request.raw_path, count=1).encode("utf-8", "surrogateescape"), safe=_ASCII)
    target = f"{path}{rest}"
    if not target.startswith(API_PREFIX):
        raise InvalidRequest("the request target is not one of the API")
    return target


async def _pass_on(request: web.Request, peers: WorkerPeers, leader: str) -> web.StreamResponse:
    """
    Answer with what the leader answers.

    Raises:
        aiohttp.ClientError, OSError: It did not answer.
    """
    fields = CIMultiDict((name, request.headers[name]) for name in FIELDS if name in request.headers)
    fields[ADMISSION_FIELD] = msgspec.json.encode(request[ADMISSION]).decode()
    body = _Body(request.content) if request.body_exists and request.method not in BODILESS else None
    try:
        answer = await peers.request(leader, request.method, read_target(request), fields, body)
    except (aiohttp.ClientError, OSError):
        if body is not None and body.error is not None:
            raise body.error from None
        raise
    async with answer:
        if OUTCOME_FIELD not in answer.headers:  # a handler's answer always has it
            raise Busy("the worker that answers the API does not take the request", retry_after_s=1)
        headers = CIMultiDict(_take_outcome(answer, request[REQUEST_LOG]))
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
        if request.method == "HEAD" or answer.status in {204, 304}:
            return response
        if headers.get("Content-Type") == PROBLEM and accepts_page(request.method, request.headers):
            # The leader does not know what this client reads. A problem is small.
            headers.popall("Content-Length", None)
            failure = HttpResponse(answer.status, dict(headers), await answer.read())
            return as_aiohttp_response(present_failure(failure, request.method, request.headers))
        await _stream(request, response, answer)
        return response


def _take_outcome(answer: aiohttp.ClientResponse, log: RequestLog) -> list[tuple[str, str]]:
    """Log what the leader has noted, and return the fields that go to the client."""
    log.code, log.outcome, log.key, log.host, log.provider, log.detail = _OUTCOME.decode(answer.headers[OUTCOME_FIELD])
    return [(name, value) for name, value in answer.headers.items() if name.lower() not in NOT_PASSED_BACK]


async def _stream(request: web.Request, response: web.StreamResponse, answer: aiohttp.ClientResponse) -> None:
    """Pass the body of an answer on. As in `responses.py`, a broken end takes back a status that has gone out."""
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
