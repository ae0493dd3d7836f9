"""What `check --live` tries on Azure besides what it tries on every service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.storage.bucket.shared_live_checks import FIELDS, ServiceChecks
from imgkeep.storage.memory import MemorySpool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from imgkeep.storage.azure.uploads import Uploader
    from imgkeep.storage.bucket.client import BucketClient, Check

BLOCK_BYTES: Final = 64
"""Size of the blocks of an image that is smaller than any that is sent in blocks."""
NO_CONDITION: Final = "something before the service ignores If-None-Match; imgkeep reads records back"


class OwnChecks(ServiceChecks):
    """The steps, with an upload in blocks."""

    def __init__(
        self,
        client: BucketClient,
        uploader: Uploader,
        copy: Callable[[str, str, str], Awaitable[bool]],
        *,
        path: str,
        image: bytes,
    ) -> None:
        super().__init__(client, copy, path=path, image=image, no_condition=NO_CONDITION)
        self._uploader = uploader

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
