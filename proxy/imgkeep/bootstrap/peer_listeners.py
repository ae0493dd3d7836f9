"""The peer APIs of a process: for the other workers of its machine on a Unix socket, for other nodes over TCP."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from aiohttp import web

from imgkeep.bootstrap.peer_tls import make_server_context
from imgkeep.bootstrap.server import LINGER_TIMEOUT_S, REQUEST_FIELD_BYTES_MAX, REQUEST_LINE_BYTES_MAX
from imgkeep.cluster.workers.leases import find_holder
from imgkeep.cluster.workers.worker_api import make_worker_api
from imgkeep.core.derived.names import DERIVED, read_path
from imgkeep.core.layout import read_object_name
from imgkeep.listening import listen_for_nodes
from imgkeep.web.api_relay import receive_relayed
from imgkeep.web.app import add_api

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from imgkeep.bootstrap.cluster import ClusterParts
    from imgkeep.bootstrap.services import Services
    from imgkeep.cluster.workers.peers import WorkerPeers
    from imgkeep.config import Config
    from imgkeep.images.failure_history import RecentFailure
    from imgkeep.storage.interfaces import Body
    from imgkeep.web.app import AppContext

Drain: TypeAlias = "Callable[[float], Awaitable[None]]"
"""Closes a listener, and lets running responses end, within so many seconds."""


@asynccontextmanager
async def serve_workers(context: AppContext, services: Services, parts: ClusterParts) -> AsyncGenerator[Drain]:
    """Serve the other workers until the end of the block, then leave this worker's counters to them."""
    worker, peers = parts.worker, parts.peers
    assert worker is not None
    assert peers is not None
    app = make_worker_api(
        worker,
        services.image_service,
        wait=services.wait_for_end,
        learn=services.learn,
        counters=lambda: services.metrics.tell(worker.name),
        failures=services.failures.list,
    )
    context.install(app)
    receive_relayed(app)
    add_api(app.router)
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=0.1,
        lingering_time=LINGER_TIMEOUT_S,
        # Each byte of a client's target may come as three; the result of admission needs room too.
        max_line_size=3 * REQUEST_LINE_BYTES_MAX,
        max_field_size=REQUEST_FIELD_BYTES_MAX,
        auto_decompress=False,
    )
    await runner.setup()
    path = worker.shared_folder.socket(worker.name)
    try:
        await web.UnixSite(runner, str(path), backlog=1024).start()
        yield partial(_drain, runner)
        peers.save_counters(services.metrics.tell(worker.name, lasting=True), services.metrics.merge)
    finally:
        path.unlink(missing_ok=True)
        await runner.cleanup()


@asynccontextmanager
async def serve_nodes(config: Config, services: Services, parts: ClusterParts) -> AsyncGenerator[Sequence[Drain]]:
    """
    Serve the other nodes until the end of the block, where the cluster may have others.

    Raises:
        ConfigError: The address is not of this machine, or a file of TLS cannot be used.
        OSError: The port is in use.
    """
    if parts.nodes is None or not config.cluster.secret:
        yield ()
        return
    # One node does without these.
    from imgkeep.cluster.nodes.authentication import RequestVerifier  # noqa: PLC0415
    from imgkeep.cluster.nodes.node_api import LocalWorkers, make_node_api  # noqa: PLC0415
    from imgkeep.cluster.nodes.peer_listener import listen_for_peers  # noqa: PLC0415

    membership = parts.nodes.membership
    workers = None
    if parts.worker is not None and parts.peers is not None:
        workers = LocalWorkers(parts.peers, partial(find_holder, worker=parts.worker))
    app = make_node_api(
        services.image_service,
        workers=workers,
        wait=services.wait_for_end,
        fetch_picture=partial(_fetch_picture, services),
        fetch_object=partial(_fetch_object, services),
        failures=partial(_list_failures, services, parts.peers),
        is_confirmed_within=membership.is_confirmed_within,
    )
    ssl_context = await asyncio.to_thread(make_server_context, config.cluster)
    sockets = await asyncio.to_thread(listen_for_nodes, config.cluster, shared=parts.worker is not None)
    verifier = RequestVerifier(config.cluster.secret, membership.identity.advertise_url, now=membership.now)
    refused = services.metrics.peer_refused
    async with listen_for_peers(app, sockets, verifier, ssl_context=ssl_context, refused=refused) as listener:
        yield (listener.drain,)


async def _drain(runner: web.AppRunner, grace_s: float) -> None:
    if runner.server is not None:
        for site in list(runner.sites):
            await site.stop()
        runner.server.pre_shutdown()
        await runner.server.shutdown(grace_s)


async def _fetch_object(services: Services, name: str) -> Body | None:
    """Open an object that is on the disk of this machine, and not blocked. Raises: StorageError."""
    found, remote = read_object_name(name), services.storage.remote
    if found is None or found[0] in services.remover.blocked or remote is None:
        return None
    body = None if remote.fallback is None else await remote.fallback.fetch(name, None)
    return await remote.cache.fetch(name, None) if body is None else body


async def _fetch_picture(services: Services, path: str) -> Body | None:
    """Open a derived picture that is on the disk of this machine, and whose original is not blocked."""
    name = read_path(f"{DERIVED}/{path}")
    found = None if name is None else await services.storage.picture_cache.find(name)
    return None if found is None else found.body


async def _list_failures(services: Services, peers: WorkerPeers | None) -> Sequence[RecentFailure]:
    """Return the recent failures of all workers of this machine."""
    own = services.failures.list()
    return own if peers is None else [*own, *chain.from_iterable(await peers.failures())]
