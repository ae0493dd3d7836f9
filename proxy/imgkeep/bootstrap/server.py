"""Builds the aiohttp application of a configuration, and the runner that serves it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep.bootstrap.background import BackgroundTasks
from imgkeep.bootstrap.http_context import open_context
from imgkeep.bootstrap.platform import SYSTEM, Platform
from imgkeep.bootstrap.services import Services
from imgkeep.web.app import make_app
from imgkeep.web.http_server import Runner
from imgkeep.web.mounts import foreign_mounts, legacy_mount

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from imgkeep.cluster.workers.worker_info import WorkerInfo
    from imgkeep.config import Config
    from imgkeep.web.app import AppContext
    from imgkeep.web.mounts import Mount

__all__ = ["BACKGROUND", "SERVICES", "Platform", "build", "make_runner"]

REQUEST_LINE_BYTES_MAX: Final = 36_864
"""Maximum length of a request line: the longest source URL with every character percent-encoded, and the rest."""
REQUEST_FIELD_BYTES_MAX: Final = 16_384
"""Maximum length of a header field: browsers send the cookies of the site around imgkeep, which reads none."""
IDLE_TIMEOUT_S: Final = 65
"""
Timeout for a connection without a request, or with half of one. Longer than the 60 s for which load balancers keep idle
connections: if imgkeep closed one first, a request of the load balancer could meet a closed connection.
"""
LINGER_TIMEOUT_S: Final = 5
"""Timeout for the rest of a request body that no handler reads."""

SERVICES: Final = web.AppKey("services", Services)
"""The services of an application that runs."""

BACKGROUND: Final = web.AppKey("background", BackgroundTasks)
"""Their background tasks."""


def build(
    config: Config, platform: Platform = SYSTEM, worker: WorkerInfo | None = None, *, has_fast_path: bool = True
) -> web.Application:
    """
    Make the application. Nothing is opened before it starts.

    Args:
        config: The configuration.
        platform: Clocks and sockets.
        worker: One of several workers; `None`: there is one process.
        has_fast_path: Whether plain requests for images bypass aiohttp.
    """

    @asynccontextmanager
    async def open_app_context() -> AsyncGenerator[AppContext]:
        async with open_context(config, platform, worker, has_fast_path=has_fast_path) as (
            services,
            background,
            context,
        ):
            app[SERVICES], app[BACKGROUND] = services, background
            yield context

    app = make_app(
        open_app_context,
        has_pages=config.server.welcome,
        has_metrics=not config.server.metrics_address,
        mounts=_mounts(config),
        is_worker=worker is not None,
    )
    return app


def _mounts(config: Config) -> list[Mount]:
    derive = config.derive
    return [
        *(legacy_mount(names.mount) for names in config.legacy),
        *foreign_mounts(
            imageproxy=derive.imageproxy,
            imageproxy_key=derive.imageproxy_key,
            thumbor=derive.thumbor,
            thumbor_key=derive.thumbor_key,
            nextjs=derive.nextjs,
        ),
    ]


def make_runner(
    app: web.Application, *, idle_timeout_s: float = IDLE_TIMEOUT_S, linger_timeout_s: float = LINGER_TIMEOUT_S
) -> Runner:
    """Return a runner with the limits that keep slow and hostile clients in bounds."""
    return Runner(
        app,
        access_log=None,  # web/access_log.py writes the access log of imgkeep
        keepalive_timeout=idle_timeout_s,
        lingering_time=linger_timeout_s,
        max_line_size=REQUEST_LINE_BYTES_MAX,
        max_field_size=REQUEST_FIELD_BYTES_MAX,
        shutdown_timeout=0.1,  # what is under way had its grace in `lifecycle.py`
    )
