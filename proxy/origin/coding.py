"""
Undoing a content coding that nobody asked for (RFC 9110, 8.4): some origins send gzip whatever the client accepts.

Decoded as it comes, in small steps, one member only, and its end and checksum verified: a gzip stream that was cut
looks complete to the framing. Other codings are refused.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from proxy.core.errors import OriginError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STEP_BYTES_MAX: Final = 262_144
"""Decoded at a time: a bomb meets the limit on the body's size before it meets the memory, and no step is long."""


class Decoder:
    """Decodes one gzip member (RFC 1952). `proved` tells afterwards whether its end and checksum were seen."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def proved(self) -> bool:
        return self._zlib.eof

    async def decode(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """
        Yield the decoded body.

        Raises:
            OriginError: It is damaged, cut, or goes on after its end.
        """
        async for chunk in chunks:
            data = chunk
            while data:
                if self._zlib.eof:
                    raise OriginError("the origin's compressed answer goes on after its end")
                try:
                    piece = self._zlib.decompress(data, STEP_BYTES_MAX)
                except zlib.error:
                    raise OriginError("the origin's compressed answer is damaged") from None
                data = self._zlib.unconsumed_tail or self._zlib.unused_data
                if piece:
                    yield piece
        if not self._zlib.eof:
            raise OriginError("the origin's compressed answer broke off")
