"""
A finder of links to images in CSS (CSS Syntax 3; CSS Images 4, 2.4).

Such a link is in `url()`, quoted or not, or a string in `image-set()`. The links of `@import` and `@namespace`, of
fonts, and of properties that take a part of an SVG document are none: a browser fetches those by other rules. The
finder parses comments, strings and escapes by the specification; a bad string or a bad URL contains no link.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from imgkeep.core.rewrite.patterns import many
from imgkeep.core.rewrite.tags import lowered

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_IMAGES: Final = frozenset({
    "src",  # of @font-face
    "behavior", "-moz-binding",
    "filter", "-webkit-filter", "backdrop-filter", "-webkit-backdrop-filter", "clip-path", "-webkit-clip-path",
    "fill", "stroke", "marker", "marker-start", "marker-mid", "marker-end", "offset-path",
})  # fmt: skip
"""Properties whose links do not lead to images."""

_NO_IMAGE_RULES: Final = frozenset({"@import", "@namespace", "@document", "@-moz-document"})
_OF_STRINGS: Final = frozenset({"url", "image-set", "-webkit-image-set"})

_ESCAPE: Final = r"\\(?:[0-9A-Fa-f]{1,6}+(?:\r\n|[\t\n\f\r ])?|[^0-9A-Fa-f\n\f\r])"
_NEWLINE: Final = r"\\(?:\r\n|[\n\f\r])"
_OF_NAME: Final = rf"[-A-Za-z0-9_\x80-\U0010ffff]++|{_ESCAPE}"
_NAME: Final = rf"(?:{_OF_NAME}){many(_OF_NAME)}"
_SPACE: Final = r"[\t\n\f\r ]"
_IN_DOUBLE: Final = many(rf"[^\"\\\n\f\r]++|{_ESCAPE}|{_NEWLINE}")
_IN_SINGLE: Final = many(rf"[^'\\\n\f\r]++|{_ESCAPE}|{_NEWLINE}")

# Most style sheets contain no link at all; this quick check spares parsing them.
_MAYBE: Final = re.compile(r"url\(|image-set\(|\\", re.ASCII | re.IGNORECASE)

# Alternatives in order of precedence: the marks by which HTML hides sheets, and a comment; a string (whole, or up to
# its bad end); a hash; a name, with the mark of a function or a property; marks; and other text. The last matching
# group gives the kind.
_TOKEN: Final = re.compile(
    rf"""
      <!--|-->|/\*{many("[^*]++|[*](?!/)")}(?:\*/)?
    | "(?P<double>{_IN_DOUBLE})(?:"|\\?\Z|(?P<bad>))|'(?P<single>{_IN_SINGLE})(?:'|\\?\Z|(?P<worse>))
    | \#{_NAME}
    | (?P<name>@?+{_NAME})(?:(?P<function>\()|(?P<colon>{_SPACE}*+:))?
    | (?P<mark>[(){{}};\[\]])
    | [^"'/\\\#<@A-Za-z0-9_(){{}};\[\]\x80-\U0010ffff-]++
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_UNQUOTED: Final = re.compile(
    _SPACE + "*+(" + many(rf"[^\x00-\x08\x0b\x0e-\x1f\x7f\"'()\\\t\n\f\r ]++|{_ESCAPE}") + rf"){_SPACE}*+(?:\)|\Z)"
)
_QUOTED_AHEAD: Final = re.compile(rf"{_SPACE}*+[\"']")
_BAD_URL: Final = re.compile(many(rf"[^)\\]++|{_ESCAPE}|\\") + r"\)?")
_ESCAPED: Final = re.compile(r"\\(?:([0-9A-Fa-f]{1,6}+)(?:\r\n|[\t\n\f\r ])?|(\r\n|[\n\f\r])|(.)|\Z)", re.DOTALL)


def find_links(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and unescaped text of each link in a style sheet or a `style` attribute."""
    if _MAYBE.search(text):
        yield from _Reader(text).find()


class _Reader:
    """
    A parser of one style sheet.

    Attributes:
        property: Name of the current property; also of a selector that looks like one: `a:hover`.
        rule: Name of the at-rule in whose prelude the parser is.
        functions: Open functions, the innermost last; `(` for a parenthesis.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._property = ""
        self._rule = ""
        self._functions: list[str] = []
        self._at_start = True

    def find(self) -> Iterator[tuple[int, int, str]]:
        at, text = 0, self._text
        while match := _TOKEN.match(text, at):
            at = match.end()
            kind = match.lastgroup
            if kind in {"double", "single", "bad", "worse"}:
                inner = self._functions[-1] if self._functions else ""
                if kind in {"double", "single"} and inner in _OF_STRINGS and self._is_image():
                    yield (*match.span(kind), _unescaped(match[kind]))
                if inner == "url":
                    self._functions[-1] = ""  # it takes one string
            elif kind == "mark":
                self._note_mark(match["mark"])
            elif kind is not None:
                name = lowered(_unescaped(match["name"]))
                if kind != "function":
                    self._note_name(name, is_property=kind == "colon")
                    continue
                self._at_start = False
                if name != "url" or _QUOTED_AHEAD.match(text, at):
                    self._functions.append(name)
                else:
                    link, at = self._unquoted(at)
                    if link is not None:
                        yield link

    def _is_image(self) -> bool:
        return self._property not in NO_IMAGES and self._rule not in _NO_IMAGE_RULES

    def _unquoted(self, at: int) -> tuple[tuple[int, int, str] | None, int]:
        """Parse a URL token behind its parenthesis; return the link, if any, and the end of the token."""
        match = _UNQUOTED.match(self._text, at)
        if match is None:
            bad = _BAD_URL.match(self._text, at)
            return None, bad.end() if bad else at
        link = (*match.span(1), _unescaped(match[1])) if self._is_image() else None
        return link, match.end()

    def _note_name(self, name: str, *, is_property: bool) -> None:
        if self._at_start and not self._functions:
            if name.startswith("@"):
                self._rule, self._property = name, ""
            elif is_property:
                self._property = name
        self._at_start = False

    def _note_mark(self, mark: str) -> None:
        if mark in "([":
            self._functions.append(mark)
        elif mark in ")]":
            if self._functions:
                self._functions.pop()
        elif mark != ";" or not self._functions:
            # A brace closes everything that is open, as in a browser nearly always.
            self._functions.clear()
            self._property = self._rule = ""
            self._at_start = True


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(_meaning, text) if "\\" in text else text


def _meaning(match: re.Match[str]) -> str:
    if match[1] is None:
        return match[3] or ""
    number = int(match[1], 16)
    return "\ufffd" if number == 0 or number > 0x10FFFF or 0xD800 <= number < 0xE000 else chr(number)
