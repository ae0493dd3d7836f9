"""
The composition root: turns a configuration into a running application, and is the only place that constructs.

Everything that is opened here is closed here, in the opposite order. The real clock, the real resolver and the real
sockets are chosen here too, so that tests can choose others (`Seams`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec
from aiohttp import web

from proxy import __version__
from proxy.catalog import SqlJobs
from proxy.core.errors import Conflict, StorageError, WrittenByNewer
from proxy.core.identity import identify
from proxy.core.signing import Signatures
from proxy.core.source import read_source
from proxy.origin import AddressGuard, OriginClient
from proxy.origin.guard import open_socket
from proxy.parts import cancel, open_parts
from proxy.service.allowance import Allowances
from proxy.service.fill import Neighbours
from proxy.service.heal import Healer
from proxy.service.health import LOOK_EVERY_S, Health
from proxy.service.inspect import Inspector
from proxy.service.jobs import JobRunner
from proxy.service.keep import Keeper, Rules
from proxy.service.removal import Refusals, Remover
from proxy.service.save import Saver
from proxy.service.upkeep import reindex
from proxy.telemetry import Metrics
from proxy.web import api, images_api, jobs_api
from proxy.web import health as health_routes
from proxy.web.bodies import Bodies
from proxy.web.door import Door, Tokens
from proxy.web.images import image, img
from proxy.web.problems import problems
from proxy.web.records import records
from proxy.web.site import SITE, Site

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

    from aiohttp.abc import AbstractResolver

    from proxy.config import Config
    from proxy.core.model import Digest
    from proxy.origin.guard import SocketFactory
    from proxy.parts import Parts
    from proxy.ports import Clock, Sleep

REQUEST_LINE_BYTES_MAX: Final = 36_864
"""A source URL of the greatest length, with every character of it percent-encoded, and room for the rest."""
REQUEST_FIELD_BYTES_MAX: Final = 16_384
"""For one header field: cookies of the site around us come along, and are never looked at."""
LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
IDLE_TIMEOUT_S: Final = 65
"""
For a connection without a request, or with half of one. Longer than the 60 s that load balancers keep idle connections
to their back ends: whoever closes first must not be us, or a request meets a closed door.
"""
LINGER_TIMEOUT_S: Final = 5
"""For the rest of a request body that nobody asked for."""
NAME_THREADS_PER_FETCH: Final = 2
"""The system's resolver blocks its thread, for half a minute when no name server answers; fetches give up sooner."""
DRAIN_NOTICE_S: Final = 2
"""Between `/readyz` saying `draining` and the listener closing: load balancers ask every second or two."""
GRACE_S: Final = 20
"""For answers and fills under way. With the notice it stays below the 30 s after which orchestrators kill."""

log = logging.getLogger(__name__)


def _real_clock() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the one place


@dataclass(frozen=True)
class Seams:
    """What tests choose otherwise: the edges of the machine itself."""

    clock: Clock = _real_clock
    timer: Callable[[], float] = time.monotonic
    sleep: Sleep = asyncio.sleep
    """For what is tried again behind everybody's back."""
    resolver: Callable[[], AbstractResolver] = aiohttp.ThreadedResolver
    open_socket: SocketFactory = open_socket
    ssl_context: ssl.SSLContext | None = None


@dataclass(slots=True)
class _Running:
    """What `serve` needs of a running application beyond HTTP."""

    own_ports: set[int] = field(default_factory=set)
    health: Health | None = None
    keeper: Keeper | None = None


_RUNNING: Final = web.AppKey("running", _Running)


def make_inspector(config: Config, seams: Seams = Seams()) -> Inspector:
    """Return who reads links, by the catalogue and policy of a configuration."""
    catalogue = config.read_catalogue()
    exact = config.sources.identity == "exact"
    return Inspector(
        policy=config.policy(catalogue),
        identify=lambda source: identify(source, seams.clock(), catalogue, exact=exact),
        public=read_source(config.server.public_url) if config.server.public_url else None,
    )


def build(config: Config, seams: Seams = Seams()) -> web.Application:
    """Make the application. Nothing is opened before it starts."""
    app = web.Application(middlewares=[records, problems])
    app[_RUNNING] = _Running()
    app.router.add_get("/img", img)
    app.router.add_get("/images/{name}", image)
    app.router.add_get("/api/inspect", api.inspect)
    app.router.add_post("/api/save-image", api.save_image)
    app.router.add_post("/api/save-images", jobs_api.save_images)
    app.router.add_get("/api/jobs/{id}", jobs_api.show_job)
    app.router.add_get("/api/jobs/{id}/events", jobs_api.follow_job)
    app.router.add_get("/api/images", images_api.list_images)
    app.router.add_delete("/api/images", images_api.remove_images)
    app.router.add_get("/api/images/{key}", images_api.show_image)
    app.router.add_delete("/api/images/{key}", images_api.remove_image)
    app.router.add_get("/healthz", health_routes.healthz)
    app.router.add_get("/readyz", health_routes.readyz)
    app.router.add_get("/metrics", health_routes.metrics)

    async def open_site(app: web.Application) -> AsyncIterator[None]:
        async with _site(config, seams, app[_RUNNING]) as site:
            app[SITE] = site
            yield

    app.cleanup_ctx.append(open_site)
    app.on_response_prepare.append(_sign)
    return app


async def _sign(_request: web.Request, response: web.StreamResponse) -> None:
    """Say who answers, and not by which versions of what."""
    response.headers["Server"] = "imgkeep"


@asynccontextmanager
async def _site(config: Config, seams: Seams, running: _Running) -> AsyncGenerator[Site]:
    metrics = Metrics()
    names = ThreadPoolExecutor(config.fetch.concurrent_max * NAME_THREADS_PER_FETCH, thread_name_prefix="names")
    asyncio.get_running_loop().set_default_executor(names)  # where the resolver looks names up
    async with open_parts(
        config, clock=seams.clock, timer=seams.timer, sleep=seams.sleep, observe=metrics.called
    ) as parts:
        remote = parts.remote
        health = Health(parts.disk, parts.catalog, config.store.free_bytes_min, remote)
        inspector = make_inspector(config, seams)
        guard = AddressGuard(inspector.policy, seams.resolver(), seams.open_socket)
        guard.own_ports = running.own_ports
        origin = OriginClient(
            settings=config.fetch,
            policy=inspector.policy,
            guard=guard,
            clock=seams.clock,
            draw=random.random,
            ssl_context=seams.ssl_context,
            user_agent=config.fetch.user_agent or f"Mozilla/5.0 (compatible; imgkeep/{__version__})",
            fetched=metrics.fetched,
        )
        refusals = Refusals(parts.store, parts.catalog, _drop_of(parts))
        neighbours = Neighbours(
            origin=origin,
            store=parts.store,
            disk=parts.spool,
            memory=parts.memory,
            observer=_Witness(metrics, health),
            clock=seams.clock,
            draw_etag=lambda: f'"{secrets.token_hex(16)}"',
            pixels_max=config.fetch.pixels_max,
            refused=refusals,
        )
        keeper = Keeper(
            store=parts.store,
            catalog=parts.catalog,
            policy=inspector.policy,
            identify=inspector.identify,
            rules=Rules(
                redirect_permanent=config.sources.permanent == "redirect",
                refresh=config.sources.refresh == "resigned",
            ),
            timer=seams.timer,
            addresses=None if remote is None else remote.addresses,
            allowances=Allowances(**msgspec.structs.asdict(config.limits), timer=seams.timer),
            neighbours=neighbours,
            refused=refusals,
        )
        remover = Remover(
            store=parts.store, register=parts.catalog, finder=keeper, refusals=refusals, clock=seams.clock
        )
        keeper.remove = remover.remove_record
        saver = Saver(keeper, neighbours, body_bytes_max=config.fetch.body_bytes_max)
        jobs = JobRunner(
            jobs=SqlJobs(parts.catalog),
            saver=saver,
            messenger=origin,
            identify=inspector.identify,
            public=inspector.public,
            webhook_key=config.security.signing_keys[0] if config.security.signing_keys else None,
            clock=seams.clock,
            draw=random.random,
            draw_id=lambda: secrets.token_hex(16),
            sleep=seams.sleep,
            counted=metrics.worked,
        )
        metrics.watch("job_links_waiting", "Links that wait to be saved", lambda: jobs.waiting)
        metrics.watch("fills_in_flight", "Images being fetched", lambda: keeper.fills_in_air)
        metrics.watch("fetches_waiting", "Fetches that wait for a place", lambda: origin.gates.waiting)
        metrics.watch("store_free_bytes", "Bytes free on the local disk", lambda: health.free_bytes)
        running.health, running.keeper = health, keeper
        await health.look()
        await refusals.open()
        tasks = [
            asyncio.create_task(_watch(health, parts)),
            asyncio.create_task(refusals.run(seams.sleep)),
            asyncio.create_task(jobs.run()),
            *_begin_healing(parts, keeper, refusals, health, metrics, seams),
        ]
        try:
            yield Site(
                keeper=keeper,
                health=health,
                meter=metrics,
                public=inspector.public,
                inspector=inspector,
                remover=remover,
                jobs=jobs,
                ledger=parts.catalog,
                saver=saver,
                bodies=Bodies(),
                redirect_status=config.delivery.redirect_status,
                door=Door(
                    signature=config.security.signature,
                    signatures=Signatures(config.security.signing_keys),
                    tokens=Tokens.of(config.security.api_tokens),
                    own_hosts=_own_hosts(config),
                    trusted_proxies=tuple(ip_network(text) for text in config.server.trusted_proxies),
                    public_base=config.server.public_url.rstrip("/"),
                    clock=seams.clock,
                ),
                access_log=config.log.access,
                clock=seams.clock,
                timer=seams.timer,
            )
        finally:
            for task in tasks:
                await cancel(task)
            await keeper.aclose()
            await origin.aclose()


def _begin_healing(  # noqa: PLR0913, PLR0917 - called once, above
    parts: Parts, keeper: Keeper, refusals: Refusals, health: Health, metrics: Metrics, seams: Seams
) -> Sequence[asyncio.Task[None]]:
    """Start what looks after a remote store: who tries whether it is back, and who carries over what waits for it."""
    remote = parts.remote
    if remote is None:
        return ()
    metrics.watch("store_away", "1 while the fallback takes over", lambda: remote.breaker.reason is not None)
    metrics.watch("cache_bytes", "Bytes of local copies", lambda: remote.cache.bytes)
    metrics.watch("cache_hits", "Look-ups that found a local copy", lambda: remote.cache.hits)
    metrics.watch("cache_misses", "Look-ups that found none", lambda: remote.cache.misses)

    def tell_store(reason: str | None) -> None:
        health.faults["store"] = reason

    remote.breaker.tell = tell_store
    tasks = [asyncio.create_task(remote.breaker.run())]
    if remote.fallback is None:
        return tasks
    healer = Healer(
        primary=remote.bucket,
        fallback=remote.fallback,
        cache=remote.cache,
        outbox=parts.catalog,
        catalog=parts.catalog,
        breaker=remote.breaker,
        keeper=keeper,
        draw=random.random,
        counted=metrics.healed,
        seen=remote.tiers.note,
        sleep=seams.sleep,
        refused=refusals,
        remove=keeper.remove,
    )

    def oldest_s() -> float:
        oldest = healer.backlog.oldest if healer.backlog else None
        return 0 if oldest is None else max(0, (seams.clock() - oldest).total_seconds())

    def tell() -> dict[str, object]:
        backlog = healer.backlog
        if backlog is None:  # nobody has looked yet
            return {"waiting": None, "oldest_s": None, "last_error": None}
        return {"waiting": backlog.images, "oldest_s": round(oldest_s()), "last_error": backlog.error}

    health.fallback = tell
    metrics.watch(
        "outbox_images", "Images that wait for the store", lambda: healer.backlog.images if healer.backlog else 0
    )
    metrics.watch("outbox_oldest_seconds", "Since when the oldest of them waits", oldest_s)
    return [*tasks, asyncio.create_task(healer.run())]


def _drop_of(parts: Parts) -> Callable[[Digest], Awaitable[None]]:
    """Return who drops this machine's copies of a picture that is refused."""
    return parts.disk.forget if parts.remote is None else parts.remote.tiers.drop


def _own_hosts(config: Config) -> frozenset[str]:
    """Return the names under which only this machine asks: none, once others reach us through a proxy in front."""
    fronted = config.server.public_url or config.server.trusted_proxies
    return frozenset() if fronted or not config.server.loopback else frozenset({config.server.host, *LOOPBACK_NAMES})


class _Witness:
    """Implements `ports.Observer`: counts, and tells the health at once what a fill met."""

    def __init__(self, metrics: Metrics, health: Health) -> None:
        self._metrics = metrics
        self._health = health

    def filled(self, size: int, *, pending: bool) -> None:
        self._metrics.filled(size, pending=pending)

    def unchanged(self) -> None:
        self._metrics.unchanged()

    def unkept(self, fault: StorageError) -> None:
        self._metrics.unkept()
        if isinstance(fault, Conflict) and not isinstance(fault, WrittenByNewer):
            return
        reason = str(fault)
        if not self._health.faults.get("store"):
            log.error("an image was delivered but not kept", extra={"reason": reason})
        self._health.note("store", reason)

    def failed(self, error: BaseException) -> None:
        self._metrics.failed(error)


async def _watch(health: Health, parts: Parts) -> None:
    """
    Look after the health, and fill a catalog that is new or was lost: from a disk. Of a bucket every record would be a
    request that is paid for, and look-ups find them one by one as they are needed.
    """
    while True:
        if parts.remote is None and not parts.catalog.complete and not any(health.faults.values()):
            with suppress(StorageError):
                images = await reindex(parts.archives, parts.catalog)
                log.info("catalog filled from the records", extra={"images": images})
        await asyncio.sleep(LOOK_EVERY_S)
        before = dict(health.faults)
        await health.look()
        for part, fault in health.faults.items():
            if fault != before.get(part):
                log.log(
                    logging.ERROR if fault else logging.INFO,
                    "part is failing" if fault else "part works again",
                    extra={"part": part, "reason": fault},
                )


def make_runner(
    app: web.Application, *, idle_timeout_s: float = IDLE_TIMEOUT_S, linger_timeout_s: float = LINGER_TIMEOUT_S
) -> web.AppRunner:
    """Return a runner with the limits that keep slow and hostile clients in bounds."""
    return web.AppRunner(
        app,
        access_log=None,  # web/records.py writes ours
        keepalive_timeout=idle_timeout_s,
        lingering_time=linger_timeout_s,
        max_line_size=REQUEST_LINE_BYTES_MAX,
        max_field_size=REQUEST_FIELD_BYTES_MAX,
        shutdown_timeout=0.1,  # what is still under way then had its grace in `_drain`
    )


async def serve(config: Config, seams: Seams = Seams()) -> None:
    """
    Serve until SIGTERM or SIGINT, then drain.

    Raises:
        OSError: The address cannot be bound.
        CatalogTooNew: A newer version wrote the catalog.
    """
    app = build(config, seams)
    runner = make_runner(app)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await runner.setup()
        site = web.TCPSite(runner, config.server.host, config.server.port, backlog=1024)
        await site.start()
        running = app[_RUNNING]
        running.own_ports.update(address[1] for address in runner.addresses)
        log.info("listening", extra=_opening(config, runner))
        fronted = config.server.public_url or config.server.trusted_proxies
        if fronted and config.server.loopback and "auto" in config.sources.allow:
            log.warning("open to all who reach the proxy in front", extra={"setting": "sources.allow"})
        await stop.wait()
        await _drain(runner, running, stop)
    finally:
        await runner.cleanup()
    log.info("stopped")


async def _drain(runner: web.AppRunner, running: _Running, stop: asyncio.Event) -> None:
    """Say that we go, wait for notice to be taken, close the listener, and let what is under way end."""
    assert running.health is not None
    assert running.keeper is not None
    assert runner.server is not None
    running.health.draining = True
    log.info("draining")
    # A second signal ends the notice early.
    stop.clear()
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), DRAIN_NOTICE_S)
    for site in list(runner.sites):
        await site.stop()
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE_S):
            await asyncio.sleep(0)  # so that requests which came in at the last moment have begun
            runner.server.pre_shutdown()
            await runner.server.shutdown(GRACE_S)
            await running.keeper.land()


_IMAGES_FOR: Final = {
    "off": "everybody",
    "misses": "everybody; new ones for signed URLs",
    "always": "signed URLs",
}


def _tokenless(config: Config) -> str:
    return "this machine" if _own_hosts(config) else "nobody"


def _opening(config: Config, runner: web.AppRunner) -> dict[str, object]:
    """Return what an operator wants to see in one line: where we listen, where images go, and who may fetch what."""
    hosts_allowed = config.hosts_allowed(config.read_catalogue())
    return {
        "address": ",".join(f"{host}:{port}" for host, port, *_ in runner.addresses),
        "store": config.store.url,
        "sources": "any public host" if "*" in hosts_allowed else f"{len(hosts_allowed)} host patterns",
        "images_for": _IMAGES_FOR[config.security.signature],
        "api_for": "whoever has a token" if config.security.api_tokens else _tokenless(config),
    }
