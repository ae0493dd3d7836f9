"""
An incremental decoder and encoder of gzip and deflate (RFC 1952, 1950).

Rules:
- The decoder buffers only what the format needs, and no decoded piece exceeds `PIECE_BYTES_MAX`.
- The header of a gzip file stays: frameworks hide the length of a page by it (BREACH).
- A body with a bad end gets a bad end again: truncated or invalid like the original, so that a client notices.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.integrations.responses import Coding

PIECE_BYTES_MAX: Final = 1 << 16
LEVEL: Final = 6

_PLAIN_HEADER: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_NO_BLOCK: Final = b"\x07"
"""A last block of the reserved, invalid type (RFC 1951, 3.2.3)."""

_HEADER_CRC, _EXTRA, _NAME, _COMMENT = 2, 4, 8, 16


class Undecodable(Exception):
    """The body does not have the coding of its `Content-Encoding`."""


class Decoder:
    """
    A decoder of one body.

    Attributes:
        header: Header of the gzip file, once it is complete, for the encoder.
        rest: Bytes behind the end.
    """

    def __init__(self, coding: Coding) -> None:
        self._inflater = zlib.decompressobj(31 if coding == "gzip" else 15)
        self._head: bytes | None = b"" if coding == "gzip" else None
        self.header = _PLAIN_HEADER
        self.rest = b""

    @property
    def is_at_end(self) -> bool:
        return self._inflater.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        """
        Decode the next bytes, and yield the result.

        Raises:
            Undecodable: The coding is invalid; raised behind all bytes before the fault.
        """
        self._note_header(data)
        is_more = True
        while is_more and not self._inflater.eof:
            before = self._inflater.copy()
            try:
                piece = self._inflater.decompress(data, PIECE_BYTES_MAX)
            except zlib.error:
                yield _all_before_error(before, data)
                raise Undecodable from None
            data = self._inflater.unconsumed_tail
            # A full piece may leave decoded bytes inside the decoder.
            is_more = bool(data) or len(piece) == PIECE_BYTES_MAX
            if piece:
                yield piece
        self.rest = self._inflater.unused_data

    def _note_header(self, data: bytes) -> None:
        if self._head is None:
            return
        self._head += data[:PIECE_BYTES_MAX]
        end = _header_end(self._head)
        if end is not None:
            self.header = self._head[:end]
        if end is not None or len(self._head) > PIECE_BYTES_MAX:
            self._head = None


def _all_before_error(inflater: zlib._Decompress, data: bytes) -> bytes:
    """Return the bytes before an error, which discards all output of the failing call."""
    found = bytearray(inflater.decompress(b""))
    with suppress(zlib.error):
        for at in range(len(data)):
            found += inflater.decompress(data[at : at + 1])
    return bytes(found)


def _header_end(data: bytes) -> int | None:
    """Return the end of the header of a gzip file; `None`: it is incomplete."""
    if len(data) < len(_PLAIN_HEADER):
        return None
    flags, at = data[3], len(_PLAIN_HEADER)
    if flags & _EXTRA:
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            at = data.find(b"\0", at) + 1
            if not at:
                return None
    if flags & _HEADER_CRC:
        at += 2
    return at if at <= len(data) else None


class Encoder:
    """An encoder of one body; `header` is that of the decoded gzip file."""

    def __init__(self, coding: Coding, header: bytes) -> None:
        self._is_gzip = coding == "gzip"
        self._deflater = zlib.compressobj(LEVEL, wbits=-15 if self._is_gzip else 15)
        self._head = header if self._is_gzip else b""
        self._checksum, self._size = zlib.crc32(b""), 0

    def feed(self, data: bytes) -> bytes:
        """Encode bytes; a part of the result may come with a later call."""
        self._checksum, self._size = zlib.crc32(data, self._checksum), self._size + len(data)
        return self._taken_head() + self._deflater.compress(data)

    def flush(self) -> bytes:
        """Return the rest of the encoded bytes so far."""
        return self._taken_head() + self._deflater.flush(zlib.Z_SYNC_FLUSH)

    def close(self) -> bytes:
        """Return the regular end."""
        end = self._taken_head() + self._deflater.flush()
        if not self._is_gzip:
            return end
        return end + self._checksum.to_bytes(4, "little") + (self._size & 0xFFFFFFFF).to_bytes(4, "little")

    def end_invalid(self) -> bytes:
        """Return an invalid end, which every client notices."""
        return self.flush() + _NO_BLOCK

    def _taken_head(self) -> bytes:
        head, self._head = self._head, b""
        return head
