"""
ICO: a directory of images, each a PNG file or a BMP without its file header (Microsoft, "Icons").

The first four bytes are weak, so every entry must make sense, and the first image must begin as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final

from proxy.core.model import Format, PixelSize
from proxy.core.sniff import png
from proxy.core.sniff.bmp import DIB_SIZES
from proxy.core.sniff.fields import Cut

if TYPE_CHECKING:
    from proxy.core.sniff.fields import Body

IMAGES_MAX: Final = 256  # sizes from 1 to 256, each once; icons have about 6

_ENTRIES_AT: Final = 6
_ENTRY_BYTES: Final = 16
_PLACE: Final = Struct("<II")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the directory; a side of 0 was read as 256."""

    width: int
    height: int
    size: int
    start: int


def recognise(head: Body) -> Format | None:
    if not head.begins(b"\0\0\1\0"):
        return None
    count = head.uint(4, 2, "little")
    if not 0 < count <= IMAGES_MAX:
        return None
    directory_end = _ENTRIES_AT + count * _ENTRY_BYTES
    entries = _entries(head)
    if any(entry.start < directory_end or entry.size == 0 for entry in entries):
        return None
    first = min(entry.start for entry in entries)
    is_image = head.begins(png.SIGNATURE, first) or head.uint(first, 4, "little") in DIB_SIZES
    return Format.ICO if is_image else None


def measure(body: Body) -> PixelSize | None:
    sizes = [_size(body, entry) for entry in _entries(body)]
    return max(sizes, key=lambda size: size.pixels, default=None)


def is_whole(body: Body) -> bool:
    entries = _entries(body)
    return bool(entries) and all(entry.start + entry.size <= body.size for entry in entries)


def _entries(body: Body) -> list[_Entry]:
    count = min(body.uint(4, 2, "little"), IMAGES_MAX)
    return [_entry(body.take(_ENTRIES_AT + number * _ENTRY_BYTES, _ENTRY_BYTES)) for number in range(count)]


def _entry(line: bytes) -> _Entry:
    return _Entry(line[0] or 256, line[1] or 256, *_PLACE.unpack_from(line, 8))


def _size(body: Body, entry: _Entry) -> PixelSize:
    """A PNG may be larger than the 256 that the directory can say, so its own word counts."""
    try:
        if body.begins(png.SIGNATURE, entry.start):
            inner = png.measure(body.part(entry.start, 33))
            if inner is not None:
                return inner
    except Cut:
        pass
    return PixelSize(entry.width, entry.height)
