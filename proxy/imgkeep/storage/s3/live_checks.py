"""The steps of the live check that S3 has besides those of every service: upload in parts, and unfinished uploads."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from imgkeep.core.layout import OBJECTS
from imgkeep.storage.bucket.body import md5_of
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.shared_live_checks import ServiceChecks
from imgkeep.storage.s3.errors import NOT_S3

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

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


class OwnChecks(ServiceChecks):
    """The steps, with uploads in parts."""

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
        super().__init__(client, copy, path=path, image=image, no_condition=NO_CONDITION)
        self._connection = connection
        self._uploader = uploader

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

    async def list_uploads(self) -> str | None:
        prefix = self._connection.bucket.path(f"{OBJECTS}/")
        try:
            answer = await self._connection.call("list_multipart_uploads", Prefix=prefix, MaxUploads=1)
        except BucketError as error:
            if error.general:
                raise
            return f"{NO_RIGHT if error.error_code in DENIED else error}, {NO_LIST}"
        if LISTED.isdisjoint(answer):
            raise self._connection.limits.reject_answer(BucketError(NOT_S3))
        return None

    async def _begin(self, key: str) -> str:
        begun = await self._connection.call("create_multipart_upload", Key=key, ContentType="image/png")
        upload = begun.get("UploadId")
        if not upload:
            raise self._connection.limits.reject_answer(BucketError(NOT_S3))
        return str(upload)

    async def _abort(self, key: str, upload: str) -> None:
        await self._connection.call("abort_multipart_upload", Key=key, UploadId=upload)
