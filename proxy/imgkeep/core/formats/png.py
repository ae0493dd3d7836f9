"""
PNG and APNG (PNG third edition, 5: a signature, then chunks of length, type, data, CRC).

An APNG differs by an `acTL` chunk before the first `IDAT` (11.3.6), so the first of these chunks decides. An APNG is a
PNG, too: if the head ends before either, PNG is never wrong.

A complete file ends with `IEND` and has valid CRCs of its pixels: a decoder stops at the first `IDAT` with a wrong CRC,
and shows half an image. An animation's chunks are numbered, and each frame has data (11.3.6.2).
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import TYPE_CHECKING, Final

from imgkeep.core.formats.binary_reader import Cut, pixel_size
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.core.formats.binary_reader import Body
    from imgkeep.core.records import PixelSize

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
CHUNKS_MAX: Final = 262_144  # libpng writes IDATs of 8 KiB, so 2 GiB of them; as many are walked in about 0.2 s

_BIT_DEPTHS: Final = {
    0: (1, 2, 4, 8, 16),
    2: (8, 16),
    3: (1, 2, 4, 8),
    4: (8, 16),
    6: (8, 16),
}  # by colour type, 11.2.1
_INTEGER_MAX: Final = 2**31 - 1  # 7.1
_HEADER: Final = Struct(">8sIIBBBBBI")
_OVERHEAD: Final = 12  # of a chunk: length, type, CRC


def recognise(head: Body) -> Format | None:
    if not head.begins(SIGNATURE) or not _is_header(head.take(8, 25)):
        return None
    try:
        for kind, _, _ in _chunks(head):
            if kind == b"acTL":
                return Format.APNG
            if kind == b"IDAT":
                break
    except Cut as cut:
        raise Cut(cut.needs, Format.PNG) from None
    return Format.PNG


def measure(body: Body) -> PixelSize | None:
    if not body.begins(b"IHDR", 12):
        return None
    return pixel_size(body.uint(16, 4, "big"), body.uint(20, 4, "big"))


def is_whole(body: Body, at: int = 0) -> bool:
    """Return whether the PNG that begins at `at` is complete. Raises: Cut."""
    has_pixels = False
    frames = _Frames()
    for kind, start, end in _chunks(body, at):
        if kind == b"IEND":
            return has_pixels and frames.are_whole and end <= body.size
        if kind == b"IDAT":
            has_pixels = True
            if body.crc32(start - 4, end - start) != body.uint(end - 4, 4, "big"):
                return False
        frames.take(kind, body, start, has_pixels=has_pixels)
    return False


class _Frames:
    """A check of the frames of an animation, chunk by chunk; a file without an animation passes."""

    def __init__(self) -> None:
        self._is_animation = False
        self._is_sound = True
        self._has_data = True
        self._number = 0

    @property
    def are_whole(self) -> bool:
        return not self._is_animation or (self._is_sound and self._has_data)

    def take(self, kind: bytes, body: Body, start: int, *, has_pixels: bool) -> None:
        """Check the next chunk. Raises: Cut."""
        if kind == b"IDAT":
            self._has_data = True
        elif kind == b"acTL":
            self._is_animation |= not has_pixels
        elif kind in {b"fcTL", b"fdAT"}:
            is_control = kind == b"fcTL"
            # A control follows data, and data a control; the image that is no frame comes before the first (4.9).
            follows = self._has_data if is_control else self._number > 0
            self._is_sound &= follows and body.uint(start, 4, "big") == self._number
            self._has_data = not is_control
            self._number += 1


def _is_header(chunk: bytes) -> bool:
    """Return whether this is an IHDR chunk whose every field is legal (11.2.1)."""
    opening, width, height, bit_depth, colour_type, compression, filtering, interlace, crc = _HEADER.unpack(chunk)
    return (
        opening == b"\0\0\0\x0dIHDR"
        and 0 < width <= _INTEGER_MAX
        and 0 < height <= _INTEGER_MAX
        and bit_depth in _BIT_DEPTHS.get(colour_type, ())
        and (compression, filtering) == (0, 0)
        and interlace in (0, 1)
        and zlib.crc32(chunk[4:21]) == crc
    )


def _chunks(body: Body, at: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start of the data and end of each chunk up to an invalid one. Raises: Cut."""
    at += len(SIGNATURE)
    for _ in range(CHUNKS_MAX):
        opening = body.take(at, 8)
        length, kind = int.from_bytes(opening[:4], "big"), opening[4:]
        if length > _INTEGER_MAX or not kind.isalnum():
            return
        end = at + _OVERHEAD + length
        yield kind, at + 8, end
        at = end
