"""
Rewrites Markdown (CommonMark): the destinations of images, and HTML that stands in it; nothing else changes.

Theory. The parser (`commonmark.py`) tells where an image stands in the text of a paragraph, which is the lines of the
source without what made them a quotation or a list item. What is left of a line is its end, so a place in a paragraph
leads back to its place in the source; where it does not, nothing is changed.

What a browser makes of the page that the text becomes decides, so that page is made, as far as it matters: HTML as it
stands, an `<img>` for each image, and text that comes out as it went in. Of other text nothing is needed, because no
tag is left in it. The page is rewritten as any other, and what changes in it is carried back. So an image behind
`<textarea>` is none, in that paragraph or in a later one.

A reference (`![alt][label]`) is rewritten where its definition stands, if an image uses it. A link that uses the same
definition then leads to the image that is kept.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from markdown_it.common.utils import unescapeAll

from imgkeep.core.rewrite.attribute_values import Values
from imgkeep.core.rewrite.budget import Budget
from imgkeep.core.rewrite.charset import Text, codec_of
from imgkeep.core.rewrite.commonmark import BLANK, PARSER, Found, Notes, TooManySteps
from imgkeep.core.rewrite.html import Edit, Html, applied
from imgkeep.core.rewrite.links import Page

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import AnyStr

    from markdown_it.token import Token

    from imgkeep.core.rewrite.links import Linker

MARKDOWN_CHARS_MAX: Final = 1 << 20
"""Longer texts stay as they are: a Markdown parser takes some hundred times their memory."""
STEPS_PER_CHAR: Final = 2
"""Texts that people write take a tenth of a step for each character, and nothing but images takes half of one."""
STEPS_MIN: Final = 4096
"""Any text may take so many."""
STEPS_MAX: Final = 1 << 19
"""No text may take more: they are a second or two of a thread's time."""

_LINE_END: Final = re.compile(r"\r\n?|\n")
_AMPERSAND: Final = re.compile(r"&(?=#?[A-Za-z0-9]++;)", re.ASCII)
_SERVER: Final = re.compile(r"(?:https?:)?//[^/?#\\\x00-\x20]*+", re.IGNORECASE)
# Bytes that are no text are not encoded, so that they are told from what is.
_ENCODED: Final = re.compile(r"[^!#$%&'()*+,\-./0-9:;=?@A-Z_a-z~\ud800-\udfff]+")


class _Line(NamedTuple):
    """
    A line of a block's text.

    Attributes:
        start: Where it begins in that text.
        shift: What has to be added to find it in the source; `None`: nobody knows.
    """

    start: int
    shift: int | None


class _Block(NamedTuple):
    """A block's text, and where its lines stand in the source."""

    text: str
    lines: list[_Line]


class _Part(NamedTuple):
    """
    A part of a block's text that is the same in the page.

    Attributes:
        start: Where it begins in the page.
        end: Where it ends there.
        at: Where it begins in the text.
    """

    start: int
    end: int
    block: _Block
    at: int


class _Image(NamedTuple):
    """
    An image of Markdown.

    Attributes:
        block: Whose it is; `None`: its destination stands in a definition.
        at: Where its destination begins in the block's text, or in the source.
        destination: As it is written.
    """

    block: _Block | None
    at: int
    destination: str


class _Page(Page):
    """
    The page that a text becomes. Images of Markdown have names in it instead of links: a link in a definition may be
    long, and used often.

    Attributes:
        images: By name. Names begin with a null, which no text holds.
        shown: What to write for those that a browser asks for.
    """

    def __init__(self, linker: Linker, url: str | None = None) -> None:
        super().__init__(linker, url)
        self.images: dict[str, _Image] = {}
        self.shown: dict[str, str | None] = {}

    def replacement(self, text: str) -> str | None:
        image = self.images.get(text)
        if image is None:
            return super().replacement(text)
        if text not in self.shown:
            source = image.destination
            link = unescapeAll(source[1:-1] if source.startswith("<") else source)
            self.shown[text] = super().replacement(_as_rendered(link))
        return None


class _Markdown:
    """One text."""

    def __init__(self, text: str, page: _Page, budget: Budget) -> None:
        self._text = text
        self._page = page
        self._budget = budget
        self._html = Html(Values(page, Text()), scripting=False, budget=budget)
        self._lines = _LINE_END.split(text)
        self._starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
        self._notes = Notes(budget)
        self._pieces: list[str] = []
        self._page_chars = 0
        self._parts: list[_Part] = []

    def edits(self) -> list[Edit]:
        at = 0
        for line in self._lines:
            self._notes.line_starts.append(at)
            at += len(line) + 1
        env: dict[str, object] = {"notes": self._notes}
        for token in PARSER.parse(self._text, env):
            if token.type == "html_block":
                self._add_same(_Block(token.content, self._find_lines(token)), 0, len(token.content))
            elif token.type == "inline" and ("![" in token.content or "<" in token.content):
                self._notes.found = []
                children: list[Token] = []
                PARSER.inline.parse(token.content, PARSER, env, children)
                self._add_inline(_Block(token.content, self._find_lines(token)), children)
        starts = [part.start for part in self._parts]
        edits: list[Edit] = []
        html_edits = self._html.edits("".join(self._pieces))
        if self._budget.is_spent:
            raise TooManySteps
        for edit in html_edits:
            start, end, block, at = self._parts[bisect_right(starts, edit.start) - 1]
            # Raw text of which we do not know all is no part, but it may begin in one.
            if edit.end <= end:
                edits += self._in_source(block, Edit(edit.start - start + at, edit.end - start + at, edit.text))
        for name, new in self._page.shown.items():
            edits += self._of_image(self._page.images[name], new)
        return sorted(edits)

    def _add_inline(self, block: _Block, children: list[Token]) -> None:
        # The tag ends what a block of HTML left open, as it does in a browser. The line end is part of no block, so
        # raw text that is not closed here reaches beyond it and stays.
        self._add("<p>")
        begin = at = 0
        end = Found(len(block.text), len(block.text))
        for between, found in zip(_between(children), [*self._notes.found, end], strict=True):
            if not _comes_out_as(block.text[at : found.start], between):
                self._add_same(block, begin, at)
                begin = found.start
            if found.destination is not None:
                self._add_same(block, begin, found.start)
                self._add_image(block, found.destination)
                begin = found.end
            at = found.end
        self._add_same(block, begin, at)
        self._add("\n")

    def _add_image(self, block: _Block, destination: tuple[int, int] | str) -> None:
        if isinstance(destination, str):
            line, column, source = self._notes.definitions[destination]
            name, image = f"\0{line}:{column}", _Image(None, self._starts[line] + column, source)
        else:
            start, end = destination
            name, image = f"\0{self._page_chars}", _Image(block, start, block.text[start:end])
        self._page.images[name] = image
        self._add(f'<img src="{name}">')

    def _add_same(self, block: _Block, start: int, end: int) -> None:
        if start < end:
            self._parts.append(_Part(self._page_chars, self._page_chars + end - start, block, start))
            self._add(block.text[start:end])

    def _add(self, piece: str) -> None:
        self._pieces.append(piece)
        self._page_chars += len(piece)

    def _of_image(self, image: _Image, new: str | None) -> Iterable[Edit]:
        if new is None:
            return ()
        new = _AMPERSAND.sub("&amp;", new)
        start, end = image.at, image.at + len(image.destination)
        if image.destination.startswith("<"):
            edit = Edit(start + 1, end - 1, new)
        else:
            edit = Edit(start, end, new.replace("(", "%28").replace(")", "%29"))
        return [edit] if image.block is None else self._in_source(image.block, edit)

    def _in_source(self, block: _Block, edit: Edit) -> Iterator[Edit]:
        """Carry an edit of a block's text over to the source, line by line."""
        olds, news = block.text[edit.start : edit.end].split("\n"), edit.text.split("\n")
        number = bisect_right(block.lines, edit.start, key=lambda line: line.start) - 1
        placed = []
        for offset, (old, written) in enumerate(zip(olds, news, strict=False)):
            line = block.lines[number + offset]
            first = line.start if offset else edit.start
            at = None if line.shift is None else first + line.shift
            if at is None or len(olds) != len(news) or self._text[at : at + len(old)] != old:
                break
            placed.append(Edit(at, at + len(old), written))
        else:
            yield from (each for each in placed if each.text != self._text[each.start : each.end])

    def _find_lines(self, token: Token) -> list[_Line]:
        lines = []
        start = 0
        for number, line in enumerate(token.content.split("\n"), token.map[0] if token.map else 0):
            column = self._find_column(number, line)
            lines.append(_Line(start, None if column is None else self._starts[number] + column - start))
            start += len(line) + 1
        return lines

    def _find_column(self, number: int, line: str) -> int | None:
        """Return where in a line of the source the line of a text begins: it is its end, but for a heading's."""
        whole = self._lines[number].replace("\0", "\ufffd") if number < len(self._lines) else ""
        core, end = line.strip(BLANK), len(whole.rstrip(BLANK))
        if not whole[:end].endswith(core):
            # What stands before a heading's text holds neither an image nor a tag, so this is the right place.
            end = whole.find(core) + len(core)
            if end < len(core):
                return None
        return end - len(core) - (len(line) - len(line.lstrip(BLANK)))


def _between(children: list[Token]) -> list[list[Token]]:
    """Return what is before the first image or tag, between the others, and behind the last."""
    between: list[list[Token]] = [[]]
    for child in children:
        if child.type in {"image", "html_inline"}:
            between.append([])
        else:
            between[-1].append(child)
    return between


def _comes_out_as(text: str, tokens: list[Token]) -> bool:
    """Return whether the page has `text` as it stands; white space does not count."""
    rendered: str = PARSER.renderer.render(tokens, PARSER.options, {})
    return rendered.split() == text.split()


def _as_rendered(link: str) -> str:
    r"""
    Return the link that a page has for one of Markdown: with `%5C` for `\`, which browsers else read as a slash.

    So do cmark and commonmark.js; the parser's own `normalizeLink` drops white space around it. Escapes stay, and so
    does the name of a server, which is `read_source`'s business.
    """
    server = _SERVER.match(link)
    at = server.end() if server else 0
    return link[:at] + _ENCODED.sub(lambda found: quote(found[0], safe=""), link[at:])


def steps_max(chars: int) -> int:
    """Return how many steps a text of this length may take."""
    return min(STEPS_MAX, max(STEPS_MIN, STEPS_PER_CHAR * chars))


def rewrite_markdown(
    document: AnyStr, linker: Linker, *, url: str | None = None, charset: str | None = None, insists: bool = False
) -> AnyStr:
    """
    Return Markdown with its links to images rewritten, and not one other character changed.

    A text that is longer than `MARKDOWN_CHARS_MAX`, or takes more than its steps (`steps_max`), stays as it is.

    Args:
        document: As text or as bytes.
        linker: Decides about each link.
        url: Of the page that it will be, if that is known: relative links are resolved against it.
        charset: Of bytes, if it is not UTF-8.
        insists: Whether a text that takes too many steps is an error.

    Raises:
        TooManySteps: See `insists`.
    """
    if isinstance(document, str):
        return _rewritten(document, _Page(linker, url), insists=insists)
    codec = (codec_of(charset) if charset else None) or "utf-8"
    try:
        text = document.decode(codec, "surrogateescape")
        if text.encode(codec, "surrogateescape") != document:
            return document
    except (LookupError, UnicodeError):
        return document
    return _rewritten(text, _Page(linker, url), insists=insists).encode(codec, "surrogateescape")


def _rewritten(document: str, page: _Page, *, insists: bool) -> str:
    if len(document) > MARKDOWN_CHARS_MAX or not ("![" in document or "<" in document):
        return document
    mark = "\ufeff" * document.startswith("\ufeff")
    text = document.removeprefix(mark)
    try:
        return mark + applied(text, _Markdown(text, page, Budget(steps_max(len(text)))).edits())
    except RecursionError:
        return document
    except TooManySteps:
        if insists:
            raise
        return document
