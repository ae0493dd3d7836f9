"""Bodies on their way from and to a bucket, in pieces: a large one is never whole in memory."""

from __future__ import annotations

from hashlib import md5
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import StorageError
from imgkeep.storage.bucket.errors import BROKEN_OFF, CHANGED, BucketError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from mmap import mmap

    from imgkeep.storage.bucket.client import BucketClient, ObjectResponse
    from imgkeep.storage.bucket.response_stream import ResponseStream
    from imgkeep.storage.interfaces import Draft

PIECE_BYTES: Final = 262_144
RESUMES_MAX: Final = 2
"""Maximum number of requests that take up a body which broke off."""
SKIP_BYTES_MAX: Final = 262_144
"""Maximum number of bytes that are read and dropped; to skip more, a new request is made."""


class DraftPart:
    """
    Part of a draft as the body of a request: read from its start whenever the request is sent again.

    Attributes:
        progress: Is called whenever a piece is read.
        failure: The error of the last read, if it failed. The HTTP client reports it as a broken connection.
    """

    def __init__(self, draft: Draft, start: int, end: int) -> None:
        self._draft = draft
        self._start = start
        self._end = end
        self.progress: Callable[[], None] = lambda: None
        self.failure: StorageError | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        offset = self._start
        while offset < self._end:
            piece = await self._read(offset)
            self.progress()
            offset += len(piece)
            yield piece

    async def _read(self, offset: int) -> bytes:
        try:
            piece = await self._draft.read(offset, min(PIECE_BYTES, self._end - offset))
        except StorageError as error:
            self.failure = error
            raise
        if not piece:
            self.failure = StorageError("a draft is shorter than before")
            raise self.failure
        return piece

    def read(self) -> bytes:
        """Fail: botocore recognises bodies by this name and never calls it."""
        raise UnsupportedOperation("read")

    def seek(self, _offset: int) -> None:
        """Do nothing: botocore calls it before it repeats a request, and every iteration begins at the start anyway."""


class BucketBody:
    """
    An object in a bucket. Implements `Body`: reads ahead of or behind the stream make another request (RFC 9110, 14.2).

    A stream that breaks off is taken up where it broke; its ETag makes sure that it is still the same object.
    """

    def __init__(self, client: BucketClient, path: str, opened: ObjectResponse) -> None:
        self._client = client
        self._path = path
        self._stream: ResponseStream | None = opened.stream
        self._position = 0
        self._resumes = 0
        self.etag = opened.etag
        self.size = opened.size

    @property
    def cache_entry(self) -> None:
        """`None`: the bytes are behind a network."""

    async def wait_for_size(self) -> int:
        return self.size

    async def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        while True:
            try:
                stream = await self._seek(offset)
                if piece := await stream.read(size):
                    self._position += len(piece)
                    return piece
            except StorageError:
                if self._resumes == RESUMES_MAX:
                    raise
            if self._resumes == RESUMES_MAX:
                raise BucketError(BROKEN_OFF)
            self._resumes += 1
            self._close_stream()

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Read to the end, and close."""
        offset = 0
        try:
            while piece := await self.read(offset, PIECE_BYTES):
                yield piece
                offset += len(piece)
        finally:
            self._close_stream()

    async def aclose(self) -> None:
        self._close_stream()

    async def _seek(self, offset: int) -> ResponseStream:
        stream = self._stream
        if stream is None or not 0 <= offset - self._position <= SKIP_BYTES_MAX:
            self._close_stream()
            opened = await self._client.get(self._path, start=offset, etag=self.etag)
            if opened is None:
                raise BucketError("the object in the bucket was deleted during a read", general=False)
            stream = self._stream = opened.stream
            # A service without ranges sends the whole object; then this body reads up to the offset.
            self._position = offset if opened.size == self.size - offset else 0
            if opened.etag != self.etag:
                raise BucketError(CHANGED, general=False)
        while self._position < offset:
            piece = await stream.read(min(PIECE_BYTES, offset - self._position))
            if not piece:
                raise BucketError(BROKEN_OFF)
            self._position += len(piece)
        return stream

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def md5_of(data: bytes | bytearray | mmap) -> bytes:
    """Return the MD5 of some bytes: the checksum of the services, with no use for security."""
    return md5(data, usedforsecurity=False).digest()


async def read_whole(draft: Draft) -> bytes:
    """
    Return the bytes of a small draft.

    Raises:
        StorageError: They cannot be read.
    """
    data = bytearray()
    while piece := await draft.read(len(data), draft.size - len(data)):
        data += piece
    if len(data) != draft.size:
        raise StorageError("a draft is shorter than before")
    return bytes(data)
