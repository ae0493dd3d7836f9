"""
The tracker of SVG and MathML in a page, which changes the parsing of text.

Theory. `<style>`, `<title>` and their like hold raw text in HTML and markup in SVG; `<![CDATA[` begins a section in
SVG and a bogus comment in HTML; `<image>` is `<img>` in HTML. So what is open has to be known from the outermost
`<svg>` or `<math>` on (https://html.spec.whatwg.org/multipage/parsing.html#tree-construction-dispatcher).

The tracker does not know the elements around it, because the rewriter does not parse most of a page. Hence one guess:
an end tag in foreign content with a name of HTML, and without an open element in it, ends an element around it, as in a
page with one forgotten end tag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

DEPTH_MAX: Final = 64
"""Maximum number of open elements in foreign content that the tracker knows; drawings are some twenty deep."""

_BREAKOUT: Final = frozenset({
    "b", "big", "blockquote", "body", "br", "center", "code", "dd", "div", "dl", "dt", "em", "embed", "h1", "h2",
    "h3", "h4", "h5", "h6", "head", "hr", "i", "img", "li", "listing", "menu", "meta", "nobr", "ol", "p", "pre",
    "ruby", "s", "small", "span", "strong", "strike", "sub", "sup", "table", "tt", "u", "ul", "var",
})  # fmt: skip
_VOID: Final = frozenset({
    "area", "base", "basefont", "bgsound", "br", "col", "embed", "frame", "hr", "image", "img", "input", "keygen",
    "link", "meta", "param", "source", "track", "wbr",
})  # fmt: skip
_MATHML_TEXT: Final = frozenset({"mi", "mo", "mn", "ms", "mtext"})
_SVG_HTML: Final = frozenset({"foreignobject", "desc", "title"})
_AROUND: Final = _BREAKOUT - _VOID - {"body", "head"} | {
    "a", "address", "article", "aside", "button", "caption", "dialog", "details", "dir", "fieldset", "figcaption",
    "figure", "footer", "form", "header", "hgroup", "label", "main", "nav", "object", "search", "section", "summary",
    "tbody", "td", "template", "tfoot", "th", "thead", "tr",
}  # fmt: skip


class _Element(NamedTuple):
    """
    An open element.

    Attributes:
        takes_html: Whether it is an integration point: its content is HTML, and an end tag of HTML inside it ends
            nothing outside.
    """

    name: str
    namespace: str
    takes_html: bool


class Foreign:
    """The stack of open elements from the outermost `svg` or `math` on."""

    def __init__(self) -> None:
        self._open: list[_Element] = []

    @property
    def is_inside(self) -> bool:
        return bool(self._open)

    @property
    def is_in_svg(self) -> bool:
        """Return whether the rules of SVG alone apply to the next text."""
        return bool(self._open) and self._open[-1].namespace == "svg" and not self._open[-1].takes_html

    @property
    def has_sections(self) -> bool:
        """Return whether `<![CDATA[` begins a section."""
        return bool(self._open) and self._open[-1].namespace != "html"

    def start(self, name: str, value: Callable[[str], str | None], *, is_self_closing: bool) -> str:
        """Note a start tag; return the namespace of its element."""
        if self._is_foreign(name):
            if not _breaks_out(name, value):
                namespace = self._open[-1].namespace
                if not is_self_closing:
                    self._push(name, namespace, value)
                return namespace
            self._break_out()
        if name in {"svg", "math"}:
            if not is_self_closing:
                self._push(name, name, value)
            return name
        if self._open and name not in _VOID:
            self._push(name, "html", value)
        return "html"

    def end(self, name: str) -> bool:
        """Note an end tag; return whether it ends an element of HTML, in here or around."""
        if name in {"br", "p"} and self.has_sections:
            self._break_out()
        in_html = False
        for at in range(len(self._open) - 1, -1, -1):
            element = self._open[at]
            in_html = in_html or element.namespace == "html"
            if element.name == name and (element.namespace == "html") == in_html:
                del self._open[at:]
                return in_html
            if in_html and element.takes_html:
                return False
        ends_around = name in _AROUND and not any(element.takes_html for element in self._open)
        if ends_around:
            self._open.clear()
        return ends_around

    def _push(self, name: str, namespace: str, value: Callable[[str], str | None]) -> None:
        if len(self._open) < DEPTH_MAX:
            self._open.append(_Element(name, namespace, _takes_html(name, namespace, value)))

    def _break_out(self) -> None:
        while self._open and not (self._open[-1].namespace == "html" or self._open[-1].takes_html):
            self._open.pop()

    def _is_foreign(self, name: str) -> bool:
        """Return whether the rules for foreign content apply to a start tag."""
        if not self._open or self._open[-1].namespace == "html":
            return False
        inner = self._open[-1]
        if inner.takes_html:
            return inner.name in _MATHML_TEXT and name in {"mglyph", "malignmark"}
        return not (inner.namespace == "math" and inner.name == "annotation-xml" and name == "svg")


def _takes_html(name: str, namespace: str, value: Callable[[str], str | None]) -> bool:
    if namespace == "math" and name == "annotation-xml":
        return (value("encoding") or "").lower() in {"text/html", "application/xhtml+xml"}
    return name in {"svg": _SVG_HTML, "math": _MATHML_TEXT}.get(namespace, ())


def _breaks_out(name: str, value: Callable[[str], str | None]) -> bool:
    if name == "font":
        return any(value(attribute) is not None for attribute in ("color", "face", "size"))
    return name in _BREAKOUT
