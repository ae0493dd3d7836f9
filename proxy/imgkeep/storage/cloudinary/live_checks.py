"""The steps of the live check that Cloudinary has besides those of every service: a private file, and a rename."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import NOT_TAKEN, BucketError
from imgkeep.storage.cloudinary.assets import Asset, asset_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgkeep.core.store_url import CloudinaryFolder
    from imgkeep.storage.bucket.client import BucketClient, Check
    from imgkeep.storage.cloudinary.api import CloudinaryApi


class OwnChecks:
    """
    The steps, with a file beside `path`. Each raises a `BucketError` if it fails; the last one deletes the file.

    Args:
        image: The bytes of the file.
    """

    def __init__(
        self, client: BucketClient, api: CloudinaryApi, folder: CloudinaryFolder, path: str, image: bytes
    ) -> None:
        self._client = client
        self._api = api
        self._path = f"{path}.json"
        self._asset = asset_of(folder, self._path)
        self._image = image

    def steps(self) -> Sequence[Check]:
        return [("private-file", self.put_file), ("rename", self.rename)]

    async def put_file(self) -> None:
        """Put a file as a record is put, and get it."""
        await self._client.put_bytes(self._path, self._image, ObjectFields("application/json"))
        opened = await self._client.get(self._path)
        if opened is None or await opened.stream.read_all(len(self._image) + 1) != self._image:
            raise BucketError("the bucket returns other bytes than were put")

    async def rename(self) -> None:
        """Rename the file, as an object on its way into quarantine, and delete it."""
        target = Asset(self._asset.kind, f"{self._asset.public_id}-renamed")
        try:
            if await self._api.rename(self._asset, target) is None:
                raise BucketError(NOT_TAKEN)
        finally:
            for left in (self._asset, target):
                await self._api.destroy(left)
