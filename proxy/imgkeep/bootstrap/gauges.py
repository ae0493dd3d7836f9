"""The gauges of a server: what is under way and what is held, beside the counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgkeep.bootstrap.services import Services
    from imgkeep.bootstrap.storage import RemoteStorage
    from imgkeep.health import Health
    from imgkeep.images.format_checker import FormatChecker
    from imgkeep.images.stored_totals import StoredTotals
    from imgkeep.observability.metrics import Metrics
    from imgkeep.origin import OriginClient
    from imgkeep.storage.local.memory_cache import MemoryCache


def watch_services(services: Services, origin: OriginClient, format_checker: FormatChecker) -> None:
    """Show the gauges of all services."""
    watch = services.metrics.watch
    watch("job_links_waiting", "Links that wait to be saved", lambda: services.jobs.waiting, shared=True)
    watch("fills_in_flight", "Images being fetched", lambda: services.image_service.fills_in_flight)
    watch("fetches_waiting", "Fetches that wait for a place", lambda: origin.limiter.waiting)
    watch("fetches_under_way", "Fetches that hold a place", lambda: origin.limiter.used)
    watch("format_checks_in_flight", "Images that threads check", lambda: format_checker.under_way)
    _watch_memory_cache(services.metrics, services.storage.local.disk.memory_cache)
    _watch_health(services.metrics, services.health)
    if services.storage.remote is not None:
        _watch_remote(services, services.storage.remote)


def watch_totals(metrics: Metrics, totals: StoredTotals) -> None:
    """Show how much is stored."""
    metrics.watch("images", "Images that are stored, as of the last count", lambda: totals.images, shared=True)
    metrics.watch("images_bytes", "Bytes of these images", lambda: totals.size, shared=True)


def _watch_memory_cache(metrics: Metrics, cache: MemoryCache) -> None:
    metrics.watch("memory_cache_bytes", "Bytes of objects held in memory", lambda: cache.copied_bytes)
    metrics.watch("memory_cache_mapped_bytes", "Bytes of objects mapped into memory", lambda: cache.mapped_bytes)


def _watch_health(metrics: Metrics, health: Health) -> None:
    metrics.watch("ready", "Processes that /readyz calls ready or degraded", lambda: health.report(in_full=False)[0])
    metrics.watch("degraded", "Processes of which a part is failing", lambda: any(health.faults.values()))
    metrics.watch("store_free_bytes", "Bytes free on the local disk", lambda: health.free_bytes, shared=True)


def _watch_remote(services: Services, remote: RemoteStorage) -> None:
    metrics, outbox = services.metrics, services.storage.database.outbox
    watch = metrics.watch
    breaker, cache = remote.breaker, remote.cache
    watch("store_breaker_open", "1 while the fallback takes over", lambda: breaker.reason is not None, shared=True)
    watch("disk_cache_bytes", "Bytes of local copies", lambda: cache.bytes)
    metrics.watch_count("disk_cache_hits", "Lookups that found a local copy", lambda: cache.hits)
    metrics.watch_count("disk_cache_misses", "Lookups that found none", lambda: cache.misses)
    if remote.fallback is None:
        return
    watch(
        "outbox_images",
        "Images that wait for the store",
        lambda: outbox.last_backlog.images if outbox.last_backlog else 0,
        shared=True,
    )
    watch("outbox_oldest_seconds", "Age of the oldest of them", services.health.oldest_waiting_s, shared=True)
