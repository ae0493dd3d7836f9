"""
AVIF, HEIC and other HEIF: images as items in a `meta` box (ISO/IEC 23008-12; AVIF 1.2; ISO/IEC 14496-12, 8.11).

- `ftyp` names the brands: what the file is, and what else it may be read as.
- `pitm` names the primary item; `ipma` ties it to its properties in `ipco`: `ispe` is its size, `irot` a rotation.
- `iloc` says where in the file each item's bytes are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.core.model import Format
from proxy.core.sniff.boxes import boxes, first_of_each, top_level
from proxy.core.sniff.fields import Cursor, Cut, pixel_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.core.model import PixelSize
    from proxy.core.sniff.boxes import Box
    from proxy.core.sniff.fields import Body

BRANDS_BYTES_MAX: Final = 1024  # 250 brands; files carry about 8
EXTENTS_MAX: Final = (
    65_536  # and items; a phone's picture has about 50 tiles; the largest grid is 256 by 256 (23008-12, 6.6.2.3)
)
ASSOCIATIONS_MAX: Final = 65_536  # for the same reason

_AVIF: Final = frozenset({b"avif", b"avis"})
_HEIC: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_HEIF: Final = frozenset({b"mif1", b"msf1"})  # any coding: the compatible brands say which
_BOX_HEADER_BYTES: Final = 8
_IN_THIS_FILE: Final = 0  # construction method (14496-12, 8.11.3)


def recognise(head: Body) -> Format | None:
    if not head.begins(b"\0\0") or not head.begins(b"ftyp", 4):
        return None
    size = head.uint(0, 4, "big")
    if not 16 <= size <= 16 + BRANDS_BYTES_MAX or size % 4:
        return None
    major = frozenset({head.take(8, 4)})
    if major & _HEIF:
        compatible = head.take(16, size - 16)
        major |= {compatible[at : at + 4] for at in range(0, len(compatible), 4)}
    for brands, fmt in ((_AVIF, Format.AVIF), (_HEIC, Format.HEIC), (_HEIF, Format.HEIF)):
        if major & brands:
            return fmt
    return None


def measure(body: Body) -> PixelSize | None:
    at = 0
    for box in boxes(body, 0, body.size):
        if box.kind == b"meta":
            return _measure(body, box)
        at = box.end
    raise Cut(at + _BOX_HEADER_BYTES)


def _measure(body: Body, meta: Box) -> PixelSize | None:
    try:
        return _size_in(body, meta)
    except Cut:
        # Read once more when all of it is there, and not again and again as it grows; it may be larger than a head.
        raise Cut(meta.end) from None


def _size_in(body: Body, meta: Box) -> PixelSize | None:
    parts = first_of_each(body, meta.start + 4, meta.end)
    if b"iprp" not in parts:
        return None
    iprp = first_of_each(body, parts[b"iprp"].start, parts[b"iprp"].end)
    if b"ipco" not in iprp:
        return None
    properties = list(boxes(body, iprp[b"ipco"].start, iprp[b"ipco"].end))
    chosen = _of_primary_item(body, properties, parts.get(b"pitm"), iprp.get(b"ipma"))
    sizes = [_extent(body, box) for box in chosen if box.kind == b"ispe"]
    if not sizes:
        chosen = []
        sizes = [_extent(body, box) for box in properties if box.kind == b"ispe"]
    width, height = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    turns = sum(body.uint(box.start, 1, "big") & 0b11 for box in chosen if box.kind == b"irot")
    return pixel_size(height, width) if turns % 2 else pixel_size(width, height)


def is_whole(body: Body) -> bool:
    found = top_level(body)
    if not found:
        return False
    parts = {box.kind: box for box in reversed(found)}
    inner: dict[bytes, Box] = {}
    if meta := parts.get(b"meta"):
        inner = first_of_each(body, meta.start + 4, meta.end)
    elif b"moov" not in parts:
        return False
    if b"mdat" not in parts and b"idat" not in inner:
        return False
    end = max(_extent_ends(body, inner[b"iloc"]), default=0) if b"iloc" in inner else 0
    if found[-1].is_open and (b"moov" in parts or not end):
        return False
    return end <= body.size


def _of_primary_item(body: Body, properties: list[Box], pitm: Box | None, ipma: Box | None) -> list[Box]:
    """The properties that `ipma` ties to the primary item; none if there is no telling."""
    if pitm is None or ipma is None:
        return []
    primary = body.uint(pitm.start + 4, 4 if body.take(pitm.start, 1) != b"\0" else 2, "big")
    return [
        properties[at - 1] for item, at in _associations(body, ipma) if item == primary and 0 < at <= len(properties)
    ]


def _associations(body: Body, ipma: Box) -> Iterator[tuple[int, int]]:
    """Item and property, counted from 1, of each association (23008-12, 9.3.1)."""
    cursor = Cursor(body, ipma.start)
    version, flags = cursor.uint(1), cursor.uint(3)
    size = 2 if flags & 1 else 1
    left = ASSOCIATIONS_MAX
    for _ in range(cursor.uint(4)):
        item, count = cursor.uint(2 if version < 1 else 4), cursor.uint(1)
        left -= 1 + count
        if left < 0:
            raise Cut
        for _ in range(count):
            yield item, cursor.uint(size) & (1 << 8 * size - 1) - 1  # the highest bit: essential


def _extent(body: Body, ispe: Box) -> tuple[int, int]:
    return body.uint(ispe.start + 4, 4, "big"), body.uint(ispe.start + 8, 4, "big")


def _extent_ends(body: Body, iloc: Box) -> Iterator[int]:
    """Where each extent that lies in this file ends (14496-12, 8.11.3); one of length 0 proves nothing."""
    cursor = Cursor(body, iloc.start)
    version, _, sizes = cursor.uint(1), cursor.uint(3), cursor.uint(2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 0xF for shift in (12, 8, 4, 0))
    left = EXTENTS_MAX
    for _ in range(cursor.uint(2 if version < 2 else 4)):
        cursor.uint(2 if version < 2 else 4)  # the item
        method = cursor.uint(2) & 0xF if version else _IN_THIS_FILE
        is_elsewhere = cursor.uint(2) != 0  # by data reference: in another file
        base, count = cursor.uint(base_size), cursor.uint(2)
        left -= 1 + count
        if left < 0:
            raise Cut
        for _ in range(count):
            if version:
                cursor.uint(index_size)
            offset, length = cursor.uint(offset_size), cursor.uint(length_size)
            if method == _IN_THIS_FILE and not is_elsewhere and length:
                yield base + offset + length
