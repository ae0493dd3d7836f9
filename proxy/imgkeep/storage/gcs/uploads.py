"""
Uploads to a bucket: metadata and media in one request of any size (JSON API, `uploadType=multipart`).

One request is whole or nothing, so a broken upload leaves no parts and no session behind. The service compares the MD5
that is sent, and the answer has to state it again.
"""

from __future__ import annotations

from base64 import b64encode
from secrets import token_hex
from typing import TYPE_CHECKING

import msgspec

from imgkeep.storage.bucket.body import DraftPart, md5_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from mmap import mmap

    from imgkeep.storage.bucket.client import ObjectFields
    from imgkeep.storage.interfaces import Draft


class Envelope:
    """
    What stands around the media in the body of an upload (RFC 2387).

    Args:
        name: Name of the object.
        media_size: Number of bytes of the media.
        checksum: As `checksum_of` returns it.
    """

    def __init__(self, name: str, fields: ObjectFields, media_size: int, checksum: str) -> None:
        boundary = token_hex(16)
        metadata = {
            "name": name,
            "md5Hash": checksum,
            "contentType": fields.content_type,
            "cacheControl": fields.cache_control,
            "contentDisposition": fields.content_disposition,
        }
        text = msgspec.json.encode({field: value for field, value in metadata.items() if value}).decode()
        self.content_type = f"multipart/related; boundary={boundary}"
        self.head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{text}\r\n"
            f"--{boundary}\r\nContent-Type: {fields.content_type}\r\n\r\n"
        ).encode()
        self.tail = f"\r\n--{boundary}--\r\n".encode()
        self.size = len(self.head) + media_size + len(self.tail)
        self._sent = (checksum, str(media_size))

    def holds(self, checksum: str, size: str) -> bool:
        """Tell whether an object with this checksum and size is what was sent."""
        return (checksum, size) == self._sent


class DraftInEnvelope(DraftPart):
    """A draft as the body of an upload."""

    def __init__(self, draft: Draft, envelope: Envelope) -> None:
        super().__init__(draft, 0, draft.size)
        self._envelope = envelope

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._envelope.head
        async for piece in super().__aiter__():
            yield piece
        yield self._envelope.tail


def checksum_of(data: bytes | bytearray | mmap) -> str:
    """Return the MD5 of some bytes as the service writes it."""
    return b64encode(md5_of(data)).decode()
