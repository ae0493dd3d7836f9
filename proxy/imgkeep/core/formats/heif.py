"""
AVIF, HEIC and other HEIF: images as items in a `meta` box (ISO/IEC 23008-12; AVIF 1.2; ISO/IEC 14496-12, 8.11).

- `ftyp` names the brands: what the file is, and what else it may be read as. A reader looks for its own among all of
  them, so does a browser, and the first is often one of structure (`mif1`, `miaf`, `isom`). Where the brands leave the
  coding open, the primary item's type says it (`av01`, `hvc1`).
- `pitm` names the primary item; `ipma` ties it to its properties in `ipco`: `ispe` is its size, `irot` a rotation.
- `iloc` says where each item's bytes are: in the file, or in `idat`.
- `mini` is all of that and the image in one box of few bytes (23008-12, the low-overhead image file format); the brand
  `mif3` has the coding's brand behind it, where others have a version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.core.formats.binary_reader import Cursor, Cut, pixel_size
from imgkeep.core.formats.iso_boxes import boxes, first_of_each, top_level
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.core.formats.binary_reader import Body
    from imgkeep.core.formats.iso_boxes import Box
    from imgkeep.core.records import PixelSize

BRANDS_BYTES_MAX: Final = 1024  # 250 brands; files carry about 8
EXTENTS_MAX: Final = (
    65_536  # and items; a phone's image has about 50 tiles; the largest grid is 256 by 256 (23008-12, 6.6.2.3)
)
ASSOCIATIONS_MAX: Final = 65_536  # for the same reason

_AVIF: Final = frozenset({b"avif", b"avis"})
_HEIC: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_HEIF: Final = frozenset({b"mif1", b"mif2", b"mif3", b"msf1", b"miaf"})  # any coding
_MINIMAL: Final = b"mif3"
_CODINGS: Final = {b"av01": Format.AVIF, b"hvc1": Format.HEIC}
_IMAGES: Final = frozenset({b"meta", b"mini", b"moov"})
_BOX_HEADER_BYTES: Final = 8
_IN_THIS_FILE, _IN_IDAT = 0, 1  # construction methods (14496-12, 8.11.3)


def recognise(head: Body) -> Format | None:
    if not head.begins(b"\0\0") or not head.begins(b"ftyp", 4):
        return None
    size = head.uint(0, 4, "big")
    if not 16 <= size <= 16 + BRANDS_BYTES_MAX or size % 4:
        return None
    major = head.take(8, 4)
    if major in _AVIF:
        return Format.AVIF
    compatible = head.take(12, size - 12)
    brands = {compatible[at : at + 4] for at in range(0 if major == _MINIMAL else 4, len(compatible), 4)} | {major}
    is_avif, is_heic = bool(brands & _AVIF), bool(brands & _HEIC)
    if is_avif != is_heic:
        return Format.AVIF if is_avif else Format.HEIC
    if is_heic:
        return _by_items(head, size, Format.HEIC)
    return _by_items(head, size, Format.HEIF) if brands & _HEIF else None


def _by_items(head: Body, at: int, otherwise: Format) -> Format:
    """Return the format by the coding of the primary item, or of what it is made of. Raises: Cut."""
    try:
        codings = list(_codings(head, at))
    except Cut as cut:
        raise Cut(cut.needs, otherwise) from None
    codings.sort(key=lambda coding: not coding[1])
    return next((_CODINGS[coding] for coding, _ in codings if coding in _CODINGS), otherwise)


def _codings(head: Body, at: int) -> Iterator[tuple[bytes, bool]]:
    """Yield the type of each item, and whether it is the primary one. Raises: Cut."""
    for box in boxes(head, at, head.size):
        if box.kind == b"meta":
            yield from _item_types(head, box)
        if box.kind in _IMAGES:
            return
    raise Cut(head.size + 1)


def _item_types(body: Body, meta: Box) -> Iterator[tuple[bytes, bool]]:
    """Yield the type of each item, and whether it is the primary one (14496-12, 8.11.6). Raises: Cut."""
    if not meta.is_open and meta.end > body.size:
        raise Cut(meta.end)
    parts = first_of_each(body, meta.start + 4, meta.end)
    if b"iinf" not in parts:
        return
    primary = _primary_item(body, parts.get(b"pitm"))
    iinf = parts[b"iinf"]
    count_bytes = 2 if body.take(iinf.start, 1) == b"\0" else 4
    for box in boxes(body, iinf.start + 4 + count_bytes, iinf.end):
        cursor = Cursor(body, box.start)
        version, _ = cursor.uint(1), cursor.uint(3)
        item, _ = cursor.uint(4 if version > 2 else 2), cursor.uint(2)  # and its protection
        yield body.take(cursor.at, 4), item == primary


def measure(body: Body) -> PixelSize | None:
    at = 0
    for box in boxes(body, 0, body.size):
        if box.kind == b"meta":
            return _measure(body, box)
        if box.kind == b"mini":
            return _minimal_size(body, box.start)
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
    if mini := parts.get(b"mini"):
        return not mini.is_open
    inner: dict[bytes, Box] = {}
    if meta := parts.get(b"meta"):
        inner = first_of_each(body, meta.start + 4, meta.end)
    elif b"moov" not in parts:
        return False
    if b"mdat" not in parts and b"idat" not in inner:
        return False
    # What should be in an `idat` that is not there is behind the end.
    idat_at = inner[b"idat"].start if b"idat" in inner else body.size
    end = max(_extent_ends(body, inner[b"iloc"], idat_at), default=0) if b"iloc" in inner else 0
    if found[-1].is_open and (b"moov" in parts or not end):
        return False
    return end <= body.size


def _minimal_size(body: Body, at: int) -> PixelSize | None:
    """
    Read the size: version and flags in 11 bits, chroma in two, orientation in three, one for long sides, the sides less
    one.
    """
    bits = body.uint(at, 6, "big")
    long = bits >> 31 & 1
    width, height = (bits >> 16 & 0x7FFF, bits >> 1 & 0x7FFF) if long else (bits >> 24 & 0x7F, bits >> 17 & 0x7F)
    is_turned = bits >> 32 & 0b111 >= 4  # as in Exif, less one
    return pixel_size(height + 1, width + 1) if is_turned else pixel_size(width + 1, height + 1)


def _primary_item(body: Body, pitm: Box | None) -> int | None:
    if pitm is None:
        return None
    return body.uint(pitm.start + 4, 4 if body.take(pitm.start, 1) != b"\0" else 2, "big")


def _of_primary_item(body: Body, properties: list[Box], pitm: Box | None, ipma: Box | None) -> list[Box]:
    """Return the properties that `ipma` ties to the primary item; none if that is unknown."""
    primary = _primary_item(body, pitm)
    if primary is None or ipma is None:
        return []
    return [
        properties[at - 1] for item, at in _associations(body, ipma) if item == primary and 0 < at <= len(properties)
    ]


def _associations(body: Body, ipma: Box) -> Iterator[tuple[int, int]]:
    """Yield item and property, counted from 1, of each association (23008-12, 9.3.1)."""
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


def _extent_ends(body: Body, iloc: Box, idat_at: int) -> Iterator[int]:
    """Return where each extent that lies in this file ends (14496-12, 8.11.3); one of length 0 proves nothing."""
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
            if method in {_IN_THIS_FILE, _IN_IDAT} and not is_elsewhere and length:
                yield (idat_at if method == _IN_IDAT else 0) + base + offset + length
