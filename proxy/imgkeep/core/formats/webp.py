"""
WebP (RFC 9649): a RIFF file whose first chunk is `VP8 ` (lossy), `VP8L` (lossless) or `VP8X` (extended).

RIFF states its length behind the first four bytes and pads chunks to an even one (2.3, 2.4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.core.formats.binary_reader import pixel_size
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from imgkeep.core.formats.binary_reader import Body
    from imgkeep.core.records import PixelSize

CHUNKS_MAX: Final = 65_536  # a chunk is a frame or a piece of metadata; an hour at 15 frames a second

_RIFF_SIZE_MIN: Final = 4 + 8  # `WEBP` and one chunk's header
_PIXELS: Final = {b"VP8 ", b"VP8L", b"ANMF"}


def recognise(head: Body) -> Format | None:
    if not head.begins(b"RIFF") or not head.begins(b"WEBPVP8", 8):
        return None
    room = head.uint(4, 4, "little") - _RIFF_SIZE_MIN
    if head.uint(16, 4, "little") > room:
        return None
    match head.take(12, 4):
        case b"VP8 ":  # a key frame and its start code (RFC 6386, 9.1)
            plausible = not head.uint(20, 1, "little") & 1 and head.begins(b"\x9d\x01\x2a", 23)
        case b"VP8L":
            plausible = head.begins(b"\x2f", 20)
        case b"VP8X":
            plausible = head.begins(b"\x0a\0\0\0", 16)
        case _:
            plausible = False
    return Format.WEBP if plausible else None


def measure(body: Body) -> PixelSize | None:
    match body.take(12, 4):
        case b"VP8 ":  # 14 bits each, above them two of scaling (RFC 6386, 9.1)
            return pixel_size(body.uint(26, 2, "little") & 0x3FFF, body.uint(28, 2, "little") & 0x3FFF)
        case b"VP8L":  # 14 bits each, less one (3.4)
            bits = body.uint(21, 4, "little")
            return pixel_size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        case b"VP8X":  # 24 bits each, less one (2.7)
            return pixel_size(body.uint(24, 3, "little") + 1, body.uint(27, 3, "little") + 1)
        case _:
            return None


def is_whole(body: Body) -> bool:
    end = 8 + body.uint(4, 4, "little")
    if end > body.size:
        return False
    at = 12
    has_pixels = False
    for _ in range(CHUNKS_MAX):
        if at + 8 > end:
            return has_pixels
        opening = body.take(at, 8)
        has_pixels |= opening[:4] in _PIXELS
        at += 8 + int.from_bytes(opening[4:], "little")
        if at > end:
            return False
        at += at & 1
    return False
