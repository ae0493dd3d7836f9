"""
Connections: the quick way of answering in front of aiohttp's, on the same socket.

A connection hears bytes before aiohttp's parser does. Where they are one whole request whose answer is prepared, it is
written at once, and aiohttp never knows. Everything else goes to aiohttp as it came.

Two things must never happen, and each has its rule:
- An answer gets ahead of an earlier one. So the quick way is taken only while aiohttp waits for a request (`_waiter`)
  and nothing is left to send.
- Bytes that belong to one request are taken for the next. So the quick way is closed for good once aiohttp was given
  anything that is not certainly one whole request without a body.

This is the one module that knows private attributes of aiohttp: `_waiter`, which is pending while a connection is idle,
and `_next_keepalive_close_time`, when an idle one is closed. `tests/web/test_connection.py` fails when an upgrade
changes what they mean.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web
from multidict import CIMultiDict

from proxy.core.headers import client_address
from proxy.core.request import list_fields, read_fields
from proxy.web.delivery import limit_kernel_buffer
from proxy.web.records import record
from proxy.web.site import SITE

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from proxy.core.request import Asked
    from proxy.web.prepared import Prepared
    from proxy.web.site import Site

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


class Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_aligned",
        "_asked",
        "_block",
        "_fresh",
        "_idle_s",
        "_loaded",
        "_part",
        "_sending",
        "_sent",
        "_site",
        "_stall",
        "_transport",
        "_turns",
    )

    def __init__(self, server: Connections, *, loop: asyncio.AbstractEventLoop, **limits: Any) -> None:
        super().__init__(server, loop=loop, **limits)
        self._site = server.site
        self._idle_s = self.keepalive_timeout
        self._transport: asyncio.Transport | None = None
        self._fresh = True
        """Whether aiohttp was given nothing yet, and need not wait for anything."""
        self._aligned = True
        """Whether the next byte begins a request."""
        self._part = b""
        """The beginning of a head whose rest has not come, or a whole one that has to wait."""
        self._loaded = False
        """Whether the bytes for the request at hand were brought already."""
        self._turns = 0
        """How often the request in `_part` has waited for aiohttp to be idle."""
        self._block = b""
        self._asked: Asked | None = None
        """What `_block` says: most clients send the same fields with every request."""
        self._sending = False
        self._sent: asyncio.Future[None] | None = None
        """Somebody waits for the end of what is being sent."""
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=0)  # so that we are told of anything that is not sent at once
        limit_kernel_buffer(self._transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._calm()
        self._transport = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._sending = True
        if self._transport is not None:
            self._watch(self._transport)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._next_keepalive_close_time = self._loop.time() + self._idle_s  # idle is who has all of the answer
        self._calm()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._aligned:
            if self._part:
                data, self._part = self._part + data, b""
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
        super().data_received(data)

    def pass_on(self) -> None:
        """Take the long way from now on."""
        self._aligned = False
        self._try_again()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """Close, once what was written is sent, or after `timeout` seconds."""
        if self._sending:
            self._sent = self._loop.create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._sent
        await super().shutdown(timeout)

    def _quickly(self, target: bytes, block: bytes, data: bytes, *, head: bool) -> bool:
        """Answer the request `data`, at once or as soon as its bytes are there. `block` follows the request line."""
        if block != self._block:
            self._block, self._asked = block, read_fields(block)
        asked, transport = self._asked, self._transport
        if asked is None:
            self._aligned = False
            return False
        if transport is not None and not self._sending and self._is_idle():
            site = self._site
            start = site.timer()
            answer = site.prepared.find(target, start)
            if answer is not None:
                written = site.prepared.write(answer, asked, transport, start, head=head)
                if written is not None:
                    self._next_keepalive_close_time = self._loop.time() + self._idle_s
                    self._tell(answer, written, "HEAD" if head else "GET", site.timer() - start)
                    return True
                loading = None if self._loaded else answer.at_hand.load()
                if loading is not None:
                    self._wait_for(loading, data, transport)
                    return True
        self._aligned = _TARGET.fullmatch(target) is not None
        return False

    def _wait_for(self, loading: Awaitable[None], data: bytes, transport: asyncio.Transport) -> None:
        """Look at a request again, once, when the bytes for it were brought; nothing is read meanwhile."""
        transport.pause_reading()
        self._next_keepalive_close_time = self._loop.time() + self._idle_s  # which is more than a disk may take
        asyncio.ensure_future(loading).add_done_callback(partial(self._look_again, data))

    def _look_again(self, data: bytes, _loading: asyncio.Future[None]) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._loaded = True
            transport.resume_reading()
            self.data_received(data)

    def _is_idle(self) -> bool:
        """Whether aiohttp has nothing to answer."""
        waiter = self._waiter
        return self._fresh or (waiter is not None and not waiter.done())

    def _try_again(self) -> None:
        data, self._part = self._part, b""
        if data and self._transport is not None:
            self.data_received(data)

    def _tell(self, answer: Prepared, written: tuple[int, int], method: str, seconds: float) -> None:
        """Count the answer, and write its record."""
        site = self._site
        status, size = written
        site.meter.answered(answer.route, "hit", status, size, seconds)
        if site.access_log:
            fields = CIMultiDict(list_fields(self._block))
            peer = self.peername
            client = client_address(peer[0] if isinstance(peer, tuple) else "", fields, site.door.trusted_proxies)
            record(str(client), method, answer.route, answer.key, "hit", status, size, seconds)

    def _watch(self, transport: asyncio.Transport) -> None:
        """Break off when the client takes nothing for too long."""
        timeout_s = self._site.stall_timeout_s
        self._stall = self._loop.call_later(timeout_s, self._check, transport, transport.get_write_buffer_size())

    def _check(self, transport: asyncio.Transport, size: int) -> None:
        if transport.get_write_buffer_size() >= size:
            transport.abort()
            return
        self._next_keepalive_close_time = self._loop.time() + self._idle_s
        self._watch(transport)

    def _calm(self) -> None:
        """Nothing is left to send, or nobody to send it to."""
        self._sending = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._sent is not None and not self._sent.done():
            self._sent.set_result(None)


def _is_part(data: bytes) -> bool:
    """Whether this may be the beginning of a head that can be answered quickly."""
    if len(data) < len(_HEAD):
        return _GET.startswith(data) or _HEAD.startswith(data)
    return data.startswith((_GET, _HEAD)) and _END not in data and len(data) <= HEAD_BYTES_MAX


class Connections(web.Server):
    """Makes connections for the requests that `base` handles."""

    def __init__(self, base: web.Server, site: Site, **limits: Any) -> None:
        super().__init__(base.request_handler, request_factory=base.request_factory)
        self.site = site
        self._limits = limits

    def pass_on(self) -> None:
        """Have all requests on the connections there are go the long way, where an answer can end its connection."""
        for connection in self.connections:
            assert isinstance(connection, Connection)
            connection.pass_on()

    def __call__(self) -> Connection:
        return Connection(self, loop=asyncio.get_running_loop(), **self._limits)


class Runner(web.AppRunner):
    """Runs an application behind our connections."""

    def __init__(self, app: web.Application, *, shutdown_timeout: float, **limits: Any) -> None:
        super().__init__(app, shutdown_timeout=shutdown_timeout, **limits)
        self._limits = limits
        self._shutdown_timeout_s = shutdown_timeout
        self._connections: Connections | None = None

    @property
    def server(self) -> Connections | None:
        base = super().server
        if base is not None and self._connections is None:
            self._connections = Connections(base, self.app[SITE], **self._limits)
        return self._connections

    async def shutdown(self) -> None:
        server = self.server
        if server is not None:
            server.pre_shutdown()
        await super().shutdown()
        if server is not None:
            await server.shutdown(self._shutdown_timeout_s)
