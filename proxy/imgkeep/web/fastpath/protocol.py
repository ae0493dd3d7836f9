"""
The fast path: a connection that answers plain requests for images in front of aiohttp, on the same socket.

A connection sees bytes before aiohttp's parser does. If they are one whole plain request for an image, the fast path
answers it: from the response cache at once, or through the handlers of `images.py`. It passes all other requests to
aiohttp unchanged. `states.py` holds the states of a connection and its rules; this module finds out which event has
happened.

Rules:
- Responses keep the order of their requests: the fast path begins a request only while aiohttp waits for one
  (`_waiter`), no handler of the fast path is running, and no bytes wait to be sent.
- The fast path never takes bytes of one request for the next: `request_head.py` reads only bytes that are certainly one
  whole request without a body. After any other bytes, aiohttp gets all later bytes of the connection.

Besides `web/connection.py` this is the one module that uses private names of aiohttp: `_waiter`, which is pending while
a connection is idle, `_next_keepalive_close_time`, when aiohttp closes an idle connection, and `_process_keepalive`,
which closes it. `tests/web/fastpath/test_protocol.py` fails when an upgrade changes what they mean.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from imgkeep.images.request_context import CacheStatus
from imgkeep.web.access_log import CLIENT_LEFT
from imgkeep.web.connection import Connection
from imgkeep.web.error_to_problem import error_response
from imgkeep.web.fastpath.request_head import (
    GET,
    HEAD,
    HEAD_BYTES_MAX,
    HEAD_END,
    LINE_END,
    TARGET,
    PlainRequest,
    RequestFields,
    is_part_of_head,
)
from imgkeep.web.fastpath.response_variants import join_variant, may_vary
from imgkeep.web.fastpath.states import BUSY, TRANSITIONS, Event, State, next_state
from imgkeep.web.request_response import BodyRange, ImageRequest
from imgkeep.web.request_state import RequestLog

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiohttp import web
    from multidict import CIMultiDict

    from imgkeep.web.connection import ConnectionContext
    from imgkeep.web.fastpath.fast_path import FastPath
    from imgkeep.web.fastpath.response_cache import CachedResponse
    from imgkeep.web.fastpath.response_coalescing import SharedResponse
    from imgkeep.web.images import Handler
    from imgkeep.web.request_response import HttpResponse

WAITING_BYTES_MAX: Final = HEAD_BYTES_MAX
"""Maximum number of bytes that wait behind a running request; with more, the connection stops reading."""
WAITING_ITERATIONS_MAX: Final = 3
"""
Maximum number of iterations of the event loop for which a request waits for aiohttp. A client may send it before
aiohttp, which has sent the last byte, waits again. Without these iterations aiohttp would often answer it too.
"""

# Reading a member of an enum costs as much as a lookup in the response cache.
_READY: Final = State.READY
_HIT: Final = CacheStatus.HIT.value


class FastConnection(Connection):
    """One client's connection, on which plain requests for images bypass aiohttp."""

    __slots__ = ("_buffer", "_fast_path", "_fields", "_iterations_waited", "_state", "_work")

    def __init__(
        self,
        server: web.Server,
        context: ConnectionContext,
        fast_path: FastPath,
        *,
        loop: asyncio.AbstractEventLoop,
        **limits: Any,
    ) -> None:
        super().__init__(server, context, loop=loop, **limits)
        self._fast_path = fast_path
        self._state = _READY
        self._work: asyncio.Future[None] | None = None
        """The future for which a busy connection waits."""
        self._buffer = b""
        """Bytes that wait: a part of a head, or requests behind the running one."""
        self._iterations_waited = 0
        """Number of iterations for which the request in `_buffer` has waited for aiohttp."""
        self._fields = RequestFields()
        """Header fields of the last request: most clients send the same fields with every request."""

    def connection_lost(self, exc: BaseException | None) -> None:
        self._move(Event.LOST)
        self._buffer = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        state = self._state
        if not data:
            super().data_received(data)  # aiohttp gives its parser the bytes that it holds
        elif state is _READY:
            self._receive_request(data)
        elif state is State.READING_HEAD:
            data, self._buffer = self._buffer + data, b""
            self._move(Event.BYTES_ARRIVED)
            self._receive_request(data)
        elif state is State.WAITING or state in BUSY:
            self._hold(data)
        else:
            super().data_received(data)

    def disable_fast_path(self) -> None:
        """Hand all later requests to aiohttp; a busy connection does so when its request is answered."""
        if Event.HANDED_OVER in TRANSITIONS[self._state]:
            self._move(Event.HANDED_OVER)
            self._take_buffer()

    def close(self) -> None:
        """Begin the request that waits for aiohttp, which drops all bytes after this; then close as aiohttp does."""
        if self._state is State.WAITING:
            self._iterations_waited = WAITING_ITERATIONS_MAX
            self._look_again()
        super().close()

    def _process_keepalive(self) -> None:
        """Close a connection that has been idle for too long, but none that the fast path is answering on."""
        if self._state in BUSY:
            self._postpone_closing()
        super()._process_keepalive()

    async def _finish_responses(self) -> None:
        try:
            while self._work is not None:
                await asyncio.wait([self._work])
        finally:
            if isinstance(self._work, asyncio.Task):
                self._work.cancel()

    # --- bytes that arrive

    def _receive_request(self, data: bytes) -> None:
        """Answer bytes that are one whole plain request; wait for the rest of a head; hand anything else over."""
        start = len(GET) if data.startswith(GET) else len(HEAD) if data.startswith(HEAD) else 0
        end = data.find(LINE_END, start)
        if start and end > 0 and data.endswith(HEAD_END):
            idle = self._is_aiohttp_idle()
            if not idle and self._iterations_waited < WAITING_ITERATIONS_MAX:
                self._wait_for_aiohttp(data)
                return
            self._iterations_waited = 0
            target, block = data[start:end], data[end + len(LINE_END) :]
            if self._answer(target, block, data, head=start == len(HEAD), idle=idle):
                return
        elif is_part_of_head(data):
            self._buffer = data
            self._move(Event.HEAD_CUT)
            return
        else:
            self._move(Event.HANDED_OVER)
        super().data_received(data)

    def _wait_for_aiohttp(self, data: bytes) -> None:
        self._iterations_waited += 1
        self._buffer = data
        self._move(Event.AIOHTTP_BUSY)
        self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        """Repeat the decision about a request that has waited for aiohttp, and about the bytes behind it."""
        if self._state is State.WAITING:
            self._move(Event.LOOP_ITERATED)
            self._take_buffer()

    def _hold(self, data: bytes) -> None:
        """Keep bytes that arrived too early, and stop reading above `WAITING_BYTES_MAX`."""
        self._buffer += data
        if len(self._buffer) > WAITING_BYTES_MAX and self._state in BUSY and self._transport is not None:
            self._transport.pause_reading()

    def _take_buffer(self) -> None:
        data, self._buffer = self._buffer, b""
        if data and self._transport is not None and not self._transport.is_closing():
            self.data_received(data)

    def _is_aiohttp_idle(self) -> bool:
        """Tell whether aiohttp waits for a request, and has parsed all of its bytes."""
        waiter = self._waiter
        return waiter is not None and not waiter.done() and not self._unparsed

    # --- requests

    def _answer(self, target: bytes, block: bytes, data: bytes, *, head: bool, idle: bool) -> bool:
        """
        Answer a request, now or later; return whether the fast path answers it.

        `data` is the whole request, `block` the part behind the request line. `head`: its method is HEAD; `idle`:
        aiohttp waits for a request.
        """
        if block != self._fields.block:
            self._fields = RequestFields(block, self._fast_path.own_hosts)
        if self._fields.conditions is None:
            self._move(Event.HANDED_OVER)
            return False
        if idle and not self._flow.busy:
            now = self._fast_path.timer()
            cached = self._fast_path.response_cache.find(target, now, self._fields)
            if cached is not None and self._write_cached(cached, now, now, head=head):
                return True
            if self._answer_later(PlainRequest(data, target, head, now), cached):
                return True
        if TARGET.fullmatch(target) is None:
            self._move(Event.HANDED_OVER)
        return False

    def _answer_later(
        self, request: PlainRequest, cached: CachedResponse | None, *, loaded: bool = False, alone: bool = False
    ) -> bool:
        """
        Start to answer a request for which no bytes are in memory; return whether the fast path can.

        `cached` is its response, if that is in the cache. `loaded`: the bytes of `cached` were loaded once already;
        `alone`: the request has followed a shared response that only its leader may get.
        """
        loading = None if cached is None or loaded else cached.cache_entry.load()
        if loading is not None:
            self._load(request, loading)
            return True
        target = request.target
        found = self._fast_path.handlers.find_handler(target)
        if found is None or len(target) > self.max_line_size or TARGET.fullmatch(target) is None:
            return False
        handler, route, name = found
        image_request = self._make_image_request(request, route, name)
        shared = None
        if not alone and not request.head and self._fields.are_shareable():
            response_name = join_variant(target, self._fields.client_class) if may_vary(target) else target
            shared = self._fast_path.shared_responses.find(response_name)
            if shared is not None:
                self._follow(shared, request, image_request)
                return True
            shared = self._fast_path.shared_responses.begin(response_name, image_request.request_log)
        self._move(Event.HANDLER_STARTED)
        self._work = self._loop.create_task(self._handle(image_request, handler, request.start, shared))
        return True

    def _answer_again(self, request: PlainRequest, *, loaded: bool = False, alone: bool = False) -> None:
        """Answer a request after its bytes were loaded, or after its shared response was the leader's alone."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._state is _READY:
            now = self._fast_path.timer()
            cached = self._fast_path.response_cache.find(request.target, now, self._fields)
            written = cached is not None and self._write_cached(cached, request.start, now, head=request.head)
            if not written and not self._answer_later(request, cached, loaded=loaded, alone=alone):
                super().data_received(request.data)
        elif self._state is State.HANDED_OVER:
            super().data_received(request.data)
        if self._state not in BUSY:
            self._take_buffer()

    def _write_cached(self, cached: CachedResponse, start: float, now: float, *, head: bool) -> bool:
        """Write a cached response and log it; `False`: its bytes are not in memory, or its permission has ended."""
        transport, conditions, fast_path = self._transport, self._fields.conditions, self._fast_path
        assert transport is not None
        assert conditions is not None
        written = fast_path.response_writer.write_cached(cached, conditions, transport, now, head=head)
        if written is None:
            return False
        self._next_keepalive_close_time = self._loop.time() + self._idle_timeout_s  # one call less
        status, size = written
        seconds = fast_path.timer() - start
        if fast_path.access_log.enabled:
            request_log = RequestLog(cached.key, _HIT, sent=size)
            method = "HEAD" if head else "GET"
            fast_path.access_log.note(self._read_peer(), method, cached.route, request_log, status, seconds)
        else:
            fast_path.access_log.metrics.answered(cached.route, _HIT, status, size, seconds)
        return True

    def _load(self, request: PlainRequest, loading: Awaitable[None]) -> None:
        """Load the bytes of a cached response, then answer the request; once per request."""
        self._move(Event.LOAD_STARTED)
        self._work = asyncio.ensure_future(loading)
        self._work.add_done_callback(partial(self._use_loaded, request))

    def _use_loaded(self, request: PlainRequest, _loading: asyncio.Future[None]) -> None:
        self._end_work(Event.LOADED)
        self._answer_again(request, loaded=True)

    # --- handlers and shared responses

    def _make_image_request(self, request: PlainRequest, route: str, name: str) -> ImageRequest:
        remote, fields = self._read_peer()
        return ImageRequest(
            route=route,
            name=name,
            head=request.head,
            target=request.target.decode("utf-8", "surrogateescape"),
            fields=fields,
            remote=remote,
            accepts_chunked=True,
            request_log=RequestLog(),
            presence=self.presence,
        )

    def _read_peer(self) -> tuple[str, CIMultiDict[str]]:
        """Return the address of the client, and the fields of its request."""
        peer = self.peername
        return peer[0] if isinstance(peer, tuple) else "", self._fields.parse()

    def _follow(self, shared: SharedResponse, request: PlainRequest, image_request: ImageRequest) -> None:
        """Let a request wait for the response of a handler that works for another connection."""
        self._move(Event.FOLLOWED)
        self._work = shared.published
        shared.follow(partial(self._use_shared, request, image_request))

    def _use_shared(
        self, request: PlainRequest, image_request: ImageRequest, response: HttpResponse | None, leader_log: RequestLog
    ) -> None:
        """Answer a request with the response of its leader, or alone if that response is only for the leader."""
        if response is None:
            self._end_work(Event.NO_RESPONSE)
            self._answer_again(request, alone=True)
            return
        image_request.request_log = replace(leader_log, sent=0)
        if isinstance(response.body, BodyRange):
            assert response.body.growing is not None
            response.body.growing.hold()
            image_request.request_log.outcome = CacheStatus.COLLAPSED.value
        self._move(Event.RESPONSE_READY)
        self._work = self._loop.create_task(self._respond(image_request, response, request.start))

    async def _handle(
        self, request: ImageRequest, handler: Handler, start: float, shared: SharedResponse | None
    ) -> None:
        """Have a handler answer a request; share its response with the followers."""
        shared_responses = self._fast_path.shared_responses
        response = None
        try:
            response = await handler(request)
        except ConnectionError:
            request.request_log.code = "client_left"  # so each follower has to answer its request alone
        except Exception as error:  # noqa: BLE001 - `error_response` logs errors of this program
            response = error_response(error, request.request_log)
        finally:
            if shared is not None:
                shared_responses.publish(shared, response, varies=request.varies)
        try:
            if response is None:
                self._log(request, CLIENT_LEFT, start)
                if self._transport is not None:
                    self._transport.abort()
                self._end_work(Event.NO_RESPONSE)
            else:
                self._move(Event.RESPONSE_READY)
                await self._respond(request, response, start)
        finally:
            if shared is not None:
                shared_responses.end(shared)

    async def _respond(self, request: ImageRequest, response: HttpResponse, start: float) -> None:
        """Send a response, log it, and go on with the bytes that have arrived meanwhile."""
        status = CLIENT_LEFT
        try:
            if await self._fast_path.response_writer.send(request, response, self._transport, self._flow):
                status = response.status
        finally:
            self._log(request, status, start)
            self._end_work(Event.SENT)
            self._take_buffer()

    def _log(self, request: ImageRequest, status: int, start: float) -> None:
        """Count a response, and write its record."""
        method = "HEAD" if request.head else "GET"
        peer, seconds = (request.remote, request.fields), self._fast_path.timer() - start
        self._fast_path.access_log.note(peer, method, request.route, request.request_log, status, seconds)

    # --- states

    def _move(self, event: Event) -> None:
        self._state = next_state(self._state, event)

    def _end_work(self, event: Event) -> None:
        """Leave a busy state, and read on if too much waited."""
        self._work = None
        self._move(event)
        self._postpone_closing()
        if self._state is _READY and not self._fast_path.enabled:
            self._move(Event.HANDED_OVER)
        if len(self._buffer) > WAITING_BYTES_MAX and self._transport is not None:
            self._transport.resume_reading()
