"""The chunks of a PNG file (PNG Third Edition, 5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

SIGNATURE_BYTES: Final = 8
_AROUND: Final = 12
"""Size of a chunk without data: length, type and checksum."""


class Chunk(NamedTuple):
    """A chunk from `start` to `end`, both of the file."""

    type: bytes
    start: int
    end: int


def chunks(data: bytes | mmap) -> Iterator[Chunk]:
    """Give the chunks of a file up to its end, or to the first that is cut off."""
    at = SIGNATURE_BYTES
    while at + _AROUND <= len(data):
        end = at + _AROUND + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        chunk = Chunk(bytes(data[at + 4 : at + 8]), at, end)
        yield chunk
        if chunk.type == b"IEND":
            return
        at = end


def count_frames(data: bytes | mmap) -> int:
    """Return the number of frames that the file states before its image; 1 if it does not move."""
    for chunk in chunks(data):
        if chunk.type == b"acTL" and chunk.end - chunk.start == _AROUND + 8:
            return max(1, int.from_bytes(data[chunk.start + 8 : chunk.start + 12], "big"))
        if chunk.type == b"IDAT":
            break
    return 1
