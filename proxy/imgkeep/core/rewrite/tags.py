"""
Tags as browsers read them (https://html.spec.whatwg.org/multipage/parsing.html#tokenization), in regular expressions.

Theory. The specification describes its tokenizer as a machine over single characters. Python would run it at a megabyte
a second, so one call of `re` must cover most of a page: `skip` matches text and all tags that cannot matter, one after
the other, and stops before the first that may. There, `read_tag` parses one tag closely.

No pattern here backtracks: all repetitions are possessive, and the first characters decide between alternatives. So all
are linear. The only unbounded search is for a closing quote, and a tag without one is the last of its page.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from imgkeep.core.rewrite.patterns import many

_S: Final = r"[\t\n\f\r ]"
_NAME: Final = r"(?:=[^\t\n\f\r />=]*+|[^\t\n\f\r />=]++)"
_UNQUOTED: Final = r"[^\t\n\f\r >\"'][^\t\n\f\r >]*+"
# A name that an equals sign follows has to have its value: else a quote that is never closed would begin another name.
_ATTRIBUTE: Final = rf"{_NAME}{_S}*+(?:={_S}*+(?:\"[^\"]*+\"|'[^']*+'|(?=>)|{_UNQUOTED})|(?!=))"
_ATTRIBUTES: Final = many(rf"[\t\n\f\r /]++|{_ATTRIBUTE}")


def _any_case(*names: str) -> str:
    """
    Return a pattern of names in any case, ordered by their letters.

    Not by `re.IGNORECASE`, with which `re` does not see that most of the alternatives begin with another letter.
    """
    by_letter: dict[str, list[str]] = {}
    for name in names:
        by_letter.setdefault(name[:1], []).append(name[1:])
    ends = "|" if by_letter.pop("", None) else ""
    return "|".join(f"[{first}{first.upper()}](?:{_any_case(*rest)})" for first, rest in by_letter.items()) + ends


_ENDS: Final = r"(?=[\t\n\f\r />])"
_SPECIAL: Final = _any_case(
    *("base", "image", "img", "input", "link", "math", "meta", "source", "svg", "template", "video"),
    *("iframe", "noembed", "noframes", "noscript", "plaintext", "script", "style", "textarea", "title", "xmp"),
)
_NEVER_SPECIAL: Final = "[ac-hjkoqruwyzAC-HJKOQRUWYZ]"
"""First letters of names of which none is special."""

# Of style attributes, those with a function whose name may end in `url` or `image-set`, or with anything disguised.
_CALL: Final = r"(?<![LlTt])\("
_CSS: Final = '(?:"' + many(rf"[^\"(\\&]++|{_CALL}") + "\"|'" + many(rf"[^'(\\&]++|{_CALL}") + "')"
_STYLE: Final = rf"(?:{_any_case('style')}){_S}*+={_S}*+{_CSS}"
_HARMFUL: Final = rf"(?:{_any_case('style', 'background')})[\t\n\f\r />=]"
_HARMLESS: Final = many(rf"[\t\n\f\r /]++|(?!{_HARMFUL}){_ATTRIBUTE}|{_STYLE}")
# Nearly all attributes are like this one, and read faster so.
_USUAL: Final = many(r"[\t\n\f\r ]++[ac-rt-zAC-RT-Z][^\t\n\f\r />=]*+=\"[^\"]*+\"")

# A drawing of shapes in which everything is quoted: whatever stays open in it, `</svg>` closes, and read as HTML it
# holds no link either.
_QUOTED: Final = many(rf"[\t\n\f\r /]++|(?!{_HARMFUL}){_NAME}{_S}*+={_S}*+(?:\"[^\"]*+\"|'[^']*+')|{_STYLE}")
_SHAPES: Final = ("circle", "ellipse", "line", "path", "polygon", "polyline", "rect", "stop", "use")
_GROUPS: Final = ("clippath", "defs", "g", "lineargradient", "mask", "radialgradient", "symbol", "text", "tspan")
_DRAWN: Final = rf"""
    [^<]++
    |<(?:{_any_case(*_SHAPES, *_GROUPS)}){_ENDS}{_QUOTED}>
    |<(?:{_any_case("title")})>[^<]*+</(?:{_any_case("title")})>
    |</(?:{_any_case(*_SHAPES, *_GROUPS)})>
"""
_SVG: Final = _any_case("svg")
_DRAWING: Final = rf"(?:{_SVG}){_ENDS}{_QUOTED}>{many(_DRAWN)}</(?:{_SVG})>"

_COMMENT: Final = rf"!--(?!-?>){many('[^-]++|-(?!-!?>)')}--!?>"
_SKIP: Final = re.compile(
    many(rf"""[^<]++|<(?:
        /[a-su-zA-SU-Z][^\t\n\f\r />]*+>
        |/(?!(?:{_any_case("template")}){_ENDS})[a-zA-Z][^\t\n\f\r />]*+{_ATTRIBUTES}>
        |(?:{_NEVER_SPECIAL}|(?!(?:{_SPECIAL}){_ENDS})[a-zA-Z])[^\t\n\f\r />]*+(?:>|{_USUAL}{_HARMLESS}>)
        |(?=[^a-zA-Z/!?])
        |{_COMMENT}
        |{_DRAWING}
    )"""),
    re.VERBOSE,
)
_SKIP_IN_SVG: Final = re.compile(many(rf"[^<]++|<(?:{_any_case(*_SHAPES)}){_ENDS}{_QUOTED}(?<=/)>"))
_TAG: Final = re.compile(rf"<(/?+)([A-Za-z][^\t\n\f\r />]*+)({_ATTRIBUTES})>")
_ONE: Final = re.compile(rf"({_NAME})(?:{_S}*+={_S}*+(?:\"([^\"]*+)\"|'([^']*+)'|(?=>)|({_UNQUOTED})))?")
_QUOTES: Final = ("", "", '"', "'", "")
"""Quote of each group of `_ONE`."""

_OPENING: Final = re.compile(r"</?+[A-Za-z]")
_NAME_OF: Final = re.compile(r"</?+([A-Za-z][^\t\n\f\r />]*+)")


class Attribute(NamedTuple):
    """A value as it stands in the source: from `start` to `end`, between quotes if `quote` is not empty."""

    start: int
    end: int
    quote: str


class Tag(NamedTuple):
    """
    A tag in the source.

    Attributes:
        name: Name in small letters.
        end: End of the tag in the source.
        inside: Start of its attributes.
    """

    name: str
    is_end: bool
    is_self_closing: bool
    end: int
    inside: int


def skip(text: str, at: int) -> int:
    """Return the end of the text and tags from `at` on that cannot matter in HTML."""
    return _end(_SKIP, text, at)


def skip_in_svg(text: str, at: int) -> int:
    """Return the end of the text and tags from `at` on that cannot matter in SVG and leave no element open."""
    return _end(_SKIP_IN_SVG, text, at)


def begins(text: str, at: int) -> bool:
    """Return whether a tag begins at `at`, whole or not."""
    return _OPENING.match(text, at) is not None


def read_tag(text: str, at: int) -> Tag | None:
    """Parse the tag at `at`; return `None` if there is no complete tag."""
    match = _TAG.match(text, at)
    if match is None:
        return None
    inside = match.start(3)
    closes = match[3].endswith("/") and _last_is_slash(text, inside, match.end())
    return Tag(lowered(match[2]), bool(match[1]), closes, match.end(), inside)


def read_name(text: str, at: int) -> str:
    """Return the name of a tag that is not whole yet, as far as it is there."""
    match = _NAME_OF.match(text, at)
    return lowered(match[1]) if match else ""


def read_attributes(text: str, tag: Tag) -> dict[str, Attribute]:
    """Return the attributes of a tag, the first of each name, which is the one that counts."""
    found: dict[str, Attribute] = {}
    for match in _ONE.finditer(text, tag.inside, tag.end):
        name = lowered(match[1])
        if name not in found:
            kind = match.lastindex or 1
            start, end = match.span(kind) if kind > 1 else (match.end(), match.end())
            found[name] = Attribute(start, end, _QUOTES[kind])
    return found


def _last_is_slash(text: str, inside: int, end: int) -> bool:
    """Return whether the slash before the end of a tag closes it, and is not the end of an unquoted value."""
    last = inside
    for match in _ONE.finditer(text, inside, end):
        last = match.end()
    return last < end - 1


def lowered(name: str) -> str:
    """Return a name in small letters. Beyond ASCII nothing has them: `K` is no letter of `link`."""
    return name.lower() if name.isascii() else name


# --- tags that are too long for the buffer

_MANY: Final = re.compile(many(rf"[\t\n\f\r /]++|{_ATTRIBUTE}(?=[\x00-\U0010ffff])"))

# Of each state: what belongs to it, which characters behind that are taken, with the state they lead to, and the state
# that any other leads to.
_STATES: Final = {
    "tag": (re.compile(r"[^\t\n\f\r />]*+"), {}, "gap"),
    "name": (re.compile(r"[^\t\n\f\r />=]*+"), {}, "after"),
    "after": (re.compile(rf"{_S}*+"), {"=": "value"}, "gap"),
    "value": (re.compile(rf"{_S}*+"), {'"': "double", "'": "single"}, "unquoted"),
    "unquoted": (re.compile(r"[^\t\n\f\r >]*+"), {}, "gap"),
    "double": (re.compile(r'[^"]*+'), {'"': "gap"}, ""),
    "single": (re.compile(r"[^']*+"), {"'": "gap"}, ""),
}


class LongTag:
    """A scanner for the end of a tag in pieces, without a buffer. It begins behind `<` or `</`."""

    def __init__(self) -> None:
        self._state = "tag"

    def find_end(self, text: str, at: int) -> int | None:
        """Return the end of the tag; `None` if it does not end in `text`."""
        while True:
            if self._state == "gap":
                at = _end(_MANY, text, at)
                if at < len(text) and text[at] == ">":
                    return at + 1
                state, takes = "name", at + 1
            else:
                pattern, nexts, other = _STATES[self._state]
                at = _end(pattern, text, at)
                state = nexts.get(text[at : at + 1], other)
                takes = at + (state is not other)
            if at == len(text):
                return None
            self._state, at = state, takes


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    return pattern.match(text, at).end()  # type: ignore[union-attr] # all of them match nothing at least
