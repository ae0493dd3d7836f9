"""
Rewrites Markdown (CommonMark): the destinations of images, and HTML that stands in it; nothing else changes.

Theory. markdown-it-py says on which lines a block stands, but not where in them an image is. Some of its rules are
therefore run in a wrapper that notes where they matched: in the text of a paragraph, which is the lines of the source
without what made them a quotation or a list item. What is left of a line is its end, so a place in a paragraph leads
back to its place in the source; where it does not, nothing is changed.

What a browser makes of the page that the text becomes decides, so that page is made, as far as it matters: HTML as it
stands, an `<img>` for each image, and text that comes out as it went in. Of other text nothing is needed, because no
tag is left in it. The page is rewritten as any other, and what changes in it is carried back. So an image behind
`<textarea>` is none, in that paragraph or in a later one.

A reference (`![alt][label]`) is rewritten where its definition stands, if an image uses it. A link that uses the same
definition then leads to the picture that is kept.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias
from urllib.parse import quote

from markdown_it import MarkdownIt
from markdown_it.common.utils import normalizeReference, unescapeAll
from markdown_it.rules_block import lheading, paragraph, reference
from markdown_it.rules_inline import html_inline, image

from proxy.core.rewrite.charset import Text, codec_of
from proxy.core.rewrite.html import Edit, Html, applied
from proxy.core.rewrite.links import Page
from proxy.core.rewrite.patterns import many
from proxy.core.rewrite.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, MutableMapping
    from typing import AnyStr

    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

    from proxy.core.rewrite.links import Linker

MARKDOWN_CHARS_MAX: Final = 4 << 20
"""Longer texts stay as they are: a Markdown parser needs a second for a megabyte and a hundred times its memory."""

_LINE_END: Final = re.compile(r"\r\n?|\n")
_LABEL: Final = re.compile(r"\[(" + many(r"[^\[\]\\]++|\\.") + r")\]:[ \t\n]*+", re.DOTALL)
_SPACE: Final = re.compile(r"[ \t\n]*+")
_AMPERSAND: Final = re.compile(r"&(?=#?[A-Za-z0-9]++;)", re.ASCII)
_BLANK: Final = " \t"
"""All that a blank line holds, and that is dropped around a text (CommonMark 0.31.2, 2.1 and 4.8)."""

_SERVER: Final = re.compile(r"(?:https?:)?//[^/?#\\\x00-\x20]*+", re.IGNORECASE)
# Bytes that are no text are not encoded, so that they are told from what is.
_ENCODED: Final = re.compile(r"[^!#$%&'()*+,\-./0-9:;=?@A-Z_a-z~\ud800-\udfff]+")

_Rule: TypeAlias = "Callable[[StateBlock, int, int, bool], bool]"


class _Found(NamedTuple):
    """
    An image, a tag or a comment in the text that is being parsed.

    Attributes:
        destination: Where that of an image stands, or the label of its definition; `None`: it is HTML.
    """

    start: int
    end: int
    destination: tuple[int, int] | str | None = None


class _Notes:
    """
    What the rules note while they run.

    Attributes:
        found: In the text that is being parsed, in its order.
        definitions: By label, the line of a destination, where it begins in that line, and its text.
        depth: Of texts in texts: an image in the description of another is none.
    """

    def __init__(self) -> None:
        self.found: list[_Found] = []
        self.definitions: dict[str, tuple[int, int, str]] = {}
        self.line_starts: list[int] = []
        self.depth = 0


def _notes(env: MutableMapping[str, object]) -> _Notes:
    notes = env["notes"]
    assert isinstance(notes, _Notes)
    return notes


def _image(state: StateInline, silent: bool) -> bool:  # noqa: FBT001 - the parser's own form
    start, notes = state.pos, _notes(state.env)
    notes.depth += 1
    matched = image(state, silent)
    notes.depth -= 1
    if not matched or silent or notes.depth:
        return matched
    label_end = state.md.helpers.parseLinkLabel(state, start + 1, disableNested=False)
    if state.src[state.pos - 1] == ")":
        at = _skip_space(state.src, label_end + 2)
        found = state.md.helpers.parseLinkDestination(state.src, at, state.posMax)
        notes.found.append(_Found(start, state.pos, (at, found.pos if found.ok else at)))
    else:
        label = state.src[label_end + 2 : state.pos - 1] or state.src[start + 2 : label_end]
        notes.found.append(_Found(start, state.pos, normalizeReference(label)))
    return matched


def _html_inline(state: StateInline, silent: bool) -> bool:  # noqa: FBT001 - the parser's own form
    start, notes = state.pos, _notes(state.env)
    matched = html_inline(state, silent)
    if matched and not silent and not notes.depth:
        notes.found.append(_Found(start, state.pos))
    return matched


def _reference(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:  # noqa: FBT001 - likewise
    matched = reference(state, start_line, end_line, silent)
    if not matched or silent:
        return matched
    notes = _notes(state.env)
    lines = range(start_line, state.line)
    starts = [state.bMarks[line] + state.tShift[line] for line in lines]
    parts = [state.src[start : state.eMarks[line] + 1] for start, line in zip(starts, lines, strict=True)]
    text = "".join(parts)
    label = _LABEL.match(text)
    assert label is not None  # or it were no definition
    at = label.end()
    found = state.md.helpers.parseLinkDestination(text, at, len(text))
    begins = list(accumulate(map(len, parts), initial=0))[:-1]
    number = bisect_right(begins, at) - 1
    column = starts[number] + at - begins[number] - notes.line_starts[lines[number]]
    notes.definitions.setdefault(normalizeReference(label[1]), (lines[number], column, text[at : found.pos]))
    return matched


def _with_all_lines(rule: _Rule) -> _Rule:
    """Wrap a rule that drops lines of Unicode's white space around a text, so that the text fits the source."""

    def wrapped(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:  # noqa: FBT001 - likewise
        matched = rule(state, start_line, end_line, silent)
        if matched:
            token = state.tokens[-2]
            first, last = token.map or (0, 0)
            token.content = state.getLines(first, last, state.blkIndent, keepLastLF=False).strip(_BLANK)
        return matched

    return wrapped


def _skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr] # it matches nothing at least


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").disable(["inline", "text_join"])
    parser.inline.ruler.at("image", _image)
    parser.inline.ruler.at("html_inline", _html_inline)
    parser.block.ruler.at("reference", _reference)
    parser.block.ruler.at("lheading", _with_all_lines(lheading))
    parser.block.ruler.at("paragraph", _with_all_lines(paragraph))
    return parser


_PARSER: Final = _parser()


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

    def __init__(self, text: str, page: _Page) -> None:
        self._text = text
        self._page = page
        self._html = Html(Values(page, Text()), scripting=False)
        self._lines = _LINE_END.split(text)
        self._starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
        self._notes = _Notes()
        self._pieces: list[str] = []
        self._page_chars = 0
        self._parts: list[_Part] = []

    def edits(self) -> list[Edit]:
        at = 0
        for line in self._lines:
            self._notes.line_starts.append(at)
            at += len(line) + 1
        env: dict[str, object] = {"notes": self._notes}
        for token in _PARSER.parse(self._text, env):
            if token.type == "html_block":
                self._add_same(_Block(token.content, self._find_lines(token)), 0, len(token.content))
            elif token.type == "inline" and ("![" in token.content or "<" in token.content):
                self._notes.found = []
                children: list[Token] = []
                _PARSER.inline.parse(token.content, _PARSER, env, children)
                self._add_inline(_Block(token.content, self._find_lines(token)), children)
        starts = [part.start for part in self._parts]
        edits: list[Edit] = []
        for edit in self._html.edits("".join(self._pieces)):
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
        end = _Found(len(block.text), len(block.text))
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
        core, end = line.strip(_BLANK), len(whole.rstrip(_BLANK))
        if not whole[:end].endswith(core):
            # What stands before a heading's text holds neither an image nor a tag, so this is the right place.
            end = whole.find(core) + len(core)
            if end < len(core):
                return None
        return end - len(core) - (len(line) - len(line.lstrip(_BLANK)))


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
    """Whether the page has `text` as it stands; white space does not count."""
    rendered: str = _PARSER.renderer.render(tokens, _PARSER.options, {})
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


def rewrite_markdown(document: AnyStr, linker: Linker, *, url: str | None = None, charset: str | None = None) -> AnyStr:
    """
    Return Markdown with its links to images rewritten, and not one other character changed.

    Args:
        document: As text or as bytes; longer than `MARKDOWN_CHARS_MAX` it stays as it is.
        linker: Decides about each link.
        url: Of the page that it will be, if that is known: relative links are resolved against it.
        charset: Of bytes, if it is not UTF-8.
    """
    if isinstance(document, str):
        return _rewritten(document, _Page(linker, url))
    codec = (codec_of(charset) if charset else None) or "utf-8"
    try:
        text = document.decode(codec, "surrogateescape")
        if text.encode(codec, "surrogateescape") != document:
            return document
    except (LookupError, UnicodeError):
        return document
    return _rewritten(text, _Page(linker, url)).encode(codec, "surrogateescape")


def _rewritten(document: str, page: _Page) -> str:
    if len(document) > MARKDOWN_CHARS_MAX or not ("![" in document or "<" in document):
        return document
    mark = "\ufeff" * document.startswith("\ufeff")
    text = document.removeprefix(mark)
    try:
        return mark + applied(text, _Markdown(text, page).edits())
    except RecursionError:
        return document
