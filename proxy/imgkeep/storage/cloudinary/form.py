"""A form with a file as the body of a request (RFC 7578), which is never whole in memory."""

from __future__ import annotations

from secrets import token_hex
from typing import TYPE_CHECKING

from imgkeep.storage.bucket.body import DraftPart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


class UploadForm:
    """
    The form of an upload, read from its start whenever the request is sent again.

    Args:
        fields: Its other fields; their values are ASCII without line breaks.
        size: Number of bytes of `file`.
    """

    def __init__(self, fields: Mapping[str, str], file: bytes | DraftPart, size: int) -> None:
        boundary = token_hex(16)
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        # Cloudinary takes a file without a name for a URL or text that holds it.
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        self._start = "".join(parts).encode()
        self._file = file
        self._end = f"\r\n--{boundary}--\r\n".encode()
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(self._start) + size + len(self._end)),
        }

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._start
        if isinstance(self._file, DraftPart):
            async for piece in self._file:
                yield piece
        else:
            yield self._file
        yield self._end
