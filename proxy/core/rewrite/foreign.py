"""
Whether the tree builder stands in SVG or MathML, which changes how text is read.

Theory. `<style>`, `<title>` and their like hold raw text in HTML and markup in SVG; `<![CDATA[` begins a section in
SVG and a bogus comment in HTML; `<image>` is `<img>` in HTML. So what is open has to be known from the outermost
`<svg>` or `<math>` on (https://html.spec.whatwg.org/multipage/parsing.html#tree-construction-dispatcher).

What is open around it is not known, because most of a page is not looked at closely. Hence one guess: an end tag in
foreign content that ends none of the elements in it, and has a name of HTML, ends one around it, as it does on a page
that was written by a program with one forgotten end tag.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

DEPTH_MAX: Final = 128
"""Elements that are open at once in foreign content and known; drawings of programs are some twenty deep."""

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
    "tbody", "td", "tfoot", "th", "thead", "tr",
}  # fmt: skip


class _Element(NamedTuple):
    name: str
    namespace: str
    holds_html: bool = False


class Foreign:
    """The elements that are open from the outermost `svg` or `math` on."""

    def __init__(self) -> None:
        self._open: list[_Element] = []
        self._count: Counter[str] = Counter()

    @property
    def is_inside(self) -> bool:
        return bool(self._open)

    @property
    def is_in_svg(self) -> bool:
        """Whether what comes is read by the rules of SVG, and by nothing else."""
        return bool(self._open) and self._open[-1].namespace == "svg" and not self._open[-1].holds_html

    @property
    def has_sections(self) -> bool:
        """Whether `<![CDATA[` begins a section."""
        return bool(self._open) and self._open[-1].namespace != "html"

    def start(self, name: str, value: Callable[[str], str | None], *, is_self_closing: bool) -> str:
        """Note a start tag; return the namespace of its element."""
        if self._is_foreign(name):
            if not self._breaks_out(name, value):
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

    def end(self, name: str) -> None:
        """Note an end tag."""
        if name in {"br", "p"} and self.has_sections:
            self._break_out()
        in_html = False
        for at in range(len(self._open) - 1, -1, -1) if self._count[name] else ():
            element = self._open[at]
            in_html = in_html or element.namespace == "html"
            if element.name == name and (element.namespace == "html") == in_html:
                while len(self._open) > at:
                    self._pop()
                return
            if in_html and _takes_html(element):
                return
        if name in _AROUND:
            self._open.clear()
            self._count.clear()

    def _push(self, name: str, namespace: str, value: Callable[[str], str | None]) -> None:
        if len(self._open) < DEPTH_MAX:
            holds_html = (
                name in _SVG_HTML if namespace == "svg" else namespace == "math" and _is_html_in_math(name, value)
            )
            self._open.append(_Element(name, namespace, holds_html))
            self._count[name] += 1

    def _pop(self) -> None:
        self._count[self._open.pop().name] -= 1

    def _break_out(self) -> None:
        while self._open and not (self._open[-1].namespace == "html" or _takes_html(self._open[-1])):
            self._pop()

    def _is_foreign(self, name: str) -> bool:
        """Whether the rules for foreign content apply to a start tag."""
        if not self._open or self._open[-1].namespace == "html" or self._open[-1].holds_html:
            return False
        inner = self._open[-1]
        if inner.namespace == "math" and inner.name in _MATHML_TEXT:
            return name in {"mglyph", "malignmark"}
        return not (inner.namespace == "math" and inner.name == "annotation-xml" and name == "svg")

    @staticmethod
    def _breaks_out(name: str, value: Callable[[str], str | None]) -> bool:
        if name == "font":
            return any(value(attribute) is not None for attribute in ("color", "face", "size"))
        return name in _BREAKOUT


def _takes_html(element: _Element) -> bool:
    return element.holds_html or (element.namespace == "math" and element.name in _MATHML_TEXT)


def _is_html_in_math(name: str, value: Callable[[str], str | None]) -> bool:
    return name == "annotation-xml" and (value("encoding") or "").lower() in {"text/html", "application/xhtml+xml"}
