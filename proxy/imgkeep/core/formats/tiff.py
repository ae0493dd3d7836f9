"""
TIFF (revision 6.0) and BigTIFF: a header that points to a directory (IFD), directories that point to everything else.

Pixels are strips or tiles: one field holds their offsets, another their byte counts. A directory names its successor
and, in `SubIFDs`, further ones (TIFF Technical Note 1). Numbers are in the byte order that the first two bytes name.
"""

from __future__ import annotations

import struct
from operator import add
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from imgkeep.core.formats.binary_reader import Cut, pixel_size
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.core.formats.binary_reader import Body, Order
    from imgkeep.core.records import PixelSize

DIRECTORIES_MAX: Final = 1_024  # pages of a long fax
FIELDS_MAX: Final = 65_536  # of all directories; one has about 20
VALUES_AT_ONCE: Final = 1_024  # so that one call neither holds the interpreter nor takes much memory
VALUES_PER_STEP: Final = 8
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


def recognise(head: Body) -> Format | None:
    tiff = _open(head)
    if tiff is None:
        return None
    first = tiff.first
    if first < tiff.header_bytes or (first == tiff.header_bytes and tiff.uint(first, tiff.count_bytes) == 0):
        return None
    return Format.TIFF


def measure(body: Body) -> PixelSize | None:
    tiff = _open(body)
    if tiff is None:
        return None
    fields, _ = tiff.directory(tiff.first)
    if _WIDTH not in fields or _HEIGHT not in fields:
        return None
    return pixel_size(*(max(tiff.integers(fields[tag]), default=0) for tag in (_WIDTH, _HEIGHT)))


def is_whole(body: Body) -> bool:
    tiff = _open(body)
    if tiff is None:
        return False
    ahead, seen = [tiff.first], {0}
    while ahead:
        at = ahead.pop()
        if at in seen:
            continue
        if len(seen) > DIRECTORIES_MAX:
            return False
        seen.add(at)
        fields, successor = tiff.directory(at)
        if not _has_its_bytes(tiff, fields):
            return False
        ahead.append(successor)
        if _SUB_DIRECTORIES in fields:
            ahead.extend(tiff.integers(fields[_SUB_DIRECTORIES]))
    return True


def _has_its_bytes(tiff: _Tiff, fields: dict[int, _Field]) -> bool:
    """Return whether there are pixels, and everything that the directory points to is within the file."""
    end = max((field.end for field in fields.values()), default=0)
    has_pixels = False
    for offsets, byte_counts in _PIXELS:
        if offsets in fields and byte_counts in fields:
            starts, sizes = fields[offsets], fields[byte_counts]
            if starts.number != sizes.number or starts.type not in _INTEGERS or sizes.type not in _INTEGERS:
                return False
            has_pixels = starts.number > 0
            end = max(end, max(map(add, tiff.integers(starts), tiff.integers(sizes)), default=0))
    return has_pixels and end <= tiff.body.size


def _open(body: Body) -> _Tiff | None:
    if body.begins(b"II*\0"):
        return _Tiff(body, "little", is_big=False)
    if body.begins(b"MM\0*"):
        return _Tiff(body, "big", is_big=False)
    if body.begins(b"II+\0\x08\0\0\0"):
        return _Tiff(body, "little", is_big=True)
    if body.begins(b"MM\0+\0\x08\0\0"):
        return _Tiff(body, "big", is_big=True)
    return None


class _Field(NamedTuple):
    """Type and number of values, and where they begin and end."""

    type: int
    number: int
    start: int
    end: int


class _Tiff:
    """The directories of one file. Each method may raise `Cut`."""

    def __init__(self, body: Body, order: Order, *, is_big: bool) -> None:
        self.body = body
        self.order: Order = order
        self.word = 8 if is_big else 4
        self.header_bytes = 16 if is_big else 8
        self.count_bytes = 8 if is_big else 2
        self.first = self.uint(self.header_bytes - self.word, self.word)
        self._sign = "<" if order == "little" else ">"
        self._line = Struct(self._sign + ("HHQQ" if is_big else "HHII"))
        self._fields_left = FIELDS_MAX
        self._values_left = VALUES_MAX

    def uint(self, at: int, size: int) -> int:
        return self.body.uint(at, size, self.order)

    def directory(self, at: int) -> tuple[dict[int, _Field], int]:
        """Return the fields by tag, and where the next directory is: 0 after the last. Beyond a limit it ends."""
        count = self.uint(at, self.count_bytes)
        at += self.count_bytes
        self._fields_left -= count
        if self._fields_left < 0:
            return {}, 0
        lines = self.body.take(at, count * self._line.size + self.word)
        self.body.budget.spend(count)
        fields: dict[int, _Field] = {}
        for tag, kind, number, value in self._line.iter_unpack(lines[: -self.word]):
            # A field's values stand in its last word if there is room, else where that word points.
            size = _TYPE_BYTES.get(kind, 0) * number
            start = value if size > self.word else at + self._line.size - self.word
            fields[tag] = _Field(kind, number, start, start + size)
            at += self._line.size
        return fields, int.from_bytes(lines[-self.word :], self.order)

    def integers(self, field: _Field) -> Iterator[int]:
        """Yield the values; none if they are no integers. Raises: Cut, also beyond a limit."""
        if field.type not in _INTEGERS:
            return
        self._values_left -= field.number
        if self._values_left < 0:
            raise Cut
        width = _TYPE_BYTES[field.type]
        for done in range(0, field.number, VALUES_AT_ONCE):
            number = min(VALUES_AT_ONCE, field.number - done)
            self.body.budget.spend(number // VALUES_PER_STEP)
            values = self.body.take(field.start + done * width, number * width)
            yield from struct.unpack(f"{self._sign}{number}{_INTEGERS[field.type]}", values)
