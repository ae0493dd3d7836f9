"""
Everything that works on images, put together from a configuration: for the server, and for commands that save.

The real clock, the real resolver and the real sockets are chosen here, so that tests can choose others (`Platform`).
Everything that is opened here is closed here, in the opposite order.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from platform import python_version
from typing import TYPE_CHECKING, Final

import aiohttp

from imgkeep import __version__
from imgkeep.bootstrap.storage import cancel, objects_url, open_storage
from imgkeep.clock import read_clock
from imgkeep.cluster.leader import LeaderLock
from imgkeep.cluster.leases import FillLeases
from imgkeep.core.errors import StorageError
from imgkeep.core.host_patterns import Globs
from imgkeep.core.identity.signature_probe import spoil
from imgkeep.core.source_url import read_source
from imgkeep.health import CHECK_INTERVAL_S, Health
from imgkeep.images.blocked_digests import BlockedDigests
from imgkeep.images.dependencies import FillDependencies
from imgkeep.images.format_checker import FormatChecker
from imgkeep.images.inspect import Inspector, make_inspector
from imgkeep.images.interfaces import Cluster
from imgkeep.images.observer import FillObserver
from imgkeep.images.placeholder_suspects import PlaceholderSuspects
from imgkeep.images.rate_limit import RateLimiter
from imgkeep.images.recent_failures import RecentFailures
from imgkeep.images.refetch import Refetcher
from imgkeep.images.refresh import SourceRules
from imgkeep.images.removal import Remover
from imgkeep.images.service import ImageService
from imgkeep.images.stored_totals import StoredTotals
from imgkeep.images.upload import Saver
from imgkeep.jobs.runner import JobRunner
from imgkeep.jobs.webhooks import WebhookSender
from imgkeep.maintenance.verify_reindex import reindex
from imgkeep.observability.metrics import Metrics
from imgkeep.origin import AddressGuard, OriginClient
from imgkeep.origin.ssrf_guard import open_socket
from imgkeep.page_rewriting import LinkSelection
from imgkeep.replication.outbox_worker import OutboxWorker
from imgkeep.storage.disk_cache import CacheShare

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping

    from aiohttp.abc import AbstractResolver

    from imgkeep.bootstrap.storage import Storage
    from imgkeep.clock import Clock, Sleep
    from imgkeep.cluster.info import WorkerInfo
    from imgkeep.config import Config
    from imgkeep.core.records import Digest, Key, Record
    from imgkeep.database import Outbox
    from imgkeep.images.interfaces import Peers
    from imgkeep.origin.ssrf_guard import SocketFactory

LEASE_GRACE_S: Final = 10
"""So long a claim is seen after its image was kept, beyond what `store.timeout_s` lets a look-up take."""
LEADER_CHECK_INTERVAL_S: Final = 0.25
"""So soon somebody else does what a dead worker did for all."""
LATE_JOBS_S: Final = 30
LATE_JOBS_EVERY_S: Final = 10
"""So long one who has left may still take jobs, for requests that it has begun, and so often they are looked for."""

NAME_THREADS_PER_FETCH: Final = 2
"""The system's resolver blocks its thread, for half a minute when no name server answers; fetches give up sooner."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Platform:
    """What tests choose otherwise: the edges of the machine itself."""

    clock: Clock = read_clock
    timer: Callable[[], float] = time.monotonic
    sleep: Sleep = asyncio.sleep
    """For what is tried again behind everybody's back."""
    resolver: Callable[[], AbstractResolver] = aiohttp.ThreadedResolver
    open_socket: SocketFactory = open_socket
    ssl_context: ssl.SSLContext | None = None
    make_format_checker: Callable[[], FormatChecker] = FormatChecker


SYSTEM: Final = Platform()


@dataclass(frozen=True, slots=True)
class Services:
    """What works on images. `own_ports`: those that we listen on, for the guard against loops."""

    parts: Storage
    inspector: Inspector
    image_service: ImageService
    saver: Saver
    remover: Remover
    refetcher: Refetcher
    jobs: JobRunner
    health: Health
    metrics: Metrics
    failures: RecentFailures
    totals: StoredTotals
    own_ports: set[int]
    leader_lock: LeaderLock | None
    """Whose leader_lock it is among several workers; `None`: there is one."""
    blocked_digests: BlockedDigests
    peers: Peers | None
    platform: Platform
    resting: asyncio.Event

    @asynccontextmanager
    async def going(self) -> AsyncGenerator[None]:
        """
        Run the background tasks. Of several workers the leader runs those for all, and each one those for itself.
        """
        if self.leader_lock is not None:
            self.leader_lock.acquire()
        outbox_worker = _make_outbox_worker(self)
        breaker = () if self.parts.remote is None else (self.parts.remote.breaker.run(),)
        tasks = [
            asyncio.create_task(each)
            for each in (
                _watch(self.health, self.parts, self.leader_lock, outbox_worker),
                _count_stored(self.totals, self.leader_lock),
                self.remover.run(self.platform.sleep),
                _sample_process(self.metrics),
                *breaker,
                *(
                    self._works(outbox_worker)
                    if self.leader_lock is None
                    else [self._lead_when_elected(self.leader_lock, outbox_worker)]
                ),
            )
        ]
        try:
            yield
        finally:
            for task in tasks:
                await cancel(task)

    async def rest(self) -> None:
        """Leave to other workers what one does for all."""
        self.resting.set()
        while self.leader_lock is not None and self.leader_lock.is_held:  # noqa: ASYNC110 - its task releases it soon
            await asyncio.sleep(0.01)

    async def join(self) -> None:
        """Others can tell us what they know from now on: look for what they have told each other before."""
        await self.remover.refresh()
        if self.parts.remote is not None:
            await self.parts.remote.cache.open()

    async def learn(
        self,
        refused: Collection[Digest],
        changed: Collection[Key],
        copies: Mapping[str, int],
        restored: Collection[Digest] = (),
    ) -> None:
        """Take notice that another worker has removed or restored images, changed records, or used copies."""
        await self.remover.learn(refused, restored)
        for name in changed:
            self.image_service.learn(name)
        if self.parts.remote is not None:
            await self.parts.remote.cache.count_copies(copies)

    def _works(self, outbox_worker: OutboxWorker | None) -> list[Coroutine[None, None, None]]:
        return [self.jobs.run(), *(() if outbox_worker is None else (outbox_worker.run(),))]

    async def _lead_when_elected(self, leader_lock: LeaderLock, outbox_worker: OutboxWorker | None) -> None:
        """Wait for our leader_lock, and have it until we leave."""
        while not (leader_lock.is_held or leader_lock.acquire()):
            if await _within(self.resting, LEADER_CHECK_INTERVAL_S):
                return
        log.info("works in the background")
        tasks = [asyncio.create_task(each) for each in self._works(outbox_worker)]
        try:
            for _ in range(LATE_JOBS_S // LATE_JOBS_EVERY_S):
                if await _within(self.resting, LATE_JOBS_EVERY_S):
                    return
                self.jobs.poll_now()
            await self.resting.wait()
        finally:
            for task in tasks:
                await cancel(task)
            leader_lock.release()


def make_link_selection(config: Config, inspector: Inspector, parts: Storage | None = None) -> LinkSelection:
    """Return who says which links in pages become ours; `parts` tell where a public bucket is."""
    objects = parts.remote.objects_url if parts is not None and parts.remote is not None else objects_url(config)
    keys = config.security.signing_keys
    return LinkSelection(inspector, keys[0] if keys else None, None if objects is None else read_source(objects))


@asynccontextmanager
async def open_services(
    config: Config,
    platform: Platform = SYSTEM,
    place: WorkerInfo | None = None,
    peers: Peers | None = None,
    *,
    changed: Callable[[Key], None] = lambda _: None,
) -> AsyncGenerator[Services]:
    """
    Open all of it; nothing goes on in the background yet (`Services.going`).

    Args:
        config: What is to be opened.
        platform: The edges of the machine.
        place: Among several workers.
        peers: The other workers.
        changed: Called with every key under which another image is stored.

    Raises:
        IncompatibleDatabase: A newer version wrote the database.
    """
    metrics = Metrics()
    metrics.announce(version=__version__, python=python_version())
    failures = RecentFailures(platform.clock)
    share = None
    if place is not None and peers is not None:
        share = CacheShare(place.slot, place.workers, lambda copies: peers.notify(copies=copies))
    names = ThreadPoolExecutor(config.fetch.concurrent_max * NAME_THREADS_PER_FETCH, thread_name_prefix="names")
    asyncio.get_running_loop().set_default_executor(names)  # where the resolver looks names up
    async with open_storage(
        config, clock=platform.clock, timer=platform.timer, sleep=platform.sleep, observe=metrics.called, share=share
    ) as parts:
        health = _make_health(config, platform, parts)
        inspector = make_inspector(config, platform.clock)
        own_ports: set[int] = set()
        origin = _make_origin(config, platform, inspector, metrics, own_ports)
        blocked_digests = BlockedDigests(parts.store, parts.database.removals, _drop_of(parts), peers)
        leases = None if place is None else _open_leases(config, platform, place)
        format_checker = platform.make_format_checker()
        observer = FillObserver(metrics, health, failures)
        dependencies = _make_fill_dependencies(
            config, platform, parts, origin, format_checker, observer, blocked_digests
        )
        cluster = None if leases is None or peers is None else Cluster(leases, peers)
        image_service = _make_image_service(
            config, platform, parts, inspector, dependencies, cluster, metrics.refused, changed
        )
        remover = Remover(
            store=parts.store,
            image_index=parts.database.image_index,
            image_service=image_service,
            blocked_digests=blocked_digests,
            clock=platform.clock,
        )
        refetcher = Refetcher(
            image_service,
            dependencies,
            policy=inspector.policy,
            settle=parts.database.image_index.flush,
            sleep=platform.sleep,
            leases=leases,
        )
        saver = Saver(image_service, dependencies, body_bytes_max=config.fetch.body_bytes_max)
        services = Services(
            parts=parts,
            inspector=inspector,
            image_service=image_service,
            saver=saver,
            remover=remover,
            refetcher=refetcher,
            jobs=_make_jobs(config, platform, parts, inspector, saver, origin, metrics),
            health=health,
            metrics=metrics,
            failures=failures,
            totals=StoredTotals(parts.database.image_index, platform.timer),
            own_ports=own_ports,
            leader_lock=None if place is None else LeaderLock(place.shared_folder, place.name),
            blocked_digests=blocked_digests,
            peers=peers,
            platform=platform,
            resting=asyncio.Event(),
        )
        _watch_gauges(services, origin, format_checker)
        await health.check()
        await blocked_digests.load()
        try:
            yield services
        finally:
            await refetcher.aclose()
            await image_service.aclose()
            await origin.aclose()
            format_checker.close()
            if leases is not None:
                leases.aclose()


def _make_origin(
    config: Config, platform: Platform, inspector: Inspector, metrics: Metrics, own_ports: set[int]
) -> OriginClient:
    guard = AddressGuard(inspector.policy, platform.resolver(), platform.open_socket, own_ports)
    return OriginClient(
        settings=config.fetch,
        policy=inspector.policy,
        guard=guard,
        clock=platform.clock,
        draw=random.random,
        ssl_context=platform.ssl_context,
        user_agent=config.fetch.user_agent or f"Mozilla/5.0 (compatible; imgkeep/{__version__})",
        fetched=metrics.fetched,
        refused=metrics.refused,
        is_gone=inspector.is_gone,
    )


def _make_fill_dependencies(  # noqa: PLR0913, PLR0917 - what they are
    config: Config,
    platform: Platform,
    parts: Storage,
    origin: OriginClient,
    format_checker: FormatChecker,
    observer: FillObserver,
    blocked_digests: BlockedDigests,
) -> FillDependencies:
    return FillDependencies(
        origin=origin,
        store=parts.store,
        disk=parts.spool,
        memory=parts.memory,
        format_checker=format_checker,
        observer=observer,
        clock=platform.clock,
        draw_etag=lambda: f'"{secrets.token_hex(16)}"',
        pixels_max=config.fetch.pixels_max,
        blocked=blocked_digests,
        suspects=PlaceholderSuspects(platform.timer, refuse=config.sources.placeholders == "refuse"),
        show_errors=config.fetch.show_errors,
    )


def _make_image_service(  # noqa: PLR0913, PLR0917 - what it is made of
    config: Config,
    platform: Platform,
    parts: Storage,
    inspector: Inspector,
    dependencies: FillDependencies,
    cluster: Cluster | None,
    refused: Callable[[str], None],
    changed: Callable[[Key], None],
) -> ImageService:
    provider_rules = config.read_provider_rules()
    return ImageService(
        dependencies,
        image_index=parts.database.image_index,
        policy=inspector.policy,
        identify=inspector.identify,
        rules=SourceRules(
            redirect_permanent=config.sources.permanent == "redirect",
            refresh=Globs(config.sources.refresh) if config.sources.refresh else None,
        ),
        object_urls=None if parts.remote is None else parts.remote.object_urls,
        rate_limiter=RateLimiter(
            fills_per_minute=config.limits.fills_per_minute,
            fills_concurrent=config.limits.fills_concurrent,
            fill_bytes_per_day=config.fill_bytes_per_day,
            timer=platform.timer,
            refused=refused,
        ),
        cluster=cluster,
        spoil=lambda source: spoil(source, platform.clock(), provider_rules, secrets.randbelow),
        changed=changed,
        timer=platform.timer,
    )


def _make_jobs(  # noqa: PLR0913, PLR0917 - what it is made of
    config: Config,
    platform: Platform,
    parts: Storage,
    inspector: Inspector,
    saver: Saver,
    messenger: OriginClient,
    metrics: Metrics,
) -> JobRunner:
    key = config.security.signing_keys[0] if config.security.signing_keys else None
    return JobRunner(
        jobs=parts.database.jobs,
        saver=saver,
        webhooks=WebhookSender(parts.database.jobs, messenger, key, platform.clock, random.random),
        identify=inspector.identify,
        public=inspector.public,
        clock=platform.clock,
        draw=random.random,
        draw_id=lambda: secrets.token_hex(16),
        timer=platform.timer,
        sleep=platform.sleep,
        count=metrics.worked,
    )


def _watch_gauges(services: Services, origin: OriginClient, format_checker: FormatChecker) -> None:
    """Show what is under way, and what is held, beside what is counted."""
    watch, memory_cache = services.metrics.watch, services.parts.local.disk.memory_cache
    watch("job_links_waiting", "Links that wait to be saved", lambda: services.jobs.waiting, shared=True)
    watch("fills_in_flight", "Images being fetched", lambda: services.image_service.fills_in_flight)
    watch("fetches_waiting", "Fetches that wait for a place", lambda: origin.limiter.waiting)
    watch("fetches_under_way", "Fetches that hold a place", lambda: origin.limiter.used)
    watch("format_checks_in_flight", "Images judged in threads of their own", lambda: format_checker.under_way)
    watch("memory_cache_bytes", "Bytes of objects held in memory", lambda: memory_cache.copied_bytes)
    watch(
        "memory_cache_mapped_bytes",
        "Bytes of objects mapped into memory",
        lambda: memory_cache.mapped_bytes,
    )
    watch("ready", "Processes that /readyz calls ready or degraded", lambda: services.health.report(in_full=False)[0])
    watch("degraded", "Processes of which a part is failing", lambda: any(services.health.faults.values()))
    watch("images", "Images that are stored, as of the last count", lambda: services.totals.images, shared=True)
    watch("images_bytes", "Bytes of these images", lambda: services.totals.size, shared=True)
    watch("store_free_bytes", "Bytes free on the local disk", lambda: services.health.free_bytes, shared=True)


def _open_leases(config: Config, platform: Platform, place: WorkerInfo) -> FillLeases:
    grace_s = LEASE_GRACE_S + config.store.timeout_s  # a look-up may go to a bucket
    return FillLeases(place.shared_folder.leases, place.name, grace_s=grace_s, timer=platform.timer)


def _make_outbox_worker(services: Services) -> OutboxWorker | None:
    """Have a remote store looked after; return who carries over what waits for it."""
    parts, metrics = services.parts, services.metrics
    remote = parts.remote
    if remote is None:
        return None
    watch = metrics.watch
    watch(
        "store_breaker_open", "1 while the fallback takes over", lambda: remote.breaker.reason is not None, shared=True
    )
    watch("disk_cache_bytes", "Bytes of local copies", lambda: remote.cache.bytes)
    metrics.watch_count("disk_cache_hits", "Look-ups that found a local copy", lambda: remote.cache.hits)
    metrics.watch_count("disk_cache_misses", "Look-ups that found none", lambda: remote.cache.misses)
    if remote.fallback is None:
        return None

    changes = services.image_service.changes

    async def note_uploaded(record: Record) -> None:
        await changes.stored(record)
        await changes.tell_peers(record.key)

    async def note_dropped(key: Key) -> None:
        await parts.database.image_index.drop([key])
        changes.forget(key)
        await changes.tell_peers(key)

    _watch_outbox(services, parts.database.outbox)
    return OutboxWorker(
        tiered_store=remote.tiered_store,
        fallback=remote.fallback,
        outbox=parts.database.outbox,
        image_index=parts.database.image_index,
        blocked_digests=services.blocked_digests,
        uploaded=note_uploaded,
        dropped=note_dropped,
        draw=random.random,
        sleep=services.platform.sleep,
        count=metrics.outbox_uploads,
    )


def _watch_outbox(services: Services, outbox: Outbox) -> None:
    """Show what waits for the primary."""
    watch = services.metrics.watch
    watch(
        "outbox_images",
        "Images that wait for the store",
        lambda: outbox.last_backlog.images if outbox.last_backlog else 0,
        shared=True,
    )
    watch(
        "outbox_oldest_seconds",
        "Since when the oldest of them waits",
        services.health.oldest_waiting_s,
        shared=True,
    )


def _make_health(config: Config, platform: Platform, parts: Storage) -> Health:
    remote, outbox = parts.remote, parts.database.outbox
    free_bytes_min = config.store.free_bytes_min
    if remote is None:
        return Health(parts.local, parts.database, free_bytes_min, platform.clock)
    tiered_store = remote.tiered_store
    return Health(
        parts.local,
        parts.database,
        free_bytes_min,
        platform.clock,
        store=tiered_store,
        outage=lambda: tiered_store.outage,
        backlog=None if remote.fallback is None else lambda: outbox.last_backlog,
    )


def _drop_of(parts: Storage) -> Callable[[Digest], Awaitable[None]]:
    """Return the function that deletes this machine's copies of a blocked digest."""
    return parts.local.delete_object if parts.remote is None else parts.remote.tiered_store.drop


async def _sample_process(metrics: Metrics) -> None:
    """Have the metrics tell of this process, in a thread that nothing else waits for."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="process")
    try:
        while True:
            await asyncio.get_running_loop().run_in_executor(thread, metrics.process.take)
            await asyncio.sleep(CHECK_INTERVAL_S)
    finally:
        thread.shutdown(wait=False)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event for so long at most, and return whether it came."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


async def _count_stored(totals: StoredTotals, leader_lock: LeaderLock | None) -> None:
    """Count what is stored, where that is ours to do. Health does not wait for it: a count may take minutes."""
    while True:
        if leader_lock is None or leader_lock.is_held:
            await totals.count_if_due()
        await asyncio.sleep(CHECK_INTERVAL_S)


async def _watch(
    health: Health, parts: Storage, leader_lock: LeaderLock | None, outbox_worker: OutboxWorker | None
) -> None:
    """
    Look after the health, and fill a database that is new or was lost: from a disk. Of a bucket every record would be a
    request that is paid for, and look-ups find them one by one as they are needed.
    """
    while True:
        is_ours = leader_lock is None or leader_lock.is_held
        if (
            is_ours
            and parts.remote is None
            and not parts.database.image_index.complete
            and not any(health.faults.values())
        ):
            with suppress(StorageError):
                images = await reindex(parts.archives, parts.database.image_index)
                log.info("image index filled from the records", extra={"images": images})
        await asyncio.sleep(CHECK_INTERVAL_S)
        before = dict(health.faults)
        await health.check()
        if outbox_worker is not None and not is_ours:
            with suppress(StorageError):
                await parts.database.outbox.backlog()  # for the report; the leader's outbox worker looks by itself
        for part, fault in health.faults.items():
            if fault != before.get(part):
                log.log(
                    logging.ERROR if fault else logging.INFO,
                    "part is failing" if fault else "part works again",
                    extra={"part": part, "reason": fault},
                )
