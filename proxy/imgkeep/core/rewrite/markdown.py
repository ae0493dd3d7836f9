"""
The rewriter of Markdown (CommonMark): the destinations of images and the links in HTML change, and all other text
stays.

Theory. The parser (`commonmark.py`) gives the position of an image in the text of a paragraph: the lines of the source
without the marks of quotations and list items. The text of a line is the end of the source line, so a position in a
paragraph maps to a position in the source; where it does not, the text stays.

A browser's reading of the rendered page decides. So the rewriter renders the relevant part of it: HTML unchanged, an
`<img>` for each image, and text that renders unchanged. Other text does not matter, because it contains no tag. It
rewrites this page like any other, and maps the edits back. So an image behind `<textarea>` is none, in that paragraph
or in a later one.

For a reference (`![alt][label]`) the rewriter changes the definition, if an image uses it. A link with the same
definition then leads to the stored image.
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
"""Maximum length of a text; a longer one stays unchanged: a Markdown parser takes some hundred times its memory."""
STEPS_PER_CHAR: Final = 2
"""Maximum number of steps for each character: texts of people take a tenth of one, a text of images alone a half."""
STEPS_MIN: Final = 4096
"""Minimum limit of steps, for short texts."""
STEPS_MAX: Final = 1 << 19
"""Maximum number of steps for any text: a second or two of a thread's time."""

_LINE_END: Final = re.compile(r"\r\n?|\n")
_AMPERSAND: Final = re.compile(r"&(?=#?[A-Za-z0-9]++;)", re.ASCII)
_SERVER: Final = re.compile(r"(?:https?:)?//[^/?#\\\x00-\x20]*+", re.IGNORECASE)
# The pattern leaves undecodable bytes unencoded, so that the linker can recognise them.
_ENCODED: Final = re.compile(r"[^!#$%&'()*+,\-./0-9:;=?@A-Z_a-z~\ud800-\udfff]+")


class _Line(NamedTuple):
    """
    A line of a block's text.

    Attributes:
        start: Start of the line in that text.
        shift: Offset of the same line in the source; `None`: unknown.
    """

    start: int
    shift: int | None


class _Block(NamedTuple):
    """The text of a block, with the positions of its lines in the source."""

    text: str
    lines: list[_Line]


class _Part(NamedTuple):
    """
    A part of a block's text that the page contains unchanged.

    Attributes:
        start: Start in the page.
        end: End in the page.
        at: Start in the text of the block.
    """

    start: int
    end: int
    block: _Block
    at: int


class _Image(NamedTuple):
    """
    An image of Markdown.

    Attributes:
        block: Block of the image; `None`: its destination is in a definition.
        at: Start of its destination in the block's text, or in the source.
        destination: The destination as written.
    """

    block: _Block | None
    at: int
    destination: str


class _Page(Page):
    """
    The rendered page of a text. Images of Markdown have names in it instead of links: a link in a definition may be
    long and used often.

    Attributes:
        images: Images by name. A name begins with a null, which no text contains.
        shown: New links of the images that a browser would request.
    """

    def __init__(self, linker: Linker, url: str | None = None) -> None:
        super().__init__(linker, url)
        self.images: dict[str, _Image] = {}
        self.shown: dict[str, str | None] = {}

    def replacement(self, text: str, *, is_picture: bool = False) -> str | None:
        image = self.images.get(text)
        if image is None:
            return super().replacement(text, is_picture=is_picture)
        if text not in self.shown:
            source = image.destination
            link = unescapeAll(source[1:-1] if source.startswith("<") else source)
            self.shown[text] = super().replacement(_as_rendered(link), is_picture=is_picture)
        return None


class _Markdown:
    """The rewriter of one text."""

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
            # Raw text beyond a known part cannot be mapped back, although it may begin in a part.
            if edit.end <= end:
                edits += self._in_source(block, Edit(edit.start - start + at, edit.end - start + at, edit.text))
        for name, new in self._page.shown.items():
            edits += self._of_image(self._page.images[name], new)
        return sorted(edits)

    def _add_inline(self, block: _Block, children: list[Token]) -> None:
        # The tag closes an element that a block of HTML left open, as in a browser. The line end is part of no block,
        # so raw text that is not closed here reaches beyond it and stays.
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
        """Map an edit of a block's text to the source, line by line."""
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
        """Return the column of a block's line in the source line: it is the end of that line, except in a heading."""
        whole = self._lines[number].replace("\0", "\ufffd") if number < len(self._lines) else ""
        core, end = line.strip(BLANK), len(whole.rstrip(BLANK))
        if not whole[:end].endswith(core):
            # The marks before a heading's text contain neither an image nor a tag, so the first match is right.
            end = whole.find(core) + len(core)
            if end < len(core):
                return None
        return end - len(core) - (len(line) - len(line.lstrip(BLANK)))


def _between(children: list[Token]) -> list[list[Token]]:
    """Return the tokens before the first image or tag, between the others, and behind the last."""
    between: list[list[Token]] = [[]]
    for child in children:
        if child.type in {"image", "html_inline"}:
            between.append([])
        else:
            between[-1].append(child)
    return between


def _comes_out_as(text: str, tokens: list[Token]) -> bool:
    """Return whether `text` renders unchanged, apart from white space."""
    rendered: str = PARSER.renderer.render(tokens, PARSER.options, {})
    return rendered.split() == text.split()


def _as_rendered(link: str) -> str:
    r"""
    Return the rendered form of a Markdown link: with `%5C` for `\`, which browsers would read as a slash.

    cmark and commonmark.js do the same; the parser's own `normalizeLink` drops white space around it. Escapes stay, and
    so does the name of a server, which `read_source` checks.
    """
    server = _SERVER.match(link)
    at = server.end() if server else 0
    return link[:at] + _ENCODED.sub(lambda found: quote(found[0], safe=""), link[at:])


def steps_max(chars: int) -> int:
    """Return the maximum number of steps for a text of this length."""
    return min(STEPS_MAX, max(STEPS_MIN, STEPS_PER_CHAR * chars))


def rewrite_markdown(
    document: AnyStr, linker: Linker, *, url: str | None = None, charset: str | None = None, insists: bool = False
) -> AnyStr:
    """
    Return Markdown with its links to images rewritten, and all other text unchanged.

    A text that is longer than `MARKDOWN_CHARS_MAX`, or takes more steps than `steps_max`, stays unchanged.

    Args:
        document: The text as text or as bytes.
        linker: Decides about each link.
        url: URL of the rendered page, if known: it is the base of relative links.
        charset: Encoding of bytes, if it is not UTF-8.
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
