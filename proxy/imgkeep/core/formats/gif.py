"""
GIF (GIF89a specification): header, logical screen, colour table, then blocks up to a trailer.

A block of data is a chain of sub-blocks, each led by its length; a length of 0 ends the chain (15).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.core.formats.binary_reader import pixel_size
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.core.formats.binary_reader import Body
    from imgkeep.core.records import PixelSize

BLOCKS_MAX: Final = 2**20  # and sub-blocks: 50 MB are 200,000 full ones; as many are walked in about 0.3 s

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B


def recognise(head: Body) -> Format | None:
    if not (head.begins(b"GIF87a") or head.begins(b"GIF89a")):
        return None
    # A script that hides behind `GIF89a` has text here.
    if head.uint(_blocks_at(head), 1, "little") not in {_EXTENSION, _IMAGE, _TRAILER}:
        return None
    is_sized = all(_screen(head)) or measure(head) is not None
    return Format.GIF if is_sized else None


def measure(body: Body) -> PixelSize | None:
    """
    Return the logical screen, which the first image widens: encoders write zeros there, or the size of something else.
    """
    width, height = _screen(body)
    for introducer, at in _blocks(body):
        if introducer == _IMAGE:
            left, top, across, down = (body.uint(at + n, 2, "little") for n in (1, 3, 5, 7))
            return pixel_size(max(width, left + across), max(height, top + down))
    return pixel_size(width, height)


def is_whole(body: Body) -> bool:
    has_image = False
    for introducer, at in _blocks(body):
        if introducer == _TRAILER:
            return has_image
        if introducer == _IMAGE:
            has_image = True
            if not body.uint(_image_data_at(body, at), 1, "little"):
                return False  # an image without a pixel
    return False


def _blocks(body: Body) -> Iterator[tuple[int, int]]:
    """Yield introducer and offset of each block up to the trailer or an invalid block. Raises: Cut."""
    at = _blocks_at(body)
    left = BLOCKS_MAX
    while left > 0:
        left -= 1
        introducer = body.uint(at, 1, "little")
        if introducer not in {_EXTENSION, _IMAGE, _TRAILER}:
            return
        yield introducer, at
        if introducer == _TRAILER:
            return
        at = at + 2 if introducer == _EXTENSION else _image_data_at(body, at)  # behind the label (23)
        while length := body.uint(at, 1, "little"):
            at += 1 + length
            left -= 1
            if left < 0:
                return
        at += 1


def _image_data_at(body: Body, at: int) -> int:
    """
    Return where an image's sub-blocks begin: behind descriptor, local colour table and LZW code size (20, 21, 22).
    """
    return at + 10 + _table_size(body.uint(at + 9, 1, "little")) + 1


def _screen(body: Body) -> tuple[int, int]:
    return body.uint(6, 2, "little"), body.uint(8, 2, "little")


def _blocks_at(body: Body) -> int:
    """Return where the first block begins: behind header, logical screen and global colour table (18, 19)."""
    return 13 + _table_size(body.uint(10, 1, "little"))


def _table_size(flags: int) -> int:
    """Return the size of the colour table in the packed fields: a flag, and the number of colours in three bits."""
    return 3 << (flags & 0b111) + 1 if flags & 0x80 else 0
