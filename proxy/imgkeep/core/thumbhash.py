"""
ThumbHash: a small blurred picture in at most 25 bytes, which a page shows until the image is there.

It is the published algorithm (https://evanw.github.io/thumbhash/). A hash has the first coefficients of the discrete
cosine transform of four channels: luminance (L), yellow against blue (P), red against green (Q), and alpha (A).
`encode` calculates in the order of the reference implementation. Its bytes are those of the reference, but for what
the cosine of the C library rounds otherwise: a coefficient of zero is 7 or 8 of 15, and a flat channel has any.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, floor, pi
from operator import mul
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SIDE_MAX: Final = 100
"""Maximum width and height of a picture to encode; a larger one takes longer and has the same hash."""
HASH_BYTES_MAX: Final = 25
"""Maximum size of a hash: that of a square picture with alpha."""
_DECODED_SIDE: Final = 32
"""Longer side of a decoded picture."""
_SATURATION: Final = 1.25
"""Factor of the coefficients of colours, which rounding made paler."""


class InvalidThumbHash(ValueError):
    """The bytes are no ThumbHash."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """A decoded picture: four bytes a pixel (red, green, blue, alpha; not premultiplied), row by row."""

    width: int
    height: int
    rgba: bytes


@dataclass(frozen=True, slots=True)
class _Header:
    """
    The constants at the beginning of a hash.

    Attributes:
        l, p, q, a: Mean of each channel.
        l_scale, p_scale, q_scale, a_scale: Greatest coefficient of each channel.
        columns, rows: Number of coefficients of L across and down, 3 or more.
        ratio: Width of the picture divided by its height, roughly.
    """

    l: float  # noqa: E741 - the name of the channel
    p: float
    q: float
    a: float
    l_scale: float
    p_scale: float
    q_scale: float
    a_scale: float
    columns: int
    rows: int
    ratio: float
    has_alpha: bool

    @property
    def size(self) -> int:
        """Return the size of the constants in bytes."""
        return 6 if self.has_alpha else 5


def encode(width: int, height: int, rgba: bytes) -> bytes:
    """
    Return the ThumbHash of a picture.

    Args:
        width: At most `SIDE_MAX`.
        height: Likewise.
        rgba: Four bytes a pixel, as in `Pixels`.

    Raises:
        ValueError: A side is too long or zero, or `rgba` has another size.
    """
    if not (1 <= width <= SIDE_MAX and 1 <= height <= SIDE_MAX) or len(rgba) != 4 * width * height:
        raise ValueError(f"ThumbHash: {width} x {height} pixels with {len(rgba)} bytes")
    l, p, q, a = _split_channels(rgba)  # noqa: E741
    has_alpha = a.count(1.0) < len(a)
    limit = 5 if has_alpha else 7  # fewer coefficients of L where A takes its part
    columns = max(1, _round(limit * width / max(width, height)))
    rows = max(1, _round(limit * height / max(width, height)))
    l_mean, l_rest, l_scale = _transform(l, width, max(3, columns), max(3, rows))
    p_mean, p_rest, p_scale = _transform(p, width, 3, 3)
    q_mean, q_rest, q_scale = _transform(q, width, 3, 3)
    rest = l_rest + p_rest + q_rest
    is_wide = width > height
    header = (
        _round(63 * l_mean)
        | _round(31.5 + 31.5 * p_mean) << 6
        | _round(31.5 + 31.5 * q_mean) << 12
        | _round(31 * l_scale) << 18
        | has_alpha << 23
        | (rows if is_wide else columns) << 24
        | _round(63 * p_scale) << 27
        | _round(63 * q_scale) << 33
        | is_wide << 39
    )
    constants = header.to_bytes(5, "little")
    if has_alpha:
        a_mean, a_rest, a_scale = _transform(a, width, 5, 5)
        rest += a_rest
        constants += bytes([_round(15 * a_mean) | _round(15 * a_scale) << 4])
    nibbles = [_round(15 * each) for each in rest]
    nibbles += [0] * (len(nibbles) % 2)
    return constants + bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))


def decode(thumbhash: bytes) -> Pixels:
    """
    Return the picture of a ThumbHash; its longer side has 32 pixels.

    Raises:
        InvalidThumbHash: The bytes are none.
    """
    header = _read_header(thumbhash)
    nibbles = (each >> shift & 15 for each in thumbhash[header.size :] for shift in (0, 4))
    columns, rows = header.columns, header.rows
    l_rest = _read_rest(nibbles, columns, rows, header.l_scale)
    p_rest = _read_rest(nibbles, 3, 3, header.p_scale * _SATURATION)
    q_rest = _read_rest(nibbles, 3, 3, header.q_scale * _SATURATION)
    a_rest = _read_rest(nibbles, 5, 5, header.a_scale) if header.has_alpha else {}
    width = _round(min(_DECODED_SIDE, _DECODED_SIDE * header.ratio))
    height = _round(min(_DECODED_SIDE, _DECODED_SIDE / header.ratio))
    channels = [
        _transform_back(mean, rest, width, height)
        for mean, rest in ((header.l, l_rest), (header.p, p_rest), (header.q, q_rest), (header.a, a_rest))
    ]
    rgba = bytearray()
    for l, p, q, a in zip(*channels, strict=True):  # noqa: E741
        rgba += bytes(int(255 * each) for each in (*_to_rgb(l, p, q), _clamp(a)))
    return Pixels(width, height, bytes(rgba))


def _split_channels(rgba: bytes) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return L, P, Q and A of each pixel, before a background of the average colour."""
    a = [each / 255 for each in rgba[3::4]]
    opacity = _add(a)
    averages = [
        _add(alpha / 255 * each for alpha, each in zip(a, rgba[channel::4], strict=True)) / (opacity or 1)
        for channel in range(3)
    ]
    red, green, blue = (
        [average * (1 - alpha) + alpha / 255 * each for alpha, each in zip(a, rgba[channel::4], strict=True)]
        for channel, average in enumerate(averages)
    )
    colours = list(zip(red, green, blue, strict=True))
    return (
        [(r + g + b) / 3 for r, g, b in colours],
        [(r + g) / 2 - b for r, g, b in colours],
        [r - g for r, g, _ in colours],
        a,
    )


def _transform(channel: list[float], width: int, columns: int, rows: int) -> tuple[float, list[float], float]:
    """Return the mean of a channel, its other coefficients from 0 to 1, and the greatest of them before that."""
    height = len(channel) // width
    lines = [channel[start : start + width] for start in range(0, len(channel), width)]
    across = [
        [[each * factor for each, factor in zip(line, wave, strict=True)] for line in lines]
        for wave in _waves(columns, width)
    ]
    down = _waves(rows, height)
    mean, *rest = (_add_lines(across[column], down[row]) / len(channel) for column, row in _places(columns, rows))
    scale = max(abs(each) for each in rest)
    return mean, [0.5 + 0.5 / scale * each for each in rest] if scale else rest, scale


def _add_lines(lines: list[list[float]], factors: list[float]) -> float:
    total = 0.0
    for line, factor in zip(lines, factors, strict=True):
        for each in line:
            total += each * factor
    return total


def _add(numbers: Iterable[float]) -> float:
    """Return the sum; from Python 3.12 on, `sum` makes up for rounding errors."""
    total = 0.0
    for each in numbers:
        total += each
    return total


def _transform_back(mean: float, rest: dict[tuple[int, int], float], width: int, height: int) -> Iterator[float]:
    """Yield the values of a channel, row by row."""
    columns, rows = (1 + max((place[axis] for place in rest), default=0) for axis in range(2))
    across = list(zip(*_waves(columns, width), strict=True))
    for down in zip(*_waves(rows, height), strict=True):
        factors = [0.0] * columns
        for (column, row), each in rest.items():
            factors[column] += 2 * each * down[row]
        for wave in across:
            yield mean + _add(map(mul, factors, wave))


def _waves(count: int, length: int) -> list[list[float]]:
    """Return the cosine waves of the frequencies below `count`."""
    return [[cos(pi / length * each * (place + 0.5)) for place in range(length)] for each in range(count)]


def _places(columns: int, rows: int) -> Iterator[tuple[int, int]]:
    """Yield column and row of each coefficient in a hash: a triangle of the lower frequencies, the mean first."""
    for row in range(rows):
        for column in range(columns):
            if column * rows < columns * (rows - row):
                yield column, row


def _read_header(thumbhash: bytes) -> _Header:
    if len(thumbhash) < 6:
        raise InvalidThumbHash("a ThumbHash has more bytes")
    bits = int.from_bytes(thumbhash[:6], "little")
    has_alpha, is_wide = bool(bits >> 23 & 1), bool(bits >> 39 & 1)
    long, short = 5 if has_alpha else 7, bits >> 24 & 7
    columns, rows = (long, short) if is_wide else (short, long)
    header = _Header(
        l=(bits & 63) / 63,
        p=(bits >> 6 & 63) / 31.5 - 1,
        q=(bits >> 12 & 63) / 31.5 - 1,
        a=(bits >> 40 & 15) / 15 if has_alpha else 1,
        l_scale=(bits >> 18 & 31) / 31,
        p_scale=(bits >> 27 & 63) / 63,
        q_scale=(bits >> 33 & 63) / 63,
        a_scale=(bits >> 44 & 15) / 15,
        columns=max(3, columns),
        rows=max(3, rows),
        ratio=columns / rows if rows else 0,
        has_alpha=has_alpha,
    )
    counts = [(header.columns, header.rows), (3, 3), (3, 3)] + [(5, 5)] * has_alpha
    nibbles = sum(len(list(_places(*count))) - 1 for count in counts)
    if not short or len(thumbhash) != header.size + (nibbles + 1) // 2:
        raise InvalidThumbHash("a ThumbHash has other bytes")
    return header


def _read_rest(nibbles: Iterator[int], columns: int, rows: int, scale: float) -> dict[tuple[int, int], float]:
    """Return the coefficients of a channel by column and row, without the mean."""
    places = list(_places(columns, rows))[1:]
    return {place: (next(nibbles) / 7.5 - 1) * scale for place in places}


def _to_rgb(l: float, p: float, q: float) -> tuple[float, float, float]:  # noqa: E741
    blue = l - 2 / 3 * p
    red = (3 * l - blue + q) / 2
    return _clamp(red), _clamp(red - q), _clamp(blue)


def _clamp(value: float) -> float:
    return max(0.0, min(1.0, value))


def _round(value: float) -> int:
    """Round as JavaScript does: a half goes up, where Python takes the even number."""
    return floor(value + 0.5)
