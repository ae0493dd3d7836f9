"""
The chunks of PNG (Third Edition, 5.3) and WebP files (RFC 9649, 2.3), as far as they have to be known before libvips
reads the file.

The time of libvips grows with the square of the number of frames of a WebP: a minute for 100,000, in a file of some
megabytes. And it unpacks the texts of a PNG whenever it reads the header: a gigabyte, from a megabyte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from imgkeep.core.records import Format

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

PNG_SIGNATURE_BYTES: Final = 8
PACKED_TEXT_BYTES_MAX: Final = 65_536
"""Maximum size of packed texts of a PNG: a thousand times as much unpacked takes 0.2 s."""

_PACKED: Final = (b"zTXt", b"iTXt")
_RIFF_BYTES: Final = 12
_AROUND: Final = 12
"""Size of a chunk without data: length, type and checksum."""


class Chunk(NamedTuple):
    """A chunk from `start` to `end`, both of the file."""

    type: bytes
    start: int
    end: int


def png_chunks(data: bytes | mmap) -> Iterator[Chunk]:
    """Give the chunks of a file up to its end, or to the first that is cut off."""
    at = PNG_SIGNATURE_BYTES
    while at + _AROUND <= len(data):
        end = at + _AROUND + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        chunk = Chunk(bytes(data[at + 4 : at + 8]), at, end)
        yield chunk
        if chunk.type == b"IEND":
            return
        at = end


def webp_chunks(data: bytes | mmap) -> Iterator[Chunk]:
    """Give the chunks of a file up to its end, with the byte that makes a length even; the last one may be cut off."""
    at = _RIFF_BYTES
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        next_at = at + 8 + size + size % 2
        yield Chunk(bytes(data[at : at + 4]), at, min(next_at, end))
        at = next_at


def count_frames(format_: Format, data: bytes | mmap) -> int:
    """Return the number of frames that an APNG states, or a WebP has; 1 if it does not move."""
    if format_ is Format.WEBP:
        return max(1, sum(chunk.type == b"ANMF" for chunk in webp_chunks(data)))
    for chunk in png_chunks(data):
        if chunk.type == b"acTL" and chunk.end - chunk.start == _AROUND + 8:
            return max(1, int.from_bytes(data[chunk.start + 8 : chunk.start + 12], "big"))
        if chunk.type == b"IDAT":
            break
    return 1


def first_frames(data: bytes | mmap, count: int) -> bytes:
    """Return a WebP with its first frames alone, and all that is not a frame: metadata come behind the frames."""
    kept = []
    frames = 0
    for chunk in webp_chunks(data):
        frames += chunk.type == b"ANMF"
        if chunk.type != b"ANMF" or frames <= count:
            kept.append(data[chunk.start : chunk.end])
    body = b"".join((data[8:_RIFF_BYTES], *kept))
    return b"".join((data[:4], len(body).to_bytes(4, "little"), body))


def without_long_texts(data: bytes | mmap) -> bytes | mmap:
    """Return a PNG without its packed texts, if they are long; a prompt or a description stays."""
    packed = [chunk for chunk in png_chunks(data) if chunk.type in _PACKED]
    if sum(chunk.end - chunk.start for chunk in packed) <= PACKED_TEXT_BYTES_MAX:
        return data
    starts = [PNG_SIGNATURE_BYTES, *(chunk.end for chunk in packed)]
    ends = [*(chunk.start for chunk in packed), len(data)]
    kept = (data[start:end] for start, end in zip(starts, ends, strict=True))
    return b"".join((data[:PNG_SIGNATURE_BYTES], *kept))
