"""
BMP: a file header, a DIB header of one of several ages, colours, rows (Microsoft, BITMAPFILEHEADER and on).

The size of the DIB header tells its age: 12 is OS/2's first, 16 to 64 its second, which may end behind any field, and
40 and more are Windows'. The number of planes is 1 and decoders pass over it, so what has to fit together is the depth
and the compression.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from imgkeep.core.formats.binary_reader import pixel_size
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from imgkeep.core.formats.binary_reader import Body
    from imgkeep.core.records import PixelSize

DIB_SIZES: Final = frozenset({12, *range(16, 65, 4), 42, 46, 108, 124})
RUNS_MAX: Final = 262_144  # of a compressed image, walked in 0.2 s; of more, only what the headers say is checked

_DIB_AT: Final = 14
_OLD: Final = 12
_WINDOWS: Final = 40
_VERSION_5: Final = 124
_PROFILES: Final = frozenset({b"DEBM", b"KNIL"})  # PROFILE_EMBEDDED and PROFILE_LINKED: within the file, or its name
_RGB, _RLE8, _RLE4, _BITFIELDS, _RLE24_OR_JPEG, _PNG, _ALPHA_BITFIELDS = range(7)
_DEPTHS: Final = {
    _RGB: frozenset({1, 2, 4, 8, 16, 24, 32}),
    _RLE8: frozenset({8}),
    _RLE4: frozenset({4}),
    _BITFIELDS: frozenset({1, 16, 32}),  # 1: OS/2 has Huffman's code there
    _RLE24_OR_JPEG: frozenset({0, 24}),  # of OS/2, or an embedded JPEG; its depth is 0, as that of an embedded PNG
    _PNG: frozenset({0, 24}),
    _ALPHA_BITFIELDS: frozenset({16, 32}),
}
_MASKS: Final = {_BITFIELDS: 12, _ALPHA_BITFIELDS: 16}
_BYTES_OF_RUN: Final = {(_RLE8, 8): 8, (_RLE4, 4): 4, (_RLE24_OR_JPEG, 24): 24}
"""Bits of a pixel in a run, by compression and depth."""


class Dib(NamedTuple):
    """A DIB header at `at`. Without an image a side is zero."""

    at: int
    size: int
    width: int
    height: int
    depth: int
    compression: int

    @property
    def row_bytes(self) -> int:
        """Return the length of a row, padded to four bytes."""
        return (self.width * self.depth + 31) // 32 * 4

    @property
    def is_in_rows(self) -> bool:
        """Return whether the pixels stand there as they are."""
        return self.compression == _RGB or (self.compression in _MASKS and self.depth > 1)

    @property
    def is_plausible(self) -> bool:
        return self.depth in _DEPTHS.get(self.compression, ())


def read_dib(body: Body, at: int) -> Dib | None:
    """Return the DIB header at `at`; None if there is none. Raises: Cut."""
    size = body.uint(at, 4, "little")
    if size not in DIB_SIZES:
        return None
    width, height = _sides(body, at, size)
    depth = body.uint(at + (10 if size == _OLD else 14), 2, "little")
    compression = body.uint(at + 16, 4, "little") if size > 16 else _RGB
    return Dib(at, size, max(width, 0), abs(height), depth, compression)


def colours_end(body: Body, dib: Dib) -> int:
    """Return where masks and colours behind a header end. Raises: Cut."""
    masks = _MASKS.get(dib.compression, 0) if dib.size == _WINDOWS else 0
    most = 1 << dib.depth if 0 < dib.depth <= 8 else 0
    used = body.uint(dib.at + 32, 4, "little") if dib.size >= 36 else 0
    return dib.at + dib.size + masks + (min(used, most) or most) * (3 if dib.size == _OLD else 4)


def profile_end(body: Body, dib: Dib) -> int:
    """Return where a colour profile ends; 0 without one (BITMAPV5HEADER). Raises: Cut."""
    if dib.size != _VERSION_5 or body.take(dib.at + 56, 4) not in _PROFILES:
        return 0
    return dib.at + body.uint(dib.at + 112, 4, "little") + body.uint(dib.at + 116, 4, "little")


def recognise(head: Body) -> Format | None:
    if not head.begins(b"BM") or head.uint(_DIB_AT, 4, "little") not in DIB_SIZES or measure(head) is None:
        return None
    dib = read_dib(head, _DIB_AT)
    return Format.BMP if dib is not None and dib.is_plausible else None


def measure(body: Body) -> PixelSize | None:
    width, height = _sides(body, _DIB_AT, body.uint(_DIB_AT, 4, "little"))
    return pixel_size(max(width, 0), abs(height))


def is_whole(body: Body) -> bool:
    dib = read_dib(body, _DIB_AT)
    if dib is None or not dib.width or not dib.height or not dib.is_plausible:
        return False
    rows_at = body.uint(10, 4, "little")
    if rows_at < _DIB_AT + dib.size:  # it points nowhere: the rows follow what comes before them
        rows_at = colours_end(body, dib)
    if dib.is_in_rows:
        rows_end = rows_at + dib.row_bytes * dib.height
        return max(rows_end, colours_end(body, dib), profile_end(body, dib)) <= body.size
    if bits := _BYTES_OF_RUN.get((dib.compression, dib.depth)):
        ended = _runs_end(body, rows_at, dib.height, bits)
        if ended is not None:
            return ended
    compressed_bytes = body.uint(34, 4, "little") if dib.size >= 24 else 0
    if compressed_bytes:
        return rows_at + compressed_bytes <= body.size
    return rows_at < body.uint(2, 4, "little") <= body.size


def _sides(body: Body, at: int, size: int) -> tuple[int, int]:
    """Return width and height; a negative height means that the top row comes first. Raises: Cut."""
    if size == _OLD:
        return body.uint(at + 4, 2, "little"), body.uint(at + 6, 2, "little")
    width, height = (number - (number >> 31 << 32) for number in (body.uint(at + n, 4, "little") for n in (4, 8)))
    return width, height


def _runs_end(body: Body, at: int, height: int, bits: int) -> bool | None:
    """
    Return whether the runs end by their own mark or fill every row; None beyond a limit.

    A run is a count and a pixel. A count of zero is followed by 0 at the end of a row, 1 at the end of all, 2 before
    a jump, and else by the number of pixels that stand there as they are, up to an even byte. Raises: Cut.
    """
    rows = 0
    for _ in range(RUNS_MAX):
        count, what = body.take(at, 2)
        at += 2
        if count:
            at += bits // 12  # a pixel of 24 bits has two bytes more
        elif what == 0:
            rows += 1
        elif what == 1:
            return True
        elif what == 2:
            rows += body.uint(at + 1, 1, "little")
            at += 2
        else:
            at += (what * bits + 15) // 16 * 2
        if rows >= height:
            return at <= body.size
    return None
