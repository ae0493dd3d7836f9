"""
A parser of CommonMark that notes the positions of images, inline HTML and definitions.

Theory. markdown-it-py gives the lines of a block, but not the position of an image in them. So wrappers around some of
its rules note where these match.

The parser is linear, at up to thirty microseconds a character. So the wrappers count steps: one for each position in a
line, each line of each enclosing quotation or list item, and each position in the search for the end of a label.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from markdown_it import MarkdownIt
from markdown_it.common.utils import normalizeReference
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_block import blockquote, code, lheading, paragraph, reference
from markdown_it.rules_inline import html_inline, image
from markdown_it.rules_inline import text as plain_text

from imgkeep.core.rewrite.patterns import many

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from markdown_it.ruler import RuleOptionsType
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline

    from imgkeep.core.rewrite.budget import Budget

BLANK: Final = " \t"
"""All that a blank line holds, and that is dropped around a text (CommonMark 0.31.2, 2.1 and 4.8)."""

_LABEL: Final = re.compile(r"\[(" + many(r"[^\[\]\\]++|\\.") + r")\]:[ \t\n]*+", re.DOTALL)
_SPACE: Final = re.compile(r"[ \t\n]*+")

_Rule: TypeAlias = "Callable[[StateBlock, int, int, bool], bool]"


class Found(NamedTuple):
    """
    An image, a tag or a comment in the text that is being parsed.

    Attributes:
        destination: Start and end of an image's destination, or the label of its definition; `None`: it is HTML.
    """

    start: int
    end: int
    destination: tuple[int, int] | str | None = None


class TooManySteps(Exception):
    """The text takes more work than its budget allows."""


class Notes:
    """
    The notes of the wrapped rules.

    Attributes:
        budget: Budget of the text.
        found: Images and HTML in the current text, in order.
        definitions: Line, column and text of each destination, by label.
        depth: Number of image descriptions around the current text: an image inside one is none.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.found: list[Found] = []
        self.definitions: dict[str, tuple[int, int, str]] = {}
        self.line_starts: list[int] = []
        self.depth = 0

    def spend(self) -> None:
        """
        Count a step.

        Raises:
            TooManySteps: The budget is spent.
        """
        self.budget.spend()
        if self.budget.is_spent:
            raise TooManySteps


def _notes(env: MutableMapping[str, object]) -> Notes:
    notes = env["notes"]
    assert isinstance(notes, Notes)
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
        notes.found.append(Found(start, state.pos, (at, found.pos if found.ok else at)))
    else:
        label = state.src[label_end + 2 : state.pos - 1] or state.src[start + 2 : label_end]
        notes.found.append(Found(start, state.pos, normalizeReference(label)))
    return matched


def _html_inline(state: StateInline, silent: bool) -> bool:  # noqa: FBT001 - the parser's own form
    start, notes = state.pos, _notes(state.env)
    matched = html_inline(state, silent)
    if matched and not silent and not notes.depth:
        notes.found.append(Found(start, state.pos))
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
    """Wrap a rule that drops lines of Unicode white space around a text, so that the text matches the source."""

    def wrapped(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:  # noqa: FBT001 - likewise
        matched = rule(state, start_line, end_line, silent)
        if matched:
            token = state.tokens[-2]
            first, last = token.map or (0, 0)
            token.content = state.getLines(first, last, state.blkIndent, keepLastLF=False).strip(BLANK)
        return matched

    return wrapped


def _skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr] # it matches nothing at least


class _Inline(ParserInline):
    """The inline parser, which counts skipped tokens."""

    def skipToken(self, state: StateInline) -> None:  # noqa: N802 - the parser's own name
        _notes(state.env).spend()
        super().skipToken(state)


def _text(state: StateInline, silent: bool) -> bool:  # noqa: FBT001 - the parser's own form
    """Count a position in a line: this rule runs first at each."""
    _notes(state.env).spend()
    return plain_text(state, silent)


def _counted(rule: _Rule) -> _Rule:
    """Wrap a rule that runs at each line: `code` where a block may begin, `blockquote` where a paragraph may end."""

    def wrapped(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:  # noqa: FBT001 - likewise
        _notes(state.env).spend()
        return rule(state, start_line, end_line, silent)

    return wrapped


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark")
    parser.inline = _Inline()
    parser.configure("commonmark").disable(["inline", "text_join"])
    parser.inline.ruler.at("text", _text)
    parser.inline.ruler.at("image", _image)
    parser.inline.ruler.at("html_inline", _html_inline)
    parser.block.ruler.at("reference", _reference)
    parser.block.ruler.at("code", _counted(code))
    interrupts: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    parser.block.ruler.at("blockquote", _counted(blockquote), interrupts)
    parser.block.ruler.at("lheading", _with_all_lines(lheading))
    parser.block.ruler.at("paragraph", _with_all_lines(paragraph))
    return parser


PARSER: Final = _parser()
