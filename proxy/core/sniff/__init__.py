"""
What a file is, how large its picture is, and whether all of it is there: judged by the bytes and by nothing else.

Each format is a module of three functions (`Kind`). They read on as if the file never ended and raise `Cut` where it
does; here is decided what that means. Structure is checked, not the magic alone, so that a script which begins like
an image is refused as far as its first bytes can tell.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from proxy.core.model import Format
from proxy.core.sniff import bmp, gif, heif, ico, jpeg, jxl, png, svg, tiff, webp
from proxy.core.sniff.fields import HEAD_BYTES_MAX, Buffer, Cut

if TYPE_CHECKING:
    from proxy.core.model import PixelSize

__all__ = ["HEAD_BYTES_MAX", "UNDECIDED", "Buffer", "Undecided", "is_whole", "measure", "sniff"]


class Undecided(Enum):
    """More bytes are needed."""

    UNDECIDED = "undecided"


UNDECIDED: Final = Undecided.UNDECIDED


class Kind(Protocol):
    """What a format's module can do. Each function may raise `Cut`."""

    def recognise(self, head: bytes, /) -> Format | None: ...
    def measure(self, body: Buffer, /) -> PixelSize | None: ...
    def is_whole(self, body: Buffer, /) -> bool: ...


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
    Format.TIFF: tiff,
}
_EACH_KIND: Final = tuple(dict.fromkeys(_KINDS.values()))


def sniff(head: bytes | bytearray | memoryview, *, ended: bool) -> Format | Undecided | None:
    """
    Tell what a file is by its first bytes.

    Args:
        head: the first bytes of the file, more of them with each call; beyond `HEAD_BYTES_MAX` nothing counts.
        ended: nothing follows.

    Returns:
        None for what is no image of a kind that we keep. Once it is not `UNDECIDED`, more bytes change nothing.
    """
    head = bytes(memoryview(head)[:HEAD_BYTES_MAX])
    is_all = ended or len(head) == HEAD_BYTES_MAX
    may_be = False
    for kind in _EACH_KIND:
        try:
            fmt = kind.recognise(head)
        except Cut as cut:
            fmt = cut.so_far if is_all else None
            may_be = True
        if fmt is not None:
            return fmt
    return UNDECIDED if may_be and not is_all else None


def measure(fmt: Format, body: Buffer) -> PixelSize | None:
    """The size in pixels that the header states; None if it does not, or not yet. `body` may be a head."""
    try:
        return _KINDS[fmt].measure(body)
    except Cut:
        return None


def is_whole(fmt: Format, body: Buffer) -> bool:
    """
    Tell whether the format's own end proves the file complete, for bodies whose framing proves nothing.

    What follows a complete image is tolerated, but for SVG, where it would be an error. A naked JPEG XL codestream
    is never proved: only a decoder finds its end. Takes time in proportion to the size, without holding the
    interpreter for more than some milliseconds.
    """
    try:
        return _KINDS[fmt].is_whole(body)
    except Cut:
        return False
