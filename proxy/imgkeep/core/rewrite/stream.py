"""A page in bytes that comes in pieces, and one that is there as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgkeep.core.rewrite.attribute_values import Values
from imgkeep.core.rewrite.budget import Budget
from imgkeep.core.rewrite.charset import BOM_BYTES, HEAD_BYTES, OPAQUE, Bytes, Text, codec_of, find_codec, tells_codec
from imgkeep.core.rewrite.html import TOKEN_CHARS_MAX, Html
from imgkeep.core.rewrite.links import Page

if TYPE_CHECKING:
    from typing import AnyStr, TypeAlias

    from imgkeep.core.rewrite.links import Linker

    _Rewriter: TypeAlias = "_PassThrough | _ByteRewriter | _Utf16Rewriter"


class HtmlStream:
    """
    Rewrites a page that comes in pieces, in bounded memory. What comes out is the same however it is cut.

    Args:
        linker: Decides about each link.
        url: The page's own, if it is known: relative links are resolved against it.
        charset: As the page's media type tells it, if it does.
        token_chars_max: Of a tag, or of a style sheet or JSON-LD script in the page; longer ones stay as they are.
        budget: Of the page; `None`: the caller feeds pieces that are small enough.
    """

    def __init__(
        self,
        linker: Linker,
        *,
        url: str | None = None,
        charset: str | None = None,
        token_chars_max: int = TOKEN_CHARS_MAX,
        budget: Budget | None = None,
    ) -> None:
        self._linker, self._url, self._charset, self._chars_max = linker, url, charset, token_chars_max
        self._budget = budget
        self._head = b""
        self._head_bytes = BOM_BYTES if charset and codec_of(charset) else HEAD_BYTES
        self._rewriter: _Rewriter | None = None

    def feed(self, piece: bytes) -> bytes:
        """Take a piece of the page, return what is finished; maybe nothing."""
        if self._rewriter is None:
            self._head += piece
            if len(self._head) < self._head_bytes and not (b">" in piece and tells_codec(self._head)):
                return b""
            self._rewriter, piece = self._begin()
        return self._rewriter.feed(piece)

    def close(self) -> bytes:
        """Return the rest; nothing may be fed any more."""
        last = b""
        if self._rewriter is None:
            self._rewriter, last = self._begin()
        return self._rewriter.close(last)

    @property
    def held_chars(self) -> int:
        """Return how much is held back: with the next piece, that is what the next call may have to read."""
        return len(self._head) if self._rewriter is None else self._rewriter.held_chars

    def held(self) -> bytes:
        """
        Return what was taken and is not given out yet, as it came. It is what is missing behind all that was returned,
        after an exception, too; so whoever has to end early can.
        """
        return self._head if self._rewriter is None else self._rewriter.held()

    def _begin(self) -> tuple[_Rewriter, bytes]:
        codec = find_codec(self._head, self._charset)
        head, self._head = self._head, b""
        if codec in OPAQUE:
            return _PassThrough(), head
        is_utf_16 = codec is not None and codec.startswith("utf-16")
        page = Page(self._linker, self._url, None if is_utf_16 or codec == "utf-8" else codec)
        values = Values(page, Text() if is_utf_16 else Bytes(codec))
        html = Html(values, token_chars_max=self._chars_max, budget=self._budget)
        return (_Utf16Rewriter(html, codec or "") if is_utf_16 else _ByteRewriter(html)), head


class _PassThrough:
    held_chars = 0

    @staticmethod
    def feed(piece: bytes) -> bytes:
        return piece

    @staticmethod
    def close(last: bytes) -> bytes:
        return last

    @staticmethod
    def held() -> bytes:
        return b""


class _ByteRewriter:
    def __init__(self, html: Html) -> None:
        self._html = html

    @property
    def held_chars(self) -> int:
        return self._html.held_chars

    def feed(self, piece: bytes) -> bytes:
        return self._html.feed(piece.decode("latin-1")).encode("latin-1")

    def close(self, last: bytes) -> bytes:
        return self._html.close(last.decode("latin-1")).encode("latin-1")

    def held(self) -> bytes:
        return self._html.held().encode("latin-1")


class _Utf16Rewriter:
    """UTF-16, with whatever is none of it: half a character stays half a character."""

    def __init__(self, html: Html, codec: str) -> None:
        self._html, self._codec = html, codec
        self._high_at = 1 if codec == "utf-16-le" else 0
        self._rest = b""

    @property
    def held_chars(self) -> int:
        return self._html.held_chars

    def feed(self, piece: bytes) -> bytes:
        data = self._rest + piece
        end = len(data) // 2 * 2
        # A pair of surrogates is one character only if it is decoded together.
        if end and 0xD8 <= data[end - 2 + self._high_at] < 0xDC:
            end -= 2
        self._rest = data[end:]
        return self._encoded(self._html.feed(self._decoded(data[:end])))

    def close(self, last: bytes) -> bytes:
        data = self._rest + last
        end = len(data) // 2 * 2
        self._rest = data[end:]
        text = self._html.close(self._decoded(data[:end]))
        half, self._rest = self._rest, b""
        return self._encoded(text) + half

    def held(self) -> bytes:
        return self._encoded(self._html.held()) + self._rest

    def _decoded(self, data: bytes) -> str:
        return data.decode(self._codec, "surrogatepass")

    def _encoded(self, text: str) -> bytes:
        return text.encode(self._codec, "surrogatepass")


def rewrite_html(
    document: AnyStr,
    linker: Linker,
    *,
    url: str | None = None,
    charset: str | None = None,
    steps_max: int | None = None,
) -> AnyStr:
    """
    Return a page with its links to images rewritten, and not one other character changed.

    Args:
        document: As text or as bytes.
        linker: Decides about each link.
        url: The page's own, if it is known: relative links are resolved against it.
        charset: Of bytes, as the page's media type tells it, if it does.
        steps_max: How much work it may take (`budget.py`); what is left of the page then stays. `None`: any.
    """
    if isinstance(document, str):
        html = Html(Values(Page(linker, url), Text()), budget=Budget(steps_max))
        return html.feed(document) + html.close()
    stream = HtmlStream(linker, url=url, charset=charset, budget=Budget(steps_max))
    return stream.feed(document) + stream.close()
