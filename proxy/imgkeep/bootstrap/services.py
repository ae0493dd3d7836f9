"""
Builds the services that work on images, on top of the storage: for the server, and for commands that save.

This module closes what it opens, in the opposite order.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from platform import python_version
from typing import TYPE_CHECKING, Final

from imgkeep import __version__
from imgkeep.bootstrap.cluster import ALONE, share_records
from imgkeep.bootstrap.derived import open_derived
from imgkeep.bootstrap.gauges import watch_fills, watch_jobs, watch_leases, watch_members, watch_storage
from imgkeep.bootstrap.job_runner import make_job_runner
from imgkeep.bootstrap.platform import SYSTEM, Platform
from imgkeep.bootstrap.storage import StorageSharing, objects_url, open_storage
from imgkeep.core.host_patterns import Globs
from imgkeep.core.identity.invalid_signature import make_invalid_signature
from imgkeep.core.records import Key
from imgkeep.core.source_url import read_source
from imgkeep.derived.picture_sharing import LEASE_PREFIX
from imgkeep.health import Health
from imgkeep.images.background_refresh import SourceRules
from imgkeep.images.blocked_digests import BlockedDigests
from imgkeep.images.dependencies import FillDependencies
from imgkeep.images.failure_history import RecentFailures
from imgkeep.images.fill_rate_limit import FillLimits, RateLimiter
from imgkeep.images.inspect import Inspector, make_inspector
from imgkeep.images.observer import FillObserver
from imgkeep.images.operator_refetch import Refetcher
from imgkeep.images.placeholder_suspects import PlaceholderSuspects
from imgkeep.images.removal import Remover
from imgkeep.images.service import ImageService
from imgkeep.images.upload import Saver
from imgkeep.observability.metrics import Metrics
from imgkeep.origin import AddressGuard, OriginClient
from imgkeep.page_rewriting import LinkSelection
from imgkeep.storage.cache_index import CacheShare

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Mapping

    from imgkeep.bootstrap.cluster import ClusterParts
    from imgkeep.bootstrap.derived import DerivedServices
    from imgkeep.bootstrap.nodes import Nodes
    from imgkeep.bootstrap.storage import Storage
    from imgkeep.config import Config
    from imgkeep.core.records import Digest
    from imgkeep.images.interfaces import Cluster
    from imgkeep.images.limit_share import LimitShare
    from imgkeep.images.record_sharing import RecordSharing
    from imgkeep.jobs.runner import JobRunner
    from imgkeep.web.fastpath.response_cache import ResponseCache

__all__ = [
    "SYSTEM",
    "Platform",
    "Services",
    "make_link_selection",
    "open_services",
]

NAME_THREADS_PER_FETCH: Final = 2
"""The system's resolver blocks its thread for half a minute when no name server answers; fetches time out sooner."""


@dataclass(frozen=True, slots=True)
class Services:
    """
    The services that work on images.

    Attributes:
        own_ports: Ports that this server listens on, for the guard against loops; filled when they are known.
    """

    storage: Storage
    inspector: Inspector
    image_service: ImageService
    saver: Saver
    remover: Remover
    refetcher: Refetcher
    jobs: JobRunner
    health: Health
    metrics: Metrics
    failures: RecentFailures
    derived: DerivedServices
    own_ports: set[int]

    async def catch_up(self) -> None:
        """Read the changes that peers announced before they could reach this worker."""
        await self.remover.refresh()
        await self.storage.open_caches()

    async def learn(
        self,
        blocked: Collection[Digest],
        changed: Collection[Key],
        copies: Mapping[str, int],
        unblocked: Collection[Digest] = (),
    ) -> None:
        """Learn from a process which images it blocked or unblocked, which records it changed, which files it used."""
        await self.remover.learn(blocked, unblocked)
        for key in changed:
            self.image_service.learn(key)
        await self.storage.count_announced(copies)

    async def wait_for_end(self, name: str) -> None:
        """Wait until this process runs no fill or derivation under the lease of this name."""
        if name.startswith(LEASE_PREFIX):
            await self.derived.sharing.wait(name)
        else:
            await self.image_service.wait_for_fill(Key(name))

    async def learn_everything(self) -> None:
        """Forget every record, and read the removals anew: this process has missed changes."""
        self.image_service.forget_all()
        await self.remover.reload()

    async def settle(self) -> None:
        """Write the records that the database lacks, as far as it answers."""
        self.storage.database.image_index.start_flush()
        await self.storage.database.image_index.flush()


@asynccontextmanager
async def open_services(
    config: Config,
    platform: Platform = SYSTEM,
    parts: ClusterParts = ALONE,
    metrics: Metrics | None = None,
    responses: ResponseCache | None = None,
) -> AsyncGenerator[Services]:
    """
    Open storage and services; no background task runs yet.

    Args:
        config: The configuration of the services.
        platform: The edges of the machine.
        parts: How this process shares the work with others.
        metrics: Counts; `None`: what is counted is not shown.
        responses: The cached responses of this process; `None`: it has none.

    Raises:
        IncompatibleDatabase: A newer version wrote the database.
    """
    metrics = Metrics() if metrics is None else metrics
    metrics.announce(version=__version__, python=python_version())
    names = ThreadPoolExecutor(config.fetch.concurrent_max * NAME_THREADS_PER_FETCH, thread_name_prefix="names")
    asyncio.get_running_loop().set_default_executor(names)  # the resolver looks names up there
    async with (
        open_storage(
            config,
            clock=platform.clock,
            timer=platform.timer,
            sleep=platform.sleep,
            observe=metrics.called,
            sharing=_share_storage(parts),
        ) as storage,
        AsyncExitStack() as stack,
    ):
        inspector = make_inspector(config, platform.clock)
        builder = _Builder(config, platform, storage, metrics, inspector, parts.limit_share, stack)
        watch_leases(metrics, parts.node_leases)
        watch_members(metrics, parts.nodes)
        yield await builder.build(parts, responses)


def _share_storage(parts: ClusterParts) -> StorageSharing:
    share, worker, peers, nodes = None, parts.worker, parts.peers, parts.nodes
    if worker is not None and peers is not None:
        share = CacheShare(worker.slot, worker.workers, lambda copies: peers.notify(copies=copies))
    if nodes is None:
        return StorageSharing(share)
    fetch_from_node = None if parts.node_peers is None else parts.node_peers.fetch_object
    return StorageSharing(share, nodes.session, fetch_from_node, member=nodes.membership.id)


@dataclass(frozen=True, slots=True)
class _Builder:
    """The builder of the services, with the parts that they share."""

    config: Config
    platform: Platform
    storage: Storage
    metrics: Metrics
    inspector: Inspector
    limit_share: LimitShare
    stack: AsyncExitStack

    async def build(self, parts: ClusterParts, responses: ResponseCache | None) -> Services:
        config, platform, database = self.config, self.platform, self.storage.database
        failures = RecentFailures(platform.clock)
        health = self.make_health(parts.nodes)
        own_ports: set[int] = set()
        blocked_digests = self.make_blocked_digests(parts)
        derived = open_derived(config, platform, self.storage, blocked_digests, parts, self.metrics, self.stack)
        observer = FillObserver(self.metrics, health, failures, derived.facts.note_stored)
        dependencies = self.open_dependencies(observer, blocked_digests, own_ports)
        sharing = share_records(parts, self.storage, blocked_digests, responses)
        image_service = self.open_image_service(dependencies, parts.cluster, sharing)
        remover = Remover(
            store=self.storage.store,
            image_index=database.image_index,
            image_service=image_service,
            blocked_digests=blocked_digests,
            clock=platform.clock,
        )
        refetcher = Refetcher(
            image_service,
            dependencies,
            policy=self.inspector.policy,
            sleep=platform.sleep,
            leases=None if parts.cluster is None else parts.cluster.leases,
        )
        self.stack.push_async_callback(refetcher.aclose)
        saver = Saver(image_service, dependencies, body_bytes_max=config.fetch.body_bytes_max)
        services = Services(
            storage=self.storage,
            inspector=self.inspector,
            image_service=image_service,
            saver=saver,
            remover=remover,
            refetcher=refetcher,
            jobs=self.make_jobs(saver, dependencies.origin, parts.nodes),
            health=health,
            metrics=self.metrics,
            failures=failures,
            derived=derived,
            own_ports=own_ports,
        )
        watch_fills(self.metrics, image_service, dependencies.origin, dependencies.format_checker)
        watch_jobs(self.metrics, services.jobs)
        watch_storage(self.metrics, self.storage, health)
        await health.check()
        await blocked_digests.load()
        return services

    def make_blocked_digests(self, parts: ClusterParts) -> BlockedDigests:
        storage, pictures = self.storage, self.storage.picture_cache
        blocked_digests = BlockedDigests(
            storage.store, storage.database.removals, storage.drop_copies, pictures.drop, parts.notifier
        )
        pictures.blocked = blocked_digests
        storage.database.image_index.when_blocked(blocked_digests.learn_found)
        return blocked_digests

    def make_health(self, nodes: Nodes | None) -> Health:
        local, database, remote = self.storage.local, self.storage.database, self.storage.remote
        free_bytes_min = self.config.store.free_bytes_min
        cluster = None if nodes is None else nodes.describe
        if remote is None:
            return Health(local, database, free_bytes_min, self.platform.clock, cluster=cluster)
        tiered_store, outbox = remote.tiered_store, database.outbox
        return Health(
            local,
            database,
            free_bytes_min,
            self.platform.clock,
            store=tiered_store,
            outage=lambda: tiered_store.outage,
            backlog=None if remote.fallback is None else lambda: outbox.last_backlog,
            cluster=cluster,
        )

    def open_origin(self, own_ports: set[int]) -> OriginClient:
        platform, policy = self.platform, self.inspector.policy
        fetch = self.config.fetch
        origin = OriginClient(
            settings=fetch,
            policy=policy,
            guard=AddressGuard(policy, platform.resolver(), platform.open_socket, own_ports),
            clock=platform.clock,
            draw=random.random,
            ssl_context=platform.ssl_context,
            user_agent=fetch.user_agent or f"Mozilla/5.0 (compatible; imgkeep/{__version__})",
            fetched=self.metrics.fetched,
            refused=self.metrics.refused,
            is_gone=self.inspector.is_gone,
        )
        self.stack.push_async_callback(origin.aclose)
        return origin

    def open_dependencies(
        self, observer: FillObserver, blocked_digests: BlockedDigests, own_ports: set[int]
    ) -> FillDependencies:
        config, platform, storage = self.config, self.platform, self.storage
        format_checker = platform.make_format_checker()
        self.stack.callback(format_checker.close)
        return FillDependencies(
            origin=self.open_origin(own_ports),
            store=storage.store,
            disk=storage.spool,
            memory=storage.memory,
            format_checker=format_checker,
            observer=observer,
            clock=platform.clock,
            draw_etag=lambda: f'"{secrets.token_hex(16)}"',
            pixels_max=config.fetch.pixels_max,
            blocked=blocked_digests,
            suspects=PlaceholderSuspects(platform.timer, refuse=config.sources.placeholders == "refuse"),
            show_errors=config.fetch.show_errors,
        )

    def open_image_service(
        self, dependencies: FillDependencies, cluster: Cluster | None, sharing: RecordSharing
    ) -> ImageService:
        config, platform, remote = self.config, self.platform, self.storage.remote
        provider_rules = config.read_provider_rules()
        limits = config.limits
        service = ImageService(
            dependencies,
            image_index=self.storage.database.image_index,
            policy=self.inspector.policy,
            identify=self.inspector.identify,
            rules=SourceRules(
                redirect_permanent=config.sources.permanent == "redirect",
                refresh=Globs(config.sources.refresh) if config.sources.refresh else None,
            ),
            object_urls=None if remote is None else remote.object_urls,
            rate_limiter=RateLimiter(
                FillLimits(limits.fills_per_minute, limits.fills_concurrent, config.fill_bytes_per_day),
                timer=platform.timer,
                refused=self.metrics.refused,
                share=self.limit_share,
            ),
            cluster=cluster,
            make_invalid_signature=lambda source: make_invalid_signature(
                source, platform.clock(), provider_rules, secrets.randbelow
            ),
            sharing=sharing,
            timer=platform.timer,
        )
        self.stack.push_async_callback(service.aclose)
        return service

    def make_jobs(self, saver: Saver, messenger: OriginClient, nodes: Nodes | None) -> JobRunner:
        return make_job_runner(
            self.config,
            self.platform,
            database=self.storage.database,
            inspector=self.inspector,
            saver=saver,
            messenger=messenger,
            count=self.metrics.worked,
            nodes=nodes,
        )


def make_link_selection(config: Config, inspector: Inspector, storage: Storage | None = None) -> LinkSelection:
    """Return the rules for links in pages; `storage` tells where a public bucket is."""
    remote = None if storage is None else storage.remote
    objects = objects_url(config) if remote is None else remote.objects_url
    keys = config.security.signing_keys
    return LinkSelection(
        inspector,
        keys[0] if keys else None,
        config.derive_policy(),
        None if objects is None else read_source(objects),
    )
