"""
A decoder and encoder of HTML's character references in attribute values, with a map from the text to the source.

`html.unescape` is not enough: in an attribute `&copy=1` is a parameter and no reference, and the rewriter needs the
source position of each part of a value that it changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from html.entities import html5
from typing import Final

NAME_CHARS_MAX: Final = max(map(len, html5))
"""Maximum length of a named reference with its semicolon."""

_REFERENCE: Final = re.compile(
    rf"&(?:#(?:[0-9]++|[xX][0-9A-Fa-f]++);?|[A-Za-z][A-Za-z0-9]{{0,{NAME_CHARS_MAX - 2}}}+;?)", re.ASCII
)
_ALNUM: Final = re.compile(r"[=A-Za-z0-9]", re.ASCII)

# What would end the value, or begin a reference. Unquoted values hold no white space either; links of ours never do.
_UNSAFE: Final = {
    '"': re.compile(r'[&"]'),
    "'": re.compile(r"[&']"),
    "": re.compile(r"[&\"'<=>`\x00-\x20]"),
}
_WRITTEN: Final = {"&": "&amp;", '"': "&quot;", "<": "&lt;", ">": "&gt;"}


@dataclass(frozen=True, slots=True)
class Value:
    """
    A decoded text with its positions in the source.

    Attributes:
        text: Text with its references decoded.
        offsets: Offset in the source of each character of `text`, and of its end; `None`: the same offsets.
    """

    text: str
    offsets: list[int] | None = None

    def source(self, start: int, end: int) -> tuple[int, int]:
        """Return start and end of `text[start:end]` in the source."""
        return (start, end) if self.offsets is None else (self.offsets[start], self.offsets[end])


def read(source: str, *, in_text: bool = False) -> Value:
    """
    Decode an attribute's value (https://html.spec.whatwg.org/multipage/parsing.html#character-reference-state).

    Outside of attributes, `&copy=1` contains a reference.
    """
    if "&" not in source:
        return Value(source)
    parts: list[str] = []
    offsets: list[int] = []
    done = 0
    for match in _REFERENCE.finditer(source):
        length, text = _reference(source, match, in_text=in_text)
        if not length:
            continue
        start, end = match.start(), match.start() + length
        parts += (source[done:start], text)
        offsets += range(done, start)
        offsets += [start] * len(text)
        done = end
    parts.append(source[done:])
    offsets += range(done, len(source) + 1)
    return Value("".join(parts), offsets)


def _reference(source: str, match: re.Match[str], *, in_text: bool) -> tuple[int, str]:
    """Return length and text of a reference; a length of 0: it is none."""
    text = match[0]
    if text[1] == "#":
        return len(text), _numbered(text)
    name = text[1:]
    if name in html5 and name.endswith(";"):
        return len(text), html5[name]
    # The longest name that needs no semicolon; before `=` or a letter it is part of a link instead.
    for length in range(len(name), 1, -1):
        if name[:length] in html5:
            end = match.start() + 1 + length
            is_name = not in_text and _ALNUM.match(source, end)
            return (0, "") if is_name else (1 + length, html5[name[:length]])
    return 0, ""


def _numbered(text: str) -> str:
    digits = text[2:].rstrip(";").lstrip("xX0")
    # No code point has more digits, and `int` is slow for what has many more.
    number = 0 if len(digits) > 7 else int(digits or "0", 16 if text[2] in "xX" else 10)
    if number == 0 or number > 0x10FFFF or 0xD800 <= number < 0xE000:
        return "\ufffd"
    # Some numbers mean characters of windows-1252.
    return unescape(f"&#{number};") if 0x80 <= number < 0xA0 else chr(number)


def write(text: str, quote: str) -> str:
    """
    Encode a part of an attribute's value.

    Args:
        text: The text to encode.
        quote: `"`, `'`, or nothing for an unquoted value.
    """
    return _UNSAFE[quote].sub(lambda found: _WRITTEN.get(found[0]) or f"&#{ord(found[0])};", text)
