"""
The detection of an image's end while its bytes come, so that most bodies need no second look.

`is_whole` reads a whole file. The walks here read each piece once, as it comes, on the event loop:
- For PNG, GIF and WebP a walk goes from chunk to chunk, exactly as `is_whole` does; animated PNGs are left to it.
- For JPEG a walk goes over the segments before the first scan; then the last bytes must be EOI, which entropy-coded
  data cannot contain (T.81, B.1.1.5). For SVG the last bytes must be the end tag of the root.
- For formats that state their size in the first bytes (BMP, ICO, the boxes of AVIF, HEIF and JPEG XL), `is_whole`
  judges these bytes alone, with the size from the framing.

A yes is reliable. A no says nothing: then `is_whole` must look. A walk has a budget of steps, which grows with the
bytes; a file that takes more steps is left to `is_whole`, too.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from imgkeep.core.formats.binary_reader import Body, Cut
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.formats.binary_reader import Budget

STEPS_MIN: Final = 256
"""Minimum budget of a walk in steps: under 0.2 ms."""
BYTES_PER_STEP: Final = 256
"""Number of bytes that add one step: GIF has a sub-block in 256 bytes, PNG a chunk in 8 KiB; 0.2 ms a MiB."""
HEAD_BYTES_MAX: Final = 65_536
"""Maximum number of buffered first bytes for a look: headers and the directory of boxes."""
TAIL_BYTES: Final = 64
"""Number of buffered last bytes: an end and some padding behind it."""

_PADDING: Final = b"\0\r\n\t "
_OPENING_BYTES: Final = 8  # length and type of a chunk
_IDAT_CRC: Final = zlib.crc32(b"IDAT")


class _Walk(Protocol):
    """
    A walk over the bytes of one format.

    Attributes:
        is_seen: Whether the end of the image was among the bytes so far.
        end: End of the image, once the bytes so far show it.
    """

    @property
    def is_seen(self) -> bool: ...

    @property
    def end(self) -> int | None: ...

    def feed(self, data: bytes) -> None: ...


class Ending:
    """
    The end detector of one body.

    Attributes:
        format: Format of the image.
    """

    def __init__(self, fmt: Format) -> None:
        self.format = fmt
        make = _WALKS.get(fmt)
        self._walk: _Walk | None = None if make is None else make()
        self._head = b""

    @property
    def is_walked(self) -> bool:
        """Return whether a walk reads the bytes; without one, only `look` may detect the end."""
        return self._walk is not None

    @property
    def is_seen(self) -> bool:
        """Return whether the format's own end was among the bytes so far."""
        return self._walk is not None and self._walk.is_seen

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._walk is not None:
            self._walk.feed(data)
        elif len(self._head) < HEAD_BYTES_MAX:
            self._head += data[: HEAD_BYTES_MAX - len(self._head)]

    def is_foreseen(self, size: int) -> bool:
        """Return whether the bytes so far show the end of the image, and a body of `size` bytes reaches it."""
        end = None if self._walk is None else self._walk.end
        return end is not None and end <= size

    def look(self, size: int, is_whole: Callable[[Body], bool], budget: Budget) -> bool:
        """
        Return whether the first bytes prove a body of `size` bytes complete, by the format's own `is_whole`.

        Raises:
            Spent: The budget is used up.
        """
        if self._walk is not None or not self._head:
            return False
        try:
            return is_whole(_Beginning(self._head, size, budget))
        except Cut:
            return False


class _Beginning(Body):
    """The first bytes of a body of `size` bytes. A read beyond them raises `Cut`."""

    __slots__ = ()

    def __init__(self, head: bytes, size: int, budget: Budget) -> None:
        super().__init__(head, budget)
        self.size = size

    def take(self, at: int, size: int) -> bytes:
        taken = super().take(at, size)
        if len(taken) < size:
            raise Cut(at + size)
        return taken

    def piece(self, at: int, size: int) -> bytes:
        piece = super().piece(at, size)
        if len(piece) < min(size, self.size - at):
            raise Cut(at + size)
        return piece


class _Chunks(ABC):
    """A walk over chunks that begin with eight bytes; `_step` returns the length of each."""

    def __init__(self) -> None:
        self._size = 0
        self._next = 0
        """Offset of the next chunk from the next byte."""
        self._begun = b""
        """Bytes of it so far, if `_next` is negative."""
        self._steps_left: float = STEPS_MIN
        self.is_walking = True
        self.end: int | None = None

    def feed(self, data: bytes) -> None:
        size = len(data)
        self._size += size
        if not self.is_walking:
            return
        self._steps_left += size / BYTES_PER_STEP
        at = self._next
        while self.is_walking and at + _OPENING_BYTES <= size:
            self._steps_left -= 1
            opening = data[at : at + _OPENING_BYTES] if at >= 0 else self._begun[at:] + data[: at + _OPENING_BYTES]
            step = self._step(opening, self._size - size + at)
            self.is_walking = step > 0 and self._steps_left > 0
            at += step
        self._begun = (self._begun[at:] if at < 0 else b"") + data[max(at, 0) :] if at < size else b""
        self._next = at - size

    @abstractmethod
    def _step(self, opening: bytes, at: int) -> int:
        """Return the number of bytes from a chunk at `at` to the next; 0: there is no next one to look for."""


class _Png(_Chunks):
    """A walk that checks the CRC of each IDAT, because a decoder stops at a wrong one. It leaves animations alone."""

    def __init__(self) -> None:
        super().__init__()
        self._has_pixels = False
        self._is_sound = True
        self._idats: deque[tuple[int, int]] = deque()
        """Start and end of the data of each IDAT whose CRC has not come yet."""
        self._crc = _IDAT_CRC
        """CRC of the first one's bytes so far."""
        self._crc_field = b""

    @property
    def is_seen(self) -> bool:
        return self.end is not None and self.end <= self._size

    def feed(self, data: bytes) -> None:
        super().feed(data)
        if self.is_walking or self.end is not None:
            self._check(data, self._size - len(data))
        if not self._is_sound:
            self.is_walking, self.end = False, None

    def _check(self, data: bytes, begin: int) -> None:
        """Add the bytes from `begin` on to the checksums."""
        while self._idats and self._is_sound:
            start, end = self._idats[0]
            with memoryview(data)[max(start - begin, 0) : max(end - begin, 0)] as piece:
                self._crc = zlib.crc32(piece, self._crc)
            self._crc_field += data[max(end - begin, 0) : max(end + 4 - begin, 0)]
            if len(self._crc_field) < 4:
                return
            self._is_sound = int.from_bytes(self._crc_field, "big") == self._crc
            self._idats.popleft()
            self._crc, self._crc_field = _IDAT_CRC, b""

    def _step(self, opening: bytes, at: int) -> int:
        if at == 0:
            return 8  # the signature
        length, kind = int.from_bytes(opening[:4], "big"), opening[4:]
        if length >> 31 or not kind.isalnum() or kind == b"acTL":
            return 0
        if kind == b"IEND":
            self.end = at + 12 + length if self._has_pixels else None
            return 0
        if kind == b"IDAT":
            self._has_pixels = True
            self._idats.append((at + 8, at + 8 + length))
        return 12 + length


class _Webp(_Chunks):
    _PIXELS: Final = frozenset({b"VP8 ", b"VP8L", b"ANMF"})

    def __init__(self) -> None:
        super().__init__()
        self._riff_end = 0
        self._has_pixels = False

    @property
    def is_seen(self) -> bool:
        return self.end is not None and self.end <= self._size

    def _step(self, opening: bytes, at: int) -> int:
        length = int.from_bytes(opening[4:], "little")
        if at == 0:
            self._riff_end = _OPENING_BYTES + length
            return 12
        self._has_pixels |= opening[:4] in self._PIXELS
        behind = at + _OPENING_BYTES + length
        behind_padding = behind + (behind & 1)
        if behind > self._riff_end or behind_padding + _OPENING_BYTES > self._riff_end:
            self.end = self._riff_end if behind <= self._riff_end and self._has_pixels else None
            return 0
        return behind_padding - at


class _Jpeg(_Chunks):
    """A walk over segments. It reads eight bytes, more than a segment's header; no valid scan is shorter."""

    def __init__(self) -> None:
        super().__init__()
        self._scan: int | None = None
        self._tail = b""

    @property
    def is_seen(self) -> bool:
        end = self._tail.rstrip(_PADDING)
        behind = self._size - len(self._tail) + len(end)
        return self._scan is not None and end.endswith(b"\xff\xd9") and behind - 2 > self._scan

    def feed(self, data: bytes) -> None:
        super().feed(data)
        self._tail = (self._tail + data[-TAIL_BYTES:])[-TAIL_BYTES:]

    def _step(self, opening: bytes, at: int) -> int:
        if at == 0:
            return 2
        marker, length = opening[1], int.from_bytes(opening[2:4], "big")
        # Fill bytes, junk and markers without a length are rare before a scan, and left to `is_whole`.
        if opening[0] != 0xFF or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9 or length < 2:
            return 0
        if marker == 0xDA:
            self._scan = at + 2 + length
            return 0
        return 2 + length


class _Gif:
    """A walk over blocks and sub-blocks, each led by one byte."""

    def __init__(self) -> None:
        self.is_seen = False
        self.end = None
        self._look: Callable[[int], int] = self._at_screen
        """Handler of the next relevant byte; it returns the distance to the one after it."""
        self._next = 10
        """Offset of the next relevant byte from the next byte."""
        self._has_image = False
        self._steps_left: float = STEPS_MIN
        self._is_walking = True

    def feed(self, data: bytes) -> None:
        if not self._is_walking:
            return
        at, size = self._next, len(data)
        self._steps_left += size / BYTES_PER_STEP * 2
        while at < size and self._is_walking:
            self._steps_left -= 1
            at += self._look(data[at])
            self._is_walking &= self._steps_left > 0
        self._next = at - size

    def _at_screen(self, flags: int) -> int:
        self._look = self._at_block
        return 3 + _table_size(flags)

    def _at_block(self, introducer: int) -> int:
        if introducer == 0x21:
            self._look = self._at_sub_block
            return 2  # and the label
        if introducer == 0x2C:
            self._look = self._at_image
            return 9
        self.is_seen = introducer == 0x3B and self._has_image
        self._is_walking = False
        return 1

    def _at_image(self, flags: int) -> int:
        self._has_image = True
        self._look = self._at_pixels
        return 1 + _table_size(flags) + 1  # and the LZW code size

    def _at_pixels(self, length: int) -> int:
        self._look = self._at_sub_block
        self._is_walking = length > 0  # else an image without a pixel
        return 1 + length

    def _at_sub_block(self, length: int) -> int:
        if not length:
            self._look = self._at_block
        return 1 + length


def _table_size(flags: int) -> int:
    return 3 << (flags & 0b111) + 1 if flags & 0x80 else 0


class _Svg:
    """A walk that looks at the last tag alone."""

    def __init__(self) -> None:
        self.end = None
        self._tail = b""

    @property
    def is_seen(self) -> bool:
        return self._tail.rstrip(_PADDING).endswith(b"</svg>")

    def feed(self, data: bytes) -> None:
        self._tail = (self._tail + data[-TAIL_BYTES:])[-TAIL_BYTES:]


_WALKS: Final[dict[Format, Callable[[], _Walk]]] = {
    Format.PNG: _Png,
    Format.APNG: _Png,
    Format.JPEG: _Jpeg,
    Format.GIF: _Gif,
    Format.WEBP: _Webp,
    Format.SVG: _Svg,
}
