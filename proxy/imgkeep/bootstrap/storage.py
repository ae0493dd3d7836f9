"""
Builds the storage from a configuration: stores, caches and database. Maintenance uses this part of the composition
root.

All local files are on one disk: those of the local store or, with a remote store, the fallback, the disk cache and
every draft. This module closes what it opens, in the opposite order.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import quote

from imgkeep.bootstrap.bucket_clients import make_client
from imgkeep.bootstrap.preflight import require_no_images, require_presign
from imgkeep.config import data_folder, read_database_url, read_store_url
from imgkeep.core.errors import StorageError
from imgkeep.core.layout import OBJECTS, object_path
from imgkeep.core.store_url import Folder
from imgkeep.database import Database, IncompatibleDatabase
from imgkeep.database.image_index import BATCH_DELAY_S, LOCAL_BATCH_DELAY_S
from imgkeep.database.store_mark import check_store, shorten
from imgkeep.derived.picture_cache import PictureCache
from imgkeep.images.object_urls import ObjectUrls
from imgkeep.maintenance.migrate import Migration
from imgkeep.replication.circuit_breaker import CircuitBreaker
from imgkeep.replication.peer_objects import PeerObjects
from imgkeep.replication.public_access import PublicAccess
from imgkeep.replication.tiered_store import TieredStore
from imgkeep.storage.bucket.store import BucketStore
from imgkeep.storage.disk_cache import DiskCache
from imgkeep.storage.local.disk import Disk
from imgkeep.storage.local.store import LocalStore
from imgkeep.storage.memory import MemorySpool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from imgkeep.clock import Clock, Sleep
    from imgkeep.config import Config
    from imgkeep.core.records import Digest, Record
    from imgkeep.core.store_url import RemotePlace, StorePlace
    from imgkeep.database import Outbox
    from imgkeep.database.session import DatabaseSession
    from imgkeep.storage.cache_index import CacheShare
    from imgkeep.storage.interfaces import Body, ListableStore, Spool, Store

    FetchFromNode: TypeAlias = Callable[[str, str], Awaitable[Body | None]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RemoteStorage:
    """The parts of a storage whose store is a bucket, besides the disk."""

    bucket: BucketStore
    cache: DiskCache
    breaker: CircuitBreaker
    tiered_store: TieredStore
    object_urls: ObjectUrls
    fallback: LocalStore | None
    public_access: PublicAccess | None
    """Whether the public URLs of objects work; `None`: there are none."""
    public_url: Callable[[str], str] | None
    """Returns the public URL of an object in the bucket; `None`: the configuration has no public URL."""
    objects_url: str | None
    """The prefix of these URLs."""
    public_path: Callable[[str], str] | None
    """Returns the public URL of a path in the bucket, as `public_url` does of an object."""


@dataclass(frozen=True, slots=True)
class Storage:
    """
    The stores. `local` is the store itself unless there is a `remote` one.

    Attributes:
        picture_cache: The derived pictures on the disk.
    """

    local: LocalStore
    database: Database
    memory: MemorySpool
    picture_cache: PictureCache
    remote: RemoteStorage | None = None

    @property
    def store(self) -> Store:
        return self.local if self.remote is None else self.remote.tiered_store

    @property
    def spool(self) -> Spool:
        return self.local.disk if self.remote is None else self.remote.cache

    @property
    def archives(self) -> Sequence[ListableStore]:
        """The store first, then the fallback."""
        if self.remote is None:
            return (self.local,)
        return (self.remote.bucket,) if self.remote.fallback is None else (self.remote.bucket, self.remote.fallback)

    async def open_caches(self) -> None:
        """Start to count the files of the caches on the disk."""
        await self.picture_cache.open()
        if self.remote is not None:
            await self.remote.cache.open()

    async def count_announced(self, files: Mapping[str, int]) -> None:
        """Count files of these caches that another worker has brought or used, by name and size."""
        pictures = {name: size for name, size in files.items() if "/" in name}
        await self.picture_cache.count_announced(pictures)
        if self.remote is not None:
            await self.remote.cache.count_copies({name: files[name] for name in files.keys() - pictures.keys()})

    async def drop_copies(self, digest: Digest) -> None:
        """Delete this machine's copies of a blocked digest."""
        if self.remote is None:
            await self.local.delete_object(digest)
        else:
            await self.remote.tiered_store.drop(digest)


@dataclass(frozen=True, slots=True)
class StorageSharing:
    """
    What processes share of their storages.

    Attributes:
        share: The share of each cache on the disk that one of several workers counts; `None`: this process counts all.
        session: The session of a PostgreSQL, for lookups; `None`: the engine does them.
        fetch_from_node: Opens an object at another node, by both their names; `None`: there is no node to ask.
        member: The name of this process as a member of a cluster; empty: it is none.
    """

    share: CacheShare | None = None
    session: DatabaseSession | None = None
    fetch_from_node: FetchFromNode | None = None
    member: str = ""

    def find_objects(self, outbox: Outbox) -> PeerObjects | None:
        return None if self.fetch_from_node is None else PeerObjects(outbox, self.fetch_from_node)


NOT_SHARED: Final = StorageSharing()


@asynccontextmanager
async def open_storage(  # noqa: PLR0913 - all but one by keyword, in two places
    config: Config,
    *,
    clock: Clock,
    timer: Callable[[], float] = time.monotonic,
    sleep: Sleep = asyncio.sleep,
    observe: Callable[[str, str, float], None] = lambda *_: None,
    sharing: StorageSharing = NOT_SHARED,
    reading: bool = False,
    adopting: bool = False,
) -> AsyncGenerator[Storage]:
    """
    Open store and database.

    Args:
        config: The configuration of the storage.
        clock: Returns the time for rows of the database.
        timer: Returns monotonic seconds.
        sleep: Waits between attempts in the background.
        observe: Callback with operation, outcome and seconds of every request to a remote store.
        sharing: What other processes share with this one. One of several workers opens the caches on the disk as soon
            as its peers can reach it.
        reading: Whether to create no file, folder or table.
        adopting: Whether to open the database of another store as well: a reindex follows.

    Raises:
        IncompatibleDatabase: A newer version wrote the database, or it belongs to another store.
        ConfigError: The settings of the store's service are not usable on this machine, a database's driver is
            missing, or images are on the disk against `store.exclusive`. The server logs other faults, and retries.
    """
    place = read_store_url("store.url", config.store.url)
    database = _make_database(config, clock, place, sharing, reading=reading)
    store = config.store
    disk = Disk(data_folder(config), memory_bytes_max=store.hot_bytes_max, free_bytes_min=store.free_bytes_min)
    local = LocalStore(disk, recover=database.image_index.find) if isinstance(place, Folder) else LocalStore(disk)
    memory = MemorySpool(store.hot_bytes_max)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(local.aclose)
        stack.push_async_callback(database.aclose)
        if store.exclusive and not reading:
            await asyncio.to_thread(require_no_images, config)
        await _open_parts((database,) if reading else (local, database), reading=reading)
        _check_store(config, database, adopting=adopting)
        remote = None
        if not isinstance(place, Folder):
            remote = await _open_remote(stack, config, place, local, database, memory, timer, sleep, observe, sharing)
        storage = Storage(local, database, memory, _make_picture_cache(stack, config, disk, sharing), remote)
        if sharing.share is None and not reading:
            await storage.open_caches()
        yield storage


def _make_picture_cache(stack: AsyncExitStack, config: Config, disk: Disk, sharing: StorageSharing) -> PictureCache:
    pictures = PictureCache(
        disk, config.derive.cache_bytes_max, free_bytes_min=config.store.free_bytes_min, share=sharing.share
    )
    stack.push_async_callback(pictures.aclose)
    return pictures


def _check_store(config: Config, database: Database, *, adopting: bool) -> None:
    if config.database.is_shared and not adopting:
        check_store(database.engine, describe_store(config))


def _make_database(
    config: Config, clock: Clock, place: StorePlace, sharing: StorageSharing, *, reading: bool
) -> Database:
    # While the bucket is unreachable, a lookup finds a copy by its row only, so these rows are written soon.
    batch_delay_s = LOCAL_BATCH_DELAY_S if isinstance(place, Folder) else BATCH_DELAY_S
    url = read_database_url(config.database.url)
    return Database(
        url,
        clock,
        node=_node_of(config),
        member=sharing.member,
        session=sharing.session,
        batch_delay_s=batch_delay_s,
        read_only=reading,
    )


def _node_of(config: Config) -> str:
    """Return the name of this node in a cluster; empty: its database is a file of its own."""
    return config.cluster.node_name if config.database.is_shared else ""


async def _open_parts(parts: Sequence[LocalStore | Database], *, reading: bool) -> None:
    """Open each part; log a fault that may pass, because health checks retry the part."""
    for part in parts:
        try:
            await part.open()
        except IncompatibleDatabase:
            raise
        except StorageError as fault:
            if not reading:  # else the command that reads meets the fault itself
                log.warning("part not usable at start", extra={"part": type(part).__name__, "reason": fault.in_full})


async def _open_remote(  # noqa: PLR0913, PLR0917 - called once, above
    stack: AsyncExitStack,
    config: Config,
    place: RemotePlace,
    local: LocalStore,
    database: Database,
    memory: MemorySpool,
    timer: Callable[[], float],
    sleep: Sleep,
    observe: Callable[[str, str, float], None],
    sharing: StorageSharing,
) -> RemoteStorage:
    bucket = BucketStore(make_client(place, timeout_s=config.store.timeout_s, observe=observe))
    stack.push_async_callback(bucket.aclose)
    await bucket.open()
    bucket.pictures.in_use = config.derive.store
    require_presign(config, bucket.client)
    breaker = CircuitBreaker(bucket.probe, place=bucket.client.place, draw=random.random, timer=timer, sleep=sleep)
    store = config.store
    cache = DiskCache(local.disk, store.cache_bytes_max, free_bytes_min=store.free_bytes_min, share=sharing.share)
    fallback = local if store.fallback else None
    tiered_store = TieredStore(
        primary=bucket,
        fallback=fallback,
        cache=cache,
        memory=memory,
        read_spool=memory if store.exclusive else cache,
        breaker=breaker,
        timer=timer,
        peer_objects=sharing.find_objects(database.outbox),
        node=_node_of(config),
    )
    stack.push_async_callback(cache.aclose)
    stack.push_async_callback(tiered_store.aclose)
    public_path = _public_paths(config, place, bucket)
    public_url = None if public_path is None else lambda name: public_path(object_path(name))
    public_access = None if public_url is None else PublicAccess(sleep)
    object_urls = ObjectUrls(
        config.delivery.mode,
        has_object=tiered_store.has,
        presign=lambda name, ttl_s, head: bucket.presign(name, ttl_s=ttl_s, head=head),
        public_url=public_url,
        is_public=lambda: public_access is not None and public_access.works is True,
        presign_ttl_s=config.delivery.presign_ttl_s,
        timer=timer,
    )
    urls = public_url, objects_url(config, bucket), public_path
    return RemoteStorage(bucket, cache, breaker, tiered_store, object_urls, fallback, public_access, *urls)


def objects_url(config: Config, bucket: BucketStore | None = None) -> str | None:
    """
    Return the public URL prefix of all objects; `None`: the configuration has none.

    `bucket`: the open bucket; without it the result depends on the configuration alone.
    """
    place = read_store_url("store.url", config.store.url)
    public_path = None if isinstance(place, Folder) else _public_paths(config, place, bucket)
    return None if public_path is None else public_path(OBJECTS)


def describe_store(config: Config) -> str:
    """Return the identity of a store, the same on each node of a cluster."""
    place = read_store_url("store.url", config.store.url)
    return "folder" if isinstance(place, Folder) else shorten(f"{place}/{place.prefix}".rstrip("/"))


def _public_paths(config: Config, place: RemotePlace, bucket: BucketStore | None) -> Callable[[str], str] | None:
    """Return the function that gives the public URL of a path; `None`: there is no public URL."""
    if base := config.delivery.base_url.rstrip("/"):
        return lambda path: f"{base}/{quote(place.path(path))}"
    return bucket.client.public_url if bucket is not None and config.delivery.mode == "redirect" else None


def permanent_url(remote: RemoteStorage | None, base: str, record: Record) -> str:
    """Return the permanent URL of an image; `base` is the prefix of this server's own paths."""
    public_url = None if record.pending or remote is None else remote.public_url
    return f"{base}/images/{record.object_name}" if public_url is None else public_url(record.object_name)


@asynccontextmanager
async def open_migration(
    config: Config, source: StorePlace, target: StorePlace, *, clock: Clock
) -> AsyncGenerator[Migration]:
    """
    Open two stores, to copy one to the other. `source` is only read; `target` is probed at once.

    Raises:
        StorageError: One of them is not usable.
    """
    async with AsyncExitStack() as stack:
        from_store: LocalStore | BucketStore
        if isinstance(source, Folder):
            # Not opened: `open` would create a missing store, and sweep partial files.
            from_store = LocalStore(Disk(Path(source.path)))
            stack.push_async_callback(from_store.aclose)
        else:
            from_store = await _open_bucket(stack, config, source)
        if isinstance(target, Folder):
            local = await _open_folder(stack, Path(target.path), config.store.free_bytes_min)
            yield Migration(from_store, local, local.disk, clock)
            return
        bucket = await _open_bucket(stack, config, target)
        await bucket.probe()
        folder = await asyncio.to_thread(TemporaryDirectory, prefix="imgkeep-", ignore_cleanup_errors=True)
        stack.push_async_callback(asyncio.to_thread, folder.cleanup)
        spool = (await _open_folder(stack, Path(folder.name), 0)).disk
        yield Migration(from_store, bucket, spool, clock)


async def _open_folder(stack: AsyncExitStack, root: Path, free_bytes_min: int) -> LocalStore:
    local = LocalStore(Disk(root, free_bytes_min=free_bytes_min))
    stack.push_async_callback(local.aclose)
    await local.open()
    return local


async def _open_bucket(stack: AsyncExitStack, config: Config, place: RemotePlace) -> BucketStore:
    bucket = BucketStore(make_client(place, timeout_s=config.store.timeout_s))
    stack.push_async_callback(bucket.aclose)
    await bucket.open()
    return bucket


async def cancel(task: asyncio.Task[None]) -> None:
    """End a task that runs for ever."""
    task.cancel()
    await asyncio.wait([task])
