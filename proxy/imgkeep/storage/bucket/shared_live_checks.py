"""Steps of the live check that several services share: a copy within the bucket, and a conditional PUT."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import BucketError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from imgkeep.storage.bucket.client import BucketClient

FIELDS: Final = ObjectFields("image/png")


class ServiceChecks:
    """
    The shared steps, with objects beside an image. Each raises a `BucketError` if it fails.

    Args:
        copy: Copies a path to another path if it has this ETag; `False`: it has not.
        path: The path of the image.
        image: Its bytes.
        no_condition: What the operator should know of a service without conditional PUT.
    """

    def __init__(
        self,
        client: BucketClient,
        copy: Callable[[str, str, str], Awaitable[bool]],
        *,
        path: str,
        image: bytes,
        no_condition: str,
    ) -> None:
        self._client = client
        self._copy = copy
        self._path = path
        self._image = image
        self._no_condition = no_condition

    async def copy(self) -> None:
        async with self._beside(".source") as source, self._beside(".copy") as target:
            await self._client.put_bytes(source, self._image, FIELDS)
            stored = await self._client.stat(source)
            if stored is None or not await self._copy(source, target, stored.etag):
                raise BucketError("the bucket does not copy an object that is there")
            copied = await self._client.stat(target)
            if copied is None or copied.size != len(self._image):
                raise BucketError("the bucket does not have what it said it copied")

    async def put_conditionally(self) -> str | None:
        async with self._beside(".condition") as path:
            await self._client.put_bytes(path, self._image, FIELDS)
            await self._client.probe_features(path)
        return None if self._client.features.conditional_put else self._no_condition

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
