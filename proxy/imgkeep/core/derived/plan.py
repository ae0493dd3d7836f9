"""
Sizes of a derived picture, decided before a pixel is decoded.

All sizes are in pixels, and of a picture as people see it: after its orientation was applied, and after `rotate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.core.derived.options import Fit, Gravity
from imgkeep.core.records import PixelSize

if TYPE_CHECKING:
    from imgkeep.core.derived.options import PictureOptions

_PLACES: Final = {
    Gravity.CENTER: (0.5, 0.5),
    Gravity.NORTH: (0.5, 0),
    Gravity.NORTHEAST: (1, 0),
    Gravity.EAST: (1, 0.5),
    Gravity.SOUTHEAST: (1, 1),
    Gravity.SOUTH: (0.5, 1),
    Gravity.SOUTHWEST: (0, 1),
    Gravity.WEST: (0, 0.5),
    Gravity.NORTHWEST: (0, 0),
    Gravity.ATTENTION: (0.5, 0.5),
}
"""Parts of the free room that lie left of and above the smaller rectangle."""


@dataclass(frozen=True, slots=True)
class Plan:
    """
    The steps from the pixels of an original to those of a picture.

    Attributes:
        cut: The part of the original that is scaled; `None`: all of it. An original that is to be enlarged is cut
            first, so that what is cut off need not be enlarged.
        scaled: Its size after scaling.
        canvas: The size of the picture. Where it is smaller than `scaled`, the rest is cut off; where it is larger,
            the background fills it.
    """

    cut: PixelSize | None
    scaled: PixelSize
    canvas: PixelSize


def plan(original: PixelSize, options: PictureOptions, side_max: int) -> Plan:
    """Return the sizes of a picture; a size above `side_max` becomes smaller in its proportion."""
    if options.fit is Fit.COVER and options.width and options.height:
        return _cover(original, _limited(PixelSize(options.width, options.height), side_max))
    if options.fit is Fit.CONTAIN and options.width and options.height:
        canvas = _limited(PixelSize(options.width, options.height), side_max)
        return Plan(None, _scaled(original, _ratio(original, canvas.width, canvas.height)), canvas)
    ratio = _ratio(original, options.width, options.height)
    if options.fit is Fit.INSIDE:
        ratio = min(ratio, 1)
    scaled = _scaled(original, min(ratio, side_max / max(original.width, original.height)))
    return Plan(None, scaled, scaled)


def place(outer: PixelSize, inner: PixelSize, gravity: Gravity) -> tuple[int, int]:
    """Return where a rectangle lies in a larger one: the distances from its left and upper sides."""
    x, y = _PLACES[gravity]
    return int((outer.width - inner.width) * x), int((outer.height - inner.height) * y)


def turned(size: PixelSize) -> PixelSize:
    """Return the size of a picture after a quarter turn."""
    return PixelSize(size.height, size.width)


def _cover(original: PixelSize, canvas: PixelSize) -> Plan:
    ratio = max(canvas.width / original.width, canvas.height / original.height)
    if ratio <= 1:
        scaled = _scaled(original, ratio)
        return Plan(None, PixelSize(max(scaled.width, canvas.width), max(scaled.height, canvas.height)), canvas)
    cut = _scaled(canvas, 1 / ratio)
    cut = PixelSize(min(cut.width, original.width), min(cut.height, original.height))
    return Plan(None if cut == original else cut, canvas, canvas)


def _limited(size: PixelSize, side_max: int) -> PixelSize:
    return _scaled(size, min(1, side_max / max(size.width, size.height)))


def _ratio(original: PixelSize, width: int | None, height: int | None) -> float:
    ratios = []
    if width:
        ratios.append(width / original.width)
    if height:
        ratios.append(height / original.height)
    return min(ratios, default=1)


def _scaled(size: PixelSize, ratio: float) -> PixelSize:
    """Return a size times a ratio; no side is less than a pixel."""
    return PixelSize(max(1, int(size.width * ratio + 0.5)), max(1, int(size.height * ratio + 0.5)))
