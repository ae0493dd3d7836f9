"""The HTTP server: runs an aiohttp application on connections with limits, and with the fast path if there is one."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from imgkeep.web.connection import CONNECTIONS, Connection, ConnectionContext, refuse_request
from imgkeep.web.fastpath.fast_path import FAST_PATH, FastPath
from imgkeep.web.fastpath.protocol import FastConnection

FIELDS_BYTES_MAX: Final = 32_768
"""
Maximum size of all header fields of a request together (nginx has the same). aiohttp bounds one field and their number,
which is 2 MB: a list field of that size (`Via`, `If-None-Match`) would take half a second of the event loop.
"""


class HttpServer(web.Server):
    """
    Makes connections for the requests that `base` handles.

    Args:
        base: The server of the application.
        context: The state that the connections share.
        fast_path: Answers plain requests for images; `None`: aiohttp answers every request.
    """

    def __init__(self, base: web.Server, context: ConnectionContext, fast_path: FastPath | None, **limits: Any) -> None:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            # Before any handler or layer, aiohttp would refuse what else is expected, and repeat it.
            if request.headers.get("Expect", "100-continue").lower() != "100-continue":
                return refuse_request(context.access_log, request, HTTPStatus.EXPECTATION_FAILED)
            # Before any field is read.
            if sum(len(name) + len(value) for name, value in request.raw_headers) > FIELDS_BYTES_MAX:
                return refuse_request(context.access_log, request, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return await base.request_handler(request)

        super().__init__(handle, request_factory=base.request_factory)
        self._context = context
        self._fast_path = fast_path
        self._limits = limits

    def disable_fast_path(self) -> None:
        """Give aiohttp all later requests on the connections there are, because its responses can end a connection."""
        if self._fast_path is not None:
            self._fast_path.enabled = False
        for connection in self.connections:
            if isinstance(connection, FastConnection):
                connection.disable_fast_path()

    def __call__(self) -> Connection:
        loop = asyncio.get_running_loop()
        if self._fast_path is None:
            return Connection(self, self._context, loop=loop, **self._limits)
        return FastConnection(self, self._context, self._fast_path, loop=loop, **self._limits)


class Runner(web.AppRunner):
    """The runner of an application on these connections."""

    def __init__(self, app: web.Application, *, shutdown_timeout: float, **limits: Any) -> None:
        limits["auto_decompress"] = False  # see `admission.py`
        super().__init__(app, shutdown_timeout=shutdown_timeout, **limits)
        self._limits = limits
        self._shutdown_timeout_s = shutdown_timeout
        self._http_server: HttpServer | None = None

    @property
    def server(self) -> HttpServer | None:
        base = super().server
        if base is not None and self._http_server is None:
            self._http_server = HttpServer(base, self.app[CONNECTIONS], self.app.get(FAST_PATH), **self._limits)
        return self._http_server

    async def shutdown(self) -> None:
        server = self.server
        if server is not None:
            server.pre_shutdown()
        await super().shutdown()
        if server is not None:
            await server.shutdown(self._shutdown_timeout_s)
