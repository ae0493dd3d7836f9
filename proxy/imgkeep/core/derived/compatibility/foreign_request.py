"""
What a URL of another image server asks for, in the parameters of `/img`.

Rules:
- Each reader translates, and decides nothing: what it returns goes exactly the way of `/img` with options.
- An option of the other server that imgkeep cannot honour is refused by its name (`NotSupported`), and so is one that
  is malformed (`InvalidOption`). An option is left out only where it has no effect on the other server either.
- A message contains a part of the URL only if that is a short word of letters and digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from imgkeep.core.errors import InvalidOption, InvalidSource
from imgkeep.core.source_url import QUERY_CHARS_MAX, ImgQuery, read_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.core.signing import ForeignSignature

OPTIONS_CHARS_MAX: Final = 1000
"""Maximum length of the options of a URL, without its source: ten times those of a page."""

_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,24}")
_ABSOLUTE: Final = re.compile(r"(https?):/+([^/].*)", re.ASCII | re.IGNORECASE | re.DOTALL)
_DIGITS: Final = re.compile(r"[0-9]{1,12}")
"""A time is the longest."""
_COMPASS: Final = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")


@dataclass(frozen=True, slots=True)
class ForeignRequest:
    """
    A request for a picture.

    Attributes:
        source: The source URL, decoded.
        parameters: Options in the parameters of `/img`, in a fixed order.
        signature: `None`: the URL has none.
        ends: When the URL ends, in epoch seconds, whether it is signed or not; `None`: never.
    """

    source: str = field(repr=False)
    parameters: tuple[tuple[str, str], ...] = ()
    signature: ForeignSignature | None = None
    ends: int | None = None

    def query(self) -> ImgQuery:
        """
        Return the query of `/img` that asks for the same.

        Raises:
            InvalidSource, SourceForbidden: As `read_source`.
        """
        return ImgQuery(read_source(self.source), self.source, self.parameters, self.parameters, self.signature)


@dataclass(slots=True)
class ForeignPicture:
    """
    Size and form of a picture as other servers name them: the size is cut first, and the picture is turned after that.

    Attributes:
        width, height: In device pixels; 0: it follows from the other one.
        fit: As the parameter; `None`: the default.
        turned: Clockwise, in degrees: 0, 90, 180 or 270.
        others: Other parameters.
    """

    width: int = 0
    height: int = 0
    fit: str | None = None
    gravity: str | None = None
    turned: int = 0
    others: dict[str, str] = field(default_factory=dict)

    def parameters(self) -> tuple[tuple[str, str], ...]:
        """Return the parameters of `/img`, which turns a picture before it cuts it."""
        return tuple(self._list())

    def _list(self) -> Iterator[tuple[str, str]]:
        sides = (self.width, self.height) if self.turned in {0, 180} else (self.height, self.width)
        for name, side in zip(("w", "h"), sides, strict=True):
            if side:
                yield name, str(side)
        if self.fit is not None:
            yield "fit", self.fit
        if self.gravity is not None:
            yield "gravity", self._turn(self.gravity)
        if self.turned:
            yield "rotate", str(self.turned)
        for name, value in self.others.items():
            # The other servers ignore the quality of a format that loses nothing, and /img refuses it.
            if name != "q" or self.others.get("format") != "png":
                yield name, value

    def _turn(self, gravity: str) -> str:
        """Return the place in the turned picture that is `gravity` in the upright one."""
        if gravity not in _COMPASS:
            return gravity
        return _COMPASS[(_COMPASS.index(gravity) + self.turned // 45) % len(_COMPASS)]


def quoted(text: str) -> str:
    """Return text for a message, if it is a short word."""
    return text if _WORD.fullmatch(text) else "one of the options"


def read_number(name: str, text: str) -> int:
    """
    Return a whole number.

    Raises:
        InvalidOption: It is none, or is longer than any that an option takes.
    """
    if _DIGITS.fullmatch(text) is None:
        raise InvalidOption(f"{name}: expected a whole number")
    return int(text)


def read_turn(name: str, text: str) -> int:
    """
    Return a rotation, which other servers write counter-clockwise, as degrees clockwise: 0, 90, 180 or 270.

    Raises:
        InvalidOption: It is none of these.
    """
    degrees = read_number(name, text.removeprefix("-"))
    if degrees % 90:
        raise InvalidOption(f"{name}: expected a multiple of 90 degrees")
    return (degrees if text.startswith("-") else -degrees) % 360


def read_absolute_url(text: str) -> str | None:
    """Return an http(s) URL, with the slash that web servers take from `//` in a path; `None`: it is none."""
    match = _ABSOLUTE.fullmatch(text)
    return None if match is None else f"{match[1]}://{match[2]}"


def percent_decoded(text: str) -> str:
    """
    Return a part of a URL without percent-encoding.

    Raises:
        InvalidSource: It is not UTF-8.
    """
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeError:
        raise InvalidSource("the URL is not UTF-8") from None


def check_length(path: str, query: str | None) -> None:
    """
    Check the length of a target before any part of it is read.

    Raises:
        InvalidSource: It is too long.
    """
    if len(path) + len(query or "") > QUERY_CHARS_MAX:
        raise InvalidSource(f"the URL is longer than {QUERY_CHARS_MAX} characters")


def refuse_query(query: str | None) -> None:
    """
    Refuse a query that is no part of the source, as a page means it to be.

    Raises:
        InvalidSource: There is one.
    """
    if query is not None:
        raise InvalidSource("the query is no part of this form of URL; percent-encode the whole source URL")
