"""
The listener of the peer API for other nodes: authenticates each request before anything else happens.

Rules:
- All that is refused gets one answer, whatever it is and whatever it asks for: 401 without a body, and the end of the
  connection. The reason is in the metrics alone.
- A connection has `HEAD_TIMEOUT_S` for its first request, and each request has `REQUEST_BYTES_MAX`: no route takes a
  body. So a stranger costs a socket for a moment.
- At most `STRANGERS_MAX` connections wait for their first good request, and as many are in their handshake. One more
  closes the oldest, so a flood keeps no peer out whose request comes with its connection.
- `CONNECTIONS_MAX` bounds the connections of peers: one more gets 503.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web

from imgkeep.cluster.nodes.authentication import ANSWER_FIELD, REQUEST_FIELD, RequestRefused
from imgkeep.core.errors import StorageError

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import AsyncGenerator, Callable, Sequence

    from imgkeep.cluster.nodes.authentication import RequestVerifier

HEAD_TIMEOUT_S: Final = 5.0
"""Timeout for the first good request on a connection, and for a TLS handshake before it."""
SHUTDOWN_TIMEOUT_S: Final = 1.0
"""Timeout for the other end to confirm the end of TLS."""
IDLE_TIMEOUT_S: Final = 65.0
"""Timeout for an idle connection of a peer."""
REQUEST_BYTES_MAX: Final = 4096
"""Maximum size of a request: a path and a field of at most 400 bytes each, and what an HTTP client adds."""
STRANGERS_MAX: Final = 256
"""Maximum number of connections without a good request."""
CONNECTIONS_MAX: Final = 4096
"""Maximum number of connections of peers: 256 for each process of the others (`peer_client.py`)."""
ACCEPT_RETRY_S: Final = 0.1
"""Interval of attempts to accept a connection after a failure."""

_REFUSAL: Final = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

_LIMITS: Final[dict[str, Any]] = {
    "access_log": None,
    "auto_decompress": False,
    "keepalive_timeout": IDLE_TIMEOUT_S,
    "lingering_time": 0,
    "max_line_size": REQUEST_BYTES_MAX,
    "max_field_size": REQUEST_BYTES_MAX,
}

_MAC: Final = web.RequestKey("mac", str)
"""The MAC of a request, which its answer proves to know."""


class PeerServer(web.Server):
    """
    Makes the connections, and gives the good requests to the server of an application.

    Args:
        base: That server.
        verifier: Authenticates requests.
        refused: Callback with the reason of each refusal.
    """

    def __init__(self, base: web.Server, verifier: RequestVerifier, refused: Callable[[str], None]) -> None:
        super().__init__(self._handle, request_factory=base.request_factory, handler_cancellation=True)
        self.refused = refused
        self.strangers: dict[PeerConnection, None] = {}
        """The connections without a good request, the oldest first."""
        self.peers: set[PeerConnection] = set()
        self._base = base
        self._verifier = verifier

    def __call__(self) -> PeerConnection:
        return PeerConnection(self, loop=asyncio.get_running_loop())

    def prove(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the proof to an answer."""
        response.headers[ANSWER_FIELD] = self._verifier.prove(request[_MAC], response.status)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast("PeerConnection", request.protocol)
        try:
            # A request with a body has no field, as no route takes one.
            fields = [] if request.body_exists else request.headers.getall(REQUEST_FIELD, [])
            request[_MAC] = self._verifier.verify(request.method, request.raw_path, fields)
        except RequestRefused as refusal:
            connection.refuse(refusal.reason)
        except StorageError:
            connection.refuse("time")
        else:
            if connection.accept():
                return await self._base.request_handler(request)
            self.refused("connections")
            busy = web.Response(status=503, headers={ANSWER_FIELD: self._verifier.prove(request[_MAC], 503)})
            busy.force_close()
            return busy
        return web.Response()  # which nothing sends


class PeerConnection(web.RequestHandler):
    """A connection that may be a peer's."""

    __slots__ = ("_server", "_timer", "_transport", "_unjudged")

    def __init__(self, server: PeerServer, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop=loop, **_LIMITS)
        self._server = server
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._unjudged = 0
        """How many bytes have come since the last good request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport = cast("asyncio.WriteTransport", transport)
        strangers = self._server.strangers
        strangers[self] = None
        self._timer = self._loop.call_later(HEAD_TIMEOUT_S, self._transport.abort)
        if len(strangers) > STRANGERS_MAX:
            oldest = next(iter(strangers))
            del strangers[oldest]
            self._server.refused("connections")
            oldest.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.strangers.pop(self, None)
        self._server.peers.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unjudged += len(data)
        if self._unjudged > REQUEST_BYTES_MAX:
            self.refuse("form")
        else:
            super().data_received(data)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Refuse what the parser refuses. aiohttp's own response would quote the request."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc, message)
        self.refuse("form")
        return web.Response()  # which nothing sends

    def abort(self) -> None:
        """End the connection without a word: a close waits for the other end in TLS."""
        if self._transport is not None:
            self._transport.abort()

    def accept(self) -> bool:
        """Note a good request; `False`: there are too many connections."""
        self._unjudged = 0
        if self not in self._server.peers:
            if len(self._server.peers) >= CONNECTIONS_MAX:
                return False
            self._server.strangers.pop(self, None)
            self._server.peers.add(self)
            if self._timer is not None:
                self._timer.cancel()
        return True

    def refuse(self, reason: str) -> None:
        """Send the one answer to all that is refused, and end the connection."""
        if self.transport is not None:
            self._server.refused(reason)
            self.transport.write(_REFUSAL)
            self.force_close()


class PeerListener:
    """
    Accepts the connections of a peer API, and takes them through their handshakes.

    An `asyncio.Server` shows none of those that are in their handshake, so nothing would bound their number.

    Args:
        server: Makes the connections.
        sockets: Listening sockets.
        ssl_context: The certificate of this node; `None`: it speaks plain HTTP.
    """

    def __init__(
        self, server: PeerServer, sockets: Sequence[socket.socket], ssl_context: ssl.SSLContext | None
    ) -> None:
        self._server = server
        self._sockets = sockets
        self._tls: dict[str, Any] = {}
        if ssl_context is not None:
            timeouts = {"ssl_handshake_timeout": HEAD_TIMEOUT_S, "ssl_shutdown_timeout": SHUTDOWN_TIMEOUT_S}
            self._tls = {"ssl": ssl_context, **timeouts}
        self._handshakes: dict[asyncio.Task[None], None] = {}
        """The connections in their handshake, the oldest first."""
        self._accepting = [asyncio.create_task(self._accept(sock)) for sock in sockets]

    async def drain(self, grace_s: float) -> None:
        """Accept no more connections, and let running responses end, within `grace_s`."""
        tasks = [*self._accepting, *self._handshakes]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._accepting.clear()
        for sock in self._sockets:
            sock.close()
        self._server.pre_shutdown()
        await self._server.shutdown(grace_s)

    async def _accept(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(sock)
            except OSError:  # the process has too many files open, or the other end has gone already
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            task = asyncio.create_task(self._open(connection))
            self._handshakes[task] = None
            task.add_done_callback(lambda done: self._handshakes.pop(done, None))
            await asyncio.sleep(0)  # the task has begun, so it may be cancelled; and others have their turn
            if len(self._handshakes) > STRANGERS_MAX:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                self._server.refused("connections")
                oldest.cancel()

    async def _open(self, connection: socket.socket) -> None:
        """Have the server take a connection, after its handshake."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self._server, connection, **self._tls)
        except OSError:  # no TLS, or none in time; the loop has closed the connection
            self._server.refused("form")


@asynccontextmanager
async def listen_for_peers(
    app: web.Application,
    sockets: Sequence[socket.socket],
    verifier: RequestVerifier,
    *,
    ssl_context: ssl.SSLContext | None,
    refused: Callable[[str], None],
) -> AsyncGenerator[PeerListener]:
    """
    Serve an application to peers until the end of the block.

    Args:
        app: The application.
        sockets: Listening sockets; closed at the end.
        verifier: Authenticates requests.
        ssl_context: The certificate of this node; `None`: it speaks plain HTTP.
        refused: Callback with the reason of each refusal.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def prove(request: web.Request, response: web.StreamResponse) -> None:
        server.prove(request, response)

    app.on_response_prepare.append(prove)
    await runner.setup()
    assert runner.server is not None
    server = PeerServer(runner.server, verifier, refused)
    listener = PeerListener(server, sockets, ssl_context)
    try:
        yield listener
    finally:
        await listener.drain(0)
        await runner.cleanup()
