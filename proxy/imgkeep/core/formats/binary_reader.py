"""
Fields of a binary file: read whole or not at all, and each at the cost of a step.

A reader of a format never asks how many bytes there are. It reads on, and where the bytes end before the structure
does, `Cut` is raised. What that means is decided once, in the package's functions: more bytes are needed, the size was
not found, the file is not whole.

A parser gets the bytes as a `Body` alone, and whatever that does takes steps from a `Budget`: no format can forget to
count. A step is one field, in about half a microsecond; what C code does with many bytes at once costs as many steps as
it takes time.
"""

from __future__ import annotations

import zlib
from mmap import mmap
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from imgkeep.core.records import Format, PixelSize

if TYPE_CHECKING:
    import re
    from collections.abc import Callable

# How far into a file we look for what it is. PNGs of AI services carry tens of kB of provenance (C2PA) before the
# first pixel, and drawing programs as much licence text before an SVG's root; four times that is generous, and
# little enough to hold for every fetch in flight.
HEAD_BYTES_MAX: Final = 262_144

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

    `so_far` is what the file is if nothing follows; with fewer than `needs` bytes nothing more is to be learned.
    """

    def __init__(self, needs: int = 0, so_far: Format | None = None) -> None:
        super().__init__()
        self.needs = needs
        self.so_far = so_far


class Spent(Exception):
    """A judgement has used up its budget: no image that a program has made takes so many steps."""


class Budget:
    """
    Counts the steps of one judgement and ends it when there are none left.

    Args:
        steps_max: So many steps it may take.
        pause: Is called after `STEPS_BETWEEN_PAUSES` steps each time, in the thread that judges. What it raises ends
            the judgement.
    """

    __slots__ = ("_left", "_pause", "_pause_below", "steps_max")

    def __init__(self, steps_max: int, pause: Callable[[], None] | None = None) -> None:
        self.steps_max = steps_max
        self._left = steps_max
        self._pause = pause or _go_on
        self._pause_below = 0 if pause is None else steps_max - STEPS_BETWEEN_PAUSES

    @property
    def taken(self) -> int:
        """Steps that were taken. The last call may have gone on beyond the budget; it is not counted."""
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
    """Pause for no time."""


def steps_max(size: int) -> int:
    """
    Return how many steps the judgement of a file of `size` bytes may take: one a byte, and no more than `STEPS_MAX` for
    structure. What is scanned costs its bytes, however many they are, so a photograph is never too large.
    """
    return min(STEPS_MIN + size, STEPS_MAX + size * 2 // BYTES_SCANNED_PER_STEP)


class Body:
    """The bytes of a file, to be read at the cost of a budget. Each method may raise `Spent`."""

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
        """As many of the `size` bytes from `at` on as there are."""
        piece = bytes(self._data[at : at + size])
        self._spend(1 + len(piece) // BYTES_COPIED_PER_STEP)
        return piece

    def part(self, at: int, size: int) -> Body:
        """A file within this one, of at most `size` bytes from `at` on, on the same budget."""
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
    """A size, unless a side is zero: then the header says nothing."""
    return PixelSize(width, height) if width and height else None


class Cursor:
    """Reads big-endian numbers one after the other; a number of no bytes is 0, as ISO-BMFF has it."""

    __slots__ = ("at", "body")

    def __init__(self, body: Body, at: int) -> None:
        self.body = body
        self.at = at

    def uint(self, size: int) -> int:
        number = self.body.uint(self.at, size, "big") if size else 0
        self.at += size
        return number
