"""
JPEG XL: a naked codestream (ISO/IEC 18181-1), or one in boxes (18181-2), whole in `jxlc` or in parts in `jxlp`.

The codestream is a stream of bits, lowest first. It states no length: only a decoder finds its end.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from imgkeep.core.formats.binary_reader import Cut, pixel_size
from imgkeep.core.formats.iso_boxes import boxes, top_level
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from imgkeep.core.formats.binary_reader import Body
    from imgkeep.core.records import PixelSize

CODESTREAM: Final = b"\xff\x0a"
CONTAINER: Final = b"\0\0\0\x0cJXL \r\n\x87\n"
PIXELS_MAX: Final = 2**40  # level 10, the highest (18181-1, annex M)
BOXES_BEFORE_MAX: Final = 64  # metadata before the codestream: Exif, XMP, a few JUMBF

_SIZE_BYTES: Final = 9  # of the longest SizeHeader: 1 + 2 + 30 + 3 + 2 + 30 bits
_RATIOS: Final = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height (annex D)
_LAST_PART: Final = 0x8000_0000  # set in the index of the last `jxlp` (18181-2)


def recognise(head: Body) -> Format | None:
    if head.begins(CODESTREAM):
        size = _codestream_size(head, 0)
        return Format.JXL if size is not None and size.pixels <= PIXELS_MAX else None
    return Format.JXL if head.begins(CONTAINER) and head.begins(b"ftypjxl ", 16) else None


def measure(body: Body) -> PixelSize | None:
    if body.begins(CODESTREAM):
        return _codestream_size(body, 0)
    at = 0
    for box in islice(boxes(body, 0, body.size), BOXES_BEFORE_MAX):
        if box.kind == b"jxlc":
            return _codestream_size(body, box.start)
        if box.kind == b"jxlp":
            return _codestream_size(body, box.start + 4)
        at = box.end
    raise Cut(at + 8)


def is_whole(body: Body) -> bool:
    if body.begins(CODESTREAM):
        return False
    found = top_level(body)
    if not found or found[-1].is_open:
        return False
    return any(
        box.kind == b"jxlc" or (box.kind == b"jxlp" and body.uint(box.start, 4, "big") & _LAST_PART) for box in found
    )


def _codestream_size(body: Body, at: int) -> PixelSize | None:
    """Return what the SizeHeader behind the signature says (18181-1, annex D). Raises: Cut."""
    if not body.begins(CODESTREAM, at):
        return None
    bits = _Bits(body.piece(at + 2, _SIZE_BYTES))
    is_small = bits.take(1) == 1
    height = _side(bits, is_small=is_small)
    ratio = bits.take(3)
    if ratio == 0:
        return pixel_size(_side(bits, is_small=is_small), height)
    across, down = _RATIOS[ratio]
    return pixel_size(height * across // down, height)


def _side(bits: _Bits, *, is_small: bool) -> int:
    if is_small:
        return (bits.take(5) + 1) * 8
    return bits.take((9, 13, 18, 30)[bits.take(2)]) + 1


class _Bits:
    """A reader of bits from a few bytes, lowest first."""

    def __init__(self, source: bytes) -> None:
        self._bits = int.from_bytes(source, "little")
        self._left = len(source) * 8

    def take(self, count: int) -> int:
        """Return the next `count` bits as a number. Raises: Cut."""
        if count > self._left:
            raise Cut
        taken = self._bits & (1 << count) - 1
        self._bits >>= count
        self._left -= count
        return taken
