"""
Removal of metadata from a file without a change of its pixels.

What decides how pixels look stays: colour profiles, gamma, palettes, transparency, frames and their delays, and the
orientation, in an EXIF block that has nothing else. Where a picture would have more bytes than its original, the
original without its metadata takes its place.
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, Final
from zlib import crc32

from imgkeep.core.records import Format
from imgkeep.derived.process.chunks import PNG_SIGNATURE_BYTES, png_chunks, webp_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

    from imgkeep.derived.process.originals import Original

_PNG_KEPT: Final = frozenset(
    {
        *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD"),
        *(b"mDCV", b"cLLI", b"acTL", b"fcTL", b"fdAT"),
    }
)
_JPEG_KEPT: Final = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
"""Application segments that decide how pixels look: their beginnings by their markers."""
_EXIF_MARK: Final = b"Exif\0\0"
_WEBP_DROPPED: Final = frozenset({b"EXIF", b"XMP "})
_WEBP_HAS_METADATA: Final = 0x0C
"""Flags for EXIF and XMP."""
_GIF_LOOPS: Final = (b"NETSCAPE2.0", b"ANIMEXTS1.0")


def without_metadata(original: Original) -> bytes | None:
    """Return the file without its metadata; `None`: it cannot be removed without a change of the pixels."""
    match original.format:
        case Format.JPEG:
            pieces = _jpeg(original.data, original.orientation)
        case Format.PNG:
            pieces = _png(original.data, original.orientation)
        case Format.WEBP:
            return _webp(original.data)
        case Format.GIF:
            pieces = _gif(original.data)
        case Format.AVIF:
            return _avif(original.data, original.metadata)
        case _:
            return None
    try:
        return b"".join(pieces)
    except (ValueError, IndexError):
        return None


def _exif(orientation: int) -> bytes:
    """Return an EXIF block with an orientation alone (TIFF 6.0; one directory with one field)."""
    return pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def _jpeg(data: bytes | mmap, orientation: int) -> Iterator[bytes]:
    """Give the segments that stay (ITU T.81, B.1). Raises: ValueError for bytes that are no segment."""
    yield data[:2]
    is_stated = orientation == 1
    at = 2
    while True:
        while data[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at] != 0xFF or marker in (0x00, 0xD8, 0xD9) or size < 2:
            raise ValueError("no segment")
        end = at + 2 + size
        if marker == 0xDA:
            yield b"" if is_stated else _jpeg_exif(orientation)
            break
        is_application = 0xE0 <= marker <= 0xEF
        if not is_application and not is_stated:  # behind JFIF's own segment, which has to be the first
            yield _jpeg_exif(orientation)
            is_stated = True
        kept = _JPEG_KEPT.get(marker)
        if marker != 0xFE and (not is_application or (kept and data[at + 4 : at + 4 + len(kept)] == kept)):
            yield data[at:end]
        at = end
    end = _jpeg_end(data, at)
    yield data[at:end]


def _jpeg_exif(orientation: int) -> bytes:
    block = _EXIF_MARK + _exif(orientation)
    return b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block


def _jpeg_end(data: bytes | mmap, at: int) -> int:
    """Return where the image ends that has its first scan at `at`. Raises: ValueError."""
    while True:
        at = data.find(b"\xff", at + 1)
        if at < 0:
            raise ValueError("no end")
        marker = data[at + 1]
        if marker == 0xD9:
            return at + 2
        if 0xC0 <= marker <= 0xFE and not 0xD0 <= marker <= 0xD7:  # between scans of a progressive image
            at += 1 + int.from_bytes(data[at + 2 : at + 4], "big")


def _png(data: bytes | mmap, orientation: int) -> Iterator[bytes]:
    yield data[:PNG_SIGNATURE_BYTES]
    for chunk in png_chunks(data):
        if chunk.type in _PNG_KEPT:
            yield data[chunk.start : chunk.end]
        if chunk.type == b"IHDR" and orientation != 1:
            yield _png_chunk(b"eXIf", _exif(orientation))


def _png_chunk(type_: bytes, body: bytes) -> bytes:
    return pack(">I", len(body)) + type_ + body + pack(">I", crc32(type_ + body))


def _webp(data: bytes | mmap) -> bytes:
    """Return a file of the chunks that stay (RFC 9649, 2.7)."""
    kept = []
    for each in webp_chunks(data):
        chunk = data[each.start : each.end]
        if each.type == b"VP8X":
            chunk = chunk[:8] + bytes((chunk[8] & ~_WEBP_HAS_METADATA,)) + chunk[9:]
        if each.type not in _WEBP_DROPPED:
            kept.append(chunk)
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + pack("<I", len(body)) + body


def _avif(data: bytes | mmap, metadata: tuple[bytes, ...]) -> bytes | None:
    """Return a file of the same structure, whose metadata says nothing; AVIF has its orientation elsewhere."""
    emptied = bytearray(data)
    for block in metadata:
        payload = block.removeprefix(_EXIF_MARK)
        at = emptied.find(payload)
        if at < 0:
            return None
        nothing = _exif(1) if payload[:2] in (b"II", b"MM") else b""  # decoders refuse EXIF without a header
        emptied[at : at + len(payload)] = nothing[: len(payload)].ljust(len(payload), b"\0")
    return bytes(emptied)


def _gif(data: bytes | mmap) -> Iterator[bytes]:
    """Give the blocks that stay (GIF89a, 12 on). Raises: IndexError for a file that is cut off."""
    at = 13 + _gif_colours(data[10])
    yield data[:at]
    while data[at] != 0x3B:
        start = at
        if data[at] == 0x21:
            label, at = data[at + 1], at + 2
            is_loop = label == 0xFF and data[at + 1 : at + 12] in _GIF_LOOPS
            is_kept = label == 0xF9 or is_loop
        elif data[at] == 0x2C:
            at += 11 + _gif_colours(data[at + 9])
            is_kept = True
        else:
            raise ValueError("no block")
        while data[at]:
            at += 1 + data[at]
        at += 1
        if is_kept:
            yield data[start:at]
    yield b";"


def _gif_colours(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
