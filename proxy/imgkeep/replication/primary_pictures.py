"""The derived pictures in a remote store, which is not asked while its circuit breaker is open."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from imgkeep.storage.picture_files import PictureFiles

if TYPE_CHECKING:
    from imgkeep.core.derived.names import PictureName
    from imgkeep.core.records import Digest
    from imgkeep.replication.tiered_store import TieredStore
    from imgkeep.storage.interfaces import Body, Draft


class PrimaryPictures(PictureFiles):
    """The pictures in the primary of a store."""

    def __init__(self, store: TieredStore) -> None:
        self._call = store.call_primary
        self._pictures = store.primary.pictures

    async def fetch(self, name: PictureName) -> Body | None:
        return await self._call(partial(self._pictures.fetch, name))

    async def has(self, name: PictureName) -> bool:
        return await self._call(partial(self._pictures.has, name))

    async def put(self, draft: Draft, name: PictureName) -> None:
        await self._call(partial(self._pictures.put, draft, name))

    async def count(self, digest: Digest, most: int) -> int:
        return await self._call(partial(self._pictures.count, digest, most))

    async def delete_all(self, digest: Digest) -> None:
        await self._call(partial(self._pictures.delete_all, digest))
