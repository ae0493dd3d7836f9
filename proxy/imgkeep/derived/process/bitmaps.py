"""
BMP, ICO and CUR, which the library of `pyvips-binary` does not read.

Rows of 24 or 32 bits and of 1, 4 or 8 bits with colours are read; these are what programs write today. Of an icon, the
largest image is taken: a PNG, or a bitmap with its mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyvips

from imgkeep.core.formats.binary_reader import Body, Budget, Cut, Spent, steps_max
from imgkeep.core.formats.bmp import colours_end, read_dib
from imgkeep.core.formats.ico import read_entries, size_of
from imgkeep.core.formats.png import SIGNATURE
from imgkeep.core.records import Format, PixelSize
from imgkeep.derived.process.chunks import without_long_texts
from imgkeep.derived.process.refusals import Refusal, require_pixels

if TYPE_CHECKING:
    from mmap import mmap

    from imgkeep.core.formats.bmp import Dib

_FILE_HEADER_BYTES: Final = 14
_DEPTHS: Final = (1, 4, 8, 24, 32)
_OLD_HEADER_BYTES: Final = 12
_ALPHA_HEADER_BYTES: Final = 56
_ALPHA_MASK: Final = 0xFF000000


def read(format_: Format, data: bytes | mmap, pixels_max: int) -> pyvips.Image:
    """
    Return the image of a file.

    Raises:
        Refusal: The file is damaged, too large, or of a kind that is not read.
    """
    body = Body(data, Budget(steps_max(len(data))))
    try:
        if format_ is Format.BMP:
            dib = _dib(body, _FILE_HEADER_BYTES)
            rows_at = max(body.uint(10, 4, "little"), _FILE_HEADER_BYTES + dib.size)
            return _read_rows(body, dib, rows_at, pixels_max)
        entry = max(read_entries(body), key=lambda each: size_of(body, each).pixels, default=None)
        if entry is None:
            raise Refusal("unreadable", "the icon has no image")
        if body.begins(SIGNATURE, entry.start):
            image = pyvips.Image.pngload_buffer(without_long_texts(data[entry.start :]), fail_on="truncated")
            require_pixels(PixelSize(image.width, image.height), 1, pixels_max)
            return image
        dib = _dib(body, entry.start)
        return _read_icon(body, dib._replace(height=dib.height // 2), pixels_max)
    except (Cut, Spent):
        raise Refusal("unreadable", "the bitmap ends before its last row, or its directory is damaged") from None


def _dib(body: Body, at: int) -> Dib:
    dib = read_dib(body, at)
    if dib is None or not dib.width or not dib.height:
        raise Refusal("unreadable", "the header of the bitmap is damaged")
    if not dib.is_in_rows or dib.depth not in _DEPTHS:
        raise Refusal("unsupported", f"bitmaps of {dib.depth} bits with compression {dib.compression} are not read")
    return dib


def _read_icon(body: Body, dib: Dib, pixels_max: int) -> pyvips.Image:
    """Return the upper half of an icon's bitmap, transparent by its alpha channel, or by the mask that is below it."""
    rows_at = colours_end(body, dib)
    image = _read_rows(body, dib, rows_at, pixels_max, has_alpha=True)
    if image.hasalpha() and image[3].max() > 0:
        return image
    image = image.extract_band(0, n=3)
    mask_at = rows_at + dib.row_bytes * dib.height
    mask = dib._replace(depth=1)
    if mask_at + mask.row_bytes * mask.height > body.size:
        return image
    bits = _take_rows(body, mask, mask_at)
    opaque = pyvips.Image.new_from_memory(bits, dib.width, dib.height, 1, "uchar").flipver() == 0
    return image.bandjoin(opaque)


def _read_rows(body: Body, dib: Dib, at: int, pixels_max: int, *, has_alpha: bool = False) -> pyvips.Image:
    require_pixels(PixelSize(dib.width, dib.height), 1, pixels_max)
    rows = _take_rows(body, dib, at)
    bands = max(1, dib.depth // 8)
    image = pyvips.Image.new_from_memory(rows, dib.width, dib.height, bands, "uchar")
    if bands == 1:
        image = image.maplut(_colours(body, dib))
    else:
        channels = [2, 1, 0, 3] if bands == 4 and (has_alpha or _has_alpha_mask(body, dib)) else [2, 1, 0]
        image = image[channels[0]].bandjoin([image[channel] for channel in channels[1:]])
    image = image.copy(interpretation="srgb")
    return image if _is_upright(body, dib) else image.flipver()


def _take_rows(body: Body, dib: Dib, at: int) -> bytes:
    """Return the rows without the bytes that fill them up; each pixel of fewer than eight bits becomes a byte."""
    used = (dib.width * dib.depth + 7) // 8
    packed = body.take(at, dib.row_bytes * dib.height)
    rows = b"".join(packed[start : start + used] for start in range(0, len(packed), dib.row_bytes))
    if dib.depth >= 8:
        return rows
    per_byte = 8 // dib.depth
    spread = bytearray(len(rows) * per_byte)
    mask = (1 << dib.depth) - 1
    for place in range(per_byte):
        shift = 8 - dib.depth * (place + 1)
        spread[place::per_byte] = rows.translate(bytes(byte >> shift & mask for byte in range(256)))
    row = used * per_byte
    return b"".join(spread[start : start + dib.width] for start in range(0, len(spread), row))


def _colours(body: Body, dib: Dib) -> pyvips.Image:
    """Return the colours of a bitmap; a number beyond them is black."""
    size = 3 if dib.size == _OLD_HEADER_BYTES else 4
    end = colours_end(body, dib)
    count = min(body.uint(dib.at + 32, 4, "little") if dib.size >= 36 else 0, 1 << dib.depth) or 1 << dib.depth
    table = body.take(end - count * size, count * size)
    colours = b"".join(table[at : at + 3][::-1] for at in range(0, len(table), size))
    return pyvips.Image.new_from_memory(colours.ljust(768, b"\0"), 256, 1, 3, "uchar")


def _has_alpha_mask(body: Body, dib: Dib) -> bool:
    return dib.size >= _ALPHA_HEADER_BYTES and body.uint(dib.at + 52, 4, "little") == _ALPHA_MASK


def _is_upright(body: Body, dib: Dib) -> bool:
    """Return whether the top row comes first: then the height is negative."""
    return dib.size != _OLD_HEADER_BYTES and body.uint(dib.at + 11, 1, "little") >= 0x80
