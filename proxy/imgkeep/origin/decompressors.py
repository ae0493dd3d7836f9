"""
Decompressors of content codings that work step by step: each takes and returns little at a time.

They raise the errors of their libraries (`DAMAGE`). They treat bytes behind the end as Chromium does.
"""

from __future__ import annotations

import struct
import sys
import zlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import brotli  # type: ignore[import-untyped]  # it has no annotations

from imgkeep.core.errors import OriginError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_BYTES_MAX: Final = 262_144
"""Maximum number of bytes that a step returns."""
ZSTD_WINDOW_LOG_MAX: Final = 23
"""Maximum window, 8 MiB: RFC 9659 demands it of zstd on the web, and Chromium enforces it."""
FRAMES_MAX: Final = 1000
"""Maximum number of zstd frames; `pzstd` makes one of every few megabytes."""
BROTLI_TAIL_BYTES: Final = 4096
"""
Number of last bytes that the library gets one by one: it refuses bytes behind the end, and loses all that it has
decoded in that call. They take 2 ms.
"""

GZIP_HEAD_BYTES_MAX: Final = 131_072 + 16_384
"""Maximum size of a gzip member's head: its extra field of 64 KiB, long names, and one step."""

_PADDING: Final = b"\0\t\n\r "

DAMAGE: Final = (zlib.error, brotli.error, zstd.ZstdError)
"""The errors that the libraries raise."""


class Decompressor(ABC):
    """
    A decompressor, fed step by step.

    Attributes:
        has_large_window: Whether it needs megabytes of memory.
    """

    has_large_window = False

    @property
    @abstractmethod
    def proved(self) -> bool:
        """Whether the end was seen, and nothing but padding came behind it."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether the end was seen: later bytes change at most `proved`."""

    @property
    @abstractmethod
    def pending(self) -> bool:
        """Whether another step without data may return more."""

    @abstractmethod
    def step(self, data: bytes) -> bytes:
        """Take some bytes and return up to `STEP_BYTES_MAX` decoded ones. Raises an error of its library."""

    def finish(self) -> bytes:
        """Return the bytes that were held back, when no more come; again, until there are none."""
        return b""


class _Trailing:
    """The bytes behind the end of a stream."""

    def __init__(self) -> None:
        self.is_padding = True

    def note(self, data: bytes) -> None:
        if data.strip(_PADDING):
            self.is_padding = False


class _Inflate(Decompressor):
    """
    Deflate with or without zlib's wrapper.

    Args:
        wbits: The argument of `zlib` about the wrapper; `None`: the first two bytes tell.
    """

    def __init__(self, wbits: int | None = None) -> None:
        self._zlib = None if wbits is None else zlib.decompressobj(wbits=wbits)
        self._head = b""
        self._rest = b""
        self._trailing = _Trailing()

    @property
    def proved(self) -> bool:
        return self.ended and self._trailing.is_padding

    @property
    def ended(self) -> bool:
        return self._zlib is not None and self._zlib.eof

    @property
    def pending(self) -> bool:
        return bool(self._rest)

    def step(self, data: bytes) -> bytes:
        if self.ended:
            self._note(data)
            return b""
        if self._zlib is None:
            self._head += data
            if len(self._head) < 2:
                return b""
            self._zlib = zlib.decompressobj(wbits=15 if is_zlib(self._head) else -15)
            data, self._head = self._head, b""
        piece = self._zlib.decompress(self._rest + data, STEP_BYTES_MAX)
        self._rest = self._zlib.unconsumed_tail
        if self._zlib.eof:
            self._note(self._zlib.unused_data)
        return piece

    def _note(self, data: bytes) -> None:
        self._trailing.note(data)


class _Gzip(_Inflate):
    """
    One gzip member (RFC 1952).

    Browsers do not look at its checksum and size. A wrong one is no error, and proves nothing.
    """

    def __init__(self) -> None:
        super().__init__(-15)
        self._gzip_head: bytes | None = b""
        """The member's head as far as it has come; `None`: it is whole."""
        self._foot = b""
        self._crc = self._size = 0

    @property
    def proved(self) -> bool:
        wanted = struct.pack("<II", self._crc, self._size & 0xFFFFFFFF)
        return self._foot == wanted and super().proved

    def step(self, data: bytes) -> bytes:
        if self._gzip_head is not None:
            self._gzip_head += data
            end = _find_gzip_head_end(self._gzip_head)
            if end is None:
                return b""
            data, self._gzip_head = self._gzip_head[end:], None
        piece = super().step(data)
        self._crc = zlib.crc32(piece, self._crc)
        self._size += len(piece)
        return piece

    def _note(self, data: bytes) -> None:
        missing = 8 - len(self._foot)
        self._foot += data[:missing]
        self._trailing.note(data[missing:])


def _find_gzip_head_end(data: bytes) -> int | None:
    """
    Return where the head of a gzip member ends; `None`: further on.

    Raises:
        zlib.error: It is no head, or too long.
    """
    if not b"\x1f\x8b\x08".startswith(data[:3]) or len(data) > GZIP_HEAD_BYTES_MAX:
        raise zlib.error("no gzip")
    if len(data) < 10:
        return None
    flags, end = data[3], 10
    if flags & 0xE0:
        raise zlib.error("no known gzip")
    if flags & 4:
        end += 2 + int.from_bytes(data[10:12], "little")
    for flag in (8, 16):
        if flags & flag:
            end = data.find(b"\0", end) + 1
            if end == 0:
                return None
    if flags & 2:
        end += 2
    return end if end <= len(data) else None


class _Brotli(Decompressor):
    """A brotli stream (RFC 7932)."""

    has_large_window = True

    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()
        self._held = b""
        self._trailing = _Trailing()

    @property
    def proved(self) -> bool:
        return self.ended and self._trailing.is_padding

    @property
    def ended(self) -> bool:
        return bool(self._decoder.is_finished())

    @property
    def pending(self) -> bool:
        return not self.ended and not self._decoder.can_accept_more_data()

    def step(self, data: bytes) -> bytes:
        if self.ended:
            self._trailing.note(data)
            return b""
        if data:
            data = self._held + data
            data, self._held = data[:-BROTLI_TAIL_BYTES], data[-BROTLI_TAIL_BYTES:]
            if not data:
                return b""
        return bytes(self._decoder.process(data, output_buffer_limit=STEP_BYTES_MAX))

    def finish(self) -> bytes:
        """Decode the bytes that were held back, up to one step."""
        pieces, given = [], 0
        while self._held and not self.ended and given < STEP_BYTES_MAX:
            data = b""
            if self._decoder.can_accept_more_data():
                data, self._held = self._held[:1], self._held[1:]
            pieces.append(self._decoder.process(data, output_buffer_limit=STEP_BYTES_MAX))
            given += len(pieces[-1])
        if self.ended:
            self._trailing.note(self._held)
            self._held = b""
        elif self.pending and not given:
            pieces.append(self._decoder.process(b"", output_buffer_limit=STEP_BYTES_MAX))
        return b"".join(pieces)


class _Zstd(Decompressor):
    """Zstandard frames, one after the other (RFC 8878)."""

    has_large_window = True

    def __init__(self) -> None:
        self._frames = 0
        self._decoder = self._begin()

    @property
    def proved(self) -> bool:
        return self._decoder.eof

    @property
    def ended(self) -> bool:
        return False  # another frame may follow

    @property
    def pending(self) -> bool:
        return not self._decoder.eof and not self._decoder.needs_input

    def step(self, data: bytes) -> bytes:
        pieces, room = [], STEP_BYTES_MAX
        while True:
            if self._decoder.eof and data:
                self._decoder = self._begin()
            piece = self._decoder.decompress(data, room)
            pieces.append(piece)
            room -= len(piece)
            data = self._decoder.unused_data if self._decoder.eof else b""
            if not data:
                return b"".join(pieces)
            room = max(room, 1)

    def _begin(self) -> zstd.ZstdDecompressor:
        self._frames += 1
        if self._frames > FRAMES_MAX:
            raise OriginError("the origin's compressed answer has too many frames")
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX})


def is_zlib(head: bytes) -> bool:
    """Tell whether bytes begin with the header of zlib (RFC 1950, 2.2)."""
    return len(head) > 1 and head[0] & 0x8F == 8 and int.from_bytes(head[:2]) % 31 == 0


DECOMPRESSORS: Final[dict[str, Callable[[], Decompressor]]] = {
    "gzip": _Gzip,
    "deflate": _Inflate,
    "br": _Brotli,
    "zstd": _Zstd,
}
