"""
`/metrics` on an address of its own (`server.metrics_address`), so that the public port does not show it.

All workers listen on that address, and each answers for all.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep.core.errors import Forbidden
from imgkeep.core.http_headers import read_host
from imgkeep.web.error_to_problem import problem_middleware
from imgkeep.web.image_headers import SERVER_NAME
from imgkeep.web.metrics import METRICS
from imgkeep.web.probes import healthz
from imgkeep.web.request_state import REQUEST_LOG, RequestLog

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from imgkeep.web.metrics import MetricsPage

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
LINE_BYTES_MAX: Final = 1024
FIELD_BYTES_MAX: Final = 4096
IDLE_TIMEOUT_S: Final = 65
"""Timeout for an idle connection, as on the public port: Prometheus reuses connections, and asks once a minute."""


@asynccontextmanager
async def serve_metrics(
    page: MetricsPage, sockets: Sequence[socket.socket], *, loopback_only: bool
) -> AsyncGenerator[None]:
    """
    Serve `/metrics` and `/healthz` on these sockets until the end of the block.

    Args:
        page: The counters.
        sockets: Listening sockets; closed at the end.
        loopback_only: Whether only programs of this machine can reach the sockets.
    """
    app = web.Application(middlewares=[_open_request_log, problem_middleware], client_max_size=0)
    app[METRICS] = page
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/healthz", healthz)
    app.on_response_prepare.append(_set_server_header)
    if loopback_only:
        names = LOOPBACK_NAMES | {sock.getsockname()[0] for sock in sockets}

        # A page elsewhere may point a name of its own to this machine (DNS rebinding).
        @web.middleware
        async def own_names(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            given = request.headers.get("Host")
            if given is not None and read_host(given) not in names:
                raise Forbidden("this server shows metrics to this machine under its own names: localhost, 127.0.0.1")
            return await handler(request)

        app.middlewares.append(own_names)
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=IDLE_TIMEOUT_S,
        max_line_size=LINE_BYTES_MAX,
        max_field_size=FIELD_BYTES_MAX,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    try:
        for sock in sockets:
            await web.SockSite(runner, sock).start()
        yield
    finally:
        await runner.cleanup()


async def _metrics(request: web.Request) -> web.Response:
    return await request.app[METRICS].respond()


@web.middleware
async def _open_request_log(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Give a request a log that is not written, in place of `access_log`."""
    request[REQUEST_LOG] = RequestLog()
    return await handler(request)


async def _set_server_header(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER_NAME
