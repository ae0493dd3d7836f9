"""
GIF (GIF89a specification): header, logical screen, colour table, then blocks up to a trailer.

A block of data is a chain of sub-blocks, each led by its length; a length of 0 ends the chain (15).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.core.model import Format
from proxy.core.sniff.fields import pixel_size

if TYPE_CHECKING:
    from proxy.core.model import PixelSize
    from proxy.core.sniff.fields import Body

BLOCKS_MAX: Final = 2**20  # and sub-blocks: 50 MB are 200,000 full ones; as many are walked in about 0.3 s

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B


def recognise(head: Body) -> Format | None:
    if not (head.begins(b"GIF87a") or head.begins(b"GIF89a")) or measure(head) is None:
        return None
    # A script that hides behind `GIF89a` has text here.
    introducer = head.uint(_blocks_at(head), 1, "little")
    return Format.GIF if introducer in {_EXTENSION, _IMAGE, _TRAILER} else None


def measure(body: Body) -> PixelSize | None:
    return pixel_size(body.uint(6, 2, "little"), body.uint(8, 2, "little"))


def is_whole(body: Body) -> bool:
    at = _blocks_at(body)
    has_image = False
    left = BLOCKS_MAX
    while left > 0:
        left -= 1
        introducer = body.uint(at, 1, "little")
        if introducer == _TRAILER:
            return has_image
        if introducer == _EXTENSION:
            at += 2  # and the label (23)
        elif introducer == _IMAGE:
            has_image = True
            at += 10 + _table_size(body.uint(at + 9, 1, "little")) + 1  # and the LZW code size (20, 21, 22)
        else:
            return False
        while length := body.uint(at, 1, "little"):
            at += 1 + length
            left -= 1
            if left < 0:
                return False
        at += 1
    return False


def _blocks_at(body: Body) -> int:
    """Where the first block begins: behind header, logical screen and global colour table (18, 19)."""
    return 13 + _table_size(body.uint(10, 1, "little"))


def _table_size(flags: int) -> int:
    """Bytes of the colour table that the packed fields announce: a flag, and the number of colours in three bits."""
    return 3 << (flags & 0b111) + 1 if flags & 0x80 else 0
