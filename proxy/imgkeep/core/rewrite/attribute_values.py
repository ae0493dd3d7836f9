"""The rewriter of one value: it finds the links by the form of the value, replaces them, and leaves all other text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from imgkeep.core.rewrite import character_references as references
from imgkeep.core.rewrite import css, json_ld, srcset, svg_style
from imgkeep.core.rewrite.html_attributes import Form

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from imgkeep.core.rewrite.character_references import Value
    from imgkeep.core.rewrite.charset import Charset
    from imgkeep.core.rewrite.links import Page

    Links = Iterable[tuple[int, int, str]]

_QUOTE: Final = '"'
_BLANK: Final = "".join(map(chr, range(33)))
_NOTHING: Final = re.compile(r"(?!)")
# Characters that would end an unquoted URL or a string in CSS; `Page.replacement` escapes all others.
_IN_CSS: Final = re.compile(r"['()]")
_OUTER_COMMA: Final = re.compile(r"\A,+|,+\Z")


class Values:
    """The values of one page."""

    def __init__(self, page: Page, charset: Charset) -> None:
        self.page = page
        self._charset = charset

    def read(self, source: str) -> str:
        """Return the decoded value of an attribute; empty if the encoding is uncertain."""
        return references.read(self._charset.decode(source) or "").text

    def attribute(self, source: str, quote: str, form: Form) -> str:
        """Return the new source of an attribute's value in these quotes."""
        return self._rewritten(source, references.read, form, lambda link, _: references.write(link, quote))

    def new_attributes(self, src: str, given: Callable[[str], str | None], without: Container[str] = ()) -> str:
        """Return the source of the attributes that an `<img>` gets behind its `src`, whose link was rewritten."""
        made = ((name, value) for name, value in self.page.attributes(src, given) if name not in without)
        return "".join(f' {name}="{references.write(value, _QUOTE)}"' for name, value in made)

    def holds_one_source(self, src: str, candidates: str) -> bool:
        """Return whether all links of a `srcset` hold the source URL of `src`: a rewriting made it from that."""
        text = self.read(candidates)
        links = {self.page.replacement(text[start:end]) for start, end in srcset.find_links(text)}
        return links == {self.page.replacement(self.read(src))} and None not in links

    def style_sheet(self, source: str) -> str:
        """Return the new source of a style sheet."""
        return self._rewritten(source, references.Value, Form.CSS, _as_is)

    def svg_style_sheet(self, source: str) -> str:
        """Return the new source of the content of a `<style>` in SVG."""
        return self._rewritten(source, svg_style.read, Form.CSS, svg_style.write)

    def json_ld(self, source: str) -> str:
        """Return the new source of a JSON-LD script."""
        return self._rewritten(source, references.Value, Form.JSON_LD, _as_is)

    def _rewritten(
        self, source: str, read: Callable[[str], Value], form: Form, write: Callable[[str, str], str]
    ) -> str:
        text = self._charset.decode(source)
        if text is None:
            return source
        value = read(text)
        parts: list[str] = []
        done = 0
        for start, end, new in self._found(value.text, form):
            first, last = value.source(start, end)
            parts += (text[done:first], write(new, text[first:last]))
            done = last
        return self._charset.encode("".join((*parts, text[done:]))) if parts else source

    def _found(self, text: str, form: Form) -> Links:
        """Yield start and end of each link to replace, with the new link."""
        find, unsafe = _FORMS[form]
        for start, end, link in find(text):
            new = self.page.replacement(link, is_picture=form is Form.PICTURE)
            if new is not None:
                yield start, end, unsafe.sub(_percent_encoded, new)


def _whole(text: str) -> Links:
    start, end = len(text) - len(text.lstrip(_BLANK)), len(text.rstrip(_BLANK))
    yield start, max(start, end), text


def _in_srcset(text: str) -> Links:
    return ((start, end, text[start:end]) for start, end in srcset.find_links(text))


def _as_is(link: str, _: str) -> str:
    return link


def _percent_encoded(found: re.Match[str]) -> str:
    return "".join(f"%{ord(each):02X}" for each in found[0])


# By form: the finder of links, and the characters that a new link must not contain there.
_FORMS: Final[dict[Form, tuple[Callable[[str], Links], re.Pattern[str]]]] = {
    Form.LINK: (_whole, _NOTHING),
    Form.PICTURE: (_whole, _NOTHING),
    Form.SRCSET: (_in_srcset, _OUTER_COMMA),
    Form.CSS: (css.find_links, _IN_CSS),
    Form.JSON_LD: (json_ld.find_links, _NOTHING),
}
