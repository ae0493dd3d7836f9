"""
The check of a stored picture for its end, when this process first opens it.

imgkeep writes pictures whole or not at all; a file system, a copy of a folder, or another program may cut one. A few
bytes tell so: those at the end, or the lengths that the format states. Such a picture is made again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.core.records import Format

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.core.derived.names import PictureName

    Read = Callable[[int, int], Awaitable[bytes]]

_ENDS: Final = {
    Format.JPEG: (b"\xff\xd8", b"\xff\xd9"),
    Format.PNG: (b"\x89PNG", b"\0\0\0\0IEND\xaeB\x60\x82"),
    Format.GIF: (b"GIF8", b";"),
}
"""The first and the last bytes of a file."""
_BOXES: Final = (b"ftyp", b"meta", b"mini", b"moov", b"mdat", b"free", b"JXL ", b"jxlc", b"jxlp")
BOXES_MAX: Final = 32
"""Maximum number of boxes to look at: pictures have three to six."""


async def is_cut(name: PictureName, size: int, read: Read) -> bool:
    """
    Return whether a picture is cut off; what is no picture at all is not noticed.

    Args:
        name: Its name.
        size: Its size in bytes. None at all: the marker of a negotiated format, and else no picture.
        read: Reads bytes from an offset on.
    """
    if size == 0:
        return not name.negotiated
    if name.format in _ENDS:
        first, last = _ENDS[name.format]
        # With its metadata an original may stand in as it is, with other bytes behind its end.
        is_known = not name.stem.endswith("keep") and await read(0, len(first)) == first
        return is_known and await read(max(0, size - len(last)), len(last)) != last
    head = await read(0, 8)
    if name.format is Format.WEBP:
        return head[:4] == b"RIFF" and 8 + int.from_bytes(head[4:], "little") > size
    return await _is_cut_in_a_box(size, read)


async def _is_cut_in_a_box(size: int, read: Read) -> bool:
    """Return whether a file of boxes (ISO/IEC 14496-12, 4.2) ends within one."""
    at = 0
    for _ in range(BOXES_MAX):
        head = await read(at, 16)
        if head[4:8] not in _BOXES:
            break
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # to the end of the file
            break
        at += max(length, 8)
        if at >= size:
            break
    return at > size
