"""The parts of Cloudinary's answers that imgkeep reads; unknown fields are ignored, as its documentation asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from imgkeep.storage.bucket.body import md5_of

if TYPE_CHECKING:
    from mmap import mmap

    from imgkeep.storage.bucket.response_stream import ResponseStream


NO_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding any bytes may raise; the last one for a nesting that no answer has."""


class UploadedAsset(msgspec.Struct):
    """
    An asset, in the answer to an upload and to `explicit` and `rename`.

    Attributes:
        etag: MD5 of the stored bytes, in hex.
        format: Extension for the format of an image; a raw file has none.
        existing: Whether an upload with `overwrite=false` stored nothing, because the asset was there.
    """

    public_id: str
    resource_type: str
    type: str
    bytes: int
    etag: str
    format: str | None = None
    existing: bool | None = None

    def is_copy_of(self, etag: str, size: int) -> bool:
        """Tell whether it has these bytes."""
        return self.etag == etag and self.bytes == size


class ListedAsset(msgspec.Struct):
    """An asset in a listing."""

    public_id: str
    bytes: int
    format: str | None = None


class Page(msgspec.Struct):
    """A page of a listing; the last one has no cursor."""

    resources: list[ListedAsset]
    next_cursor: str | None = None


class Destroyed(msgspec.Struct):
    """The answer to `destroy`: `ok`, or `not found`."""

    result: str


@dataclass(slots=True)
class Download:
    """The bytes of an asset. Size and ETag are missing where the response does not state them."""

    size: int | None
    etag: str
    stream: ResponseStream


def etag_of(data: bytes | bytearray | mmap) -> str:
    """Return the ETag that Cloudinary gives to some bytes: their MD5."""
    return md5_of(data).hex()
