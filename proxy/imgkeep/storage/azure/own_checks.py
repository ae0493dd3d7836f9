"""What `check --live` tries on Azure besides what it tries on every service."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.memory import MemorySpool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from imgkeep.storage.azure.uploads import Uploader
    from imgkeep.storage.bucket.client import BucketClient, Check

BLOCK_BYTES: Final = 64
"""Size of the blocks of an image that is smaller than any that is sent in blocks."""
FIELDS: Final = ObjectFields("image/png")
NO_CONDITION: Final = "something before the service ignores If-None-Match; imgkeep reads records back"


class OwnChecks:
    """
    The steps, with blobs beside an image. Each raises a `BucketError` if it fails.

    Args:
        copy: Copies a path to another path if it has this ETag; `False`: it has not.
    """

    def __init__(
        self,
        client: BucketClient,
        uploader: Uploader,
        copy: Callable[[str, str, str], Awaitable[bool]],
        *,
        path: str,
        image: bytes,
    ) -> None:
        self._client = client
        self._uploader = uploader
        self._copy = copy
        self._path = path
        self._image = image

    def steps(self) -> Sequence[Check]:
        return [("blocks", self.put_blocks), ("copy", self.copy), ("conditional-put", self.put_conditionally)]

    async def put_blocks(self) -> None:
        draft = await MemorySpool(len(self._image)).begin(len(self._image))
        try:
            await draft.write(self._image)
            async with self._beside(".blocks") as path:
                await self._uploader.put_blocks(path, draft, FIELDS, BLOCK_BYTES)
        finally:
            await draft.aclose()

    async def copy(self) -> None:
        async with self._beside(".source") as source, self._beside(".copy") as target:
            await self._client.put_bytes(source, self._image, FIELDS)
            stored = await self._client.stat(source)
            if stored is None or not await self._copy(source, target, stored.etag):
                raise BucketError("the container does not copy a blob that is there")
            copied = await self._client.stat(target)
            if copied is None or copied.size != len(self._image):
                raise BucketError("the container does not have what it said it copied")

    async def put_conditionally(self) -> str | None:
        async with self._beside(".condition") as path:
            await self._client.put_bytes(path, self._image, FIELDS)
            await self._client.probe_features(path)
        return None if self._client.features.conditional_put else NO_CONDITION

    @asynccontextmanager
    async def _beside(self, suffix: str) -> AsyncGenerator[str]:
        """Give a path beside that of the image, and delete at the end what is there."""
        path = self._path + suffix
        try:
            yield path
        except BaseException:
            with suppress(BucketError):
                await self._client.delete(path)
            raise
        await self._client.delete(path)
