"""
HttpServer: plain requests for images are answered in front of aiohttp, on the same socket.

A connection hears bytes before aiohttp's parser does. Where they are one whole plain request for an image, aiohttp
never knows: what is prepared is written at once, and anything else is given to the handlers of `images.py`. All other
requests go to aiohttp as they came.

Two things must never happen, and each has its rule:
- An answer gets ahead of an earlier one. So a request is taken from aiohttp only while that waits for one (`_waiter`),
  no handler of ours is at work, and nothing is left to send.
- Bytes that belong to one request are taken for the next. So everything is aiohttp's for good once it was given
  anything that is not certainly one whole request without a body.

aiohttp parses whatever has arrived at once: of 256 KiB that is 43,000 chunks of a body, which nothing of ours asked
for, and as many calls into Python: half a second without another turn of the event loop, for each connection that
sends such bytes. So aiohttp gets them in steps (`turns.py`), and meanwhile nothing more is read.

This is the one module that knows private names of aiohttp: `_waiter`, which is pending while a connection is idle,
`_next_keepalive_close_time`, when an idle one is closed, `_process_keepalive`, which does that, `_current_request`, and
`_pause_transport_reading` with `_resume_transport_reading`, by which it stops reading, as `_reading_paused` and
`_buffer_paused` tell.
`tests/web/fastpath/test_protocol.py` fails when an upgrade changes what they mean.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web
from multidict import CIMultiDict

from imgkeep.core.errors import ImgkeepError
from imgkeep.images.context import CacheStatus
from imgkeep.web.access_log import CLIENT_LEFT
from imgkeep.web.aiohttp_adapter import as_aiohttp_response
from imgkeep.web.client_presence import ClientPresence
from imgkeep.web.connection_limit import refuse_connection
from imgkeep.web.context import RequestLog
from imgkeep.web.error_responses import present_failure
from imgkeep.web.fastpath.coalescing import SharedResponse
from imgkeep.web.fastpath.request_head import PLAIN, list_fields, read_fields
from imgkeep.web.flow_control import FlowControl
from imgkeep.web.image_headers import SERVER_NAME
from imgkeep.web.messages import BodyRange, ImageRequest, encode_response_head
from imgkeep.web.parse_budget import PARSE_STEP_BYTES
from imgkeep.web.problems import error_response, parser_error_response

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from imgkeep.web.access_log import AccessLog
    from imgkeep.web.fastpath.context import FastPath
    from imgkeep.web.fastpath.request_head import RequestConditions
    from imgkeep.web.fastpath.response_cache import CachedResponse
    from imgkeep.web.images import Handler
    from imgkeep.web.messages import HttpResponse

HEAD_BYTES_MAX: Final = 16_384
"""A head that has come in parts is waited for up to this size; a longer one is aiohttp's from the beginning."""

TURNS_MAX: Final = 3
"""
A client may ask again before aiohttp, which has sent the last byte, is back at waiting. So a request is looked at again
in so many turns of the loop; without that, whoever took the long way once would often have to take it again.
"""

_GET: Final = b"GET "
_HEAD: Final = b"HEAD "
_LINE_END: Final = b" HTTP/1.1\r\n"
_END: Final = b"\r\n\r\n"
_TARGET: Final = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_PASSED_ON: Final = re.compile(rb"^(?:via|cdn-loop):", re.IGNORECASE | re.MULTILINE)

log = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_aligned",
        "_alone",
        "_answering",
        "_asked",
        "_block",
        "_context",
        "_counted",
        "_fields",
        "_following",
        "_fresh",
        "_held_up",
        "_idle_s",
        "_loaded",
        "_outlet",
        "_part",
        "_rest",
        "_stepping",
        "_transport",
        "_turns",
        "presence",
    )

    def __init__(
        self, server: web.Server, context: FastPath, *, loop: asyncio.AbstractEventLoop, **limits: Any
    ) -> None:
        super().__init__(server, loop=loop, **limits)
        self._context = context
        self._idle_s = self.keepalive_timeout
        self._transport: asyncio.Transport | None = None
        self._outlet: FlowControl
        self._counted: tuple[str, ...] = ()
        """Whose connections this is one of."""
        self.presence = ClientPresence()
        self._fresh = True
        """Whether aiohttp was given nothing yet, and need not wait for anything."""
        self._aligned = True
        """Whether the next byte begins a request."""
        self._answering: asyncio.Future[None] | None = None
        """Somebody of ours is at work on a request, and what comes meanwhile waits in `_part`."""
        self._following: tuple[ImageRequest, bytes, float] | None = None
        """The request that waits in a crowd, its bytes, and since when."""
        self._alone = False
        """Whether the request at hand has waited in a crowd in vain."""
        self._part = b""
        """The beginning of a head whose rest has not come, or whole ones that have to wait."""
        self._held_up = False
        """Whether nothing is read, because enough waits."""
        self._rest = b""
        """What aiohttp has yet to be given of what has come. Nothing is read meanwhile."""
        self._stepping = False
        """Whether the next step will come: aiohttp asks for it with every chunk that is read."""
        self._loaded = False
        """Whether the bytes for the request at hand were brought already."""
        self._turns = 0
        """How often the request in `_part` has waited for aiohttp to be idle."""
        self._block = b""
        self._asked: RequestConditions | None = None
        """What `_block` says: most clients send the same fields with every request."""
        self._fields: CIMultiDict[str] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)
        if self._context.connection_limit is not None:
            peer = transport.get_extra_info("peername")
            counted = self._context.connection_limit.enter(peer[0] if isinstance(peer, tuple) else "")
            if counted is None:
                refuse_connection(transport)
                return
            self._counted = counted
        stall_timeout_s = self._context.stall_timeout_s
        self._outlet = FlowControl(transport, self._loop, stall_timeout_s=stall_timeout_s, taken=self._put_off_closing)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._outlet.end()
        self._transport, self._rest = None, b""
        self.presence.leave()
        if self._counted and self._context.connection_limit is not None:
            self._context.connection_limit.leave(self._counted)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._outlet.pause()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._put_off_closing()  # idle is who has all of the answer
        self._outlet.resume()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._part:
            data, self._part = self._part + data, b""
        if self._answering is not None:
            self._hold(data)
            return
        if self._aligned:
            start = 4 if data.startswith(_GET) else 5 if data.startswith(_HEAD) else 0
            end = data.find(_LINE_END, start)
            if start and end > 0 and data.endswith(_END):
                if not self._is_idle() and self._turns < TURNS_MAX:
                    self._turns += 1
                    self._part = data
                    self._loop.call_soon(self._try_again)
                    return
                self._turns = 0
                if self._quickly(data[start:end], data[end + len(_LINE_END) :], data, head=start == 5):
                    self._loaded = False
                    return
            elif _is_part(data):
                self._part = data
                return
            else:
                self._aligned = False
            self._fresh = self._loaded = False
        self._feed(data)

    def disable_fast_path(self) -> None:
        """Leave all requests to come to aiohttp."""
        self._aligned = False
        self._try_again()

    def log_exception(self, *args: Any, **how: Any) -> None:
        """Log what nobody foresaw: not that a body is other than it was said to be, which anybody can send."""
        if not isinstance(how.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **how)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """HttpResponse what the parser refuses. Its own answer and its log record have the bytes of the request in them."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        response = refuse(self._context.access_log, request, status)
        response.force_close()
        response.headers["Connection"] = "close"  # which aiohttp leaves out
        return response

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """Close, once what was written is sent, or after `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._answering is not None:
                    await asyncio.wait([self._answering])
                await self._outlet.drain()
        if isinstance(self._answering, asyncio.Task):
            self._answering.cancel()
        await super().shutdown(timeout)

    def _quickly(self, target: bytes, block: bytes, data: bytes, *, head: bool) -> bool:
        """HttpResponse the request `data`, at once or as soon as its bytes are there. `block` follows the request line."""
        if block != self._block:
            self._block, self._asked, self._fields = block, read_fields(block, self._context.own_hosts), None
        asked, transport = self._asked, self._transport
        if asked is None:
            self._aligned = False
            return False
        if transport is not None and not self._outlet.busy and self._is_idle():
            context = self._context
            start = context.timer()
            answer = context.response_cache.find(target, start)
            if answer is not None:
                written = context.response_cache.write(answer, asked, transport, start, head=head)
                if written is not None:
                    self._next_keepalive_close_time = self._loop.time() + self._idle_s
                    self._tell(answer, written, "HEAD" if head else "GET", context.timer() - start)
                    return True
                loading = None if self._loaded else answer.cache_entry.load()
                if loading is not None:
                    self._wait_for(loading, data)
                    return True
            found = context.handlers.find_handler(target)
            if found is not None and len(target) <= self.max_line_size and _TARGET.fullmatch(target):
                ask = self._make_ask(found[1], found[2], target, head=head)
                alike = asked is PLAIN and not head and not self._alone and not _PASSED_ON.search(block)
                if not (alike and self._join(ask, target, data, start)):
                    crowd = SharedResponse(ask.request_log) if alike else None
                    if crowd is not None:
                        context.shared_responses[target] = crowd
                    self._answering = self._loop.create_task(self._answer(ask, found[0], start, crowd))
                return True
        self._aligned = _TARGET.fullmatch(target) is not None
        return False

    def _wait_for(self, loading: Awaitable[None], data: bytes) -> None:
        """Look at a request again, once, when the bytes for it were brought."""
        self._answering = asyncio.ensure_future(loading)
        self._answering.add_done_callback(partial(self._look_again, data))

    def _look_again(self, data: bytes, _loading: asyncio.Future[None]) -> None:
        self._part = data + self._part
        self._loaded = True
        self._go_on()

    def _feed(self, data: bytes) -> None:
        """Give aiohttp what has come, step by step."""
        if not data or (
            not self._rest and len(data) <= PARSE_STEP_BYTES and self._context.parse_budget.take(len(data))
        ):
            super().data_received(data)
            return
        if len(data) > PARSE_STEP_BYTES:
            self._aligned = False
        self._rest += data
        self._pause_transport_reading()
        self._resume_transport_reading()

    def _step(self) -> int:
        """Give aiohttp the next bytes; return how many it has to parse."""
        self._stepping = False
        transport = self._transport
        if transport is None or transport.is_closing():
            self._rest = b""
        if not self._rest or self._is_full():
            return 0  # aiohttp calls `_resume_transport_reading` when it can take more
        size = self._find_step()
        data, self._rest = self._rest[:size], self._rest[size:]
        super().data_received(data)
        if not self._is_full():
            self._resume_transport_reading()
        return min(len(data), PARSE_STEP_BYTES)

    def _is_full(self) -> bool:
        """Whether aiohttp can take no more for now."""
        return self._reading_paused or self._buffer_paused

    def _resume_transport_reading(self) -> None:
        if not self._rest:
            super()._resume_transport_reading()
        elif not self._stepping:
            self._stepping = True
            self._context.parse_budget.wait(self._step)

    def _find_step(self) -> int:
        """Return how many of the next bytes may be parsed at once."""
        request = self._current_request
        if request is None or request.content_length is None or request.content.is_eof():
            return PARSE_STEP_BYTES
        return max(PARSE_STEP_BYTES, request.content_length - request.content.total_bytes)

    def _hold(self, data: bytes) -> None:
        """Keep what came too early, within limits."""
        self._part = data
        if len(data) > HEAD_BYTES_MAX and not self._held_up and self._transport is not None:
            self._held_up = True
            self._transport.pause_reading()

    def _go_on(self) -> None:
        """The request at hand was answered, or has to be looked at again."""
        self._answering = None
        self._put_off_closing()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._held_up:
            self._held_up = False
            transport.resume_reading()
        if self._part:
            self.data_received(b"")

    def _make_ask(self, route: str, name: str, target: bytes, *, head: bool) -> ImageRequest:
        remote, fields = self._read_peer()
        return ImageRequest(
            route=route,
            name=name,
            head=head,
            target=target.decode("utf-8", "surrogateescape"),
            fields=fields,
            remote=remote,
            accepts_chunked=True,
            request_log=RequestLog(),
            presence=self.presence,
        )

    def _read_peer(self) -> tuple[str, CIMultiDict[str]]:
        """Return the address of the peer, and the fields of its request."""
        if self._fields is None:
            self._fields = CIMultiDict(list_fields(self._block))
        peer = self.peername
        return peer[0] if isinstance(peer, tuple) else "", self._fields

    def _join(self, ask: ImageRequest, target: bytes, data: bytes, start: float) -> bool:
        """Follow whoever asks for the same already."""
        crowd = self._context.shared_responses.get(target)
        if crowd is None:
            return False
        self._answering, self._following = crowd.over, (ask, data, start)
        if crowd.join(self):
            return True
        self._answering = self._following = None
        return False

    def follow(self, answer: HttpResponse | None, request_log: RequestLog) -> None:
        """HttpResponse the request that waits in a crowd as its leader's was, or by itself."""
        assert self._following is not None
        (ask, data, start), self._following = self._following, None
        if answer is None:
            self._alone = True
            self._part = data + self._part
            self._go_on()
            self._alone = False
            return
        ask.request_log = replace(request_log, sent=0)
        part = answer.body
        if isinstance(part, BodyRange):
            assert part.growing is not None
            part.growing.hold()
            ask.request_log.outcome = CacheStatus.COLLAPSED.value
        self._answering = self._loop.create_task(self._send_and_tell(ask, answer, start))

    async def _answer(self, ask: ImageRequest, handler: Handler, start: float, crowd: SharedResponse | None) -> None:
        """Have a request answered by `handler`."""
        answer, left = None, False
        try:
            answer = await handler(ask)
        except ConnectionError:
            left = True  # so those who wait for the same answer have to ask themselves
        except Exception as error:  # noqa: BLE001 - `error_response` logs what nobody foresaw
            answer = error_response(error, ask.request_log)
        finally:
            if crowd is not None:
                if answer is None or not isinstance(answer.body, BodyRange) or answer.body.growing is None:
                    self._disperse(ask, crowd)
                crowd.lead(answer)
        try:
            if answer is not None:
                await self._send_and_tell(ask, answer, start)
            elif left:
                ask.request_log.code = "client_left"
                self._note(ask, CLIENT_LEFT, start)
        finally:
            if crowd is not None:
                self._disperse(ask, crowd)

    def _disperse(self, ask: ImageRequest, crowd: SharedResponse) -> None:
        """Nobody joins a crowd any more."""
        target = ask.target.encode("utf-8", "surrogateescape")
        if self._context.shared_responses.get(target) is crowd:
            del self._context.shared_responses[target]

    async def _send_and_tell(self, ask: ImageRequest, answer: HttpResponse, start: float) -> None:
        """Send an answer, and tell of it."""
        status = CLIENT_LEFT
        try:
            if await self._send(ask, answer):
                status = answer.status
        finally:
            self._note(ask, status, start)
            self._go_on()

    def _note(self, ask: ImageRequest, status: int, start: float) -> None:
        """Count an answer, and write its record."""
        method = "HEAD" if ask.head else "GET"
        seconds = self._context.timer() - start
        self._context.access_log.note((ask.remote, ask.fields), method, ask.route, ask.request_log, status, seconds)

    async def _send(self, ask: ImageRequest, answer: HttpResponse) -> bool:
        """Send an answer; return whether anybody was there to get it."""
        transport, part = self._transport, answer.body
        if transport is None or transport.is_closing():
            ask.request_log.code = "client_left"
            if isinstance(part, BodyRange):
                await part.body.aclose()
            return False
        if answer.status >= HTTPStatus.BAD_REQUEST:
            answer = present_failure(answer, "HEAD" if ask.head else "GET", ask.fields, self._context.placeholder)
            part = answer.body
        head = encode_response_head(answer, self._context.response_cache.sign(self._context.timer()), head=ask.head)
        if isinstance(part, BodyRange):
            await self._send_part(ask, transport, head, part)
        elif part and not ask.head:
            transport.writelines((head, part))
            ask.request_log.sent = len(part)
        else:
            transport.write(head)
        return True

    async def _send_part(self, ask: ImageRequest, transport: asyncio.Transport, head: bytes, part: BodyRange) -> None:
        """Send a part of a body at the client's own speed. The outlet sees to it that there is any."""
        outlet, chunked = self._outlet, part.end is None
        offset, piece = part.start, part.first
        try:
            transport.writelines((head, *_framed(piece, chunked=chunked)))
            offset += len(piece)
            while piece and offset != part.end:
                if outlet.busy:
                    await outlet.drain()
                piece = await self.presence.wait(part.read(offset))
                if transport.is_closing():
                    ask.request_log.code = "client_left"
                    return
                transport.writelines(_framed(piece, chunked=chunked))
                offset += len(piece)
        except Exception as error:
            # The status is long gone; a connection that breaks is the one thing left that every client understands.
            transport.abort()
            if isinstance(error, ImgkeepError):
                ask.request_log.fail_with(error)
            elif isinstance(error, ConnectionError):
                ask.request_log.code = "client_left"
            else:
                ask.request_log.code = "internal_error"
                log.exception("unforeseen error")
        finally:
            ask.request_log.sent = offset - part.start
            await part.body.aclose()

    def _is_idle(self) -> bool:
        """Whether nobody has anything to answer."""
        if self._answering is not None:
            return False
        waiter = self._waiter
        return self._fresh or (waiter is not None and not waiter.done())

    def _try_again(self) -> None:
        data, self._part = self._part, b""
        if data and self._transport is not None:
            self.data_received(data)

    def _put_off_closing(self) -> None:
        self._next_keepalive_close_time = self._loop.time() + self._idle_s

    def _process_keepalive(self) -> None:
        """Close what has been idle for too long: not whom we are answering ourselves."""
        if self._answering is not None:
            self._put_off_closing()
        super()._process_keepalive()

    def _tell(self, answer: CachedResponse, written: tuple[int, int], method: str, seconds: float) -> None:
        """Count the answer, and write its record."""
        context = self._context
        status, size = written
        if context.access_log.enabled:
            request_log = RequestLog(answer.key, "hit", sent=size)
            context.access_log.note(self._read_peer(), method, answer.route, request_log, status, seconds)
        else:
            context.access_log.metrics.answered(answer.route, "hit", status, size, seconds)


def refuse(access_log: AccessLog, request: web.BaseRequest, status: int) -> web.Response:
    """HttpResponse a request of which nothing is used but who sent it, and count it."""
    request_log = RequestLog()
    answer = parser_error_response(status, request_log)
    assert isinstance(answer.body, bytes)
    request_log.sent = len(answer.body)
    response = as_aiohttp_response(answer)
    response.headers["Server"] = SERVER_NAME
    access_log.note((request.remote or "", CIMultiDict()), "-", "unmatched", request_log, status, 0.0)
    return response


def _framed(piece: bytes, *, chunked: bool) -> tuple[bytes, ...]:
    """Return a piece as it goes over the wire; an empty one is the last (RFC 9112, 7.1)."""
    if not chunked:
        return (piece,)
    return (b"%x\r\n" % len(piece), piece, b"\r\n") if piece else (b"0\r\n\r\n",)


def _is_part(data: bytes) -> bool:
    """Whether this may be the beginning of a head that can be answered quickly."""
    if len(data) < len(_HEAD):
        return _GET.startswith(data) or _HEAD.startswith(data)
    return data.startswith((_GET, _HEAD)) and _END not in data and len(data) <= HEAD_BYTES_MAX
