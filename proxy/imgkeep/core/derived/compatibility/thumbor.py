"""
URLs of thumbor: `/unsafe/{options}/{source}`, or a signature in the place of `unsafe`.

    fit-in       the picture fits into the sides, and is never enlarged
    300x200      both sides are covered, what juts out is cut off; 0 or nothing: that side follows from the other one
    left, right, top, bottom    the part that stays
    smart        the salient part stays
    filters:name(...):name(...)

The options come in this order, each at most once. The source may have no scheme, then it is `http://`; thumbor decodes
it once. The signature is the HMAC-SHA-1 of everything behind its slash, as it stands in the URL, in base64url.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha1
from hmac import compare_digest, digest
from typing import TYPE_CHECKING, Final

from imgkeep.core.derived.compatibility.foreign_request import (
    ForeignPicture,
    ForeignRequest,
    check_length,
    percent_decoded,
    quoted,
    read_absolute_url,
    refuse_query,
)
from imgkeep.core.derived.compatibility.thumbor_filters import ThumborFilters, read_filters
from imgkeep.core.errors import InvalidOption, InvalidSource, NotSupported, SignatureInvalid
from imgkeep.core.signing import ForeignSignature

if TYPE_CHECKING:
    from collections.abc import Callable

_SIGNATURE: Final = re.compile(r"([A-Za-z0-9_-]{27})(?:=|%3[Dd])")
_SIZE: Final = re.compile(r"(-?)([0-9]{0,8}|orig)x(-?)([0-9]{0,8}|orig)")
_NO_CROP: Final = re.compile(r"0+x0+:0+x0+")
_CROP: Final = re.compile(r"[0-9]+x[0-9]+:[0-9]+x[0-9]+")
_FILTERS: Final = re.compile(r"filters:(.{1,1000}?\))/", re.DOTALL)
_VERTICAL: Final = {"top": "north", "middle": "", "bottom": "south"}
_HORIZONTAL: Final = {"left": "west", "center": "", "right": "east"}


@dataclass(slots=True)
class _Options:
    fits_in: bool = False
    width: int = 0
    height: int = 0
    horizontal: str = ""
    vertical: str = ""
    smart: bool = False


def read_thumbor(path: str, query: str | None, key: str) -> ForeignRequest | None:
    """
    Read a URL of thumbor.

    Args:
        path: The path behind the mount, without a slash at its beginning, not decoded.
        query: `None`: the URL has none.
        key: Its security key; empty: none.

    Returns:
        `None`: it has another form.

    Raises:
        InvalidOption, NotSupported, InvalidSource, SignatureInvalid: The URL is refused.
    """
    check_length(path, query)
    head, _, rest = path.partition("/")
    given = _SIGNATURE.fullmatch(head)
    if head != "unsafe" and given is None:
        return None
    signature = None if given is None else _judge(given[1], rest, key)
    refuse_query(query)
    options, rest = _read_options(rest)
    filters, rest = _read_filters(rest)
    if not rest:
        raise InvalidSource("the source URL is missing at the end of the path")
    text = percent_decoded(rest)
    source = read_absolute_url(text) or _without_scheme(text)
    return ForeignRequest(source, _translate(options, filters).parameters(), signature)


def _without_scheme(text: str) -> str:
    """Return a source URL that has no scheme. Raises: InvalidOption: It begins with an option that thumbor has not."""
    word, _, behind = text.partition("/")
    if "." not in word and "://" in behind:
        raise InvalidOption(f"{quoted(word)} is not an option of thumbor, or not at this place")
    return f"http://{text}"


def _judge(given: str, rest: str, key: str) -> ForeignSignature:
    if not key:
        raise SignatureInvalid("the signature cannot be checked: set derive.thumbor_key to SECURITY_KEY of thumbor")
    mac = digest(key.encode(), rest.encode("utf-8", "surrogateescape"), sha1)
    if not compare_digest(urlsafe_b64encode(mac).decode().rstrip("="), given):
        raise SignatureInvalid("the signature does not fit this URL")
    return ForeignSignature(covers_options=True)


def _read_options(rest: str) -> tuple[_Options, str]:
    """Read the options before the filters, each at its place, and return them with what follows."""
    options = _Options()
    for read in _STAGES:
        word, slash, behind = rest.partition("/")
        if slash and read(options, word):
            rest = behind
    return options, rest


def _read_unsupported(_options: _Options, word: str) -> bool:
    if word in {"debug", "meta"}:
        raise NotSupported(f"{word}: thumbor's answers about pictures are not supported")
    if word == "trim" or word.startswith("trim:"):
        raise NotSupported("trim: trimming of edges is not supported")
    if _NO_CROP.fullmatch(word):
        return True
    if _CROP.fullmatch(word):
        raise NotSupported("crops of a rectangle, as 10x10:200x200, are not supported")
    return False


def _read_fit(options: _Options, word: str) -> bool:
    if word in {"full-fit-in", "adaptive-fit-in", "adaptive-full-fit-in"}:
        raise NotSupported(f"{word}: is not supported; fit-in is")
    options.fits_in = word == "fit-in"
    return options.fits_in


def _read_size(options: _Options, word: str) -> bool:
    size = _SIZE.fullmatch(word)
    if size is None:
        return False
    if size[1] or size[3]:
        raise NotSupported("a size with a minus sign: flips are not supported")
    sides = (size[2], size[4])
    if "orig" in sides and set(sides) != {"orig"}:
        raise NotSupported("orig: one side of the original is not supported; give both sides in pixels")
    options.width, options.height = (0 if side == "orig" else int(side or 0) for side in sides)
    return True


def _read_horizontal(options: _Options, word: str) -> bool:
    options.horizontal = _HORIZONTAL.get(word, "")
    return word in _HORIZONTAL


def _read_vertical(options: _Options, word: str) -> bool:
    options.vertical = _VERTICAL.get(word, "")
    return word in _VERTICAL


def _read_smart(options: _Options, word: str) -> bool:
    options.smart = word == "smart"
    return options.smart


_STAGES: Final[tuple[Callable[[_Options, str], bool], ...]] = (
    *((_read_unsupported,) * 4),
    _read_fit,
    _read_size,
    _read_horizontal,
    _read_vertical,
    _read_smart,
)


def _read_filters(rest: str) -> tuple[ThumborFilters, str]:
    if not rest.startswith("filters:"):
        return ThumborFilters(), rest
    match = _FILTERS.match(rest)
    if match is None:
        raise InvalidOption("filters: expected name(arguments), with colons between them and a slash behind them")
    return read_filters(percent_decoded(match[1])), rest[match.end() :]


def _translate(options: _Options, filters: ThumborFilters) -> ForeignPicture:
    picture = ForeignPicture(options.width, options.height, turned=filters.turned, others=dict(filters.others))
    sides = bool(options.width) + bool(options.height)
    if options.fits_in and not sides:
        raise InvalidOption("fit-in: needs a size")
    if options.fits_in and sides == 2:
        _translate_fit_in(picture, filters)
    elif sides == 2:
        if not filters.enlarges:
            raise NotSupported("no_upscale: is not supported beside a width and a height without fit-in")
        picture.fit = "cover"
        picture.gravity = "attention" if options.smart else options.vertical + options.horizontal or None
    elif sides and (filters.upscales if options.fits_in else filters.enlarges):
        picture.fit = "contain"
    if picture.fit != "contain" or sides == 1:
        # The picture fills its sides, so a fill can show behind transparent parts alone.
        filters.background_into(picture.others, is_filled=True)
    return picture


def _translate_fit_in(picture: ForeignPicture, filters: ThumborFilters) -> None:
    if filters.fills and not filters.enlarges:
        raise NotSupported("no_upscale: is not supported beside fill")
    if filters.fills:
        picture.fit = "contain"
        filters.background_into(picture.others, is_filled=False)
    elif filters.upscales:
        raise NotSupported("upscale: is not supported beside a width and a height without fill")
