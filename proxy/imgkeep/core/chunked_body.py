"""
A decoder of chunked bodies with the tolerance of browsers (RFC 9112, 7.1; `net/http/http_chunked_decoder.cc` of
Chromium).

Lines end with LF, with or without CR before it. The decoder skips spaces and extensions behind a size, and trailers
with any lines. A strict parser refuses an image for any of these. The framing itself stays strict: a size in
hexadecimal digits, an end of line behind each chunk, and an empty line at the end.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

LINE_BYTES_MAX: Final = 16_384
"""Maximum length of a line, as in Chromium."""

_SIZE: Final = re.compile(rb"0*([0-9A-Fa-f]{1,15})[ ]*(?:;.*)?", re.DOTALL)
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})\r?\n")
_LINE_END: Final = re.compile(rb"\r?\n")


class Malformed(ValueError):
    """The body is not chunked. The message is for people and quotes nothing from the origin."""


class _At(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    END = auto()


class Chunks:
    """
    An incremental decoder of one chunked body.

    Attributes:
        has_more: Whether bytes follow the end of the body.
    """

    def __init__(self) -> None:
        self.has_more = False
        self._at = _At.SIZE
        self._left = 0
        self._line = b""

    @property
    def ended(self) -> bool:
        return self._at is _At.END

    def feed(self, data: bytes) -> bytes:
        """
        Decode the next bytes, and return their part of the body.

        Raises:
            Malformed: The bytes are no chunks.
        """
        pieces: list[bytes] = []
        start, size = 0, len(data)
        while start < size:
            if self._at is _At.SIZE and not self._line:
                start = _take_whole(data, start, pieces)
            if self._at is _At.DATA:
                pieces.append(data[start : start + self._left])
                start += len(pieces[-1])
                self._left -= len(pieces[-1])
                if self._left == 0:
                    self._at = _At.DATA_END
            elif self._at is _At.END:
                self.has_more = True
                break
            elif start < size:
                end = data.find(b"\n", start) + 1
                self._line += data[start : end or size]
                if len(self._line) > LINE_BYTES_MAX:
                    raise Malformed("a line of the origin's chunked answer is too long")
                start = end or size
                if end:
                    line, self._line = self._line[:-1].removesuffix(b"\r"), b""
                    self._take_line(line)
        return b"".join(pieces)

    def _take_line(self, line: bytes) -> None:
        if self._at is _At.TRAILER:
            if not line:
                self._at = _At.END
        elif self._at is _At.DATA_END:
            if line:
                raise Malformed("a chunk of the origin's answer is longer than it says")
            self._at = _At.SIZE
        else:
            match = _SIZE.fullmatch(line)
            if match is None:
                raise Malformed("a chunk of the origin's answer has no size")
            self._left = int(match[1], 16)
            self._at = _At.DATA if self._left else _At.TRAILER


def _take_whole(data: bytes, start: int, pieces: list[bytes]) -> int:
    """Decode whole and regular chunks quickly; return where the next one begins."""
    while (line := _SIZE_LINE.match(data, start)) is not None:
        begin = line.end()
        end = begin + int(line[1], 16)
        ends = _LINE_END.match(data, end)
        if end == begin or ends is None:
            break
        pieces.append(data[begin:end])
        start = ends.end()
    return start
