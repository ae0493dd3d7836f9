"""The client of an S3 bucket."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from imgkeep.storage.bucket.client import PROBE_BYTES, Features, ObjectStatus, quarantine_path, range_field
from imgkeep.storage.bucket.errors import CHANGED, AlreadyThere, BucketError
from imgkeep.storage.bucket.pages import Pages
from imgkeep.storage.s3.connection import S3Connection, read_etag
from imgkeep.storage.s3.errors import EXISTS, MISSING, NOT_S3, RACED
from imgkeep.storage.s3.live_checks import OwnChecks
from imgkeep.storage.s3.unfinished_uploads import abort_unfinished_uploads
from imgkeep.storage.s3.uploads import Uploader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from imgkeep.core.store_url import S3Bucket
    from imgkeep.storage.bucket.client import Check, ObjectFields, ObjectResponse
    from imgkeep.storage.interfaces import Draft


class S3Client:
    """
    The client of one bucket of Amazon S3 or of a compatible service. Implements `BucketClient`.

    Args:
        observe: Receives operation, outcome and seconds of each call.
    """

    service = "s3"

    def __init__(
        self,
        bucket: S3Bucket,
        *,
        timeout_s: float = 5,
        observe: Callable[[str, str, float], None] = lambda *_: None,
    ) -> None:
        self.bucket = bucket
        self.timeout_s = timeout_s
        self.features = Features()
        self._connection = S3Connection(bucket, timeout_s=timeout_s, observe=observe)
        self._uploader = Uploader(self._connection, self.stat)

    @property
    def place(self) -> str:
        return self._connection.limits.place

    @property
    def answered_at(self) -> float:
        return self._connection.limits.answered_at

    async def open(self) -> None:
        await self._connection.open()

    async def check_settings(self) -> None:
        await self._connection.check_settings()

    async def aclose(self) -> None:
        await self._uploader.aclose()
        await self._connection.aclose()

    async def get(self, path: str, *, start: int = 0, end: int | None = None, etag: str = "") -> ObjectResponse | None:
        conditions: dict[str, str] = {}
        if part := range_field(start, end):
            conditions["Range"] = part
        if etag:
            conditions["IfMatch"] = f'"{etag}"'
        found = await self._connection.get(path, **conditions)
        if found is not None and etag and found.etag != etag:
            # Some services ignore the condition (rclone, s3rver).
            found.stream.close()
            raise BucketError(CHANGED, general=False)
        return found

    async def stat(self, path: str) -> ObjectStatus | None:
        # The answer to a HEAD does not tell whether the object or the bucket is missing, so a GET has to confirm a 404.
        try:
            return ObjectStatus(*await self._connection.head(path))
        except BucketError as error:
            if error.error_code not in {"404", "NotFound", MISSING}:
                raise
            found = await self._connection.get(path)
            if found is None:
                return None
            found.stream.close()
            return ObjectStatus(found.size, found.etag)

    async def put_bytes(self, path: str, data: bytes, fields: ObjectFields, *, only_if_absent: bool = False) -> None:
        condition = {"IfNoneMatch": "*"} if only_if_absent and self.features.conditional_put else {}
        try:
            await self._uploader.put_bytes(path, data, {**_parameters(fields), **condition})
        except BucketError as error:
            # 409: two PUTs met (S3 API, "ConditionalRequestConflict"). Either way another writer was quicker.
            if condition and error.error_code in EXISTS | RACED:
                raise AlreadyThere from None
            raise

    async def put_draft(self, path: str, draft: Draft, fields: ObjectFields) -> None:
        await self._uploader.put_draft(path, draft, _parameters(fields))

    async def delete(self, path: str) -> None:
        try:
            answer = await self._connection.call("delete_object", Key=self.bucket.path(path))
        except BucketError as error:
            if error.error_code != MISSING:
                raise
        else:
            # The library takes any 2xx for a success, and so the page of a captive portal (S3 API, DeleteObject: 204).
            if answer["ResponseMetadata"]["HTTPStatusCode"] != HTTPStatus.NO_CONTENT:
                raise self._connection.limits.reject_answer(BucketError(NOT_S3))

    async def quarantine(self, path: str, etag: str) -> None:
        # Buckets have no rename.
        target = quarantine_path(path)
        if not await self._copy(path, target, etag):
            return  # another process was quicker, or has put a good one in its place
        stat = await self.stat(path)
        if stat is not None and stat.etag == etag:
            await self.delete(path)

    async def _copy(self, path: str, target: str, etag: str) -> bool:
        """Copy an object within the bucket; `False`: it is not there, or another version."""
        source = {"Bucket": self.bucket.name, "Key": self.bucket.path(path)}
        try:
            copied = await self._connection.call(
                "copy_object", Key=self.bucket.path(target), CopySource=source, CopySourceIfMatch=f'"{etag}"'
            )
        except BucketError as error:
            if error.error_code in EXISTS | {MISSING}:
                return False
            raise
        if not read_etag(copied.get("CopyObjectResult", {})):
            raise self._connection.limits.reject_answer(BucketError(NOT_S3))
        return True

    async def has_any(self, prefix: str) -> bool:
        answer = await self._list(Prefix=self.bucket.path(prefix), MaxKeys=1)
        return bool(answer.get("Contents"))

    async def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        prefix = self.bucket.path(f"{folder}/")
        following: dict[str, str] = {}
        pages, goes_on = Pages(), True
        while goes_on:
            answer = await self._list(Prefix=prefix, **following)
            entries, token = answer.get("Contents", []), answer.get("NextContinuationToken")
            for entry in entries:
                yield folder + "/" + entry["Key"].removeprefix(prefix), entry["Size"]
            goes_on = pages.go_on(token, is_empty=not entries)
            following = {"ContinuationToken": str(token)}

    async def _list(self, **parameters: Any) -> dict[str, Any]:
        answer = await self._connection.call("list_objects_v2", **parameters)
        if "KeyCount" not in answer and "Contents" not in answer and "Name" not in answer:
            raise self._connection.limits.reject_answer(BucketError(NOT_S3))
        return answer

    async def presign(self, path: str, *, ttl_s: int, head: bool) -> tuple[str, int]:
        return await self._connection.presign(path, ttl_s=ttl_s, head=head)

    def public_url(self, path: str) -> str:
        return self._connection.public_url(path)

    async def probe_features(self, path: str) -> None:
        condition = {"IfNoneMatch": "*"}
        try:
            await self._connection.call("put_object", Key=self.bucket.path(path), Body=PROBE_BYTES, **condition)
        except BucketError as error:
            # A service that does not know the field may answer anything; earlier steps found all other faults.
            self.features.conditional_put = error.error_code in EXISTS
        else:
            self.features.conditional_put = False

    async def abort_uploads(self) -> int:
        return await abort_unfinished_uploads(self._connection)

    def live_checks(self, path: str, image: bytes) -> Sequence[Check]:
        return OwnChecks(self, self._connection, self._uploader, self._copy, path=path, image=image).steps()


def _parameters(fields: ObjectFields) -> dict[str, str]:
    """Return the parameters of S3's `PutObject`."""
    parameters = {
        "ContentType": fields.content_type,
        "CacheControl": fields.cache_control,
        "ContentDisposition": fields.content_disposition,
    }
    return {name: value for name, value in parameters.items() if value}
