"""
Fields of a binary file: read whole or not at all.

A reader of a format never asks how many bytes there are. It reads on, and where the bytes end before the structure
does, `Cut` is raised. What that means is decided once, in the package's three functions: more bytes are needed, the
size was not found, the file is not whole.
"""

from __future__ import annotations

from mmap import mmap
from typing import Final, Literal, TypeAlias

from proxy.core.model import Format, PixelSize

# How far into a file we look for what it is. PNGs of AI services carry tens of kB of provenance (C2PA) before the
# first pixel, and drawing programs as much licence text before an SVG's root; four times that is generous, and
# little enough to hold for every fetch in flight.
HEAD_BYTES_MAX: Final = 262_144

Buffer: TypeAlias = bytes | bytearray | mmap
Order: TypeAlias = Literal["big", "little"]


class Cut(Exception):
    """
    The bytes end before the structure does, or it goes on beyond a limit.

    `so_far` is what the file is if nothing follows.
    """

    def __init__(self, so_far: Format | None = None) -> None:
        super().__init__()
        self.so_far = so_far


def take(body: Buffer, at: int, size: int) -> bytes:
    """The `size` bytes from `at` on. Raises: Cut."""
    field = bytes(body[at : at + size])
    if len(field) < size:
        raise Cut
    return field


def uint(body: Buffer, at: int, size: int, order: Order) -> int:
    """The unsigned number in the `size` bytes from `at` on. Raises: Cut."""
    return int.from_bytes(take(body, at, size), order)


def begins(body: Buffer, magic: bytes, at: int = 0) -> bool:
    """Whether `magic` stands at `at`; one wrong byte is enough for a no. Raises: Cut."""
    found = body[at : at + len(magic)]
    if len(found) < len(magic) and magic.startswith(bytes(found)):
        raise Cut
    return found == magic


def pixel_size(width: int, height: int) -> PixelSize | None:
    """A size, unless a side is zero: then the header says nothing."""
    return PixelSize(width, height) if width and height else None


class Cursor:
    """Reads big-endian numbers one after the other; a number of no bytes is 0, as ISO-BMFF has it."""

    __slots__ = ("at", "body")

    def __init__(self, body: Buffer, at: int) -> None:
        self.body = body
        self.at = at

    def uint(self, size: int) -> int:
        number = uint(self.body, self.at, size, "big")
        self.at += size
        return number
