"""
Uploads to a bucket: from memory, as a stream, or in parts, by their size.

A 200 alone proves nothing: the ETag has to be the MD5 of the bytes sent or, where encryption or parts make it another
or the service returns none (Ceph RGW 16 at the end of an upload in parts), a HEAD has to return the size and an ETag
that fits.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final

from imgkeep.storage.bucket.body import DraftPart, md5_of, read_whole
from imgkeep.storage.bucket.errors import NOT_TAKEN, BucketError
from imgkeep.storage.s3.connection import read_etag
from imgkeep.storage.s3.errors import NOT_S3

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from imgkeep.storage.bucket.client import ObjectStatus
    from imgkeep.storage.interfaces import Draft
    from imgkeep.storage.s3.connection import S3Connection

WHOLE_BYTES_MAX: Final = 1_048_576
"""Maximum size that is sent from memory, without the round trip of `100 Continue`."""
MULTIPART_BYTES_MIN: Final = 16_777_216
"""Minimum size that is sent in parts."""
PART_BYTES: Final = 8_388_608
PARTS_CONCURRENT_MAX: Final = 3


class Uploader:
    """
    The uploads to one bucket. `fields` are parameters of S3's `PutObject`.

    Args:
        stat: Asks for size and ETag of an object, as `BucketClient.stat`.
    """

    def __init__(self, connection: S3Connection, stat: Callable[[str], Awaitable[ObjectStatus | None]]) -> None:
        self._connection = connection
        self._stat = stat
        self._aborting: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Wait until broken-off uploads are aborted, or cannot be."""
        if self._aborting:
            await asyncio.wait(self._aborting)

    async def put_draft(self, path: str, draft: Draft, fields: dict[str, str]) -> None:
        """
        Upload a draft of any size.

        Raises:
            StorageError: The object is not in the bucket, or not whole.
        """
        if draft.size <= WHOLE_BYTES_MAX:
            await self.put_bytes(path, await read_whole(draft), fields)
        elif draft.size < MULTIPART_BYTES_MIN:
            digest = await draft.check(md5_of)
            answer = await self._connection.call(
                "put_object",
                Key=self._connection.bucket.path(path),
                Body=DraftPart(draft, 0, draft.size),
                ContentLength=draft.size,
                ContentMD5=b64encode(digest).decode(),
                **fields,
            )
            await self.verify(path, answer, digest.hex(), draft.size)
        else:
            await self._put_parts(path, draft, fields)

    async def put_bytes(self, path: str, data: bytes, fields: dict[str, str]) -> None:
        """Upload a few bytes. Raises as `put_draft`."""
        digest = md5_of(data)
        answer = await self._connection.put(path, data, digest, **fields)
        await self.verify(path, answer, digest.hex(), len(data))

    async def _put_parts(self, path: str, draft: Draft, fields: dict[str, str]) -> None:
        key = self._connection.bucket.path(path)
        starts = range(0, draft.size, PART_BYTES)
        digests = await draft.check(lambda body: [md5_of(body[start : start + PART_BYTES]) for start in starts])
        begun = await self._connection.call("create_multipart_upload", Key=key, **fields)
        upload = begun.get("UploadId")
        if not upload:
            raise self._connection.limits.reject_answer(BucketError(NOT_S3))
        try:
            answer = await self._send_parts(key, upload, draft, digests)
        except BaseException:
            # The operator pays for the parts of an incomplete upload until it is aborted. A client may be waiting for
            # the fill that failed, so the abort runs in a task of its own.
            task = asyncio.create_task(self._abort(key, upload))
            self._aborting.add(task)
            task.add_done_callback(self._aborting.discard)
            raise
        await self.verify(path, answer, f"{md5_of(b''.join(digests)).hex()}-{len(digests)}", draft.size)

    async def _send_parts(self, key: str, upload: str, draft: Draft, digests: list[bytes]) -> dict[str, Any]:
        slots = asyncio.Semaphore(PARTS_CONCURRENT_MAX)

        async def send(number: int, digest: bytes) -> dict[str, Any]:
            start = (number - 1) * PART_BYTES
            end = min(start + PART_BYTES, draft.size)
            async with slots:
                answer = await self._connection.call(
                    "upload_part",
                    Key=key,
                    UploadId=upload,
                    PartNumber=number,
                    Body=DraftPart(draft, start, end),
                    ContentLength=end - start,
                    ContentMD5=b64encode(digest).decode(),
                )
            return {"PartNumber": number, "ETag": answer.get("ETag", "")}

        try:
            async with asyncio.TaskGroup() as group:
                parts = [group.create_task(send(number, digest)) for number, digest in enumerate(digests, 1)]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return await self._connection.call(
            "complete_multipart_upload",
            Key=key,
            UploadId=upload,
            MultipartUpload={"Parts": [part.result() for part in parts]},
        )

    async def _abort(self, key: str, upload: str) -> None:
        try:
            await self._connection.call("abort_multipart_upload", Key=key, UploadId=upload)
        except BucketError:
            return  # the bucket's lifecycle rule removes it (docs/s3.md)

    async def verify(self, path: str, answer: Mapping[str, Any], digest: str, size: int) -> None:
        """Verify an upload by its answer, whose ETag should be `digest`, or by a HEAD. Raises as `put_draft`."""
        etag = read_etag(answer)
        if etag == digest:
            return
        encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
        if _contradicts(etag, digest, encrypted=encrypted):
            raise BucketError(NOT_TAKEN, general=False)
        # `stat` fails on an answer without an ETag, which is no answer of S3.
        status = await self._stat(path)
        if status is None or status.size != size or _contradicts(status.etag, digest, encrypted=encrypted):
            raise BucketError(NOT_TAKEN, general=False)


def _contradicts(etag: str, digest: str, *, encrypted: bool) -> bool:
    """
    Tell whether an ETag shows that other bytes are stored: it has the form of an MD5, and is another one.

    Of encrypted bytes it is no MD5 of what was sent; services compute that of an upload in parts in different ways.
    """
    return etag != digest and len(etag) == len(digest) and "-" not in digest and not encrypted
