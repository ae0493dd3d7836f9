"""
The options of a derived picture: parameters of a request, read strictly, and their canonical form.

Rules:
- Requests that ask for the same picture have equal options, whatever the order, case or defaults of their parameters.
  `dpr` is multiplied into sizes and blur, so `w=200&dpr=2` and `w=400` are equal.
- A parameter that is unknown, malformed, out of range, repeated, or without effect beside the others is refused by its
  name. A value is ASCII and at most `VALUE_CHARS_MAX` characters long, and a message does not repeat it.
- `stem_of` writes options into the name of the picture in a store, and `read_stem` reads them there. The form is public
  (`docs/derived.md`): it never changes silently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

OPTION_NAMES: Final = (
    *("w", "h", "dpr", "fit", "gravity", "format", "q", "bg", "rotate", "blur", "page", "metadata", "preset"),
)
"""Names of the parameters, in the order of messages."""

SIDE_MAX: Final = 16_383
"""Maximum of a width or a height in device pixels: WebP's own, the smallest among the formats that are written."""
DPR_MAX: Final = 4
DECIMALS: Final = 3
"""Number of decimals that count. More are allowed: a browser's own `devicePixelRatio` is 1.3333333730697632."""
BLUR_MAX: Final = 250
"""Maximum standard deviation of a blur in pixels: beyond it a picture has one colour, and libvips needs a second."""
PAGE_MAX: Final = 99_999
STEM_PARTS_MAX: Final = 10
TOLD_MAX: Final = 20
"""Maximum number of presets, and of widths, that a message lists."""
VALUE_CHARS_MAX: Final = 64
"""Maximum length of a value: that of a preset's name, the longest."""
BLUR_MIN: Final = 0.3
"""Minimum standard deviation of a blur: a smaller one changes no pixel of 8 bits that a person could tell."""

_WHOLE: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]{0,2})(?:\.[0-9]{1,20})?")
_COLOUR: Final = re.compile(r"[0-9a-f]{3}|[0-9a-f]{6}|[0-9a-f]{8}")
_STEM_PART: Final = re.compile(r"(?P<name>bg|[whqrbp])(?P<value>[0-9a-f.]+)|(?P<word>[a-z]+)")
_STEM_NAMES: Final = {"w": "w", "h": "h", "q": "q", "bg": "bg", "r": "rotate", "b": "blur", "p": "page"}


class Fit(Enum):
    """The way in which a picture whose sides have another ratio gets into `w` and `h`."""

    INSIDE = "inside"
    """It fits into them, and is never enlarged."""
    CONTAIN = "contain"
    """It fits into them, is enlarged if it is smaller, and the background fills the rest."""
    COVER = "cover"
    """It covers them, is enlarged if it is smaller, and what juts out is cut off."""


_FITS: Final = frozenset(each.value for each in Fit)


class Gravity(Enum):
    """The part of a picture that `cover` keeps, or the place to which `contain` moves it."""

    CENTER = "center"
    NORTH = "north"
    NORTHEAST = "northeast"
    EAST = "east"
    SOUTHEAST = "southeast"
    SOUTH = "south"
    SOUTHWEST = "southwest"
    WEST = "west"
    NORTHWEST = "northwest"
    ATTENTION = "attention"
    """The part that libvips takes for the salient one; with `cover` alone."""


class PictureFormat(Enum):
    """A format that a request can name."""

    AUTO = "auto"
    """The best one that the client accepts (`negotiation.py`)."""
    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    AVIF = "avif"
    JXL = "jxl"


DEFAULT_QUALITIES: Final[Mapping[PictureFormat | None, int]] = {
    PictureFormat.JPEG: 80,
    PictureFormat.WEBP: 78,
    PictureFormat.AVIF: 55,
    PictureFormat.JXL: 75,
}
"""Quality of each lossy format, if the request names none."""


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """
    The canonical options of a derived picture.

    Attributes:
        width: In device pixels; `None`: it follows from the height, or is that of the original.
        height: Likewise.
        gravity: `CENTER` without `COVER` or `CONTAIN`.
        format: `None`: that of the original, if it can be written.
        quality: 1 to 100; `None`: the default of the format.
        background: `rrggbb` or `rrggbbaa`; `None`: transparent where the format can, else white.
        rotate: Clockwise, in degrees, after the orientation of the original was applied: 0, 90, 180 or 270.
        blur: Standard deviation in device pixels; 0: none.
        page: The only frame to keep, counted from 0; `None`: all of them, where the format has frames.
        keep_metadata: Whether EXIF, XMP and IPTC stay.
    """

    width: int | None = None
    height: int | None = None
    fit: Fit = Fit.INSIDE
    gravity: Gravity = Gravity.CENTER
    format: PictureFormat | None = None
    quality: int | None = None
    background: str | None = None
    rotate: int = 0
    blur: float = 0
    page: int | None = None
    keep_metadata: bool = False


FULL_SIZE: Final = PictureOptions()
"""
The options that leave an image as it is, but for its metadata. A request that names none of the parameters gets the
original; one that names defaults alone gets this picture, without the place where the image was taken.
"""


def read_options(
    parameters: Iterable[tuple[str, str]], presets: Mapping[str, PictureOptions] | None = None
) -> PictureOptions:
    """
    Read the parameters of a request.

    Args:
        parameters: Names from `OPTION_NAMES` and their values, decoded.
        presets: Options by the names of `[derive.presets]`; parameters beside `preset` take precedence over its own.

    Raises:
        InvalidOption: A parameter is unknown, malformed, out of range, repeated or without effect.
    """
    given = _collect(parameters)
    base = FULL_SIZE if "preset" not in given else _find_preset(given["preset"], presets or {})
    read: dict[str, object] = {}
    for name, value in given.items():
        if name in _READERS:
            field, reader = _READERS[name]
            read[field] = reader(name, value.lower())
    options = replace(base, **read)  # type: ignore[arg-type]  # each reader returns what its field takes
    if options.format is PictureFormat.PNG and "q" not in given:
        options = replace(options, quality=None)  # of a preset that had another format
    if options.quality is not None and options.quality == DEFAULT_QUALITIES.get(options.format):
        options = replace(options, quality=None)
    options = _multiply(options, _read_dpr(given.get("dpr"), options))
    _require_effect(options, given)
    return options


def read_preset(text: str) -> PictureOptions:
    """
    Read the options of a preset, as `w=320&h=320&fit=cover`.

    Raises:
        InvalidOption: As `read_options`; or there is none, or one is another preset.
    """
    parameters = split_options(text)
    if any(name == "preset" for name, _ in parameters):
        raise InvalidOption("preset: a preset names options, and no other preset")
    if not parameters:
        raise InvalidOption("names no options, and would be the original")
    return read_options(parameters)


def split_options(text: str) -> list[tuple[str, str]]:
    """Return the names and values in a text that an operator has written, as `w=320&h=320`; no value needs escapes."""
    parts = (part.partition("=") for part in text.split("&") if part.strip())
    return [(name.strip(), value.strip()) for name, _, value in parts]


def stem_of(options: PictureOptions) -> str:
    """
    Return the canonical text of options without their format: the name of the picture in a store, before its extension.
    """
    parts = [
        f"w{options.width}" if options.width else "",
        f"h{options.height}" if options.height else "",
        options.fit.value if options.fit is not Fit.INSIDE else "",
        options.gravity.value if options.gravity is not Gravity.CENTER else "",
        f"q{options.quality}" if options.quality else "",
        f"bg{options.background}" if options.background else "",
        f"r{options.rotate}" if options.rotate else "",
        f"b{options.blur:g}" if options.blur else "",
        f"p{options.page}" if options.page is not None else "",
        "keep" if options.keep_metadata else "",
    ]
    return "-".join(filter(None, parts)) or "full"


def read_stem(stem: str) -> PictureOptions | None:
    """Return the options that `stem_of` wrote; `None`: it did not write this text."""
    parameters = []
    for part in [] if stem == "full" else stem.split("-", STEM_PARTS_MAX):
        match = _STEM_PART.fullmatch(part)
        if match is None:
            return None
        word = match["word"]
        parameters.append((_STEM_NAMES[match["name"]], match["value"]) if word is None else (_name_of(word), word))
    try:
        options = read_options(parameters)
    except InvalidOption:
        return None
    return options if stem_of(options) == stem else None


def _name_of(word: str) -> str:
    """Return the parameter of which a word in a stem is the value."""
    if word in _FITS:
        return "fit"
    return "metadata" if word == "keep" else "gravity"


def _collect(parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in parameters:
        if name not in OPTION_NAMES:
            raise InvalidOption(f"{name[:40]} is not an option of a picture; there are {', '.join(OPTION_NAMES)}")
        if name in given:
            raise InvalidOption(f"{name}: is given twice")
        if len(value) > VALUE_CHARS_MAX or not value.isascii():
            raise InvalidOption(f"{name}: expected {VALUE_CHARS_MAX} ASCII characters at most")
        given[name] = value
    return given


def _find_preset(name: str, presets: Mapping[str, PictureOptions]) -> PictureOptions:
    if name not in presets:
        known = ", ".join(sorted(presets)[:TOLD_MAX]) or "none"
        raise InvalidOption(f"preset: there is no preset of this name in [derive.presets]; there are {known}")
    return presets[name]


def _read_side(name: str, text: str) -> int:
    return _read_whole(name, text, 1, SIDE_MAX)


def _read_quality(name: str, text: str) -> int:
    return _read_whole(name, text, 1, 100)


def _read_page(name: str, text: str) -> int:
    return _read_whole(name, text, 0, PAGE_MAX)


def _read_whole(name: str, text: str, least: int, most: int) -> int:
    if _WHOLE.fullmatch(text) is None or not least <= int(text) <= most:
        raise InvalidOption(f"{name}: expected a whole number from {least} to {most}")
    return int(text)


def _read_decimal(name: str, text: str, least: float, most: float) -> float:
    if _DECIMAL.fullmatch(text) is None or not least <= float(text) <= most:
        raise InvalidOption(f"{name}: expected a number from {least:g} to {most:g}")
    return round(float(text), DECIMALS)


def _read_blur(name: str, text: str) -> float:
    return 0 if text == "0" else _read_decimal(name, text, BLUR_MIN, BLUR_MAX)


def _read_rotation(name: str, text: str) -> int:
    return int(_read_word(name, text, ("0", "90", "180", "270")))


def _read_word(name: str, text: str, words: Iterable[str]) -> str:
    words = tuple(words)
    if text not in words:
        raise InvalidOption(f"{name}: expected one of {', '.join(words)}")
    return text


def _read_fit(name: str, text: str) -> Fit:
    return Fit(_read_word(name, text, (each.value for each in Fit)))


def _read_gravity(name: str, text: str) -> Gravity:
    return Gravity(_read_word(name, text, (each.value for each in Gravity)))


def _read_format(name: str, text: str) -> PictureFormat:
    return PictureFormat(_read_word(name, {"jpg": "jpeg"}.get(text, text), (each.value for each in PictureFormat)))


def _read_colour(name: str, text: str) -> str:
    if _COLOUR.fullmatch(text) is None:
        raise InvalidOption(f"{name}: expected a colour as rgb, rrggbb or rrggbbaa in hexadecimal digits")
    if len(text) == 3:
        text = "".join(digit * 2 for digit in text)
    return text.removesuffix("ff") if len(text) == 8 else text


def _read_metadata(name: str, text: str) -> bool:
    return _read_word(name, text, ("strip", "keep")) == "keep"


_READERS: Final[dict[str, tuple[str, Callable[[str, str], object]]]] = {
    "w": ("width", _read_side),
    "h": ("height", _read_side),
    "fit": ("fit", _read_fit),
    "gravity": ("gravity", _read_gravity),
    "format": ("format", _read_format),
    "q": ("quality", _read_quality),
    "bg": ("background", _read_colour),
    "rotate": ("rotate", _read_rotation),
    "blur": ("blur", _read_blur),
    "page": ("page", _read_page),
    "metadata": ("keep_metadata", _read_metadata),
}
"""By parameter: the field that it sets, and the function that reads it."""


def _read_dpr(text: str | None, options: PictureOptions) -> float:
    if text is None:
        return 1
    dpr = _read_decimal("dpr", text, 1, DPR_MAX)
    if dpr != 1 and options.width is None and options.height is None:
        raise InvalidOption("dpr: needs w or h")
    return dpr


def _multiply(options: PictureOptions, dpr: float) -> PictureOptions:
    if dpr == 1:
        return options
    sides = {name: side and int(side * dpr + 0.5) for name, side in (("w", options.width), ("h", options.height))}
    for name, side in sides.items():
        if side and side > SIDE_MAX:
            raise InvalidOption(f"{name}: is above {SIDE_MAX} pixels after its multiplication by dpr")
    return replace(
        options, width=sides["w"], height=sides["h"], blur=round(min(options.blur * dpr, BLUR_MAX), DECIMALS)
    )


def _require_effect(options: PictureOptions, given: Mapping[str, str]) -> None:
    """Raise `InvalidOption` for a parameter that the others leave without effect."""
    sides = (options.width is not None) + (options.height is not None)
    if options.fit is Fit.COVER and sides < 2:
        raise InvalidOption("fit: cover needs w and h")
    if ("fit" in given or options.fit is not Fit.INSIDE) and not sides:
        raise InvalidOption(f"fit: {options.fit.value} needs w or h")
    if options.gravity is Gravity.ATTENTION and options.fit is not Fit.COVER:
        raise InvalidOption("gravity: attention needs fit=cover, w and h")
    if options.gravity is not Gravity.CENTER and (options.fit is Fit.INSIDE or sides < 2):
        raise InvalidOption("gravity: needs w, h, and fit=cover or fit=contain")
    if options.format is PictureFormat.PNG and options.quality is not None:
        raise InvalidOption("q: has no effect on png, which loses nothing")
