"""
TIFF (revision 6.0) and BigTIFF: a header that points to a directory (IFD), directories that point to everything else.

Pixels are strips or tiles: one field holds their offsets, another their byte counts. A directory names its successor
and, in `SubIFDs`, further ones (TIFF Technical Note 1). Numbers are in the byte order that the first two bytes name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from operator import add
from typing import TYPE_CHECKING, Final

from proxy.core.model import Format
from proxy.core.sniff.fields import begins, pixel_size, take, uint

if TYPE_CHECKING:
    from proxy.core.model import PixelSize
    from proxy.core.sniff.fields import Buffer, Order

DIRECTORIES_MAX: Final = 1_024  # pages of a long fax
FIELDS_MAX: Final = 65_536  # of all directories; one has about 20
VALUES_MAX: Final = 262_144  # of all fields that we read; 50 MB in strips of 8 KiB are 6,400

_WIDTH, _HEIGHT, _SUB_DIRECTORIES = 256, 257, 330
_PIXELS: Final = ((273, 279), (324, 325), (513, 514))  # offsets and byte counts of strips, of tiles, of an old JPEG
_TYPE_BYTES: Final = {
    **dict.fromkeys((1, 2, 6, 7), 1),
    **dict.fromkeys((3, 8), 2),
    **dict.fromkeys((4, 9, 11, 13), 4),
    **dict.fromkeys((5, 10, 12, 16, 17, 18), 8),
}
_INTEGERS: Final = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # SHORT, LONG, IFD, LONG8, IFD8, as `struct` says it


def recognise(head: bytes) -> Format | None:
    tiff = _open(head)
    if tiff is None:
        return None
    first = tiff.first
    if first < tiff.header_bytes or (first == tiff.header_bytes and tiff.uint(first, tiff.count_bytes) == 0):
        return None
    return Format.TIFF


def measure(body: Buffer) -> PixelSize | None:
    tiff = _open(body)
    if tiff is None:
        return None
    fields, _ = tiff.directory(tiff.first)
    if _WIDTH not in fields or _HEIGHT not in fields:
        return None
    return pixel_size(*(max(tiff.integers(fields[tag]), default=0) for tag in (_WIDTH, _HEIGHT)))


def is_whole(body: Buffer) -> bool:
    tiff = _open(body)
    if tiff is None:
        return False
    ahead, seen = {tiff.first}, {0}
    while ahead and len(seen) <= DIRECTORIES_MAX:
        at = ahead.pop()
        fields, successor = tiff.directory(at)
        if not _has_its_bytes(tiff, fields):
            return False
        seen.add(at)
        children = tiff.integers(fields[_SUB_DIRECTORIES]) if _SUB_DIRECTORIES in fields else ()
        ahead = ahead.union(children, (successor,)) - seen
    return not ahead


def _has_its_bytes(tiff: _Tiff, fields: dict[int, _Field]) -> bool:
    """Whether there are pixels, and everything that the directory points to is within the file."""
    ends = [field.end for field in fields.values()]
    has_pixels = False
    for offsets, byte_counts in _PIXELS:
        if offsets in fields and byte_counts in fields:
            starts, sizes = tiff.integers(fields[offsets]), tiff.integers(fields[byte_counts])
            if not starts or len(starts) != len(sizes):
                return False
            has_pixels = True
            ends += map(add, starts, sizes)
    return has_pixels and max(ends) <= len(tiff.body)


def _open(body: Buffer) -> _Tiff | None:
    if begins(body, b"II*\0"):
        return _Tiff(body, "little", is_big=False)
    if begins(body, b"MM\0*"):
        return _Tiff(body, "big", is_big=False)
    if begins(body, b"II+\0\x08\0\0\0"):
        return _Tiff(body, "little", is_big=True)
    if begins(body, b"MM\0+\0\x08\0\0"):
        return _Tiff(body, "big", is_big=True)
    return None


@dataclass(frozen=True, slots=True)
class _Field:
    """Type and number of values, and where they begin and end."""

    type: int
    count: int
    start: int
    end: int


class _Tiff:
    """The directories of one file. Each method may raise `Cut`."""

    def __init__(self, body: Buffer, order: Order, *, is_big: bool) -> None:
        self.body = body
        self.order: Order = order
        self.word = 8 if is_big else 4
        self.header_bytes = 16 if is_big else 8
        self.count_bytes = 8 if is_big else 2
        self.first = self.uint(self.header_bytes - self.word, self.word)
        self._fields_left = FIELDS_MAX
        self._values_left = VALUES_MAX

    def uint(self, at: int, size: int) -> int:
        return uint(self.body, at, size, self.order)

    def directory(self, at: int) -> tuple[dict[int, _Field], int]:
        """The fields by tag, and where the next directory is: 0 after the last. Beyond a limit it ends."""
        count = self.uint(at, self.count_bytes)
        at += self.count_bytes
        self._fields_left -= count
        if self._fields_left < 0:
            return {}, 0
        field_bytes = 4 + 2 * self.word
        fields = {self.uint(at + n * field_bytes, 2): self._field(at + n * field_bytes) for n in range(count)}
        return fields, self.uint(at + count * field_bytes, self.word)

    def integers(self, field: _Field) -> tuple[int, ...]:
        """The values; none if they are no integers, or beyond a limit."""
        self._values_left -= field.count
        if field.type not in _INTEGERS or self._values_left < 0:
            return ()
        layout = f"{'<' if self.order == 'little' else '>'}{field.count}{_INTEGERS[field.type]}"
        return struct.unpack(layout, take(self.body, field.start, field.end - field.start))

    def _field(self, at: int) -> _Field:
        """A field's values stand in its last word if there is room, else where that word points."""
        kind = self.uint(at + 2, 2)
        count = self.uint(at + 4, self.word)
        size = _TYPE_BYTES.get(kind, 0) * count
        start = at + 4 + self.word
        if size > self.word:
            start = self.uint(start, self.word)
        return _Field(kind, count, start, start + size)
