"""The gauges of a server: running fills and fetches, queues, and the sizes of caches and stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.bootstrap.nodes import Nodes
    from imgkeep.bootstrap.storage import RemoteStorage, Storage
    from imgkeep.cluster.nodes.change_reader import ChangeReader
    from imgkeep.cluster.nodes.leases import NodeLeases
    from imgkeep.database import Outbox
    from imgkeep.derived.facts import FactsFinder
    from imgkeep.derived.picture_cache import PictureCache
    from imgkeep.derived.picture_store import PictureStore
    from imgkeep.derived.processes import DeriveProcesses
    from imgkeep.health import Health
    from imgkeep.images.format_checker import FormatChecker
    from imgkeep.images.service import ImageService
    from imgkeep.images.stored_totals import StoredTotals
    from imgkeep.jobs.runner import JobRunner
    from imgkeep.observability.metrics import Metrics
    from imgkeep.origin import OriginClient
    from imgkeep.storage.local.memory_cache import MemoryCache


def watch_fills(
    metrics: Metrics, image_service: ImageService, origin: OriginClient, format_checker: FormatChecker
) -> None:
    """Show running fills, fetches and checks."""
    metrics.watch("fills_in_flight", "Images being fetched", lambda: image_service.fills_in_flight)
    metrics.watch("fetches_waiting", "Fetches that wait for a place", lambda: origin.limiter.waiting)
    metrics.watch("fetches_under_way", "Fetches that hold a place", lambda: origin.limiter.used)
    metrics.watch("format_checks_in_flight", "Images that threads check", lambda: format_checker.under_way)


def watch_leases(metrics: Metrics, leases: NodeLeases | None) -> None:
    """Show the fills that other nodes could not know of."""
    if leases is not None:
        metrics.watch_count(
            "cluster_unleased_fills",
            "Fills without the lease of their key, because the database or the lease's holder could not be reached",
            lambda: leases.unleased,
        )


def watch_members(metrics: Metrics, nodes: Nodes | None) -> None:
    """Show the live members, those that were expelled, and whether this process may have missed changes."""
    if nodes is None:
        return
    membership, writer, trust = nodes.membership, nodes.writer, nodes.trust
    metrics.watch("cluster_members", "Live processes of all nodes", lambda: len(membership.members), shared=True)
    metrics.watch_count(
        "cluster_members_expelled",
        "Members that did not confirm a change in time, and have to catch up",
        lambda: writer.expelled,
    )
    metrics.watch(
        "cluster_caches_suspended",
        "Processes that may have missed changes, and ask the store for every lookup",
        lambda: not trust.holds,
    )


def watch_changes(metrics: Metrics, reader: ChangeReader) -> None:
    """Show how changes of other members arrive here."""
    metrics.watch_count("cluster_changes_applied", "Changes of the cluster that were applied", lambda: reader.applied)


def watch_jobs(metrics: Metrics, jobs: JobRunner) -> None:
    """Show the links of jobs that wait."""
    metrics.watch("job_links_waiting", "Links that wait to be saved", lambda: jobs.waiting, shared=True)


def watch_derive_processes(metrics: Metrics, processes: DeriveProcesses) -> None:
    """Show the processes that make pictures, and the jobs that they have or that wait for them."""
    metrics.watch("derive_processes", "Derive processes", lambda: len(processes.pids))
    metrics.watch("derive_jobs_running", "Jobs that have a derive process", lambda: processes.running)
    metrics.watch("derive_jobs_waiting", "Jobs that wait for a derive process", lambda: processes.waiting)
    metrics.watch("derive_memory_bytes", "Resident memory of the derive processes", lambda: processes.memory_bytes)


def watch_facts(metrics: Metrics, facts: FactsFinder) -> None:
    """Show the images whose facts are to be found in idle time."""
    metrics.watch("derive_facts_waiting", "Images that wait for their facts to be found", lambda: facts.waiting)
    metrics.watch_count(
        "derive_facts_dropped", "Stored images that found no place in the queue for facts", lambda: facts.dropped
    )


def watch_storage(metrics: Metrics, storage: Storage, health: Health) -> None:
    """Show the sizes of the stores and their caches, and their health."""
    _watch_memory_cache(metrics, storage.local.disk.memory_cache)
    _watch_pictures(metrics, storage.picture_cache)
    _watch_health(metrics, health)
    if storage.remote is not None:
        _watch_remote(metrics, storage.remote)
        if storage.remote.fallback is not None:
            _watch_outbox(metrics, storage.database.outbox, health)


def watch_totals(metrics: Metrics, totals: StoredTotals, leads: Callable[[], bool]) -> None:
    """Show how much is stored, in the one process that counts it: sums over nodes stay right as the leader changes."""
    number, size = (lambda: totals.images if leads() else 0), (lambda: totals.size if leads() else 0)
    metrics.watch("images", "Images that are stored, as of the last count", number, shared=True)
    metrics.watch("images_bytes", "Bytes of these images", size, shared=True)


def _watch_memory_cache(metrics: Metrics, cache: MemoryCache) -> None:
    metrics.watch("memory_cache_bytes", "Bytes of objects held in memory", lambda: cache.copied_bytes)
    metrics.watch("memory_cache_mapped_bytes", "Bytes of objects mapped into memory", lambda: cache.mapped_bytes)


def _watch_pictures(metrics: Metrics, cache: PictureCache) -> None:
    metrics.watch("derive_cache_bytes", "Bytes of derived pictures on the local disk", lambda: cache.bytes)
    metrics.watch_count("derive_cache_hits", "Lookups that found a derived picture there", lambda: cache.hits)
    metrics.watch_count("derive_cache_misses", "Lookups that found none", lambda: cache.misses)


def watch_picture_store(metrics: Metrics, store: PictureStore) -> None:
    """Show what becomes of the pictures that the store shall have."""
    metrics.watch_count("derive_uploads", "Derived pictures that the store has taken", lambda: store.uploads)
    metrics.watch_count("derive_uploads_failed", "Derived pictures that it has not taken", lambda: store.failures)


def _watch_health(metrics: Metrics, health: Health) -> None:
    metrics.watch("ready", "Processes that /readyz calls ready or degraded", lambda: health.report(in_full=False)[0])
    metrics.watch("degraded", "Processes of which a part is failing", lambda: any(health.faults.values()))
    metrics.watch("store_free_bytes", "Bytes free on the local disk", lambda: health.free_bytes, shared=True)


def _watch_remote(metrics: Metrics, remote: RemoteStorage) -> None:
    breaker, cache = remote.breaker, remote.cache
    metrics.watch(
        "store_breaker_open", "1 while the fallback takes over", lambda: breaker.reason is not None, shared=True
    )
    if access := remote.public_access:
        metrics.watch(
            "public_urls_work",
            "1 while public URLs of objects work, 0 until a probe has found that or while they do not",
            lambda: access.works is True,
        )
    metrics.watch("disk_cache_bytes", "Bytes of local copies", lambda: cache.bytes)
    metrics.watch_count("disk_cache_hits", "Lookups that found a local copy", lambda: cache.hits)
    metrics.watch_count("disk_cache_misses", "Lookups that found none", lambda: cache.misses)


def _watch_outbox(metrics: Metrics, outbox: Outbox, health: Health) -> None:
    metrics.watch(
        "outbox_images",
        "Images that wait for the store",
        lambda: outbox.last_backlog.images if outbox.last_backlog else 0,
        shared=True,
    )
    metrics.watch("outbox_oldest_seconds", "Age of the oldest of them", health.oldest_waiting_s, shared=True)
