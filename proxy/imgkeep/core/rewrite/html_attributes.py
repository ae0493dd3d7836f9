"""The attributes of HTML and SVG elements that contain links to images, with the form of their values."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Form(Enum):
    """The form of a value with links."""

    LINK = auto()
    PICTURE = auto()
    """The link of an `<img>`."""
    SRCSET = auto()
    CSS = auto()
    JSON_LD = auto()


_IMG: Final = {"src": Form.PICTURE, "data-src": Form.PICTURE, "srcset": Form.SRCSET, "data-srcset": Form.SRCSET}
_BACKGROUND: Final = {"background": Form.LINK}

# `image` is `img` to the tree builder, outside of SVG.
_HTML: Final = {
    "img": _IMG,
    "image": _IMG,
    "source": {"srcset": Form.SRCSET, "data-srcset": Form.SRCSET},
    "video": {"poster": Form.LINK},
    **dict.fromkeys(("body", "table", "thead", "tbody", "tfoot", "tr", "td", "th"), _BACKGROUND),
}
_SVG: Final = {"image": {"href": Form.LINK, "xlink:href": Form.LINK}}

_SPACE: Final = "\t\n\f\r "
_WORD: Final = re.compile(rf"[^{_SPACE}]+")

_ICONS: Final = frozenset({"icon", "apple-touch-icon", "apple-touch-icon-precomposed"})
_META: Final = frozenset({
    "og:image", "og:image:url", "og:image:secure_url", "twitter:image", "twitter:image:src",
})  # fmt: skip


def find_places(tag: str, namespace: str, value: Callable[[str], str | None]) -> Iterator[tuple[str, Form]]:
    """
    Yield the attributes of a start tag that may contain links.

    Args:
        tag: Name of the tag in small letters.
        namespace: `html`, `svg` or `math`.
        value: Returns the value of an attribute, `None` if there is none.
    """
    yield "style", Form.CSS
    if namespace == "html":
        yield from _HTML.get(tag, {}).items()
        if tag in _CONDITIONAL:
            yield from _CONDITIONAL[tag](value)
    elif namespace == "svg":
        yield from _SVG.get(tag, {}).items()


def _of_input(value: Callable[[str], str | None]) -> Iterator[tuple[str, Form]]:
    if (value("type") or "").lower() == "image":
        yield "src", Form.LINK


def _of_link(value: Callable[[str], str | None]) -> Iterator[tuple[str, Form]]:
    relations = set(_words(value("rel") or ""))
    preloads = "preload" in relations and (value("as") or "").lower() == "image"
    if preloads or relations & _ICONS:
        yield "href", Form.LINK
    if preloads:
        yield "imagesrcset", Form.SRCSET


def _of_meta(value: Callable[[str], str | None]) -> Iterator[tuple[str, Form]]:
    if not _META.isdisjoint(_words(f"{value('property') or ''} {value('name') or ''}")):
        yield "content", Form.LINK


def _words(text: str) -> list[str]:
    """Return the words of a list in small letters, split at ASCII white space alone."""
    return _WORD.findall(text.lower())


_CONDITIONAL: Final = {"input": _of_input, "link": _of_link, "meta": _of_meta}


def is_style_sheet(kind: str | None) -> bool:
    """Return whether a `style` element of this `type` holds CSS."""
    return (kind or "text/css").lower() == "text/css"


def is_json_ld(kind: str | None) -> bool:
    """Return whether a `script` element of this `type` holds JSON-LD."""
    return (kind or "").partition(";")[0].strip(_SPACE).lower() == "application/ld+json"
