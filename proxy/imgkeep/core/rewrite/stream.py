"""The rewriter of pages in bytes: in pieces, and as a whole."""

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
    The incremental rewriter of a page, in bounded memory. The result does not depend on the cuts between the pieces.

    Args:
        linker: Decides about each link.
        url: URL of the page, if known: it is the base of relative links.
        charset: Parameter `charset` of the page's media type, if any.
        token_chars_max: Maximum length of a tag, a style sheet or a JSON-LD script; a longer one stays unchanged.
        budget: Budget of the page; `None`: the caller feeds small pieces.
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
        """Parse a piece of the page, and return the finished bytes; maybe none."""
        if self._rewriter is None:
            self._head += piece
            if len(self._head) < self._head_bytes and not (b">" in piece and tells_codec(self._head)):
                return b""
            self._rewriter, piece = self._begin()
        return self._rewriter.feed(piece)

    def close(self) -> bytes:
        """Return the rest of the page, and end the rewriter."""
        last = b""
        if self._rewriter is None:
            self._rewriter, last = self._begin()
        return self._rewriter.close(last)

    @property
    def held_chars(self) -> int:
        """Return the length of the buffered text, which the next call may have to parse again."""
        return len(self._head) if self._rewriter is None else self._rewriter.held_chars

    def held(self) -> bytes:
        """
        Return the buffered bytes, unchanged. They follow all bytes returned so far, also after an exception; so a
        caller that must stop early can complete the page with them.
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
    """The rewriter of UTF-16; invalid parts, such as half a character, stay."""

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
        # The decoder needs both halves of a surrogate pair at once.
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
    Return a page with its links to images rewritten, and all other text unchanged.

    Args:
        document: The page as text or as bytes.
        linker: Decides about each link.
        url: URL of the page, if known: it is the base of relative links.
        charset: Parameter `charset` of the page's media type, if any; for bytes.
        steps_max: Maximum number of steps (`budget.py`); the rest of the page then stays. `None`: any.
    """
    if isinstance(document, str):
        html = Html(Values(Page(linker, url), Text()), budget=Budget(steps_max))
        return html.feed(document) + html.close()
    stream = HtmlStream(linker, url=url, charset=charset, budget=Budget(steps_max))
    return stream.feed(document) + stream.close()
