"""
Boxes of the ISO base media file format (ISO/IEC 14496-12, 4.2): length, type, payload; a payload may be boxes.

A length of 1 stands for 64 bits behind the type; 0 for "up to the end of the file", which proves no end at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.core.formats.binary_reader import Body

BOXES_MAX: Final = (
    16_384  # side by side, for some hold them all; a HEIC has about 5, a long image sequence in fragments some thousand
)

# What stands at the top of an AVIF, HEIF or JPEG XL file; anything else behind the image is no part of it.
_TOP_LEVEL: Final = frozenset(
    kind.encode()
    for kind in (
        *("ftyp", "styp", "meta", "moov", "moof", "mfra", "mdat", "idat", "free", "skip", "wide", "uuid", "pdin"),
        *("sidx", "ssix", "prft", "meco", "emsg", "mini"),
        *("JXL ", "jxlc", "jxlp", "jxll", "jxli", "jbrd", "brob", "Exif", "xml ", "jumb"),
    )
)


class Box(NamedTuple):
    """Type, and where the payload begins and ends; `is_open` if that is wherever the file happens to end."""

    kind: bytes
    start: int
    end: int
    is_open: bool


def boxes(body: Body, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes between `start` and `end`; the last may reach beyond. Raises: Cut."""
    for _ in range(BOXES_MAX):
        if start + 8 > end:
            return
        body.budget.spend()  # one for reading it and one for the `Box`
        opening, header = body.take(start, 8), 8
        length, kind = int.from_bytes(opening[:4], "big"), opening[4:]
        if length == 1:
            length, header = body.uint(start + 8, 8, "big"), 16
        is_open = length == 0
        if is_open:
            length = end - start
        if length < header:
            return
        yield Box(kind, start + header, start + length, is_open)
        start += length


def first_of_each(body: Body, start: int, end: int) -> dict[bytes, Box]:
    """Return the boxes between `start` and `end` by type. Raises: Cut."""
    found: dict[bytes, Box] = {}
    for box in boxes(body, start, end):
        found.setdefault(box.kind, box)
    return found


def top_level(body: Body) -> list[Box] | None:
    """Return the file's own boxes, without whatever follows the image; None if one of them is cut short."""
    found: list[Box] = []
    for box in boxes(body, 0, body.size):
        if box.kind not in _TOP_LEVEL:
            break
        if box.end > body.size:
            return None
        found.append(box)
    return found
