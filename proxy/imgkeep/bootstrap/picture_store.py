"""Builds what stores derived pictures for other nodes, and sends clients there (`derive.store`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.bootstrap.gauges import watch_picture_store
from imgkeep.core.derived.names import DERIVED, read_path
from imgkeep.derived.picture_store import PictureStore
from imgkeep.images.object_urls import ObjectUrls
from imgkeep.replication.primary_pictures import PrimaryPictures
from imgkeep.replication.public_access import PublicAccess

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from imgkeep.bootstrap.platform import Platform
    from imgkeep.bootstrap.storage import RemoteStorage, Storage
    from imgkeep.config import Config
    from imgkeep.observability.metrics import Metrics


def open_picture_store(
    config: Config, platform: Platform, storage: Storage, metrics: Metrics, stack: AsyncExitStack
) -> tuple[PictureStore, PublicAccess | None]:
    """Return the store, which ends with `stack`; and whether its public URLs work: `None`, if they are not used."""
    remote = storage.remote
    files = storage.local.pictures if remote is None else PrimaryPictures(remote.tiered_store)
    store = PictureStore(
        files if config.derive.store else None, storage.picture_cache, timer=platform.timer, sleep=platform.sleep
    )
    stack.push_async_callback(store.aclose)
    watch_picture_store(metrics, store)
    if remote is None or not config.derive.store:
        return store, None
    is_public = config.delivery.mode == "redirect" and remote.public_path is not None
    access = PublicAccess(platform.sleep, DERIVED) if is_public else None
    store.urls = _make_urls(config, platform, remote, store, access)
    return store, access


def _make_urls(
    config: Config, platform: Platform, remote: RemoteStorage, store: PictureStore, access: PublicAccess | None
) -> ObjectUrls:
    """Return the URLs of pictures, by their paths."""
    client = remote.bucket.client

    async def has_picture(path: str) -> bool:
        name = read_path(path)
        return name is not None and remote.breaker.reason is None and await store.has(name)

    return ObjectUrls(
        config.delivery.mode,
        has_object=has_picture,
        presign=lambda path, ttl_s, head: client.presign(path, ttl_s=ttl_s, head=head),
        public_url=remote.public_path,
        is_public=lambda: access is not None and access.works is True,
        presign_ttl_s=config.delivery.presign_ttl_s,
        timer=platform.timer,
    )
