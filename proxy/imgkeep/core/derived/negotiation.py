"""
The format of a derived picture: by the request, by what the client accepts (RFC 9110, 12.5.1), and by the original.

Rules:
- `format=auto`: the format that the client prefers among AVIF and WebP, AVIF at equal quality; else the original's.
- Only a format that the field names counts: many clients that send `*/*` or `image/*` read neither. Quality 0 refuses
  it, and so does one below that of the formats that all clients read (JPEG, PNG, GIF) or of a wildcard.
- A format that cannot hold all frames of an animation is no negotiated format of it.
- No `format`: that of the original, if pictures are written in it, else JPEG, or PNG for an original with transparency.
- No field raises an exception, and one of any length takes the time of its first members.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from imgkeep.core.content_negotiation import read_qualities
from imgkeep.core.derived.names import FORMATS
from imgkeep.core.derived.options import PictureFormat
from imgkeep.core.errors import NotSupported
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from imgkeep.core.derived.options import PictureOptions

NEGOTIABLE: Final = (Format.AVIF, Format.WEBP)
"""Formats that follow from `Accept`, best first."""

ANIMATED: Final = frozenset({Format.GIF, Format.WEBP})
"""Formats that may have frames, all of which a picture shows."""

_READ_BY_ALL: Final = ("image/jpeg", "image/png", "image/gif", "image/*", "*/*")
_NAMED: Final = {
    PictureFormat.JPEG: Format.JPEG,
    PictureFormat.PNG: Format.PNG,
    PictureFormat.WEBP: Format.WEBP,
    PictureFormat.AVIF: Format.AVIF,
    PictureFormat.JXL: Format.JXL,
}
_ICONS: Final = frozenset({Format.ICO, Format.CUR})
FIELD_CHARS_MAX: Final = 256
"""Maximum length of a field whose meaning is remembered: browsers send half of it."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """
    The whole effect of an `Accept` on pictures.

    Attributes:
        formats: Formats of `NEGOTIABLE` that the client reads, in its order.
        key: The same as text, for the names of cached responses: one of five.
    """

    formats: tuple[Format, ...] = ()
    key: str = ""


@dataclass(frozen=True, slots=True)
class Original:
    """The facts about an original on which the format of its pictures depends. `None`: unknown so far."""

    format: Format
    is_animated: bool | None = None
    has_alpha: bool | None = None


@dataclass(frozen=True, slots=True)
class Abilities:
    """
    The abilities of this installation.

    Attributes:
        writable: Formats in which its library writes pictures.
        draws_svg: `derive.svg`.
    """

    writable: frozenset[Format]
    draws_svg: bool = False


@dataclass(frozen=True, slots=True)
class ChosenFormat:
    """
    The format of a picture.

    Attributes:
        format: As it is written. `SVG`: there is no picture, the original is the answer.
        negotiated: Whether it follows from `Accept`, and is not that which the picture has without it.
    """

    format: Format
    negotiated: bool = False


_ORDERS: Final[dict[tuple[Format, ...], Accepted]] = {
    order: Accepted(order, ",".join(each.extension for each in order))
    for order in ((), (Format.AVIF,), (Format.WEBP,), (Format.AVIF, Format.WEBP), (Format.WEBP, Format.AVIF))
}


def varies(options: PictureOptions) -> bool:
    """Return whether the picture depends on `Accept`: every response says `Vary: Accept`, errors too."""
    return options.format is PictureFormat.AUTO


def read_accept(field: str | None) -> Accepted:
    """Return the effect of an `Accept`, of which several lines are joined with commas; `None`: there is none."""
    if field is None:
        return _ORDERS[()]
    return _read_usual(field) if len(field) <= FIELD_CHARS_MAX else _read(field)


def choose_format(
    options: PictureOptions, original: Original, accepted: Accepted, abilities: Abilities
) -> ChosenFormat:
    """
    Return the format of a picture.

    Raises:
        NotSupported: The request names a format that this installation does not write, or a drawing of an SVG that it
            does not draw.
    """
    named = None if options.format is None else _NAMED.get(options.format)
    if original.format is Format.SVG and not abilities.draws_svg:
        if named is not None:
            raise NotSupported(
                "imgkeep draws no SVG images, because derive.svg is false; ask for this image without a format"
            )
        return ChosenFormat(Format.SVG)
    if named is not None:
        if named not in abilities.writable:
            written = ", ".join(sorted(each.name.lower() for each in abilities.writable))
            raise NotSupported(f"the libvips of this server does not write {named.name}; it writes {written}")
        return ChosenFormat(named)
    plain = _plain_format(original, abilities)
    if options.format is PictureFormat.AUTO:
        for format_ in accepted.formats:
            if format_ is plain:
                break
            if format_ in abilities.writable and _holds(format_, original, options):
                return ChosenFormat(format_, negotiated=True)
    return ChosenFormat(plain)


def choose_formats(
    options: PictureOptions, original: Format, accepted: Accepted, abilities: Abilities
) -> tuple[ChosenFormat, ...]:
    """
    Return the formats that may answer a request, best first: each takes the place of the one before it where that
    cannot hold all frames of the original, or would have more bytes.

    Raises:
        NotSupported: As `choose_format`.
    """
    chosen = choose_format(options, Original(original), accepted, abilities)
    if not chosen.negotiated:
        return (chosen,)
    if_it_moves = choose_format(options, Original(original, is_animated=True), accepted, abilities)
    plain = choose_format(replace(options, format=None), Original(original), accepted, abilities)
    return tuple(dict.fromkeys((chosen, if_it_moves, plain)))


def _plain_format(original: Original, abilities: Abilities) -> Format:
    """Return the format of a picture whose request names none."""
    if original.format is Format.APNG:  # libvips reads its first frame alone
        return Format.PNG
    if original.format in abilities.writable and original.format in FORMATS:
        return original.format
    opaque = not original.has_alpha and original.format not in _ICONS | {Format.SVG, Format.GIF}
    return Format.JPEG if opaque else Format.PNG


def _holds(format_: Format, original: Original, options: PictureOptions) -> bool:
    """
    Return whether a format holds all that a picture shows: AVIF, as libvips writes it, has one frame. Where it is
    unknown whether the original moves, the derive process finds out.
    """
    moves = original.is_animated is True and original.format in ANIMATED
    return format_ is not Format.AVIF or options.page is not None or not moves


def _read(field: str) -> Accepted:
    qualities = read_qualities(field)
    least = max(qualities.get(name, 0) for name in _READ_BY_ALL)
    named = ((qualities.get(each.media_type, 0), each) for each in NEGOTIABLE)
    wanted = [(quality, each) for quality, each in named if quality > 0 and quality >= least]
    return _ORDERS[tuple(each for _, each in sorted(wanted, key=lambda pair: -pair[0]))]


# A few browsers send most requests.
_read_usual = lru_cache(maxsize=1024)(_read)
