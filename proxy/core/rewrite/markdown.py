"""
Rewrites Markdown (CommonMark): the destinations of images, and HTML that stands in it; nothing else changes.

Theory. markdown-it-py says on which lines a block stands, but not where in them an image is. Some of its rules are
therefore run in a wrapper that notes where they matched: in the text of a paragraph, which is the lines of the source
without what made them a quotation or a list item. What is left of a line is its end, so a place in a paragraph leads
back to its place in the source; where it does not, nothing is changed.

A reference (`![alt][label]`) is rewritten where its definition stands, if an image uses it. A link that uses the same
definition then leads to the picture that is kept.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

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
    from collections.abc import Callable, Iterator, MutableMapping
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

_Rule: TypeAlias = "Callable[[StateBlock, int, int, bool], bool]"


class _Notes:
    """
    What the rules note while they run.

    Attributes:
        destinations: Of inline images, in the text that is being parsed.
        html: Tags and comments, in the same.
        used: Labels that images use.
        definitions: By label, the line of a destination, where it begins in that line, and its text.
        depth: Of texts in texts: an image in the description of another is none.
    """

    def __init__(self) -> None:
        self.destinations: list[tuple[int, int]] = []
        self.html: list[tuple[int, int]] = []
        self.used: set[str] = set()
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
        if found.ok:
            notes.destinations.append((at, found.pos))
    else:
        label = state.src[label_end + 2 : state.pos - 1] or state.src[start + 2 : label_end]
        notes.used.add(normalizeReference(label))
    return matched


def _html_inline(state: StateInline, silent: bool) -> bool:  # noqa: FBT001 - the parser's own form
    start, notes = state.pos, _notes(state.env)
    matched = html_inline(state, silent)
    if matched and not silent and not notes.depth:
        notes.html.append((start, state.pos))
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


class _Markdown:
    """One text."""

    def __init__(self, text: str, page: Page) -> None:
        self._text = text
        self._page = page
        self._html = Html(Values(page, Text()))
        self._lines = _LINE_END.split(text)
        self._starts = [0, *(match.end() for match in _LINE_END.finditer(text))]

    def edits(self) -> list[Edit]:
        notes = _Notes()
        at = 0
        for line in self._lines:
            notes.line_starts.append(at)
            at += len(line) + 1
        env: dict[str, object] = {"notes": notes}
        edits: list[Edit] = []
        for token in _PARSER.parse(self._text, env):
            if token.type == "html_block":
                edits += self._in_source(token, self._html.edits(token.content))
            elif token.type == "inline" and ("![" in token.content or "<" in token.content):
                notes.destinations, notes.html = [], []
                _PARSER.inline.parse(token.content, _PARSER, env, [])
                edits += self._in_source(token, self._of_text(token.content, notes))
        edits += self._of_definitions(notes)
        return sorted(edits)

    def _of_text(self, text: str, notes: _Notes) -> Iterator[Edit]:
        for start, end in notes.destinations:
            yield from self._of_destination(start, text[start:end])
        for start, end in notes.html:
            for first, last, new in self._html.edits(text[start:end]):
                yield Edit(start + first, start + last, new)

    def _of_definitions(self, notes: _Notes) -> Iterator[Edit]:
        for label, (line, column, destination) in notes.definitions.items():
            if label in notes.used:
                yield from self._of_destination(self._starts[line] + column, destination)

    def _of_destination(self, start: int, source: str) -> Iterator[Edit]:
        in_brackets = source.startswith("<")
        if in_brackets:
            start, source = start + 1, source[1:-1]
        new = self._page.replacement(unescapeAll(source))
        if new is not None:
            new = _AMPERSAND.sub("&amp;", new)
            yield Edit(start, start + len(source), new if in_brackets else new.replace("(", "%28").replace(")", "%29"))

    def _in_source(self, token: Token, edits: Iterator[Edit] | list[Edit]) -> Iterator[Edit]:
        """Carry edits of a block's text over to the source, line by line."""
        lines: list[_Line] = []
        for start, end, new in edits:
            lines = lines or self._find_lines(token)
            olds, news = token.content[start:end].split("\n"), new.split("\n")
            number = token.content.count("\n", 0, start)
            placed = []
            for offset, (old, written) in enumerate(zip(olds, news, strict=False)):
                line = lines[number + offset]
                first = start if not offset else line.start
                at = None if line.shift is None else first + line.shift
                if at is None or len(olds) != len(news) or self._text[at : at + len(old)] != old:
                    break
                placed.append(Edit(at, at + len(old), written))
            else:
                yield from (edit for edit in placed if edit.text != self._text[edit.start : edit.end])

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
        return _rewritten(document, Page(linker, url))
    codec = (codec_of(charset) if charset else None) or "utf-8"
    try:
        text = document.decode(codec, "surrogateescape")
        if text.encode(codec, "surrogateescape") != document:
            return document
    except (LookupError, UnicodeError):
        return document
    return _rewritten(text, Page(linker, url)).encode(codec, "surrogateescape")


def _rewritten(document: str, page: Page) -> str:
    if len(document) > MARKDOWN_CHARS_MAX or not ("![" in document or "<" in document):
        return document
    mark = "\ufeff" * document.startswith("\ufeff")
    text = document.removeprefix(mark)
    try:
        return mark + applied(text, _Markdown(text, page).edits())
    except RecursionError:
        return document
