"""
The filters of thumbor's URLs: `name(arguments)`, with colons between them.

`quality`, `format`, `blur`, `rotate`, `fill`, `background_color`, `cover` (the first frame), `upscale` and `no_upscale`
have options of `/img` that do the same. `strip_exif` and `strip_icc` are what `/img` does anyway.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from imgkeep.core.derived.compatibility.foreign_request import quoted, read_number, read_turn
from imgkeep.core.errors import InvalidOption, NotSupported

if TYPE_CHECKING:
    from collections.abc import Callable

_FILTER: Final = re.compile(r"([a-z_]{1,24})\((.*)\)")
_BETWEEN: Final = re.compile(r"(?<=\)):")
_HEXADECIMAL: Final = re.compile(r"#?([0-9a-f]{3}|[0-9a-f]{6}|[0-9a-f]{8})")
_COLOURS: Final = {"white": "ffffff", "black": "000000", "transparent": ""}
_FORMATS: Final = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp", "avif": "avif"}
_TRUE: Final = frozenset({"1", "true"})
_FALSE: Final = frozenset({"0", "false"})


@dataclass(slots=True)
class ThumborFilters:
    """
    The filters of a URL.

    Attributes:
        others: Parameters of `/img` that a filter names by itself.
        turned: Clockwise, in degrees.
        fills: Whether `fill` fills what the picture leaves free.
        fill: Its colour; empty: transparent.
        fills_transparent: Whether it shows behind transparent parts, too.
        background: Colour behind transparent parts; empty: none.
        upscales: Whether `fit-in` may enlarge.
        enlarges: `False`: nothing may.
    """

    others: dict[str, str] = field(default_factory=dict)
    turned: int = 0
    fills: bool = False
    fill: str = ""
    fills_transparent: bool = False
    background: str = ""
    upscales: bool = False
    enlarges: bool = True

    def background_into(self, parameters: dict[str, str], *, is_filled: bool) -> None:
        """Set `bg`. `is_filled`: the picture has the wanted sides, so a fill has nothing to fill but what it shows."""
        fill = self.fill if self.fills_transparent or not is_filled else ""
        colour = self.background or fill
        if colour:
            parameters["bg"] = colour


def read_filters(text: str) -> ThumborFilters:
    """
    Read the filters of a URL, decoded, without `filters:`.

    Raises:
        InvalidOption, NotSupported: A filter is refused.
    """
    filters, seen = ThumborFilters(), set()
    for part in _BETWEEN.split(text):
        match = _FILTER.fullmatch(part)
        if match is None:
            raise InvalidOption("filters: expected name(arguments), with colons between them")
        name, arguments = match[1], [each.strip(" ") for each in match[2].split(",")]
        if name not in _READERS:
            raise NotSupported(f"{name}: this filter is not supported")
        if name in seen:
            raise InvalidOption(f"{name} is given twice")
        seen.add(name)
        read, most = _READERS[name]
        if len(arguments) > max(most, 1) or (not most and arguments != [""]):
            raise InvalidOption(f"{name}: it has too many arguments")
        read(filters, arguments)
    return filters


def _read_quality(filters: ThumborFilters, arguments: list[str]) -> None:
    filters.others["q"] = arguments[0]


def _read_format(filters: ThumborFilters, arguments: list[str]) -> None:
    wanted = arguments[0].lower()
    if wanted not in _FORMATS:
        raise NotSupported(f"format: {quoted(wanted)} is not supported; there are {', '.join(_FORMATS)}")
    filters.others["format"] = _FORMATS[wanted]


def _read_blur(filters: ThumborFilters, arguments: list[str]) -> None:
    # The second one is the standard deviation; without it, or if it is 0, the radius is.
    radius = str(read_number("blur", arguments[0]))
    sigma = arguments[1] if len(arguments) == 2 else ""
    filters.others["blur"] = sigma if sigma.strip("0.") else radius


def _read_rotate(filters: ThumborFilters, arguments: list[str]) -> None:
    filters.turned = read_turn("rotate", arguments[0])


def _read_fill(filters: ThumborFilters, arguments: list[str]) -> None:
    flag = arguments[1].lower() if len(arguments) == 2 else "0"
    if flag not in _TRUE | _FALSE:
        raise InvalidOption("fill: expected a colour, and true or false behind it")
    filters.fills, filters.fills_transparent = True, flag in _TRUE
    filters.fill = _read_colour("fill", arguments[0])


def _read_background(filters: ThumborFilters, arguments: list[str]) -> None:
    filters.background = _read_colour("background_color", arguments[0])


def _read_colour(name: str, text: str) -> str:
    text = text.lower()
    match = _HEXADECIMAL.fullmatch(text)
    if match is not None:
        return match[1]
    if text in _COLOURS:
        return _COLOURS[text]
    raise NotSupported(f"{name}: {quoted(text)} is not supported; give white, black, transparent or hexadecimal digits")


def _read_cover(filters: ThumborFilters, _arguments: list[str]) -> None:
    filters.others["page"] = "0"


def _read_upscale(filters: ThumborFilters, _arguments: list[str]) -> None:
    filters.upscales = True


def _read_no_upscale(filters: ThumborFilters, _arguments: list[str]) -> None:
    filters.enlarges = False


def _ignore(_filters: ThumborFilters, _arguments: list[str]) -> None:
    """Do nothing: each derived picture has lost its metadata, and has the colours of sRGB."""


_READERS: Final[dict[str, tuple[Callable[[ThumborFilters, list[str]], None], int]]] = {
    "quality": (_read_quality, 1),
    "format": (_read_format, 1),
    "blur": (_read_blur, 2),
    "rotate": (_read_rotate, 1),
    "fill": (_read_fill, 2),
    "background_color": (_read_background, 1),
    "cover": (_read_cover, 0),
    "upscale": (_read_upscale, 0),
    "no_upscale": (_read_no_upscale, 0),
    "strip_exif": (_ignore, 0),
    "strip_icc": (_ignore, 0),
}
"""By filter: the function that reads it, and how many arguments it takes."""
