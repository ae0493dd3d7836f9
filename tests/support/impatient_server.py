"""An imgkeep with short timeouts, and a client that reads next to nothing."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from aiohttp import web

from imgkeep.bootstrap.server import build, make_runner
from imgkeep.web.aiohttp_adapter import STALL_TIMEOUT
from imgkeep.web.connection import CONNECTIONS
from tests.support.server import configuration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LIMIT_S = 0.4
"""Timeout for idle and for stalled clients."""


@asynccontextmanager
async def serve_impatiently(folder: Path, limit_s: float = LIMIT_S) -> AsyncIterator[tuple[int, web.Application]]:
    """Run imgkeep with short timeouts; yield its port and its application."""
    app = build(configuration(folder))

    async def shorten(app: web.Application) -> None:
        app[CONNECTIONS] = replace(app[CONNECTIONS], stall_timeout_s=limit_s)
        app[STALL_TIMEOUT] = limit_s

    app.on_startup.append(shorten)
    runner = make_runner(app, idle_timeout_s=limit_s, linger_timeout_s=limit_s)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1], app
    finally:
        await runner.cleanup()


def deaf_socket(port: int) -> socket.socket:
    """Return a connection whose client reads next to nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    return sock
