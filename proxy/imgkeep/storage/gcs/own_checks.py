"""The steps of the diagnosis that only Google Cloud Storage has: copy, conditional PUT, and what cannot be signed."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import BucketError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from imgkeep.storage.bucket.client import BucketClient, Check

NO_CONDITION: Final = "this emulator does not have it, so imgkeep reads each record again after its PUT"
NO_KEY: Final = "these credentials cannot sign links, so delivery.mode presign does not work with them: docs/gcs.md"


class OwnChecks:
    """
    The steps, with objects beside `path`. Each raises a `BucketError` if it fails.

    Args:
        copy: Copies an object, by path, to a path if it has this ETag; `False`: it has not.
    """

    def __init__(
        self, client: BucketClient, copy: Callable[[str, str, str], Awaitable[bool]], *, path: str, image: bytes
    ) -> None:
        self._client = client
        self._copy = copy
        self._path = path
        self._image = image

    def steps(self) -> Sequence[Check]:
        steps: list[Check] = [("copy", self.copy), ("conditional-put", self.put_conditionally)]
        return steps if self._client.features.presign else [*steps, ("presign", self.tell_no_key)]

    async def tell_no_key(self) -> str:
        return NO_KEY

    async def copy(self) -> None:
        async with self._beside(".source") as source, self._beside(".copy") as target:
            await self._client.put_bytes(source, self._image, ObjectFields("image/png"))
            found = await self._client.stat(source)
            if found is None or not await self._copy(source, target, found.etag):
                raise BucketError("the bucket does not copy an object that is there")
            copied = await self._client.stat(target)
            if copied is None or copied.size != len(self._image):
                raise BucketError("the bucket does not have what it said it copied")

    async def put_conditionally(self) -> str | None:
        async with self._beside(".condition") as path:
            await self._client.put_bytes(path, self._image, ObjectFields("image/png"))
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
