"""
A finder of links to images in JSON-LD.

The links are the strings under the names in `IMAGES`, alone or in lists; and `url` and `contentUrl` of objects under
these names and of every object whose `@type` is `ImageObject`. A relative link with white space inside is a text.
Invalid JSON contains no link.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Final

from imgkeep.core.rewrite.patterns import many

IMAGES: Final = frozenset({
    "image", "images", "logo", "photo", "primaryImageOfPage", "screenshot", "thumbnail", "thumbnailUrl",
})  # fmt: skip
"""Properties of schema.org whose value is an image or its link."""

_OF_IMAGES: Final = frozenset({"url", "contentUrl"})
_LISTS: Final = frozenset({"@list", "@set"})
"""An object with one of these means the list in it (JSON-LD 1.1, 4.3)."""

_TEXT: Final = re.compile(r"\s*+(?![A-Za-z][A-Za-z0-9+.-]*+:)\S++\s++\S")
"""A text: it has no scheme, and white space inside."""

_STRING: Final = '"' + many(r'[^"\\]++|\\.') + '"'
_TOKEN: Final = re.compile(rf"(?P<string>{_STRING})(?P<colon>[\t\n\r ]*+:)?|(?P<mark>[\[\]{{}}])", re.DOTALL)


@dataclass(slots=True)
class _Container:
    """
    An object or a list that is being read.

    Attributes:
        key: Name of the current value; a list has the name in the object around it, and so have `_LISTS`.
        is_image: Whether it is under one of `IMAGES`, or its `@type` says so.
        told: Links that count if it is an image.
    """

    is_object: bool
    key: str
    is_image: bool
    told: list[tuple[int, int, str]] = field(default_factory=list)


def find_links(text: str) -> list[tuple[int, int, str]]:
    """Return start, end (without the quotes) and text of each link."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return []
    links: list[tuple[int, int, str]] = []
    # Two outer lists are the owners of a top-level value.
    open_ = [_Container(is_object=False, key="", is_image=False)] * 2
    for match in _TOKEN.finditer(text):
        inner = open_[-1]
        if match["colon"] is not None:
            name = json.loads(match["string"])
            inner.key = open_[-2].key if name in _LISTS else name
        elif match["string"] is not None:
            # The types of an object may be a list, and so may its links.
            _note_string(match, inner if inner.is_object else open_[-2], inner, links)
        elif match["mark"] in "[{":
            is_object = match["mark"] == "{"
            key = "" if is_object else inner.key
            open_.append(_Container(is_object=is_object, key=key, is_image=inner.key in IMAGES))
        else:
            closed = open_.pop()
            links += closed.told if closed.is_image and closed.is_object else []
    return sorted(links)


def _note_string(match: re.Match[str], owner: _Container, inner: _Container, links: list[tuple[int, int, str]]) -> None:
    start, end = match.span("string")
    text = json.loads(match["string"])
    if inner.key == "@type":
        owner.is_image = owner.is_image or text == "ImageObject"
    elif _TEXT.match(text):
        return
    elif inner.key in IMAGES:
        links.append((start + 1, end - 1, text))
    elif inner.key in _OF_IMAGES:
        owner.told.append((start + 1, end - 1, text))
