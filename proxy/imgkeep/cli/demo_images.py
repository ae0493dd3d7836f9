"""
The images of `demo`: four times of a day above the same hills, drawn and written as PNG by the standard library.

Theory. An image is drawn column by column: sky, sun, ridges from far to near. Each is a column of colors of its own,
of which a span is copied; only the ends of a span are mixed, so that edges are smooth. PNG wants rows: slices with a
stride turn columns into them.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from math import sin, sqrt
from typing import Final

WIDTH: Final = 480
HEIGHT: Final = 320

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Scene:
    """Colors of a time of day: sky from top to horizon, sun or moon with its position, ridges from far to near."""

    sky: tuple[Color, Color, Color]
    sun: Color
    position: tuple[int, int, int]
    ridges: tuple[Color, Color, Color, Color]
    stars: bool = False


SCENES: Final[dict[str, Scene]] = {
    "dawn": Scene(
        ((94, 129, 186), (246, 190, 170), (255, 226, 178)),
        (255, 244, 214),
        (330, 176, 30),
        ((196, 152, 168), (150, 116, 150), (98, 82, 124), (50, 48, 84)),
    ),
    "noon": Scene(
        ((58, 142, 214), (134, 196, 236), (216, 238, 246)),
        (255, 252, 228),
        (118, 62, 26),
        ((142, 186, 206), (96, 158, 160), (56, 122, 106), (24, 78, 68)),
    ),
    "dusk": Scene(
        ((64, 44, 104), (214, 86, 96), (255, 178, 92)),
        (255, 226, 140),
        (226, 190, 36),
        ((176, 76, 104), (124, 52, 94), (76, 34, 78), (34, 18, 50)),
    ),
    "night": Scene(
        ((8, 12, 38), (22, 36, 84), (58, 86, 140)),
        (240, 242, 226),
        (368, 78, 24),
        ((44, 66, 116), (30, 46, 90), (18, 28, 62), (8, 12, 32)),
        stars=True,
    ),
}

# Of each ridge: its height, and the height, frequency and phase of two waves.
_RIDGES: Final = (
    (196, 26, 0.0135, 0.4, 9, 0.052, 1.0),
    (222, 22, 0.0115, 2.6, 7, 0.043, 0.2),
    (250, 20, 0.0098, 4.4, 5, 0.037, 2.2),
    (284, 16, 0.0082, 0.9, 4, 0.029, 4.0),
)
_FIRS: Final = ((26, 62), (48, 84), (70, 56), (92, 40), (392, 44), (414, 74), (438, 98), (462, 66))
"""Place and height of each fir on the nearest ridge."""
_STARS: Final = 90


def draw(name: str) -> bytes:
    """Return an image as PNG. Drawing takes some hundredths of a second."""
    scene = SCENES[name]
    columns = bytearray()
    sky = _gradient(scene.sky)
    disks = (
        (3.4, _mixed(sky, scene.sun, 0.10)),
        (2.0, _mixed(sky, scene.sun, 0.16)),
        (1.0, _gradient((scene.sun,) * 3)),
    )
    ridges = [_gradient((color, _lighter(color, scene.sky[2]), color)) for color in scene.ridges]
    for x in range(WIDTH):
        column = bytearray(sky)
        if scene.stars:
            _add_stars(column, x)
        across, down, radius = scene.position
        for reach, colors in disks:
            half = (radius * reach) ** 2 - (x + 0.5 - across) ** 2
            if half > 0:
                _paint(column, colors, down - sqrt(half), down + sqrt(half))
        for number, ridge in enumerate(ridges):
            top = _top(number, x)
            _paint(column, ridge, top, HEIGHT)
        columns += column
    return _png(columns)


def _top(ridge: int, x: int) -> float:
    base, high, slow, ahead, low, quick, later = _RIDGES[ridge]
    top = base - high * sin(x * slow + ahead) - low * abs(sin(x * quick + later))
    if ridge < len(_RIDGES) - 1:
        return top
    return min([top, *(top - _fir(abs(x - place), tall) for place, tall in _FIRS)])


def _fir(away: int, tall: int) -> float:
    """Return the height of a fir at a distance from its stem: a cone with steps of branches."""
    wide = tall * 0.24
    if away >= wide:
        return 0
    step = wide / 5
    return tall * (1 - away / wide) * 0.86 + (step - away % step) * 0.9


def _add_stars(column: bytearray, x: int) -> None:
    for number in range(_STARS):
        # Numbers that look random and are the same in each image.
        at = (number * number * 7919 + number * 104_729) % (WIDTH * 190)
        if at % WIDTH == x:
            y = at // WIDTH
            shine = 90 + number * 37 % 150
            column[3 * y : 3 * y + 3] = bytes(max(shine, old) for old in column[3 * y : 3 * y + 3])


def _paint(column: bytearray, colors: bytes, top: float, end: float) -> None:
    """Copy a span of a column, and mix its ends by their share of a pixel."""
    top, end = max(top, 0.0), min(end, float(HEIGHT))
    if top >= end:
        return
    first, last = int(top), int(end)
    _mix(column, colors, first, (min(end, first + 1) - top))
    column[3 * (first + 1) : 3 * last] = colors[3 * (first + 1) : 3 * last]
    if last < HEIGHT and last > first:
        _mix(column, colors, last, end - last)


def _mix(column: bytearray, colors: bytes, y: int, share: float) -> None:
    for at in range(3 * y, 3 * y + 3):
        column[at] = round(column[at] + (colors[at] - column[at]) * share)


def _gradient(stops: tuple[Color, Color, Color]) -> bytes:
    """Return a column from the first color at the top through the second to the third at the horizon."""
    column = bytearray()
    horizon = 0.72 * HEIGHT
    for y in range(HEIGHT):
        at = min(y / horizon, 1.0) * 2
        begin, end = stops[0:2] if at <= 1 else stops[1:3]
        share = at if at <= 1 else at - 1
        column += bytes(round(a + (b - a) * share) for a, b in zip(begin, end, strict=True))
    return bytes(column)


def _lighter(color: Color, haze: Color) -> Color:
    red, green, blue = (round(a + (b - a) * 0.14) for a, b in zip(color, haze, strict=True))
    return red, green, blue


def _mixed(column: bytes, color: Color, share: float) -> bytes:
    return bytes(round(old + (color[at % 3] - old) * share) for at, old in enumerate(column))


def _png(columns: bytes | bytearray) -> bytes:
    rows = bytearray()
    for y in range(HEIGHT):
        row = bytearray(3 * WIDTH)
        for part in range(3):
            row[part::3] = columns[3 * y + part :: 3 * HEIGHT]
        rows += b"\0" + row
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
