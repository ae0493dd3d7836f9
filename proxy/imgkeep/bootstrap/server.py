"""
The composition root of the server: turns a configuration into a running application. What it serves is put together
in `services.py` and `parts.py`; only these three construct.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep import __version__
from imgkeep.bootstrap.services import SYSTEM, Platform, Services, make_link_selection, open_services
from imgkeep.cluster.peer_api import make_peer_api
from imgkeep.cluster.peers import Peers
from imgkeep.cluster.supervisor import DRAIN, READY
from imgkeep.config import absolute, data_folder
from imgkeep.core.signing import Signatures
from imgkeep.images.miss_limit import MissLimiter
from imgkeep.listening import BACKLOG, format_address, listen, listen_for_metrics
from imgkeep.observability.logs import show
from imgkeep.page_rewriting import RewriteService
from imgkeep.storage.local.machine_token import NAME, TokenUnusableError, make_token, read_token
from imgkeep.web import documentation, login
from imgkeep.web import home_page as welcome
from imgkeep.web import probes as health_routes
from imgkeep.web import static_files as script
from imgkeep.web.access_log import records
from imgkeep.web.admission import admission, defer_continue
from imgkeep.web.api import (
    failures as failures_api,
)
from imgkeep.web.api import (
    images as images_api,
)
from imgkeep.web.api import (
    jobs as jobs_api,
)
from imgkeep.web.api import (
    openapi,
)
from imgkeep.web.api import (
    rewrite as rewrite_api,
)
from imgkeep.web.api import (
    save as api,
)
from imgkeep.web.api_relay import relay
from imgkeep.web.auth import Auth, Tokens
from imgkeep.web.connection_limit import ConnectionLimit
from imgkeep.web.context import SERVER_NAME, SITE, Site
from imgkeep.web.cors_preflight import preflight
from imgkeep.web.error_responses import read_placeholder
from imgkeep.web.fastpath.response_cache import BYTES_MAX as ANSWERS_BYTES_MAX
from imgkeep.web.fastpath.response_cache import ResponseCache
from imgkeep.web.host_header import hosts
from imgkeep.web.http_server import Runner
from imgkeep.web.images import IMAGES, IMG, image, img, legacy
from imgkeep.web.messages import as_aiohttp_handler
from imgkeep.web.metrics_listener import serve_metrics
from imgkeep.web.problems import problems
from imgkeep.web.request_body import Bodies
from imgkeep.web.responses import HIT_HEADERS, SVG_CSP

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from aiohttp.typedefs import Handler

    from imgkeep.config import Config
    from imgkeep.core.records import WorkerInfo
    from imgkeep.database import DatabaseEngine
    from imgkeep.web.messages import Handler as ImageHandler

__all__ = ["Platform", "build", "make_runner", "read_placeholder", "serve"]

REQUEST_LINE_BYTES_MAX: Final = 36_864
"""A source URL of the greatest length, with every character of it percent-encoded, and room for the rest."""
REQUEST_FIELD_BYTES_MAX: Final = 16_384
"""For one header field: cookies of the site around us come along, and are never looked at."""
LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
IDLE_TIMEOUT_S: Final = 65
"""
For a connection without a request, or with half of one. Longer than the 60 s that load balancers keep idle connections
to their back ends: whoever closes first must not be us, or a request meets a closed auth.
"""
LINGER_TIMEOUT_S: Final = 5
"""For the rest of a request body that nobody asked for."""
DRAIN_NOTICE_S: Final = 2
"""Between `/readyz` saying `draining` and the listener closing: load balancers ask every second or two."""
GRACE_S: Final = 20
"""For answers and fills under way. With the notice it stays below the 30 s after which orchestrators kill."""

SWITCH_INTERVAL_S: Final = 0.0002
"""How long one thread may keep the interpreter while another wants it; Python's own is 5 ms."""
GC_THRESHOLDS: Final = (20_000, 50, 100)
"""New objects before the young are looked through, and how many times that before the older ones."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    """What `serve` needs of a running application beyond HTTP."""

    services: Services | None = None


_RUNNING: Final = web.AppKey("running", _Running)


def build(config: Config, platform: Platform = SYSTEM, place: WorkerInfo | None = None) -> web.Application:
    """Make the application; `place`: of one among several workers. Nothing is opened before it starts."""
    app = web.Application(middlewares=[records, problems, hosts, admission, *(() if place is None else (relay,))])
    app[_RUNNING] = _Running()
    _add_images(app.router, IMG, img)
    _add_images(app.router, IMAGES, image)
    if config.server.welcome:
        app.router.add_get(welcome.PATH, welcome.welcome)
        app.router.add_get(documentation.INDEX, documentation.index)
        app.router.add_get(documentation.PATH, documentation.page)
    app.router.add_get(script.MODULE, script.module)
    app.router.add_get(script.TYPES, script.types)
    app.router.add_get("/openapi.json", openapi.document)
    app.router.add_get("/api", openapi.page)
    app.router.add_get(login.PATH, login.login)
    _add_api(app.router)
    app.router.add_get("/healthz", health_routes.healthz)
    app.router.add_get("/readyz", health_routes.readyz)
    if not config.server.metrics_address:
        app.router.add_get("/metrics", health_routes.metrics)

    for legacy_names in config.legacy:
        _add_images(app.router, f"/{legacy_names.mount}/{{name:.+}}", legacy(legacy_names.mount))

    async def open_site(app: web.Application) -> AsyncIterator[None]:
        async with _site(config, platform, app[_RUNNING], place) as site:
            app[SITE] = site
            yield

    app.cleanup_ctx.append(open_site)
    app.on_response_prepare.append(_set_server_header)
    app.on_response_prepare.append(_close_after_bad_body)
    if place is not None:
        app.on_response_prepare.append(_close_when_draining)
    return app


def _add_images(router: web.UrlDispatcher, path: str, handler: ImageHandler) -> None:
    router.add_get(path, as_aiohttp_handler(handler))
    router.add_options(path, preflight)


def _add_api(router: web.UrlDispatcher) -> None:
    def get(path: str, handler: Handler) -> None:
        router.add_get(path, handler, expect_handler=defer_continue)

    def post(path: str, handler: Handler) -> None:
        router.add_post(path, handler, expect_handler=defer_continue)

    def delete(path: str, handler: Handler) -> None:
        router.add_delete(path, handler, expect_handler=defer_continue)

    get("/api/inspect", api.inspect)
    get("/api/failures", failures_api.list_failures)
    get("/api/policy", api.show_policy)
    post("/api/save-image", api.save_image)
    post("/api/save-images", jobs_api.save_images)
    post("/api/rewrite", rewrite_api.rewrite)
    get("/api/jobs", jobs_api.list_jobs)
    get("/api/jobs/{id}", jobs_api.show_job)
    post("/api/jobs/{id}/cancel", jobs_api.cancel_job)
    get("/api/jobs/{id}/events", jobs_api.follow_job)
    get("/api/images", images_api.list_images)
    delete("/api/images", images_api.remove_images)
    get("/api/images/{key}", images_api.show_image)
    delete("/api/images/{key}", images_api.remove_image)
    post("/api/images/{key}/refetch", images_api.refetch_image)
    post("/api/images/{key}/restore", images_api.restore_image)
    post("/api/refetch", images_api.refetch)
    post("/api/restore", images_api.restore)


async def _set_server_header(_request: web.Request, response: web.StreamResponse) -> None:
    """Say who answers."""
    response.headers["Server"] = SERVER_NAME


async def _close_after_bad_body(request: web.Request, response: web.StreamResponse) -> None:
    """Nobody knows where a body ends that could not be read, so the next request cannot be found (RFC 9112, 9.3)."""
    if request.content.exception() is not None:
        response.force_close()
        response.headers["Connection"] = "close"


async def _close_when_draining(request: web.Request, response: web.StreamResponse) -> None:
    """Tell clients of a worker that leaves to connect anew: others answer on the same port."""
    if request.app[SITE].health.replaced:
        response.force_close()
        response.headers["Connection"] = "close"


@asynccontextmanager
async def _site(
    config: Config, platform: Platform, running: _Running, place: WorkerInfo | None
) -> AsyncGenerator[Site]:
    placeholder = await asyncio.to_thread(read_placeholder, config.delivery.placeholder)
    async with AsyncExitStack() as stack:
        peers = None
        if place is not None:
            peers = Peers(place)
            stack.push_async_callback(peers.aclose)
        services = await stack.enter_async_context(open_services(config, platform, place, peers))
        await stack.enter_async_context(services.going())
        running.services = services
        bytes_max = ANSWERS_BYTES_MAX if place is None else ANSWERS_BYTES_MAX // place.workers
        vector_common = {"Content-Security-Policy": SVG_CSP}
        prepared = ResponseCache(HIT_HEADERS, platform.clock, vector_common=vector_common, bytes_max=bytes_max)
        services.image_service.changed = prepared.drop
        services.metrics.watch(
            "response_cache_entries", "Request targets whose answer is prepared", lambda: len(prepared)
        )
        services.metrics.watch("response_cache_bytes", "Memory of prepared answers", lambda: prepared.bytes)
        local_token = await _open_token(config)
        rewrite_service = RewriteService(services.metrics.rewritten)
        stack.callback(rewrite_service.close)
        yield Site(
            prepared=prepared,
            image_service=services.image_service,
            health=services.health,
            meter=services.metrics,
            public=services.inspector.public,
            inspector=services.inspector,
            remover=services.remover,
            refetcher=services.refetcher,
            jobs=services.jobs,
            image_index=services.parts.database.image_index,
            failures=services.failures,
            saver=services.saver,
            bodies=Bodies(),
            link_selection=make_link_selection(config, services.inspector, services.parts),
            rewrite_service=rewrite_service,
            redirect_status=config.delivery.redirect_status,
            auth=Auth(
                signature=config.security.signature,
                signatures=Signatures(config.security.signing_keys),
                tokens=Tokens.of(config.security.api_tokens or ((local_token,) if local_token else ())),
                local_token=local_token,
                own_hosts=_own_hosts(config),
                trusted_proxies=tuple(ip_network(text) for text in config.server.trusted_proxies),
                forwarded_header=config.server.forwarded_header.lower(),
                public_base_url=config.server.public_url.rstrip("/"),
                clock=platform.clock,
            ),
            placeholder=placeholder,
            welcome=welcome.HomePage(has_external_images=_has_external_images(config))
            if config.server.welcome
            else None,
            access_log=config.log.access,
            clock=platform.clock,
            timer=platform.timer,
            peers=peers,
            misses=_make_misses(config, platform, services),
            connections=ConnectionLimit(
                config.limits.connections,
                tuple(ip_network(text) for text in config.server.trusted_proxies),
                services.metrics.refused,
            ),
        )


async def _open_token(config: Config) -> str | None:
    """Return the token of this machine; `None`: `security.api_tokens` count instead, or there cannot be one."""
    if config.security.api_tokens:
        return None
    try:
        return await asyncio.to_thread(make_token, data_folder(config))
    except TokenUnusableError as error:
        log.warning("the API is closed", extra={"reason": str(error), "setting": "security.api_tokens"})
        return None


def _make_misses(config: Config, platform: Platform, services: Services) -> MissLimiter | None:
    """Look-ups are counted where they may be requests to a bucket; on a disk they cost next to nothing."""
    if services.parts.remote is None or not config.limits.misses_per_minute:
        return None
    return MissLimiter(config.limits.misses_per_minute, timer=platform.timer, refused=services.metrics.refused)


def _has_external_images(config: Config) -> bool:
    """Tell whether a page of ours has to load images from other servers."""
    delivery = config.delivery
    return delivery.mode != "serve" or bool(delivery.base_url) or config.sources.permanent == "redirect"


def _own_hosts(config: Config) -> frozenset[str]:
    """Return the names under which this machine calls us: none, once others can reach us too."""
    return frozenset() if config.server.is_open else frozenset({*map(str.lower, config.server.hosts), *LOOPBACK_NAMES})


def make_runner(
    app: web.Application, *, idle_timeout_s: float = IDLE_TIMEOUT_S, linger_timeout_s: float = LINGER_TIMEOUT_S
) -> Runner:
    """Return a runner with the limits that keep slow and hostile clients in bounds."""
    return Runner(
        app,
        access_log=None,  # web/access_log.py writes ours
        keepalive_timeout=idle_timeout_s,
        lingering_time=linger_timeout_s,
        max_line_size=REQUEST_LINE_BYTES_MAX,
        max_field_size=REQUEST_FIELD_BYTES_MAX,
        shutdown_timeout=0.1,  # what is still under way then had its grace in `_drain`
    )


async def serve(config: Config, platform: Platform = SYSTEM) -> None:
    """
    Serve until SIGTERM or SIGINT, then drain.

    Raises:
        ConfigError: An address to listen on is not this machine's.
        OSError: The port is in use.
        IncompatibleDatabase: A newer version wrote the database.
    """
    app = build(config, platform)
    runner = make_runner(app)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await runner.setup()
        for sock in await asyncio.to_thread(listen, config.server):
            await web.SockSite(runner, sock, backlog=BACKLOG).start()
        running = app[_RUNNING]
        assert running.services is not None
        running.services.own_ports.update(address[1] for address in runner.addresses)
        async with _metrics_apart(config, app[SITE], await asyncio.to_thread(listen_for_metrics, config.server)):
            _tune_interpreter()
            tell_opening(config, [(address[0], address[1]) for address in runner.addresses], app[SITE].auth.local_token)
            await _wait_for_end(stop, running.services.parts.database.engine)
            await _drain(runner, running, stop)
    finally:
        await runner.cleanup()
    log.info("stopped")
    if (error := running.services.parts.database.engine.incompatible) is not None:
        raise error


async def work(config: Config, place: WorkerInfo, listening: Sequence[socket.socket], control: socket.socket) -> None:
    """
    Serve as one of several workers, until SIGTERM, or until the supervisor says so or is gone; then drain.

    Raises:
        IncompatibleDatabase: A newer version wrote the database.
    """
    app = build(config.share(), SYSTEM, place)
    runner = make_runner(app)
    ends = _Ends()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ends.heard.set)
    control.setblocking(False)
    loop.add_reader(control, ends.read, control, loop)
    try:
        await runner.setup()
        site, running = app[SITE], app[_RUNNING]
        assert running.services is not None
        assert site.peers is not None
        learn = running.services.learn
        side = web.AppRunner(
            make_peer_api(site, place, learn, _add_api),
            access_log=None,
            shutdown_timeout=0.1,
            lingering_time=LINGER_TIMEOUT_S,
            # Each byte of a client's target may come as three; what was judged there has room beside it.
            max_line_size=3 * REQUEST_LINE_BYTES_MAX,
            max_field_size=REQUEST_FIELD_BYTES_MAX,
            auto_decompress=False,
        )
        await side.setup()
        try:
            await web.UnixSite(side, str(site.peers.socket_path(place.name)), backlog=1024).start()
            await running.services.join()
            running.services.own_ports.update(sock.getsockname()[1] for sock in listening)
            for sock in listening:
                await web.SockSite(runner, sock, backlog=BACKLOG).start()
            apart = await asyncio.to_thread(listen_for_metrics, config.server, shared=True)
            async with _metrics_apart(config, site, apart):
                _tune_interpreter()
                control.send(READY)
                log.info("worker ready", extra={"worker": place.name})
                await _wait_for_end(ends.heard, running.services.parts.database.engine)
                if ends.alone:
                    log.error("the supervisor is gone")
                await running.services.rest()
                await (_leave if ends.others_stay else _drain)(runner, running, ends.heard, side)
            left = running.services.metrics.tell(place.name, lasting=True)
            site.peers.save_counters(left, running.services.metrics.merge)
        finally:
            site.peers.socket_path(place.name).unlink(missing_ok=True)
            await side.cleanup()
    finally:
        await runner.cleanup()
        if ends.alone:
            # Nobody else tidies up; who has not ended yet does without (`cluster/leases.py`).
            await asyncio.to_thread(shutil.rmtree, place.folder, ignore_errors=True)
    log.info("stopped")
    if (error := running.services.parts.database.engine.incompatible) is not None:
        raise error


async def _wait_for_end(stop: asyncio.Event, engine: DatabaseEngine) -> None:
    """
    Wait until `stop` is set, or until the engine finds a database that it cannot use: one that was away at start may be
    found late.
    """
    waits = [asyncio.create_task(event.wait()) for event in (stop, engine.found_incompatible)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    if engine.incompatible is not None and not stop.is_set():
        log.error("database is incompatible; ending", extra={"reason": engine.incompatible.in_full})
        stop.set()


def _metrics_apart(config: Config, site: Site, sockets: Sequence[socket.socket]) -> AbstractAsyncContextManager[None]:
    """Serve `/metrics` on sockets of its own, where there are any."""
    if not sockets:
        return nullcontext()
    return serve_metrics(site, sockets, loopback_only=config.server.metrics_loopback)


@dataclass(slots=True)
class _Ends:
    """That a worker is to end, and how."""

    heard: asyncio.Event = field(default_factory=asyncio.Event)
    others_stay: bool = False
    alone: bool = False

    def read(self, control: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """Hear what the supervisor says, or that there is none any more."""
        said = b""
        with suppress(OSError):
            said = control.recv(1)
        if said == DRAIN:
            self.others_stay = not self.heard.is_set()
        else:
            loop.remove_reader(control)
            self.alone = True
        self.heard.set()


def _tune_interpreter() -> None:
    """
    Set the interpreter up for a loop that is busy and threads that do little but wait for the disk.

    A thread takes the interpreter back after every system call, and waits for it as long as the loop may keep it: a
    fifth of a second for one image with the interpreter's own interval. The garbage collector is spared what lives as
    long as the process, and called less often: a look at everything takes a tenth of a second once a hundred thousand
    answers are prepared, and reference counts free all but a few cycles by themselves.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _drain(runner: Runner, running: _Running, stop: asyncio.Event, side: web.AppRunner | None = None) -> None:
    """Say that we go, wait for notice to be taken, close the listener, and let what is under way end."""
    assert running.services is not None
    running.services.health.draining = True
    log.info("draining")
    # A second signal ends the notice early.
    stop.clear()
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), DRAIN_NOTICE_S)
        log.info("drain notice cut short", extra={"cause": "a second signal"})
    await _finish(runner, running.services, side)


async def _leave(runner: Runner, running: _Running, stop: asyncio.Event, side: web.AppRunner) -> None:
    """
    Go while others stay: whoever connects from now on is theirs. Connections that are in use are closed with the answer
    to their next request, which says so, and only those that are not used for a while without one.
    """
    assert running.services is not None
    running.services.health.replaced = True
    log.info("leaving")
    stop.clear()
    for site in list(runner.sites):
        await site.stop()
    await asyncio.sleep(0)  # so that connections which came in at the last moment have begun
    assert runner.server is not None
    runner.server.disable_fast_path()
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), DRAIN_NOTICE_S)
    await _finish(runner, running.services, side)


async def _finish(runner: Runner, services: Services, side: web.AppRunner | None) -> None:
    """Close the listener, and let what is under way end: last what other workers follow by the side auth."""
    assert runner.server is not None
    for site in list(runner.sites):
        await site.stop()
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE_S):
            await asyncio.sleep(0)  # so that requests which came in at the last moment have begun
            runner.server.pre_shutdown()
            await runner.server.shutdown(GRACE_S)
            await services.image_service.drain()
            if side is not None and side.server is not None:
                for site in list(side.sites):
                    await site.stop()
                side.server.pre_shutdown()
                await side.server.shutdown(GRACE_S)


_IMAGES_FOR: Final = {
    "off": "all clients",
    "misses": "all clients; new ones for signed URLs",
    "always": "signed URLs",
}


def tell_opening(config: Config, addresses: Sequence[tuple[str, int]], local_token: str | None) -> None:
    """
    Log what an operator wants to see in one line: where we listen, where images go, and who may fetch what. In a
    terminal a person is told by a banner as well.
    """
    hosts_allowed = config.hosts_allowed(config.read_provider_rules())
    api_for = f"the token in {absolute(data_folder(config) / NAME)}" if local_token else "no client"
    facts: dict[str, object] = {
        "address": ",".join(format_address(host, port) for host, port in addresses),
        "store": config.store.url,
        "sources": "any public host" if "*" in hosts_allowed else f"{len(hosts_allowed)} host patterns",
        "images_for": _IMAGES_FOR[config.security.signature],
        "api_for": "clients with a token" if config.security.api_tokens else api_for,
    }
    if config.server.workers > 1:
        facts["workers"] = config.server.workers
    log.info("listening", extra=facts)
    link = None
    if local_token and not config.server.is_open:
        link = login.make_log_in_link(local_token, *addresses[0], SYSTEM.clock())
        log.info(
            "open this link in a browser within the hour: it logs in and shows the newest images",
            extra={"link": login.Link(link)},
        )
    open_to = {
        "fetches": f"{facts['sources']}, for {facts['images_for']}",
        "API": f"for {facts['api_for']}",
        "open to": "every client that reaches this machine" if config.server.is_open else "this machine only",
    }
    if config.log.format == "text" and sys.stderr.isatty():
        from imgkeep.bootstrap.banner import make_banner  # noqa: PLC0415 - rich takes long to import, and services have no terminal

        show(make_banner(sys.stderr, config, addresses, version=__version__, open_to=open_to, log_in=link))


def tell_workers_opening(config: Config, addresses: Sequence[tuple[str, int]]) -> None:
    """Do the same for several workers, of which the first has made the token. Blocks."""
    local_token = None
    if not config.security.api_tokens:
        with suppress(TokenUnusableError):  # each worker has said why
            local_token = read_token(data_folder(config))
    tell_opening(config, addresses, local_token)
