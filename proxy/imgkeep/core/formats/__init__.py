"""
What a file is, how large its image is, and whether all of it is there: judged by the bytes and by nothing else.

Each format is a module of three functions (`Kind`). They read on as if the file never ended and raise `Cut` where it
does; here is decided what that means. Structure is checked, not the magic alone, so that a script which begins like
an image is refused as far as its first bytes can tell. Whatever they read costs steps of a budget, and `Spent` is
raised where it ends: a file takes no more than one step for each of its bytes.
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
    """What a format's module can do. Each function may raise `Cut`."""

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
    What the first bytes of a file tell.

    Attributes:
        is_measured: More bytes would not tell the size; without it `pixel_size` is None, and the whole file may.
    """

    format: Format
    pixel_size: PixelSize | None
    is_measured: bool


class HeadReader:
    """
    Tells what a file is, and how large its image is, by its first bytes as they come.

    A look begins at the first byte, but a format that was ruled out is not tried again, and there is none before the
    head has grown by a quarter and holds what was missing: all looks together take some five times the steps of the
    last one, and take them from one budget.

    Attributes:
        look_at: With fewer bytes, unless they are all, a look would tell nothing new.
    """

    def __init__(self, budget: Budget) -> None:
        self.look_at = 1
        self._budget = budget
        self._kinds = _EACH_KIND
        self._format: Format | None = None
        self._needs = 0

    @property
    def may_be(self) -> bool:
        """Return whether it may still be an image."""
        return bool(self._kinds)

    def look(self, head: bytes | bytearray, *, ended: bool) -> Seen | Undecided | None:
        """
        Look at the first bytes, which are more each time; beyond `HEAD_BYTES_MAX` nothing counts.

        Returns:
            None for what is no image of a kind that we keep. `UNDECIDED` if more bytes may tell more.

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
        """Which format it is, if any may be told yet. Raises: Spent."""
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
    Return what a file is by its first bytes.

    Args:
        head: the first bytes of the file, more of them with each call; beyond `HEAD_BYTES_MAX` nothing counts.
        ended: nothing follows.
        budget: what the look takes its steps from; None: `steps_max` of the head.

    Returns:
        None for what is no image of a kind that we keep. Once it is not `UNDECIDED`, more bytes change nothing.

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
    Return the size in pixels that the header states; None if it does not, or not yet. `data` may be a head.

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

    What follows a complete image is tolerated, but for SVG, where it would be an error. A naked JPEG XL codestream
    is never proved: only a decoder finds its end. No call into C holds the interpreter for more than some 5 ms.

    Raises:
        Spent: The budget is used up; without one, `steps_max` of the data.
    """
    try:
        return _KINDS[fmt].is_whole(_body(data, budget))
    except Cut:
        return False


def is_incomplete(fmt: Format, data: Buffer, budget: Budget | None = None) -> bool:
    """
    Return whether a file that is framed whole is incomplete by its format. A naked JPEG XL codestream never is: nothing
    in it says where it ends, so framing has to do.

    Raises:
        Spent: As `is_whole`.
    """
    if fmt is Format.JXL and data[: len(jxl.CODESTREAM)] == jxl.CODESTREAM:
        return False
    return not is_whole(fmt, data, budget)


def foresees_end(ending: Ending, size: int, budget: Budget) -> bool:
    """
    Tell by the first bytes of a body whether it is complete, if its framing brings `size` bytes; False says nothing.

    Raises:
        Spent: The budget is used up.
    """
    return ending.look(size, _KINDS[ending.format].is_whole, budget)


def _body(data: Buffer, budget: Budget | None) -> Body:
    return Body(data, Budget(steps_max(len(data))) if budget is None else budget)
