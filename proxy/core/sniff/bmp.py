"""
BMP: a file header, a DIB header of one of several ages, colours, rows (Microsoft, BITMAPFILEHEADER and on).

The size of the DIB header tells its age: 12 is OS/2's first, 16 to 64 its second, 40 and more are Windows'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.core.model import Format
from proxy.core.sniff.fields import pixel_size

if TYPE_CHECKING:
    from proxy.core.model import PixelSize
    from proxy.core.sniff.fields import Body

DIB_SIZES: Final = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
GAP_BYTES_MAX: Final = 65_536  # between headers and rows: 256 colours take 1 KiB, a colour profile should stand last

_DIB_AT: Final = 14
_OLD: Final = 12
_BIT_COUNTS: Final = frozenset({0, 1, 2, 4, 8, 16, 24, 32})  # 0: an embedded JPEG or PNG says
_ROWS_AS_THEY_ARE: Final = frozenset({0, 3, 6})  # BI_RGB, BI_BITFIELDS, BI_ALPHABITFIELDS


def recognise(head: Body) -> Format | None:
    if not head.begins(b"BM"):
        return None
    dib_size = head.uint(_DIB_AT, 4, "little")
    if dib_size not in DIB_SIZES or measure(head) is None:
        return None
    headers_end = _DIB_AT + dib_size
    planes_at = _DIB_AT + (8 if dib_size == _OLD else 12)
    plausible = (
        headers_end <= head.uint(10, 4, "little") <= headers_end + GAP_BYTES_MAX
        and head.uint(planes_at, 2, "little") == 1
        and head.uint(planes_at + 2, 2, "little") in _BIT_COUNTS
    )
    return Format.BMP if plausible else None


def measure(body: Body) -> PixelSize | None:
    if body.uint(_DIB_AT, 4, "little") == _OLD:
        return pixel_size(body.uint(18, 2, "little"), body.uint(20, 2, "little"))
    # Signed; a negative height says that the top row comes first.
    width, height = (number - (number >> 31 << 32) for number in (body.uint(at, 4, "little") for at in (18, 22)))
    return pixel_size(max(width, 0), abs(height))


def is_whole(body: Body) -> bool:
    size = measure(body)
    rows_at = body.uint(10, 4, "little")
    if size is None:
        return False
    is_old = body.uint(_DIB_AT, 4, "little") == _OLD
    depth = body.uint(24 if is_old else 28, 2, "little")
    if is_old or body.uint(30, 4, "little") in _ROWS_AS_THEY_ARE:
        row_bytes = (size.width * depth + 31) // 32 * 4
        return depth > 0 and rows_at + row_bytes * size.height <= body.size
    if compressed_bytes := body.uint(34, 4, "little"):
        return rows_at + compressed_bytes <= body.size
    return rows_at < body.uint(2, 4, "little") <= body.size
