"""
The format of a file, the size of its image, and its completeness, judged by the bytes alone.

Each format is a module of three functions (`Kind`). They read on as if the file never ended, and raise `Cut` at its
end; the functions here decide what that means. They check the structure, not the magic alone, so that they refuse a
script that begins like an image, as far as its first bytes show. Every read costs steps of a budget, and raises `Spent`
when that is used up: a file takes at most one step for each of its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from imgkeep.core.formats import bmp, gif, heif, ico, jpeg, jxl, png, svg, tiff, webp
from imgkeep.core.formats.binary_reader import HEAD_BYTES_MAX, Body, Budget, Buffer, Cut, Spent, steps_max
from imgkeep.core.formats.end_detection import Ending
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from imgkeep.core.records import PixelSize

__all__ = [
    "HEAD_BYTES_MAX",
    "LOOP_STEPS_MAX",
    "UNDECIDED",
    "Budget",
    "Buffer",
    "Ending",
    "HeadReader",
    "Seen",
    "Spent",
    "Undecided",
    "foresees_end",
    "is_incomplete",
    "is_whole",
    "measure",
    "sniff",
    "steps_max",
]

LOOP_STEPS_MAX: Final = 2_048  # of one head on the event loop, all looks together: a millisecond; most take below 100
GROWTH: Final = 4  # a head is looked at again when it has grown by a fourth


class Undecided(Enum):
    """More bytes are needed."""

    UNDECIDED = "undecided"


UNDECIDED: Final = Undecided.UNDECIDED


class Kind(Protocol):
    """The interface of a format's module. Each function may raise `Cut`."""

    def recognise(self, head: Body, /) -> Format | None: ...
    def measure(self, body: Body, /) -> PixelSize | None: ...
    def is_whole(self, body: Body, /) -> bool: ...


_KINDS: Final[dict[Format, Kind]] = {
    Format.PNG: png,
    Format.APNG: png,
    Format.JPEG: jpeg,
    Format.GIF: gif,
    Format.WEBP: webp,
    Format.AVIF: heif,
    Format.HEIC: heif,
    Format.HEIF: heif,
    Format.JXL: jxl,
    Format.SVG: svg,
    Format.BMP: bmp,
    Format.ICO: ico,
    Format.CUR: ico,
    Format.TIFF: tiff,
}
_EACH_KIND: Final = tuple(dict.fromkeys(_KINDS.values()))


@dataclass(frozen=True, slots=True)
class Seen:
    """
    The findings in the first bytes of a file.

    Attributes:
        is_measured: Whether `pixel_size` is final; otherwise it is None, and the whole file may give it.
    """

    format: Format
    pixel_size: PixelSize | None
    is_measured: bool


class HeadReader:
    """
    An incremental detector of a file's format and image size, by its first bytes.

    Each look begins at the first byte, but skips formats that an earlier look ruled out. The next look waits until the
    head has grown by a quarter and contains the missing bytes: all looks together take some five times the steps of the
    last one, from one budget.

    Attributes:
        look_at: Minimum number of bytes at which the next look can find more, unless the file ends before.
    """

    def __init__(self, budget: Budget) -> None:
        self.look_at = 1
        self._budget = budget
        self._kinds = _EACH_KIND
        self._format: Format | None = None
        self._needs = 0

    @property
    def may_be(self) -> bool:
        """Return whether the file may still be an image."""
        return bool(self._kinds)

    def look(self, head: bytes | bytearray, *, ended: bool) -> Seen | Undecided | None:
        """
        Look at the first bytes, more of them with each call; bytes beyond `HEAD_BYTES_MAX` do not count.

        Returns:
            None for no image of a known format. `UNDECIDED` if more bytes may show more.

        Raises:
            Spent: The budget is used up.
        """
        is_all = ended or len(head) >= HEAD_BYTES_MAX
        body = Body(bytes(memoryview(head)[:HEAD_BYTES_MAX]), self._budget)
        self._needs = HEAD_BYTES_MAX
        if self._format is None:
            self._format = self.recognise(body, is_all=is_all)
        if self._format is None:
            seen: Seen | Undecided | None = UNDECIDED if self.may_be and not is_all else None
        else:
            seen = self._measure(self._format, body, is_all=is_all)
        self.look_at = min(max(self._needs, len(head) + len(head) // GROWTH + 1), HEAD_BYTES_MAX)
        return seen

    def recognise(self, body: Body, *, is_all: bool) -> Format | None:
        """Return the format, if the bytes so far show one. Raises: Spent."""
        undecided = []
        for kind in self._kinds:
            try:
                fmt = kind.recognise(body)
            except Cut as cut:
                fmt = cut.so_far if is_all else None
                undecided.append(kind)
                self._needs = min(self._needs, cut.needs)
            if fmt is not None:
                return fmt
        self._kinds = tuple(undecided)
        return None

    def _measure(self, fmt: Format, body: Body, *, is_all: bool) -> Seen | Undecided:
        try:
            return Seen(fmt, _KINDS[fmt].measure(body), is_measured=True)
        except Cut as cut:
            self._needs = cut.needs
            return Seen(fmt, None, is_measured=False) if is_all else UNDECIDED


def sniff(
    head: bytes | bytearray | memoryview, *, ended: bool, budget: Budget | None = None
) -> Format | Undecided | None:
    """
    Return the format of a file by its first bytes.

    Args:
        head: The first bytes of the file, more of them with each call; bytes beyond `HEAD_BYTES_MAX` do not count.
        ended: Whether the file ends here.
        budget: Budget of the look; None: `steps_max` of the head.

    Returns:
        None for no image of a known format. More bytes change no result but `UNDECIDED`.

    Raises:
        Spent: The budget is used up.
    """
    head = bytes(memoryview(head)[:HEAD_BYTES_MAX])
    is_all = ended or len(head) == HEAD_BYTES_MAX
    body = _body(head, budget)
    reader = HeadReader(body.budget)
    fmt = reader.recognise(body, is_all=is_all)
    return UNDECIDED if fmt is None and reader.may_be and not is_all else fmt


def measure(fmt: Format, data: Buffer, budget: Budget | None = None) -> PixelSize | None:
    """
    Return the size in pixels that the header states; None without one. `data` may be the first bytes of a file.

    Raises:
        Spent: The budget is used up; without one, `steps_max` of the data.
    """
    try:
        return _KINDS[fmt].measure(_body(data, budget))
    except Cut:
        return None


def is_whole(fmt: Format, data: Buffer, budget: Budget | None = None) -> bool:
    """
    Return whether the format's own end proves the file complete, for bodies whose framing proves nothing.

    Bytes behind a complete image are allowed, except in SVG, where they are an error. Nothing proves a naked JPEG XL
    codestream complete: only a decoder finds its end. No call into C holds the interpreter for more than some 5 ms.

    Raises:
        Spent: The budget is used up; without one, `steps_max` of the data.
    """
    try:
        return _KINDS[fmt].is_whole(_body(data, budget))
    except Cut:
        return False


def is_incomplete(fmt: Format, data: Buffer, budget: Budget | None = None) -> bool:
    """
    Return whether a file is incomplete by its format, although its framing is complete. A naked JPEG XL codestream
    never is: it does not state its end, so the framing must suffice.

    Raises:
        Spent: As `is_whole`.
    """
    if fmt is Format.JXL and data[: len(jxl.CODESTREAM)] == jxl.CODESTREAM:
        return False
    return not is_whole(fmt, data, budget)


def foresees_end(ending: Ending, size: int, budget: Budget) -> bool:
    """
    Return whether the first bytes of a body prove it complete, given a framing of `size` bytes; False proves nothing.

    Raises:
        Spent: The budget is used up.
    """
    return ending.look(size, _KINDS[ending.format].is_whole, budget)


def _body(data: Buffer, budget: Budget | None) -> Body:
    return Body(data, Budget(steps_max(len(data))) if budget is None else budget)
