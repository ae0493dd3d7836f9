"""
Derived pictures in a bucket, under `v1/derived/` (`core/derived/names.py`). Any of them can be made again.

After a picture was put, this looks for a block of its original, and deletes the picture if there is one, as the store
does with an object (`store.py`).
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from imgkeep.core.derived.names import DERIVED
from imgkeep.core.errors import Removed
from imgkeep.core.layout import REMOVED
from imgkeep.storage.bucket.body import BucketBody
from imgkeep.storage.bucket.client import CACHE_CONTROL, ObjectFields
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.picture_files import PictureFiles

if TYPE_CHECKING:
    from imgkeep.core.derived.names import PictureName
    from imgkeep.core.records import Digest
    from imgkeep.storage.bucket.blocked_digests import BucketBlockedDigests
    from imgkeep.storage.bucket.client import BucketClient
    from imgkeep.storage.interfaces import Body, Draft


class BucketPictures(PictureFiles):
    """
    The pictures in one bucket.

    Attributes:
        in_use: Whether this installation puts any. Else a bucket whose lists are dear is not asked for some.
    """

    def __init__(self, client: BucketClient, blocks: BucketBlockedDigests) -> None:
        self.in_use = True
        self._client = client
        self._blocks = blocks

    async def fetch(self, name: PictureName) -> Body | None:
        opened = await self._client.get(name.path)
        return None if opened is None else BucketBody(self._client, name.path, opened)

    async def has(self, name: PictureName) -> bool:
        return await self._client.stat(name.path) is not None

    async def put(self, draft: Draft, name: PictureName) -> None:
        try:
            await self._client.put_draft(name.path, draft, ObjectFields(name.format.media_type, CACHE_CONTROL))
        except BucketError as fault:
            fault.general = fault.general and bool(fault.error_code)  # as for an object
            raise
        if await self._blocks.find(name.digest) is not None:
            await self._client.delete(name.path)
            raise Removed(REMOVED)

    async def count(self, digest: Digest, most: int) -> int:
        if not self._client.features.cheap_lists:
            return 0
        number = 0
        async with aclosing(self._client.walk(f"{DERIVED}/{digest}")) as entries:  # type: ignore[type-var]  # generators
            async for _ in entries:
                number += 1
                if number >= most:
                    break
        return number

    async def delete_all(self, digest: Digest) -> None:
        if not self.in_use and not self._client.features.cheap_lists:
            return
        for path in [path async for path, _ in self._client.walk(f"{DERIVED}/{digest}")]:
            await self._client.delete(path)
