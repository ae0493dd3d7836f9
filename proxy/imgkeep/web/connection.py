"""
A client's connection, within limits: how many connections there are, how slowly a client may read, and how much of what
it sends is parsed at once. These hold for every request, on the fast path or not.

aiohttp parses whatever has arrived at once. 256 KiB may be 43,000 chunks of a body that no handler reads, and as many
calls into Python: half a second without another iteration of the event loop, for each connection that sends such
bytes. So aiohttp gets them in steps (`parse_budget.py`), and meanwhile the connection reads nothing more.

This module and `fastpath/protocol.py` are the only ones that use private names of aiohttp: here `_current_request`, and
`_pause_transport_reading` with `_resume_transport_reading`, by which aiohttp stops reading, as `_reading_paused` and
`_buffer_paused` tell; and `_next_keepalive_close_time`, when aiohttp closes an idle connection.
`tests/web/fastpath/test_protocol.py` fails when an upgrade changes what they mean.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web
from multidict import CIMultiDict

from imgkeep.web.aiohttp_adapter import STALL_TIMEOUT_S, as_aiohttp_response
from imgkeep.web.client_presence import ClientPresence
from imgkeep.web.connection_limit import refuse_connection
from imgkeep.web.error_to_problem import parser_error_response
from imgkeep.web.flow_control import FlowControl
from imgkeep.web.image_headers import SERVER_NAME
from imgkeep.web.parse_budget import PARSE_STEP_BYTES, ParseBudget
from imgkeep.web.request_state import RequestLog

if TYPE_CHECKING:
    from imgkeep.web.access_log import AccessLog
    from imgkeep.web.connection_limit import ConnectionLimit


@dataclass(frozen=True, slots=True)
class ConnectionContext:
    """
    The state that the connections of a server share.

    Attributes:
        connection_limit: `None`: clients may hold any number of connections.
        stall_timeout_s: Timeout for a client that reads nothing.
    """

    access_log: AccessLog
    connection_limit: ConnectionLimit | None
    stall_timeout_s: float = STALL_TIMEOUT_S
    parse_budget: ParseBudget = field(default_factory=ParseBudget)


CONNECTIONS: Final = web.AppKey("connections", ConnectionContext)


class Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_context",
        "_flow",
        "_idle_timeout_s",
        "_is_step_due",
        "_networks",
        "_transport",
        "_unparsed",
        "presence",
    )

    def __init__(
        self, server: web.Server, context: ConnectionContext, *, loop: asyncio.AbstractEventLoop, **limits: Any
    ) -> None:
        super().__init__(server, loop=loop, **limits)
        self._context = context
        self._idle_timeout_s = self.keepalive_timeout
        self._transport: asyncio.Transport | None = None
        self._flow: FlowControl
        self._networks: tuple[str, ...] = ()
        """The networks whose limits this connection counts against."""
        self.presence = ClientPresence()
        self._unparsed = b""
        """Bytes that aiohttp gets in later steps. Meanwhile the connection reads nothing."""
        self._is_step_due = False
        """Whether the next step is in the queue. aiohttp resumes reading with every chunk that a handler reads."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)
        if self._context.connection_limit is not None:
            peer = transport.get_extra_info("peername")
            networks = self._context.connection_limit.acquire(peer[0] if isinstance(peer, tuple) else "")
            if networks is None:
                refuse_connection(transport)
                return
            self._networks = networks
        self._flow = FlowControl(
            transport,
            self._loop,
            stall_timeout_s=self._context.stall_timeout_s,
            on_progress=self._postpone_closing,
        )
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._flow.end()
        self._transport, self._unparsed = None, b""
        self.presence.leave()
        if self._networks and self._context.connection_limit is not None:
            self._context.connection_limit.release(self._networks)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._flow.pause()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._postpone_closing()  # a client is idle once it has read the whole response
        self._flow.resume()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Give aiohttp bytes, step by step if they are many."""
        budget = self._context.parse_budget
        if not data or (not self._unparsed and len(data) <= PARSE_STEP_BYTES and budget.spend(len(data))):
            super().data_received(data)
            return
        self._unparsed += data
        self._pause_transport_reading()
        self._resume_transport_reading()

    def log_exception(self, *args: Any, **how: Any) -> None:
        """Log errors of this program. A body that is not what its head says is none: any client can send one."""
        if not isinstance(how.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **how)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what the parser refuses. aiohttp's own response and log record would quote the request."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        response = refuse_request(self._context.access_log, request, status)
        response.force_close()
        response.headers["Connection"] = "close"  # which aiohttp leaves out
        return response

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """Close when the responses under way are sent, or after `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._finish_responses()
                await self._flow.drain()
        await super().shutdown(timeout)

    async def _finish_responses(self) -> None:
        """Wait for responses that aiohttp knows nothing of."""

    def _step(self) -> int:
        """Give aiohttp the next bytes; return how many it has to parse."""
        self._is_step_due = False
        transport = self._transport
        if transport is None or transport.is_closing():
            self._unparsed = b""
        if not self._unparsed or self._is_full():
            return 0  # aiohttp calls `_resume_transport_reading` when it can take more
        size = self._find_step_size()
        data, self._unparsed = self._unparsed[:size], self._unparsed[size:]
        super().data_received(data)
        if not self._is_full():
            self._resume_transport_reading()
        return min(len(data), PARSE_STEP_BYTES)

    def _is_full(self) -> bool:
        """Tell whether aiohttp can take no more for now."""
        return self._reading_paused or self._buffer_paused

    def _resume_transport_reading(self) -> None:
        if not self._unparsed:
            super()._resume_transport_reading()
        elif not self._is_step_due:
            self._is_step_due = True
            self._context.parse_budget.enqueue(self._step)

    def _find_step_size(self) -> int:
        """Return how many of the next bytes may be parsed at once."""
        request = self._current_request
        if request is None or request.content_length is None or request.content.is_eof():
            return PARSE_STEP_BYTES
        return max(PARSE_STEP_BYTES, request.content_length - request.content.total_bytes)

    def _postpone_closing(self) -> None:
        """Count the time that a connection may be idle from now on."""
        self._next_keepalive_close_time = self._loop.time() + self._idle_timeout_s


def refuse_request(access_log: AccessLog, request: web.BaseRequest, status: int) -> web.Response:
    """Answer a request of which the server has read nothing but its sender, and count it."""
    request_log = RequestLog()
    response = parser_error_response(status, request_log)
    assert isinstance(response.body, bytes)
    request_log.sent = len(response.body)
    refusal = as_aiohttp_response(response)
    refusal.headers["Server"] = SERVER_NAME
    access_log.note((request.remote or "", CIMultiDict()), "-", "unmatched", request_log, status, 0.0)
    return refusal
