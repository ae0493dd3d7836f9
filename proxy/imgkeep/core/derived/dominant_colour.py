"""The dominant colour of a picture: the mean of the colours in the most frequent part of the colour space."""

from __future__ import annotations

from collections import Counter
from typing import Final

_LEVELS_SHIFT: Final = 5
"""Each channel has eight levels: fewer would mix colours that people tell apart, more would split a gradient."""
_VISIBLE: Final = 128
"""Minimum opacity of a pixel that counts."""


def dominant_colour(rgba: bytes) -> str:
    """
    Return the dominant colour of pixels as `rrggbb`; white if all of them are transparent.

    Args:
        rgba: Four bytes for each pixel, alpha not multiplied in.
    """
    pixels = [each for each in zip(rgba[0::4], rgba[1::4], rgba[2::4], rgba[3::4], strict=True) if each[3] >= _VISIBLE]
    if not pixels:
        return "ffffff"
    parts = Counter((r >> _LEVELS_SHIFT, g >> _LEVELS_SHIFT, b >> _LEVELS_SHIFT) for r, g, b, _ in pixels)
    most = max(parts.values())
    part = min(each for each, count in parts.items() if count == most)
    inside = [p for p in pixels if tuple(channel >> _LEVELS_SHIFT for channel in p[:3]) == part]
    sums = (sum(pixel[channel] for pixel in inside) for channel in range(3))
    return "".join(f"{(total + len(inside) // 2) // len(inside):02x}" for total in sums)
