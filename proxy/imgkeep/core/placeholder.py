"""The placeholder of a picture: its ThumbHash as a PNG in a `data:` URL, shown until the image is there."""

from __future__ import annotations

import binascii
import struct
import zlib
from base64 import b64encode

from imgkeep.core.thumbhash import InvalidThumbHash, Pixels, decode

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def placeholder_url(thumbhash: str) -> str:
    """
    Return the `data:` URL for a ThumbHash in base64: some 2 to 6 kB.

    Raises:
        InvalidThumbHash: The text is none.
    """
    try:
        data = binascii.a2b_base64(thumbhash, strict_mode=True)
    except ValueError:
        raise InvalidThumbHash("a ThumbHash is in base64 here") from None
    return f"data:image/png;base64,{b64encode(_write_png(decode(data))).decode()}"


def _write_png(pixels: Pixels) -> bytes:
    """Return the PNG of a small picture (ISO/IEC 15948): 8 bits a sample, with alpha, no filter."""
    line = 4 * pixels.width
    lines = b"".join(b"\0" + pixels.rgba[start : start + line] for start in range(0, len(pixels.rgba), line))
    head = struct.pack(">II5B", pixels.width, pixels.height, 8, 6, 0, 0, 0)
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    )
