"""
What holds images, put together from a configuration: the half of the composition root that maintenance needs too.

One disk, where everything local lies: the store itself or, under a remote store, the fallback, the copies of what is in
the bucket, and every draft. Everything that is opened here is closed here, in the opposite order.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from proxy.catalog import CatalogTooNew, SqlCatalog
from proxy.config import read_catalog_url, read_store_url
from proxy.core.errors import StorageError
from proxy.core.store_url import Bucket, Folder
from proxy.core.stored import object_path
from proxy.service.address import Addresses
from proxy.service.breaker import Breaker
from proxy.service.tiers import Tiers
from proxy.storage.cache import DiskCache
from proxy.storage.local import LocalStore
from proxy.storage.memory import MemorySpool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from proxy.config import Config
    from proxy.ports import Archive, Clock, Spool, Store
    from proxy.storage.s3 import S3Store

WORK_FOLDER: Final = "data"
"""For drafts and copies where there is no fallback."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RemoteParts:
    """What there is besides the disk when the store is a bucket."""

    bucket: S3Store
    cache: DiskCache
    breaker: Breaker
    tiers: Tiers
    addresses: Addresses
    fallback: LocalStore | None

    async def check(self) -> int:
        """
        Look whether the bucket works, without waiting for one that is known to be away.

        Raises:
            StorageError: It does not.
        """
        if self.breaker.reason is not None:
            raise StorageError(self.breaker.reason)
        try:
            return await self.bucket.check()
        except StorageError as fault:
            self.breaker.trip(fault)
            raise


@dataclass(frozen=True, slots=True)
class Parts:
    """What holds images. `disk` is the store itself unless there is a `remote` one."""

    disk: LocalStore
    catalog: SqlCatalog
    memory: MemorySpool
    remote: RemoteParts | None = None

    @property
    def store(self) -> Store:
        return self.disk if self.remote is None else self.remote.tiers

    @property
    def spool(self) -> Spool:
        return self.disk if self.remote is None else self.remote.cache

    @property
    def archives(self) -> Sequence[Archive]:
        """The store first, then what waits for it."""
        if self.remote is None:
            return (self.disk,)
        return (self.remote.bucket,) if self.remote.fallback is None else (self.remote.bucket, self.remote.fallback)


@asynccontextmanager
async def open_parts(
    config: Config,
    *,
    clock: Clock,
    timer: Callable[[], float] = time.monotonic,
    observe: Callable[[str, str, float], None] = lambda *_: None,
) -> AsyncGenerator[Parts]:
    """
    Open store and catalog. `observe` is told operation, outcome and seconds of every request to a remote store.

    Raises:
        CatalogTooNew: A newer version wrote the catalog. Other faults are logged and looked after later.
    """
    place = read_store_url("store.url", config.store.url)
    disk = LocalStore(
        _disk_root(config, place), hot_bytes_max=config.store.hot_bytes_max, free_bytes_min=config.store.free_bytes_min
    )
    catalog = SqlCatalog(read_catalog_url(config.catalog.url), clock)
    memory = MemorySpool(config.store.hot_bytes_max)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(disk.aclose)
        stack.push_async_callback(catalog.aclose)
        for part in (disk, catalog):
            try:
                await part.open()
            except CatalogTooNew:
                raise
            except StorageError as fault:
                log.warning("not usable at start", extra={"part": type(part).__name__, "reason": str(fault)})
        remote = None
        if isinstance(place, Bucket):
            remote = await _open_remote(stack, config, place, disk, memory, timer, observe)
        yield Parts(disk, catalog, memory, remote)


def _disk_root(config: Config, place: Folder | Bucket) -> Path:
    if isinstance(place, Folder):
        return Path(place.path)
    fallback = read_store_url("store.fallback", config.store.fallback) if config.store.fallback else None
    return Path(fallback.path if isinstance(fallback, Folder) else WORK_FOLDER)


async def _open_remote(  # noqa: PLR0913, PLR0917 - called once, above
    stack: AsyncExitStack,
    config: Config,
    place: Bucket,
    disk: LocalStore,
    memory: MemorySpool,
    timer: Callable[[], float],
    observe: Callable[[str, str, float], None],
) -> RemoteParts:
    from proxy.storage.s3 import S3Store  # noqa: PLC0415 - a third of a second that a local store need not wait for

    bucket = S3Store(place, timeout_s=config.store.timeout_s, observe=observe)
    breaker = Breaker(bucket.probe, draw=random.random, timer=timer)
    cache = DiskCache(disk, config.store.cache_bytes_max, free_bytes_min=config.store.free_bytes_min)
    fallback = disk if config.store.fallback else None
    tiers = Tiers(primary=bucket, fallback=fallback, cache=cache, memory=memory, breaker=breaker, timer=timer)
    stack.push_async_callback(bucket.aclose)
    await bucket.open()
    stack.push_async_callback(cache.aclose)
    await cache.open()
    stack.push_async_callback(tiers.aclose)
    addresses = Addresses(
        config.delivery.mode,
        tiers,
        bucket,
        public_url=_public_url(config, place, bucket),
        presign_ttl_s=config.delivery.presign_ttl_s,
        timer=timer,
    )
    return RemoteParts(bucket, cache, breaker, tiers, addresses, fallback)


def _public_url(config: Config, place: Bucket, bucket: S3Store) -> Callable[[str], str] | None:
    base = config.delivery.base_url.rstrip("/")
    if base:
        return lambda name: f"{base}/{place.path(object_path(name))}"
    return bucket.public_url if config.delivery.mode == "redirect" else None


async def cancel(task: asyncio.Task[None]) -> None:
    """End a task that runs for ever."""
    task.cancel()
    await asyncio.wait([task])
