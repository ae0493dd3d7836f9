"""Bodies on their way from and to a bucket, in pieces: never whole in memory when they are large."""

from __future__ import annotations

import asyncio
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Any, Final

from proxy.core.errors import StorageError
from proxy.storage.s3.client import BucketError, tag_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from proxy.ports import Draft
    from proxy.storage.s3.client import BucketClient

PIECE_BYTES: Final = 262_144
RESUMES_MAX: Final = 2
"""A body that breaks off more often than this is not worth the requests."""
SKIP_BYTES_MAX: Final = 262_144
"""So much is read and thrown away before a new request is made for what lies behind it."""


class Upload:
    """
    Part of a draft as the body of a request: read from its start again whenever the request is sent anew.

    `progress` is called whenever a piece is taken.
    """

    def __init__(self, draft: Draft, start: int, end: int) -> None:
        self._draft = draft
        self._start = start
        self._end = end
        self.progress: Callable[[], None] = lambda: None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        offset = self._start
        while offset < self._end:
            piece = await self._draft.read(offset, min(PIECE_BYTES, self._end - offset))
            if not piece:
                raise StorageError("a draft is shorter than it was")
            self.progress()
            offset += len(piece)
            yield piece

    def read(self) -> bytes:
        """For botocore, which tells bodies by this name and does not call it."""
        raise UnsupportedOperation("read")

    def seek(self, _offset: int) -> None:
        """For botocore, before it sends a request anew: every iteration begins at the start anyway."""


class S3Body:
    """
    An object that is read as it comes, and from anywhere by another request (RFC 9110, 14.2).

    A stream that breaks off is taken up where it broke. `If-Match` sees to it that it is still the same object.
    """

    def __init__(self, client: BucketClient, path: str, answer: dict[str, Any]) -> None:
        self._client = client
        self._path = path
        self._etag = str(answer.get("ETag") or "")
        self._stream: Any = answer["Body"]
        self._position = 0
        self._resumes = 0
        self.size: int = answer["ContentLength"]

    async def settle(self) -> int:
        return self.size

    async def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        while True:
            try:
                await self._go_to(offset)
                if piece := await self._take(size):
                    return piece
            except StorageError:
                if self._resumes == RESUMES_MAX:
                    raise
            if self._resumes == RESUMES_MAX:
                raise BucketError("the bucket's answer broke off")
            self._resumes += 1
            self._drop()

    async def aclose(self) -> None:
        self._drop()

    async def _go_to(self, offset: int) -> None:
        if self._stream is None or not 0 <= offset - self._position <= SKIP_BYTES_MAX:
            self._drop()
            answer = await self._client.call(
                "get_object", Key=self._client.bucket.path(self._path), Range=f"bytes={offset}-", IfMatch=self._etag
            )
            self._stream = answer["Body"]
            # Not everybody has ranges: then the whole comes, and we read on to where we want to be.
            self._position = offset if answer["ContentLength"] == self.size - offset else 0
            if tag_of(answer) != self._etag.strip('"'):
                raise BucketError("the object in the bucket changed while it was read")
        while self._position < offset:
            if not await self._take(min(PIECE_BYTES, offset - self._position)):
                raise BucketError("the bucket's answer broke off")

    async def _take(self, size: int) -> bytes:
        piece = await take(self._stream, size, self._client.timeout_s)
        self._position += len(piece)
        return piece

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


async def take(stream: Any, size: int, timeout_s: float) -> bytes:
    """
    Read up to `size` bytes of an answer; nothing at its end.

    Raises:
        BucketError: It broke off, or nothing came for `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            piece: bytes = await stream.read(size)
    except asyncio.CancelledError:
        raise
    except Exception:  # noqa: BLE001 - of aiohttp, of aiobotocore and of its wrapper: whatever it is, the stream is over
        raise BucketError("the bucket's answer broke off") from None
    return piece
