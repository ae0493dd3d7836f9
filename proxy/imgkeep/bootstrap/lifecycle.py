"""
Serves until a signal, then drains: as the only process, or as one of several workers.

Rules:
- The listener opens last and closes first; `/readyz` says `draining` for `DRAIN_NOTICE_S` before it closes.
- Responses and fills that are running have `GRACE_S` to end; fills that peers follow end last.
- A worker that another one replaces keeps its clients until their next response, which closes the connection.
- A single process does not reload its configuration; with several workers the supervisor does
  (`cluster/workers/supervisor.py`).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import signal
import sys
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final

from aiohttp import web

from imgkeep.bootstrap.opening_log import tell_opening
from imgkeep.bootstrap.peer_listeners import serve_nodes, serve_workers
from imgkeep.bootstrap.platform import SYSTEM, Platform
from imgkeep.bootstrap.server import (
    BACKGROUND,
    SERVICES,
    build,
    make_runner,
)
from imgkeep.cluster.workers.control import SupervisorLink
from imgkeep.listening import BACKLOG, listen, listen_for_metrics
from imgkeep.web.app import CONTEXT
from imgkeep.web.auth import AUTH
from imgkeep.web.metrics import METRICS
from imgkeep.web.metrics_listener import serve_metrics

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from imgkeep.bootstrap.background import BackgroundTasks
    from imgkeep.bootstrap.peer_listeners import Drain
    from imgkeep.bootstrap.services import Services
    from imgkeep.cluster.workers.worker_info import WorkerInfo
    from imgkeep.config import Config
    from imgkeep.web.http_server import Runner
    from imgkeep.web.metrics import MetricsPage

DRAIN_NOTICE_S: Final = 2
"""Time between `/readyz` saying `draining` and the end of listening: load balancers ask every second or two."""
GRACE_S: Final = 20
"""Timeout for responses and fills under way. With the notice it is below the 30 s after which orchestrators kill."""
ACCEPTING_ITERATIONS: Final = 5
"""
Number of iterations of the event loop that asyncio needs from accepting a connection to its first request: it makes the
transport, tells the protocol, starts aiohttp's task, and reads.
"""

SWITCH_INTERVAL_S: Final = 0.0002
"""Time for which one thread may keep the interpreter while another waits for it; Python's default is 5 ms."""
GC_THRESHOLDS: Final = (20_000, 50, 100)
"""Thresholds of the garbage collector: new objects per young collection, and young collections per older ones."""

log = logging.getLogger(__name__)


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
        services, background = app[SERVICES], app[BACKGROUND]
        services.own_ports.update(address[1] for address in runner.addresses)
        async with (
            _metrics_apart(config, app[METRICS], await asyncio.to_thread(listen_for_metrics, config.server)),
            serve_nodes(config, services, background.cluster) as peer_apis,
        ):
            _tune_interpreter()
            tell_opening(config, [(address[0], address[1]) for address in runner.addresses], app[AUTH].local_token)
            await _wait_for_end(stop, background)
            stopping()
            await _drain(runner, services, stop, peer_apis)
    finally:
        await runner.cleanup()
    _log_end(background)


async def work(
    config: Config,
    worker: WorkerInfo,
    listening: Sequence[socket.socket],
    control: socket.socket,
    *,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """
    Serve as one of several workers, until SIGTERM or until the supervisor says so or dies; call `stopping`, then drain.

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
        services, background = app[SERVICES], app[BACKGROUND]
        parts = background.cluster
        async with serve_workers(app[CONTEXT], services, parts) as peer_api:
            await services.catch_up()
            services.own_ports.update(sock.getsockname()[1] for sock in listening)
            for sock in listening:
                await web.SockSite(runner, sock, backlog=BACKLOG).start()
            sockets = await asyncio.to_thread(listen_for_metrics, config.server, shared=True)
            async with (
                _metrics_apart(config, app[METRICS], sockets),
                serve_nodes(config, services, parts) as node_apis,
            ):
                _tune_interpreter()
                link.announce_ready()
                log.info("worker ready", extra={"worker": worker.name})
                await _wait_for_end(link.stop, background)
                stopping()
                if link.is_orphaned:
                    log.error("supervisor died")
                await background.resign()
                drain = _drain_replaced if link.is_replaced else _drain
                await drain(runner, services, link.stop, (*node_apis, peer_api))
    finally:
        await runner.cleanup()
        link.close()
        if link.is_orphaned:
            # No supervisor deletes the folder; a worker that still runs does without it (`cluster/workers/leases.py`).
            await asyncio.to_thread(shutil.rmtree, worker.folder, ignore_errors=True)
    _log_end(background)


def _log_end(background: BackgroundTasks) -> None:
    log.info("stopped")
    if background.incompatible is not None:
        raise background.incompatible


async def _wait_for_end(stop: asyncio.Event, background: BackgroundTasks) -> None:
    """
    Wait until `stop` is set, or until this process finds a database that it cannot use, which may be late if the
    database was unreachable at start.
    """
    waits = [asyncio.create_task(event.wait()) for event in (stop, *background.found_incompatible)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    if background.incompatible is not None and not stop.is_set():
        log.error("database is incompatible; ending", extra={"reason": background.incompatible.in_full})
        stop.set()


def _metrics_apart(
    config: Config, page: MetricsPage, sockets: Sequence[socket.socket]
) -> AbstractAsyncContextManager[None]:
    """Serve `/metrics` on sockets of its own, where there are any."""
    if not sockets:
        return nullcontext()
    return serve_metrics(page, sockets, loopback_only=config.server.metrics_loopback)


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


async def _drain(runner: Runner, services: Services, stop: asyncio.Event, peer_apis: Sequence[Drain]) -> None:
    """Announce the end, wait until load balancers have seen it, close the listener, and let running requests end."""
    services.health.draining = True
    log.info("draining")
    # A second signal ends the notice early.
    stop.clear()
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), DRAIN_NOTICE_S)
        log.info("drain notice cut short", extra={"cause": "a second signal"})
    await _finish(runner, services, peer_apis)


async def _drain_replaced(runner: Runner, services: Services, stop: asyncio.Event, peer_apis: Sequence[Drain]) -> None:
    """
    Stop while other workers go on: they accept all new connections. This worker closes a connection in use with the
    response to its next request, which says so, and closes only idle ones without a response.
    """
    services.health.replaced = True
    log.info("draining", extra={"cause": "replaced by another worker"})
    stop.clear()
    for site in list(runner.sites):
        await site.stop()
    await _begin_last_requests()
    assert runner.server is not None
    runner.server.disable_fast_path()
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), DRAIN_NOTICE_S)
    await _finish(runner, services, peer_apis)


async def _begin_last_requests() -> None:
    """Let the connections begin that came in at the last moment: aiohttp ends only those whose task waits."""
    for _ in range(ACCEPTING_ITERATIONS):
        await asyncio.sleep(0)


async def _finish(runner: Runner, services: Services, peer_apis: Sequence[Drain]) -> None:
    """Close the listener, and let running responses and fills end: last the fills that peers follow."""
    assert runner.server is not None
    for site in list(runner.sites):
        await site.stop()
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE_S):
            await _begin_last_requests()
            runner.server.pre_shutdown()
            await runner.server.shutdown(GRACE_S)
            await services.image_service.drain()
            for drain in peer_apis:
                await drain(GRACE_S)
