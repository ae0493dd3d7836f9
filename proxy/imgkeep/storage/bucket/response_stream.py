"""The body of a response of a bucket, as its client reads it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from imgkeep.storage.bucket.errors import BROKEN_OFF, SILENT, BucketError

if TYPE_CHECKING:
    from collections.abc import Callable


class ResponseStream:
    """
    The body of a response. It holds a request slot until its end, or until it is closed.

    Args:
        body: A reader with `read(size)`, which returns nothing at the end, and `close()`.
        timeout_s: Timeout for the next bytes.
        release: Is called once, at the end.
    """

    def __init__(self, body: Any, timeout_s: float, release: Callable[[], None]) -> None:
        self._body = body
        self._timeout_s = timeout_s
        self._release = release
        self._open = True

    async def read(self, size: int) -> bytes:
        """
        Read up to `size` bytes; nothing at the end.

        Raises:
            BucketError: It broke off, or sent nothing for `timeout_s`.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                piece: bytes = await self._body.read(size)
        except TimeoutError:
            self.close()
            raise BucketError(SILENT) from None
        except Exception:  # noqa: BLE001 - of aiohttp, and of a library's wrapper: the stream is over
            self.close()
            raise BucketError(BROKEN_OFF) from None
        if not piece:
            self.close()
        return piece

    async def read_all(self, size_max: int) -> bytes:
        """Read up to `size_max` bytes within `timeout_s`, and close. Raises as `read`."""
        data = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                while len(data) < size_max and (piece := await self.read(size_max - len(data))):
                    data += piece
        except TimeoutError:
            raise BucketError(SILENT) from None
        finally:
            self.close()
        return bytes(data)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._body.close()
            self._release()
