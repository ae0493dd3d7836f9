"""Runs an application of aiohttp behind connections of our own."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from imgkeep.web.fastpath.context import FAST_PATH, FastPath
from imgkeep.web.fastpath.protocol import Connection, refuse

FIELDS_BYTES_MAX: Final = 32_768
"""
Maximum size of all header fields of a request together (nginx has the same). aiohttp bounds one field and their number,
which is 2 MB: a list field of that size (`Via`, `If-None-Match`) would take half a second of the event loop.
"""


class HttpServer(web.Server):
    """Makes connections for the requests that `base` handles."""

    def __init__(self, base: web.Server, context: FastPath, **limits: Any) -> None:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            # Before any handler or layer, aiohttp would refuse what else is expected, and repeat it.
            if request.headers.get("Expect", "100-continue").lower() != "100-continue":
                return refuse(context.access_log, request, HTTPStatus.EXPECTATION_FAILED)
            # Before any field is read.
            if sum(len(name) + len(value) for name, value in request.raw_headers) > FIELDS_BYTES_MAX:
                return refuse(context.access_log, request, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return await base.request_handler(request)

        super().__init__(handle, request_factory=base.request_factory)
        self.context = context
        self._limits = limits

    def disable_fast_path(self) -> None:
        """Leave all requests on the connections there are to aiohttp, whose answers can end a connection."""
        for connection in self.connections:
            assert isinstance(connection, Connection)
            connection.disable_fast_path()

    def __call__(self) -> Connection:
        return Connection(self, self.context, loop=asyncio.get_running_loop(), **self._limits)


class Runner(web.AppRunner):
    """Runs an application behind our connections."""

    def __init__(self, app: web.Application, *, shutdown_timeout: float, **limits: Any) -> None:
        limits["auto_decompress"] = False  # see `admission.py`
        super().__init__(app, shutdown_timeout=shutdown_timeout, **limits)
        self._limits = limits
        self._shutdown_timeout_s = shutdown_timeout
        self._connections: HttpServer | None = None

    @property
    def server(self) -> HttpServer | None:
        base = super().server
        if base is not None and self._connections is None:
            self._connections = HttpServer(base, self.app[FAST_PATH], **self._limits)
        return self._connections

    async def shutdown(self) -> None:
        server = self.server
        if server is not None:
            server.pre_shutdown()
        await super().shutdown()
        if server is not None:
            await server.shutdown(self._shutdown_timeout_s)
