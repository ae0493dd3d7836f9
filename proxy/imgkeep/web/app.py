"""The aiohttp application: its routes, its layers, and the context of its handlers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep.web import documentation, home_page, login_tickets, probes, static_files
from imgkeep.web.access_log import ACCESS_LOG, AccessLog, access_log
from imgkeep.web.admission import admission, defer_continue
from imgkeep.web.api import failures, images, inspect, jobs, rewrite, save
from imgkeep.web.api.api_services import API, ApiContext
from imgkeep.web.api.openapi import document as openapi
from imgkeep.web.api_relay import relay
from imgkeep.web.auth import AUTH, Auth
from imgkeep.web.connection import CONNECTIONS, ConnectionContext
from imgkeep.web.cors_preflight import preflight
from imgkeep.web.error_presentation import PLACEHOLDER, Placeholder
from imgkeep.web.error_to_problem import problem_middleware
from imgkeep.web.fastpath.fast_path import FAST_PATH, FastPath
from imgkeep.web.home_page import HOME_PAGE, HomePage
from imgkeep.web.host_header import require_valid_host
from imgkeep.web.image_headers import SERVER_NAME
from imgkeep.web.images import IMAGES, IMAGES_PATH, IMG_PATH, ImageHandlers, as_aiohttp_handler
from imgkeep.web.login import login
from imgkeep.web.metrics import METRICS, MetricsPage, metrics
from imgkeep.web.probes import HEALTH
from imgkeep.web.request_body import BODIES, RequestBodies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from aiohttp.typedefs import Handler

    from imgkeep.health import Health
    from imgkeep.web.images import Handler as ImageHandler
    from imgkeep.web.mounts import Mount


@dataclass(frozen=True, slots=True)
class AppContext:
    """
    The context of the handlers, in groups.

    Attributes:
        module: The JavaScript module for pages, with the policy of this server.
        connections: The state that the connections share.
        fast_path: `None`: aiohttp answers every request.
        placeholder: The image of `delivery.placeholder`; `None`: not configured.
        home_page: `None`: `server.welcome` disables the page.
    """

    auth: Auth
    access_log: AccessLog
    images: ImageHandlers
    api: ApiContext
    health: Health
    metrics: MetricsPage
    module: bytes
    connections: ConnectionContext
    fast_path: FastPath | None = None
    placeholder: Placeholder | None = None
    home_page: HomePage | None = None

    def install(self, app: web.Application) -> None:
        """Put each group under the key of its module."""
        app[CONTEXT] = self
        app[AUTH] = self.auth
        app[ACCESS_LOG] = self.access_log
        app[IMAGES] = self.images
        app[API] = self.api
        app[BODIES] = RequestBodies()
        app[HEALTH] = self.health
        app[METRICS] = self.metrics
        app[static_files.MODULE] = self.module
        app[CONNECTIONS] = self.connections
        if self.fast_path is not None:
            app[FAST_PATH] = self.fast_path  # without this line aiohttp answers every request
        if self.placeholder is not None:
            app[PLACEHOLDER] = self.placeholder
        if self.home_page is not None:
            app[HOME_PAGE] = self.home_page


CONTEXT: Final = web.AppKey("context", AppContext)
"""All groups, for the application of another listener."""


def make_app(
    open_context: Callable[[], AbstractAsyncContextManager[AppContext]],
    *,
    has_pages: bool,
    has_metrics: bool,
    mounts: Sequence[Mount],
    is_worker: bool,
) -> web.Application:
    """
    Make the application. Nothing is opened before it starts.

    Args:
        open_context: Opens what the handlers work with, from the start of the application to its end.
        has_pages: Whether the home page and the documentation are shown (`server.welcome`).
        has_metrics: Whether `/metrics` is on the public port, and not on an address of its own.
        mounts: Paths of images that the operator names; a later one may be part of an earlier one.
        is_worker: Whether this process is one of several workers.
    """
    relaying = (relay,) if is_worker else ()
    app = web.Application(middlewares=[access_log, problem_middleware, require_valid_host, admission, *relaying])
    _add_images(app.router, IMG_PATH, lambda handlers: handlers.serve_source)
    _add_images(app.router, IMAGES_PATH, lambda handlers: handlers.serve_object)
    if has_pages:
        app.router.add_get(home_page.PATH, home_page.home)
        app.router.add_get(documentation.INDEX, documentation.index)
        app.router.add_get(documentation.PATH, documentation.page)
    app.router.add_get(static_files.MODULE_PATH, static_files.module)
    app.router.add_get(static_files.TYPES_PATH, static_files.types)
    app.router.add_get("/openapi.json", openapi.document)
    app.router.add_get("/api", openapi.page)
    app.router.add_get(login_tickets.PATH, login)
    add_api(app.router)
    app.router.add_get("/healthz", probes.healthz)
    app.router.add_get("/readyz", probes.readyz)
    if has_metrics:
        app.router.add_get("/metrics", metrics)
    for mount in mounts:
        _add_images(app.router, mount.route, mount.find_handler)

    async def open_services(app: web.Application) -> AsyncIterator[None]:
        async with open_context() as context:
            context.install(app)
            yield

    app.cleanup_ctx.append(open_services)
    app.on_response_prepare.append(_set_server_header)
    app.on_response_prepare.append(_close_after_bad_body)
    if is_worker:
        app.on_response_prepare.append(_close_when_draining)
    return app


def add_api(router: web.UrlDispatcher) -> None:
    """Add the routes of the API: for clients, and for the other workers, which relay requests to the leader."""

    def get(path: str, handler: Handler) -> None:
        router.add_get(path, handler, expect_handler=defer_continue)

    def post(path: str, handler: Handler) -> None:
        router.add_post(path, handler, expect_handler=defer_continue)

    def delete(path: str, handler: Handler) -> None:
        router.add_delete(path, handler, expect_handler=defer_continue)

    get("/api/inspect", inspect.inspect)
    get("/api/failures", failures.list_failures)
    get("/api/policy", inspect.show_policy)
    post("/api/save-image", save.save_image)
    post("/api/save-images", jobs.save_images)
    post("/api/rewrite", rewrite.rewrite)
    get("/api/jobs", jobs.list_jobs)
    get("/api/jobs/{id}", jobs.show_job)
    post("/api/jobs/{id}/cancel", jobs.cancel_job)
    get("/api/jobs/{id}/events", jobs.follow_job)
    get("/api/images", images.list_images)
    delete("/api/images", images.remove_images)
    get("/api/images/{key}", images.show_image)
    delete("/api/images/{key}", images.remove_image)
    get("/api/images/{key}/placeholder", images.show_placeholder)
    post("/api/images/{key}/refetch", images.refetch_image)
    post("/api/images/{key}/restore", images.restore_image)
    post("/api/refetch", images.refetch)
    post("/api/restore", images.restore)


def _add_images(router: web.UrlDispatcher, path: str, find: Callable[[ImageHandlers], ImageHandler]) -> None:
    router.add_get(path, as_aiohttp_handler(find))
    router.add_options(path, preflight)


async def _set_server_header(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER_NAME


async def _close_after_bad_body(request: web.Request, response: web.StreamResponse) -> None:
    """Close the connection after an unreadable body: no reader knows where the next request begins (RFC 9112, 9.3)."""
    if request.content.exception() is not None:
        response.force_close()
        response.headers["Connection"] = "close"


async def _close_when_draining(request: web.Request, response: web.StreamResponse) -> None:
    """Have clients of a worker that drains connect anew: other workers answer on the same port."""
    if request.app[HEALTH].replaced:
        response.force_close()
        response.headers["Connection"] = "close"
