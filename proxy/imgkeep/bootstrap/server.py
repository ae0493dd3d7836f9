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
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep import __version__
from imgkeep.bootstrap.http_context import open_context
from imgkeep.bootstrap.services import SYSTEM, Platform, Services
from imgkeep.cluster.control import SupervisorLink
from imgkeep.cluster.peer_api import make_peer_api
from imgkeep.config import absolute, data_folder
from imgkeep.listening import BACKLOG, format_address, listen, listen_for_metrics
from imgkeep.observability.logs import show
from imgkeep.storage.local.machine_token import NAME, TokenUnusableError, read_token
from imgkeep.web.api_relay import receive_relayed
from imgkeep.web.app import CONTEXT, add_api, make_app
from imgkeep.web.auth import AUTH
from imgkeep.web.error_responses import read_placeholder
from imgkeep.web.http_server import Runner
from imgkeep.web.login_tickets import LogInLink, make_log_in_link
from imgkeep.web.metrics_listener import serve_metrics
from imgkeep.web.probes import PROBES

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from imgkeep.cluster.info import WorkerInfo
    from imgkeep.config import Config
    from imgkeep.database import DatabaseEngine
    from imgkeep.web.app import AppContext
    from imgkeep.web.probes import Probes

__all__ = ["Platform", "build", "make_runner", "read_placeholder", "serve"]

REQUEST_LINE_BYTES_MAX: Final = 36_864
"""A source URL of the greatest length, with every character of it percent-encoded, and room for the rest."""
REQUEST_FIELD_BYTES_MAX: Final = 16_384
"""For one header field: cookies of the site around us come along, and are never looked at."""
IDLE_TIMEOUT_S: Final = 65
"""
For a connection without a request, or with half of one. Longer than the 60 s that load balancers keep idle connections
to their back ends: whoever closes first must not be us, or a request meets a closed door.
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


SERVICES: Final = web.AppKey("services", Services)
"""The services of an application that runs."""


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
        async with open_context(config, platform, worker, has_fast_path=has_fast_path) as (services, context):
            app[SERVICES] = services
            yield context

    app = make_app(
        open_app_context,
        has_pages=config.server.welcome,
        has_metrics=not config.server.metrics_address,
        legacy_mounts=[names.mount for names in config.legacy],
        is_worker=worker is not None,
    )
    return app


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


async def serve(config: Config, platform: Platform = SYSTEM, *, stopping: Callable[[], None] = lambda: None) -> None:
    """
    Serve until SIGTERM or SIGINT, call `stopping`, then drain.

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
        services = app[SERVICES]
        services.own_ports.update(address[1] for address in runner.addresses)
        async with _metrics_apart(config, app[PROBES], await asyncio.to_thread(listen_for_metrics, config.server)):
            _tune_interpreter()
            tell_opening(config, [(address[0], address[1]) for address in runner.addresses], app[AUTH].local_token)
            await _wait_for_end(stop, services.parts.database.engine)
            stopping()
            await _drain(runner, services, stop)
    finally:
        await runner.cleanup()
    log.info("stopped")
    if (error := services.parts.database.engine.incompatible) is not None:
        raise error


async def work(
    config: Config,
    worker: WorkerInfo,
    listening: Sequence[socket.socket],
    control: socket.socket,
    *,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """
    Serve as one of several workers, until SIGTERM, or until the supervisor says so or is gone; call `stopping`, then
    drain.

    Raises:
        IncompatibleDatabase: A newer version wrote the database.
    """
    app = build(config.share(), SYSTEM, worker)
    runner = make_runner(app)
    link = SupervisorLink(control)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, link.stop.set)
    link.open()
    try:
        await runner.setup()
        services, peers = app[SERVICES], app[PROBES].peers
        assert peers is not None
        peer_api = web.AppRunner(
            _make_peer_app(app[CONTEXT], services, worker),
            access_log=None,
            shutdown_timeout=0.1,
            lingering_time=LINGER_TIMEOUT_S,
            # Each byte of a client's target may come as three; what was judged there has room beside it.
            max_line_size=3 * REQUEST_LINE_BYTES_MAX,
            max_field_size=REQUEST_FIELD_BYTES_MAX,
            auto_decompress=False,
        )
        await peer_api.setup()
        try:
            await web.UnixSite(peer_api, str(worker.shared_folder.socket(worker.name)), backlog=1024).start()
            await services.join()
            services.own_ports.update(sock.getsockname()[1] for sock in listening)
            for sock in listening:
                await web.SockSite(runner, sock, backlog=BACKLOG).start()
            apart = await asyncio.to_thread(listen_for_metrics, config.server, shared=True)
            async with _metrics_apart(config, app[PROBES], apart):
                _tune_interpreter()
                link.announce_ready()
                log.info("worker ready", extra={"worker": worker.name})
                await _wait_for_end(link.stop, services.parts.database.engine)
                stopping()
                if link.is_orphaned:
                    log.error("supervisor died")
                await services.rest()
                await (_leave if link.is_replaced else _drain)(runner, services, link.stop, peer_api)
            left = services.metrics.tell(worker.name, lasting=True)
            peers.save_counters(left, services.metrics.merge)
        finally:
            worker.shared_folder.socket(worker.name).unlink(missing_ok=True)
            await peer_api.cleanup()
    finally:
        await runner.cleanup()
        link.close()
        if link.is_orphaned:
            # No supervisor tidies up; a worker that still runs does without the folder (`cluster/leases.py`).
            await asyncio.to_thread(shutil.rmtree, worker.folder, ignore_errors=True)
    log.info("stopped")
    if (error := services.parts.database.engine.incompatible) is not None:
        raise error


def _make_peer_app(context: AppContext, services: Services, worker: WorkerInfo) -> web.Application:
    """Make the peer API of a worker: its own routes, and the API that peers relay to a leader."""
    app = make_peer_api(
        worker,
        services.image_service,
        learn=services.learn,
        counters=lambda: services.metrics.tell(worker.name),
        failures=services.failures.list,
    )
    context.install(app)
    receive_relayed(app)
    add_api(app.router)
    return app


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


def _metrics_apart(
    config: Config, probes: Probes, sockets: Sequence[socket.socket]
) -> AbstractAsyncContextManager[None]:
    """Serve `/metrics` on sockets of its own, where there are any."""
    if not sockets:
        return nullcontext()
    return serve_metrics(probes, sockets, loopback_only=config.server.metrics_loopback)


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


async def _drain(
    runner: Runner, services: Services, stop: asyncio.Event, peer_api: web.AppRunner | None = None
) -> None:
    """Say that we go, wait for notice to be taken, close the listener, and let what is under way end."""
    services.health.draining = True
    log.info("draining")
    # A second signal ends the notice early.
    stop.clear()
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), DRAIN_NOTICE_S)
        log.info("drain notice cut short", extra={"cause": "a second signal"})
    await _finish(runner, services, peer_api)


async def _leave(runner: Runner, services: Services, stop: asyncio.Event, peer_api: web.AppRunner) -> None:
    """
    Go while others stay: whoever connects from now on is theirs. Connections that are in use are closed with the answer
    to their next request, which says so, and only those that are not used for a while without one.
    """
    services.health.replaced = True
    log.info("leaving")
    stop.clear()
    for site in list(runner.sites):
        await site.stop()
    await asyncio.sleep(0)  # so that connections which came in at the last moment have begun
    assert runner.server is not None
    runner.server.disable_fast_path()
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), DRAIN_NOTICE_S)
    await _finish(runner, services, peer_api)


async def _finish(runner: Runner, services: Services, peer_api: web.AppRunner | None) -> None:
    """Close the listener, and let what is under way end: last the fills that peers follow."""
    assert runner.server is not None
    for site in list(runner.sites):
        await site.stop()
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE_S):
            await asyncio.sleep(0)  # so that requests which came in at the last moment have begun
            runner.server.pre_shutdown()
            await runner.server.shutdown(GRACE_S)
            await services.image_service.drain()
            if peer_api is not None and peer_api.server is not None:
                for site in list(peer_api.sites):
                    await site.stop()
                peer_api.server.pre_shutdown()
                await peer_api.server.shutdown(GRACE_S)


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
        link = make_log_in_link(local_token, *addresses[0], SYSTEM.clock())
        log.info(
            "open this link in a browser within the hour: it logs in and shows the newest images",
            extra={"link": LogInLink(link)},
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
