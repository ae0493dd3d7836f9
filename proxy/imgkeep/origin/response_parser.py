"""
aiohttp's parser for one answer, and a second reading of a head that it refuses and browsers read.

A usual head costs one call more. `core/response_head.py` reads only those again that the parser refuses, or would frame
otherwise than browsers do, and a new parser gets its result. The bytes of a head stay until it is whole, and the
connection bounds them. `core/chunked_body.py` reads chunked bodies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientPayloadError
from aiohttp.http_exceptions import HttpProcessingError, TransferEncodingError

from imgkeep.core.chunked_body import Chunks, Malformed
from imgkeep.core.response_head import Contradiction, find_head_end, has_chunked, may_begin, mend_head

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp import StreamReader
    from aiohttp.http import RawResponseMessage

    from imgkeep.core.response_head import Head

    Found = tuple[Sequence[tuple[RawResponseMessage, StreamReader]], bool, bytes]

NOTHING: Final[Found] = ((), False, b"")


class HeadParser:
    """
    The parser up to the end of the final head, and of the bytes that came with it. After that `strict` reads on.

    Args:
        strict: aiohttp's parser, new.
        renew: Returns another one.
        refuse: Ends the connection for a reason.
        interims_max: Maximum number of interim answers before the final one.
    """

    def __init__(self, strict: Any, renew: Callable[[], Any], refuse: Callable[[str], None], interims_max: int) -> None:
        self.strict = strict
        self._renew = renew
        self._refuse = refuse
        self._interims_left = interims_max
        self._seen: list[bytes] = []
        self._error: HttpProcessingError | None = None
        self._held: bytearray | None = None
        """The bytes of the second reading, from the beginning of the first head that is not skipped."""
        self._searched = 0
        self._is_last = True
        """Whether the connection ends with this answer."""

    def feed_data(self, data: bytes) -> Found:
        """Take bytes as aiohttp's parser does, and return the same."""
        if self._held is not None:
            self._held += data
            return self._read_again()
        self._seen.append(data)
        try:
            found: Found = self.strict.feed_data(data)
        except HttpProcessingError as error:
            self._error = error
        else:
            message = next((message for message, _ in found[0] if not 100 <= message.code < 200), None)
            if message is None or not _is_chunked(message):
                return found
            is_plain = message.chunked and "Content-Length" not in message.headers and found[0][-1][0] is message
            self._is_last = message.should_close or not is_plain
        self._held = bytearray(b"".join(self._seen))
        self._seen.clear()
        return self._read_again()

    def feed_eof(self) -> Any:
        """Take the end of the connection."""
        return None if self._held is not None else self.strict.feed_eof()

    def pause_reading(self) -> None:
        """Stop between two pieces of a body."""
        self.strict.pause_reading()

    def _read_again(self) -> Found:
        assert self._held is not None
        while True:
            if not may_begin(self._held):
                raise self._error or HttpProcessingError(message="there is no head")
            end = find_head_end(self._held, self._searched)
            if end is None:
                self._searched = max(0, len(self._held) - 2)
                return NOTHING
            try:
                head = mend_head(bytes(self._held[:end]), is_last=self._is_last)
            except Contradiction as error:
                self._refuse(str(error))
                return NOTHING
            if head is None:
                raise self._error or HttpProcessingError(message="the head is none")
            del self._held[:end]
            self._searched = 0
            if not 100 <= head.status < 200 or head.status == 101:
                return self._read_mended(head)
            self._interims_left -= 1
            if self._interims_left < 0:
                self._refuse("the origin sent too many interim answers")
                return NOTHING

    def _read_mended(self, head: Head) -> Found:
        assert self._held is not None
        body, self._held = bytes(self._held[: head.length]), bytearray()
        self.strict = self._renew()
        found: Found = self.strict.feed_data(head.data)
        if head.status == 101:
            return found
        content = found[0][0][1]
        if head.chunked and not content.is_eof():
            self.strict = ChunkParser(content)
        try:
            self.strict.feed_data(body)
        except HttpProcessingError:
            # Bytes behind a whole body are dropped.
            if not content.is_eof():
                raise
        return found


class ChunkParser:
    """
    The parser of a chunked body, in place of aiohttp's.

    Attributes:
        has_more: Whether bytes came behind the end of the body.
    """

    def __init__(self, content: StreamReader) -> None:
        self._content = content
        self._chunks = Chunks()

    @property
    def has_more(self) -> bool:
        return self._chunks.has_more

    def feed_data(self, data: bytes) -> Found:
        """Take bytes as aiohttp's parser does, and return that there is no other answer."""
        try:
            body = self._chunks.feed(data)
        except Malformed as error:
            self._content.set_exception(ClientPayloadError(str(error)))
            raise TransferEncodingError(str(error)) from None
        if body:
            self._content.feed_data(body)
        if self._chunks.ended and not self._content.is_eof():
            self._content.feed_eof()
        return NOTHING

    def feed_eof(self) -> None:
        """Take the end of the connection. Raises: TransferEncodingError: The body had not ended."""
        if not self._chunks.ended:
            raise TransferEncodingError("the connection was closed before the last chunk")

    def pause_reading(self) -> None:
        """Do nothing: the connection holds back the bytes that come meanwhile."""


def _is_chunked(message: RawResponseMessage) -> bool:
    """Tell whether browsers frame a body by chunks; aiohttp's parser waits for the connection's end in some cases."""
    return "Transfer-Encoding" in message.headers and has_chunked(message.headers.getall("Transfer-Encoding"))
