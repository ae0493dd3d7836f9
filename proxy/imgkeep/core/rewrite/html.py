"""
The incremental rewriter of HTML: the values of links to images change, and all other text stays.

Rules:
- The result does not depend on the cuts between the pieces.
- The rewriter buffers one incomplete tag, style sheet, JSON-LD script or `noscript`, up to `TOKEN_CHARS_MAX`; a longer
  one passes unchanged. All other text passes at once.
- It parses the buffer again when that has doubled, so many small pieces cost no more than one large piece.
- It counts its work, one step for each item that it parses closely. When the budget is spent, the rest of the page
  passes unchanged.
- It parses `noscript` like a browser with scripts, up to the first `</noscript`, and then its content as HTML.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from imgkeep.core.rewrite import raw_text as raw
from imgkeep.core.rewrite import svg_style, tags
from imgkeep.core.rewrite.budget import Budget
from imgkeep.core.rewrite.foreign_content import Foreign
from imgkeep.core.rewrite.html_attributes import Form, find_places, is_json_ld, is_style_sheet
from imgkeep.core.rewrite.raw_text import Raw
from imgkeep.core.rewrite.tags import LongTag

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgkeep.core.rewrite.attribute_values import Values
    from imgkeep.core.rewrite.tags import Attribute, Tag

TOKEN_CHARS_MAX: Final = 1 << 20
"""Maximum length of a tag, or of raw text with links; the largest style sheets in pages have some hundred kilobytes."""

_COMMENT_END: Final = re.compile(r"--!?>")
_SRCSET: Final = ' srcset="'
_SIZES: Final = ' sizes="'
_DIMENSIONS: Final = frozenset({"width", "height"})
_SECTION: Final = "<![CDATA["


class Edit(NamedTuple):
    """A replacement of the text from `start` to `end` by `text`."""

    start: int
    end: int
    text: str


def applied(text: str, edits: list[Edit]) -> str:
    """Apply edits, in order of their start, to `text`."""
    if not edits:
        return text
    parts: list[str] = []
    done = 0
    for start, end, new in edits:
        parts += (text[done:start], new)
        done = end
    return "".join((*parts, text[done:]))


class Html:
    """
    The rewriter of one page.

    Args:
        values: Rewriter of values and raw text.
        token_chars_max: As `TOKEN_CHARS_MAX`; at least 64, for tests.
        is_page: Whether `<base>` counts; not inside a `noscript`.
        scripting: Whether the browser runs scripts; without, `noscript` is an ordinary element.
        budget: Budget of the page; `None`: the caller bounds the work in another way.
    """

    def __init__(
        self,
        values: Values,
        *,
        token_chars_max: int = TOKEN_CHARS_MAX,
        is_page: bool = True,
        scripting: bool = True,
        budget: Budget | None = None,
    ) -> None:
        self._values = values
        self._budget = Budget(None) if budget is None else budget
        self._chars_max = token_chars_max
        self._is_page = is_page
        self._scripting = scripting
        self._templates = 0
        self._follows_source = False
        """Whether the next `<img>` is behind a `<source>` of a `<picture>`, as their order is."""
        self._foreign = Foreign()
        self._read = self._read_markup
        self._raw = Raw("", None)
        self._long = LongTag()
        self._behind_long = self._read
        self._is_last = False
        self._is_short = False
        self._edits: list[Edit] = []
        self._buffered: list[str] = []
        self._buffered_chars = 0
        self._wake_chars = 0

    @property
    def held_chars(self) -> int:
        """Return the length of the buffered text."""
        return self._buffered_chars

    def feed(self, piece: str) -> str:
        """Parse a piece of the page, and return the finished text."""
        self._buffered.append(piece)
        self._buffered_chars += len(piece)
        return self._run() if self._buffered_chars >= self._wake_chars else ""

    def close(self, last: str = "") -> str:
        """Parse the last piece, and return the rest of the text."""
        self._buffered.append(last)
        self._buffered_chars += len(last)
        self._is_last = True
        return self._run()

    def held(self) -> str:
        """Return the buffered text, also after an exception."""
        return "".join(self._buffered)

    def edits(self, text: str) -> list[Edit]:
        """Return the edits of a whole page, or of a part of one; an element that it leaves open ends with it."""
        self._is_last = True
        self._go(text)
        self._read = self._read_markup
        return self._edits

    def _run(self) -> str:
        text = "".join(self._buffered)
        end = self._go(text)
        rest = text[end:]
        self._buffered, self._buffered_chars, self._wake_chars = [rest], len(rest), 2 * len(rest)
        return applied(text[:end], self._edits)

    def _go(self, text: str) -> int:
        """Parse `text` as far as possible and collect the edits; return where the next call must start again."""
        self._edits = []
        self._is_short = False
        at = 0
        while at < len(text) and not self._is_short:
            self._budget.spend()
            at = self._read(text, at) if not self._budget.is_spent else len(text)
        return len(text) if self._is_last else at

    # Each of the following methods parses from `at` on, sets the next state in `_read`, and returns the next position.

    def _short(self, at: int) -> int:
        """Wait for more text, and then continue at `at`."""
        self._is_short = True
        return at

    def _read_markup(self, text: str, at: int) -> int:
        if self._foreign.is_in_svg:
            at = tags.skip_in_svg(text, at)
        elif self._foreign.is_inside:
            at = _find_bracket(text, at)
        else:
            at = tags.skip(text, at)
        if at == len(text):
            return at
        tag = tags.read_tag(text, at)
        if tag is not None:
            self._note_tag(text, at, tag)
            return tag.end
        return self._begin_tag(text, at) if tags.begins(text, at) else self._begin_other(text, at)

    def _begin_tag(self, text: str, at: int) -> int:
        if len(text) - at <= self._chars_max:
            return self._short(at)
        is_end = text[at + 1] == "/"
        self._note_name(tags.read_name(text, at), is_end=is_end)
        self._long, self._behind_long, self._read = LongTag(), self._read, self._read_long_tag
        return at + 1 + is_end

    def _begin_other(self, text: str, at: int) -> int:
        if text.startswith("<!--", at):
            return self._begin_comment(text, at)
        start = text[at : at + len(_SECTION)]
        if start in {"<", "</", "<!", "<!-"}:
            return self._short(at)
        if self._foreign.has_sections and _SECTION.startswith(start):
            if start != _SECTION:
                return self._short(at)
            self._read = self._read_section
            return at + len(_SECTION)
        if start[1] in "!?/":
            self._read = self._read_bogus
        return at + 1

    def _begin_comment(self, text: str, at: int) -> int:
        ahead = text[at + 4 : at + 6]
        if ahead in {"", "-"} and not self._is_last:
            return self._short(at)
        if ahead.startswith((">", "->")):
            return at + 4 + ahead.index(">") + 1
        self._read = self._read_comment
        return at + 4

    def _read_long_tag(self, text: str, at: int) -> int:
        end = self._long.find_end(text, at)
        if end is None:
            return len(text)
        self._read = self._behind_long
        return end

    def _read_comment(self, text: str, at: int) -> int:
        match = _COMMENT_END.search(text, at)
        if match is None:
            return self._short(max(at, len(text) - len("--!")))
        self._read = self._read_markup
        return match.end()

    def _read_section(self, text: str, at: int) -> int:
        end = text.find("]]>", at)
        if end < 0:
            return self._short(max(at, len(text) - len("]]")))
        self._read = self._read_markup
        return end + len("]]>")

    def _read_bogus(self, text: str, at: int) -> int:
        end = text.find(">", at) + 1
        if not end:
            return len(text)
        self._read = self._read_markup
        return end

    def _read_rest(self, text: str, at: int) -> int:
        return max(at, len(text))

    def _read_raw(self, text: str, at: int) -> int:
        end, again = self._raw.find_end(text, at)
        if end is None and not self._is_last:
            if self._raw.rewrite is None:
                return self._short(again)
            if len(text) - at <= self._chars_max + len("</>") + len(self._raw.name):
                return self._short(at)
            self._raw.rewrite = None
            return at
        if end is None:
            end = len(text)
        if self._raw.rewrite is not None and end - at <= self._chars_max:
            self._change_closely(text, at, end, self._raw.rewrite)
        self._read = self._read_markup
        return end

    def _read_svg_style(self, text: str, at: int) -> int:
        end = svg_style.find_end(text, at, is_last=self._is_last)
        if end is None and not self._is_last and len(text) - at <= self._chars_max:
            return self._short(at)
        self._read = self._read_markup
        if end is None or end - at > self._chars_max:
            return at
        self._change_closely(text, at, end, self._values.svg_style_sheet)
        return end

    # Effects of tags.

    def _change(self, text: str, start: int, end: int, new: str) -> None:
        if new != text[start:end]:
            self._edits.append(Edit(start, end, new))

    def _change_closely(self, text: str, start: int, end: int, rewrite: Callable[[str], str]) -> None:
        """Rewrite raw text, if the budget suffices."""
        self._budget.spend_on(end - start)
        if not self._budget.is_spent:
            self._change(text, start, end, rewrite(text[start:end]))

    def _note_tag(self, text: str, at: int, tag: Tag) -> None:
        if tag.is_end or tag.end - at > self._chars_max:
            self._note_name(tag.name, is_end=tag.is_end)
            return
        self._budget.spend_on(tag.end - at)
        attributes = tags.read_attributes(text, tag)

        def value(name: str) -> str | None:
            attribute = attributes.get(name)
            return None if attribute is None else self._values.read(text[attribute.start : attribute.end])

        namespace = self._note_start(tag.name, value, is_self_closing=tag.is_self_closing)
        found = [
            (attributes[name], form) for name, form in find_places(tag.name, namespace, value) if name in attributes
        ]
        added = self._find_added(text, attributes)
        for attribute, form in sorted(found, key=lambda each: each[0].start):
            start, end, quote = attribute
            if added is not None and attribute is attributes["srcset"]:
                self._edits.append(Edit(*added, ""))
                continue
            new = self._values.attribute(text[start:end], quote, form)
            self._change(text, start, end, new)
            if form is Form.PICTURE and attribute is attributes.get("src") and new != text[start:end]:
                self._add_attributes(attribute, self._values.read(text[start:end]), value)
        if tag.name in {"img", "source"}:
            self._follows_source = tag.name == "source" and "srcset" in attributes

    def _find_added(self, text: str, attributes: Mapping[str, Attribute]) -> tuple[int, int] | None:
        """Return where the `srcset` and the `sizes` are that a rewriting added and an undo removes; `None`: nowhere."""
        src, srcset, sizes = (attributes.get(name) for name in ("src", "srcset", "sizes"))
        if src is None or srcset is None or not self._values.page.undoes:
            return None
        start, end = srcset.start - len(_SRCSET), srcset.end + 1
        behind_src = src.end + len(src.quote)
        if start != behind_src or not text.startswith(_SRCSET, start):
            return None
        if sizes is not None and sizes.start - len(_SIZES) == end and text.startswith(_SIZES, end):
            end = sizes.end + 1
        is_added = self._values.holds_one_source(text[src.start : src.end], text[srcset.start : srcset.end])
        return (start, end) if is_added else None

    def _add_attributes(self, src: Attribute, link: str, value: Callable[[str], str | None]) -> None:
        """Add attributes to an `<img>` behind its `src`, which has a new link."""
        # The image of a `<source>` may have other proportions, which dimensions of this one would spoil.
        without = _DIMENSIONS if self._follows_source else ()
        if self._values.page.has_pictures and (new := self._values.new_attributes(link, value, without)):
            end = src.end + len(src.quote)
            self._edits.append(Edit(end, end, new))

    def _note_name(self, name: str, *, is_end: bool) -> None:
        if not is_end:
            self._note_start(name, _no_value, is_self_closing=False)
        elif (not self._foreign.is_inside or self._foreign.end(name)) and name == "template":
            self._templates = max(self._templates - 1, 0)

    def _note_start(self, name: str, value: Callable[[str], str | None], *, is_self_closing: bool) -> str:
        namespace = "html"
        if self._foreign.is_inside or name in {"svg", "math"}:
            namespace = self._foreign.start(name, value, is_self_closing=is_self_closing)
        if namespace != "html":
            if namespace == "svg" and name == "style" and not is_self_closing and is_style_sheet(value("type")):
                self._read = self._read_svg_style
        elif name in raw.NAMES and (self._scripting or name != "noscript"):
            self._raw, self._read = Raw(name, self._rewriter(name, value)), self._read_raw
        elif name == "plaintext":
            self._read = self._read_rest
        elif name == "template":
            self._templates += 1
        elif name == "base" and self._is_page and not self._templates and (href := value("href")) is not None:
            self._values.page.note_base(href)
        return namespace

    def _rewriter(self, name: str, value: Callable[[str], str | None]) -> Callable[[str], str] | None:
        if name not in {"style", "script", "noscript"}:
            return None
        if name == "style":
            return self._values.style_sheet if is_style_sheet(value("type")) else None
        if name == "script":
            return self._values.json_ld if is_json_ld(value("type")) else None
        return self._noscript

    def _noscript(self, text: str) -> str:
        inner = Html(self._values, token_chars_max=self._chars_max, is_page=False, scripting=False, budget=self._budget)
        return applied(text, inner.edits(text))


def _no_value(_: str) -> None:
    return None


def _find_bracket(text: str, at: int) -> int:
    found = text.find("<", at)
    return len(text) if found < 0 else found
