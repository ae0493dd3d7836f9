"""
A reader of fields in a binary file: it reads a field as a whole, and each costs a step.

A parser of a format never asks for the number of bytes. It reads on, and the reader raises `Cut` if the bytes end
before the structure does. The package's functions decide what that means: more bytes are needed, the size is unknown,
or the file is incomplete.

A parser gets the bytes only as a `Body`, whose methods take steps from a `Budget`: no format can forget to count. A
step is one field, in about half a microsecond; C code on many bytes at once costs as many steps as it takes time.
"""

from __future__ import annotations

import zlib
from mmap import mmap
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from imgkeep.core.records import Format, PixelSize

if TYPE_CHECKING:
    import re
    from collections.abc import Callable

HEAD_BYTES_MAX: Final = 262_144
"""
Maximum number of first bytes that decide the format. PNGs of AI services have tens of kB of provenance (C2PA) before
the first pixel, and drawing programs as much licence text before an SVG's root; four times that is generous, and little
enough to buffer for every running fetch.
"""

STEPS_MIN: Final = 4_096  # for files so small that their structure is most of them
STEPS_MAX: Final = 1_048_576  # half a second; 50 MB of GIF are 200,000 sub-blocks, the largest HEIF grid 65,536 items
BYTES_SCANNED_PER_STEP: Final = 64  # by a regular expression or expat, measured: 4 to 12 microseconds a KiB
BYTES_COPIED_PER_STEP: Final = 4_096
BYTES_SUMMED_PER_STEP: Final = 256  # by a CRC, measured: 1 to 2 microseconds a KiB
SUM_WINDOW_BYTES: Final = 65_536  # a sum holds the interpreter for one window
STEPS_BETWEEN_PAUSES: Final = 256  # about 100 microseconds: other threads wait no longer for the interpreter

Buffer: TypeAlias = bytes | bytearray | mmap
Order: TypeAlias = Literal["big", "little"]


class Cut(Exception):
    """
    The bytes end before the structure does, or it goes on beyond a limit.

    `so_far` is the format if the file ends here; fewer than `needs` bytes show nothing more.
    """

    def __init__(self, needs: int = 0, so_far: Format | None = None) -> None:
        super().__init__()
        self.needs = needs
        self.so_far = so_far


class Spent(Exception):
    """The budget is used up: no image from a real program takes so many steps."""


class Budget:
    """
    A counter of steps that ends a check when none are left.

    Args:
        steps_max: Maximum number of steps.
        pause: Function to call after each `STEPS_BETWEEN_PAUSES` steps, in the checking thread. An exception that it
            raises ends the check.
    """

    __slots__ = ("_left", "_pause", "_pause_below", "steps_max")

    def __init__(self, steps_max: int, pause: Callable[[], None] | None = None) -> None:
        self.steps_max = steps_max
        self._left = steps_max
        self._pause = pause or _go_on
        self._pause_below = 0 if pause is None else steps_max - STEPS_BETWEEN_PAUSES

    @property
    def taken(self) -> int:
        """Return the number of steps, without a last call that exceeded the budget."""
        return self.steps_max - self._left

    def spend(self, steps: int = 1) -> None:
        """Take steps. Raises: Spent."""
        left = self._left = self._left - steps
        if left < self._pause_below:
            self._stop(left)

    def _stop(self, left: int) -> None:
        if left < 0:
            self._left = 0
            raise Spent
        self._pause_below = max(left - STEPS_BETWEEN_PAUSES, 0)
        self._pause()


def _go_on() -> None:
    """Do nothing."""


def steps_max(size: int) -> int:
    """
    Return the maximum number of steps for a file of `size` bytes: one for each byte, and at most `STEPS_MAX` for
    structure. Scanning costs steps by the number of bytes, so a photograph is never too large.
    """
    return min(STEPS_MIN + size, STEPS_MAX + size * 2 // BYTES_SCANNED_PER_STEP)


class Body:
    """The bytes of a file, which cost steps of a budget. Each method may raise `Spent`."""

    __slots__ = ("_data", "_spend", "budget", "size")

    def __init__(self, data: Buffer, budget: Budget) -> None:
        self._data = data
        self._spend = budget.spend
        self.budget = budget
        self.size = len(data)

    def take(self, at: int, size: int) -> bytes:
        """Return the `size` bytes from `at` on. Raises: Cut."""
        if at + size > self.size:
            self._spend(1)
            raise Cut(at + size)
        self._spend(1 + size // BYTES_COPIED_PER_STEP)
        return bytes(self._data[at : at + size])

    def uint(self, at: int, size: int, order: Order) -> int:
        """Return the unsigned number in the `size` bytes from `at` on. Raises: Cut."""
        self._spend(1)
        field = self._data[at : at + size]
        if len(field) < size:
            raise Cut(at + size)
        return int.from_bytes(field, order)

    def begins(self, magic: bytes, at: int = 0) -> bool:
        """Return whether `magic` stands at `at`; one wrong byte is enough for a no. Raises: Cut."""
        self._spend(1)
        found = self._data[at : at + len(magic)]
        if len(found) < len(magic) and magic.startswith(bytes(found)):
            raise Cut(at + len(magic))
        return found == magic

    def piece(self, at: int, size: int) -> bytes:
        """Return the `size` bytes from `at` on, or fewer at the end."""
        piece = bytes(self._data[at : at + size])
        self._spend(1 + len(piece) // BYTES_COPIED_PER_STEP)
        return piece

    def part(self, at: int, size: int) -> Body:
        """Return a file within this one, of at most `size` bytes from `at` on, with the same budget."""
        return Body(self.piece(at, size), self.budget)

    def crc32(self, at: int, size: int) -> int:
        """Return the CRC of the `size` bytes from `at` on. Raises: Cut."""
        end = at + size
        if end > self.size:
            raise Cut(end)
        crc = 0
        for start in range(at, end, SUM_WINDOW_BYTES):
            window = self._data[start : min(start + SUM_WINDOW_BYTES, end)]
            self._spend(1 + len(window) // BYTES_SUMMED_PER_STEP)
            crc = zlib.crc32(window, crc)
        return crc

    def find(self, pattern: re.Pattern[bytes], at: int, end: int) -> int | None:
        """Return where `pattern` matches first between `at` and `end`."""
        found = pattern.search(self._data, at, end)
        stop = end if found is None else found.end()
        self._spend(1 + (stop - at) // BYTES_SCANNED_PER_STEP)
        return None if found is None else found.start()


def pixel_size(width: int, height: int) -> PixelSize | None:
    """Return the size; None if a side is zero: then the header does not state it."""
    return PixelSize(width, height) if width and height else None


class Cursor:
    """A reader of consecutive big-endian numbers; a number of no bytes is 0, as in ISO-BMFF."""

    __slots__ = ("at", "body")

    def __init__(self, body: Body, at: int) -> None:
        self.body = body
        self.at = at

    def uint(self, size: int) -> int:
        number = self.body.uint(self.at, size, "big") if size else 0
        self.at += size
        return number
