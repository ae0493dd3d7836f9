"""
ICO and CUR: a directory of images, each a PNG file or a BMP without its file header (Microsoft, "Icons").

A cursor differs by its type, 2, and has its hot spot where an icon has planes and depth. The first four bytes are weak,
so every image must lie behind the directory, and one of them must begin as one. The length of an image comes from the
image itself: the directory's number is often wrong, and decoders ignore it.

In an icon the height of a BMP counts the rows of a mask below the image. An image with an alpha channel does
without.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from imgkeep.core.formats import png
from imgkeep.core.formats.binary_reader import Cut
from imgkeep.core.formats.bmp import DIB_SIZES, colours_end, profile_end, read_dib
from imgkeep.core.records import Format, PixelSize

if TYPE_CHECKING:
    from imgkeep.core.formats.binary_reader import Body

IMAGES_MAX: Final = 1_024  # icons have about 6; some hold each size in each depth

_FORMATS: Final = {b"\0\0\1\0": Format.ICO, b"\0\0\2\0": Format.CUR}
_ENTRIES_AT: Final = 6
_ENTRY: Final = Struct("<BBxxxxxxII")
_ALPHA_DEPTH: Final = 32


class Entry(NamedTuple):
    """A line of the directory; a side of 0 was read as 256."""

    width: int
    height: int
    size: int
    start: int


def recognise(head: Body) -> Format | None:
    if not head.begins(b"\0\0"):
        return None
    fmt = _FORMATS.get(head.take(0, 4))
    if fmt is None:
        return None
    count = head.uint(4, 2, "little")
    if not 0 < count <= IMAGES_MAX:
        return None
    entries = read_entries(head)
    if any(entry.start < _ENTRIES_AT + count * _ENTRY.size for entry in entries):
        return None
    return fmt if any(_begins(head, start) for start in sorted({entry.start for entry in entries})) else None


def measure(body: Body) -> PixelSize | None:
    sizes = [size_of(body, entry) for entry in read_entries(body)]
    return max(sizes, key=lambda size: size.pixels, default=None)


def is_whole(body: Body) -> bool:
    entries = {entry.start: entry for entry in read_entries(body)}.values()
    return bool(entries) and all(_is_whole(body, entry) for entry in entries)


def _is_whole(body: Body, entry: Entry) -> bool:
    if body.begins(png.SIGNATURE, entry.start):
        return png.is_whole(body, entry.start)
    dib = read_dib(body, entry.start)
    if dib is None or not dib.is_in_rows:
        return entry.start + entry.size <= body.size
    height = dib.height // 2
    rows_end = colours_end(body, dib) + dib.row_bytes * height
    mask_end = rows_end + (dib.width + 31) // 32 * 4 * height
    if dib.depth == _ALPHA_DEPTH:
        mask_end = max(rows_end, min(mask_end, entry.start + entry.size))
    return max(mask_end, profile_end(body, dib)) <= body.size


def _begins(head: Body, at: int) -> bool:
    return head.begins(png.SIGNATURE, at) or head.uint(at, 4, "little") in DIB_SIZES


def read_entries(body: Body) -> list[Entry]:
    """Return the lines of the directory. Raises: Cut."""
    count = min(body.uint(4, 2, "little"), IMAGES_MAX)
    lines = body.take(_ENTRIES_AT, count * _ENTRY.size)
    body.budget.spend(count)
    return [Entry(width or 256, height or 256, *place) for width, height, *place in _ENTRY.iter_unpack(lines)]


def size_of(body: Body, entry: Entry) -> PixelSize:
    """Return the size of an entry; a PNG states its own, because it may exceed the directory's maximum of 256."""
    try:
        if body.begins(png.SIGNATURE, entry.start):
            inner = png.measure(body.part(entry.start, 33))
            if inner is not None:
                return inner
    except Cut:
        pass
    return PixelSize(entry.width, entry.height)
