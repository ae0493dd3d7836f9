"""The steps of the diagnosis that only S3 has: upload in parts, copy, conditional PUT, and unfinished uploads."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from imgkeep.core.layout import OBJECTS
from imgkeep.storage.bucket.body import md5_of
from imgkeep.storage.bucket.client import ObjectFields
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.s3.errors import NOT_S3

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from imgkeep.storage.bucket.client import BucketClient, Check
    from imgkeep.storage.s3.connection import S3Connection
    from imgkeep.storage.s3.uploads import Uploader

PARTS_SUFFIX: Final = ".parts"
NO_CONDITION: Final = "the service does not have it, so imgkeep reads each record again after its PUT"
DENIED: Final = frozenset({"AccessDenied", "403"})
NO_RIGHT: Final = "imgkeep may not list them (s3:ListBucketMultipartUploads)"
NO_LIST: Final = "so a lifecycle rule has to remove the parts that a crash leaves: docs/s3.md"
LISTED: Final = frozenset({"Bucket", "Prefix", "MaxUploads", "IsTruncated", "Uploads"})
"""What a list of uploads may state. A page of a portal states none of it."""


class OwnChecks:
    """
    The steps, with an image at `path` and objects beside it. Each raises a `BucketError` if it fails.

    Args:
        copy: Copies a path to a name in the bucket if it has this ETag; `False`: it has not.
    """

    def __init__(  # noqa: PLR0913 - called once
        self,
        client: BucketClient,
        connection: S3Connection,
        uploader: Uploader,
        copy: Callable[[str, str, str], Awaitable[bool]],
        *,
        path: str,
        image: bytes,
    ) -> None:
        self._client = client
        self._connection = connection
        self._uploader = uploader
        self._copy = copy
        self._path = path
        self._image = image

    def steps(self) -> Sequence[Check]:
        return [
            ("multipart", self.complete_and_abort),
            ("copy", self.copy),
            ("conditional-put", self.put_conditionally),
            ("unfinished-uploads", self.list_uploads),
        ]

    async def complete_and_abort(self) -> None:
        async with self._beside(PARTS_SUFFIX) as path:
            key = self._connection.bucket.path(path)
            upload = await self._begin(key)
            digest = md5_of(self._image)
            try:
                part = await self._connection.call(
                    "upload_part", Key=key, UploadId=upload, PartNumber=1, Body=self._image
                )
                parts = {"Parts": [{"PartNumber": 1, "ETag": part.get("ETag", "")}]}
                answer = await self._connection.call(
                    "complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload=parts
                )
            except BaseException:
                with suppress(BucketError):
                    await self._abort(key, upload)
                raise
            await self._uploader.verify(path, answer, f"{md5_of(digest).hex()}-1", len(self._image))
            await self._abort(key, await self._begin(key))

    async def copy(self) -> None:
        status = await self._client.stat(self._path)
        if status is None:
            raise BucketError("the object to copy is not there")
        async with self._beside(".copy") as path:
            if not await self._copy(self._path, self._connection.bucket.path(path), status.etag):
                raise BucketError("the bucket does not copy an object that is there")
            copied = await self._client.stat(path)
            if copied is None or copied.size != len(self._image):
                raise BucketError("the bucket does not have what it said it copied")

    async def put_conditionally(self) -> str | None:
        async with self._beside(".condition") as path:
            await self._client.put_bytes(path, self._image, ObjectFields("image/png"))
            await self._client.probe_features(path)
        return None if self._client.features.conditional_put else NO_CONDITION

    async def list_uploads(self) -> str | None:
        prefix = self._connection.bucket.path(f"{OBJECTS}/")
        try:
            answer = await self._connection.call("list_multipart_uploads", Prefix=prefix, MaxUploads=1)
        except BucketError as error:
            if error.general:
                raise
            return f"{NO_RIGHT if error.error_code in DENIED else error}, {NO_LIST}"
        if LISTED.isdisjoint(answer):
            raise BucketError(NOT_S3)
        return None

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

    async def _begin(self, key: str) -> str:
        begun = await self._connection.call("create_multipart_upload", Key=key, ContentType="image/png")
        upload = begun.get("UploadId")
        if not upload:
            raise BucketError(NOT_S3)
        return str(upload)

    async def _abort(self, key: str, upload: str) -> None:
        await self._connection.call("abort_multipart_upload", Key=key, UploadId=upload)
