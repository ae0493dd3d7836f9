"""
A connection to an origin: aiohttp's, with a bound on everything that an origin can send instead of an image.

aiohttp parses whatever has arrived at once: of 256 KiB that is 13,000 interim answers, or as many whole answers that
were not asked for, a quarter of a second without another turn of the event loop, and their number has no limit. So the
bytes are handed to it in steps, and what is not part of the one answer that was asked for ends the connection:

- interim answers (RFC 9110, 15.2) are passed over, `INTERIM_ANSWERS_MAX` of them;
- a head, those before it included, has `HEAD_BYTES_MAX`;
- what frames a chunked body (RFC 9112, 7.1: sizes, extensions, trailers) is small beside the body;
- bytes outside of an answer belong to none: before the first request, between two, behind the end of a body. Taken for
  the next answer they would be a stranger's image under another client's link. So they end the connection; a body that
  was whole before them stays whole.

A head that a strict parser refuses and browsers read is read again by `origin/response_parser.py`, which reads chunks as well,
within the same bounds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import ClientPayloadError
from aiohttp.client_proto import ResponseHandler

from imgkeep.origin.response_parser import ChunkParser, HeadParser

if TYPE_CHECKING:
    import asyncio

    from aiohttp import StreamReader
    from aiohttp.http import RawResponseMessage

INTERIM_ANSWERS_MAX: Final = 10
"""Real origins send one or two."""
HEAD_BYTES_MAX: Final = 262_144
"""As in Chromium, whatever the share of one field; real heads have a few kilobytes."""
HEAD_STEP_BYTES: Final = 2048
"""A common head in one step; a hundred of the shortest interim answers, which are a millisecond."""
BODY_STEP_BYTES: Final = 16_384
"""Of a chunked body, whose end is not known beforehand."""
FRAMING_BYTES_MAX: Final = 131_072
FRAMING_PART: Final = 8
"""
Besides so many bytes, the head's included, framing may take an eighth of the body: chunks of 50 bytes and more. A chunk
costs a microsecond, so 50 MB in chunks of one byte would be a minute of this process.
"""


class FramingError(ClientPayloadError):
    """What came is not the answer to a request. The message is for people and holds nothing that the origin sent."""


class OriginConnection(ResponseHandler):
    """One connection, for one request after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._asked = False
        self._content: StreamReader | None = None
        """The body of the answer, once its head has come."""
        self._chunked = False
        self._left: int | None = None
        """Bytes of the body that have not come, where the head says how many there are."""
        self._interims = 0
        self._received = 0
        self._held = b""
        """What came of a chunked body while its reader could take no more."""
        self.steps = 0
        """How often the parser was called, for the request at hand."""

    def set_response_params(self, **how: Any) -> None:
        """A request is about to be sent."""
        self._asked, self._content, self._chunked, self._left = True, None, False, None
        self._interims = self._received = self.steps = 0
        super().set_response_params(**how)
        reader = HeadParser(self._parser, partial(self._renew_parser, how), self._refuse, INTERIM_ANSWERS_MAX)
        self._parser = cast("Any", reader)

    def _renew_parser(self, how: dict[str, Any]) -> Any:
        """Return another parser of aiohttp's, which has seen nothing."""
        asks = self._parser
        super().set_response_params(**how)
        new, self._parser = self._parser, asks
        return new

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take what the parser has found: a head, and the body to come."""
        message, content = data
        if self._content is not None:
            self._refuse("the origin sent more than one answer")
        elif 100 <= message.code < 200 and message.code != 101:
            self._interims += 1
            if self._interims > INTERIM_ANSWERS_MAX:
                self._refuse(f"the origin sent more than {INTERIM_ANSWERS_MAX} interim answers")
        else:
            self._content, self._chunked = content, message.chunked
            parser: Any = self._parser
            if isinstance(parser, HeadParser):
                self._parser = parser.strict
            length = message.headers.get("Content-Length", "")
            self._left = int(length) if length.isdecimal() and not self._chunked else None
            super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        if not data:  # aiohttp goes on with what it holds
            super().data_received(data)
            return
        self._received += len(data)
        if self._held:
            self._held += data
            return
        self._take(data)
        if self._ended:
            return
        if self._content is None:
            if self._received > HEAD_BYTES_MAX:
                self._refuse("the head of the origin's answer is too large")
        elif self._chunked:
            body = self._content.total_bytes
            framing = self._received - len(self._held) - body
            if framing > FRAMING_BYTES_MAX + body // FRAMING_PART:
                self._refuse("the origin's answer is more framing than image")

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's signature
        super().resume_reading(resume_parser)
        if self._held and not self._reading_paused:
            held, self._held = self._held, b""
            self._take(held)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._held = b""
        super().connection_lost(exc)
        content = self._content
        # After an error in a trailer aiohttp tells the reader nothing, who would wait as long as there is time.
        if content is not None and not content.is_eof() and content.exception() is None:
            content.set_exception(ClientPayloadError("the connection was closed within an answer"))

    def _take(self, data: bytes) -> None:
        """Hand bytes to the parser, step by step, up to the end of the answer."""
        start, end = 0, len(data)
        while start < end and not self._ended:
            if self._chunked and self._reading_paused:
                self._held = data[start:]
                return
            step = self._find_step(end - start)
            if step <= 0:
                self._refuse("the origin sent bytes that belong to no answer")
                return
            self.steps += 1
            had_head = self._content is not None
            piece = data if step == end else data[start : start + step]
            super().data_received(piece)
            start += step
            if self._content is not None and self._has_more(piece, is_head=not had_head):
                self._refuse("the origin sent bytes that belong to no answer")
            if self._left is not None and had_head:
                self._left -= step
            elif self._left is not None and self._content is not None:
                self._left -= self._content.total_bytes

    def _has_more(self, piece: bytes, *, is_head: bool) -> bool:
        """Whether a body ended in `piece` before its last bytes, and no parser of aiohttp's refused these."""
        if isinstance(self._parser, ChunkParser):
            return self._parser.has_more
        content = self._content
        if content is None or not is_head or piece[-1] not in b"\r\n" or not content.is_eof():
            return False
        # Ends of lines, which the parser passes over. Where an interim answer came with them, or a part of the head
        # before them, a connection is given up for nothing.
        return piece.find(b"\r\n\r\n") + len(b"\r\n\r\n") + content.total_bytes != len(piece)

    @property
    def _ended(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def _find_step(self, size: int) -> int:
        """Return how many of the next `size` bytes may be part of the answer, as far as one step goes."""
        if not self._asked:
            return 0
        if self._content is None:
            return min(size, HEAD_STEP_BYTES)
        if self._content.is_eof():
            return 0
        if self._left is not None:
            return min(size, self._left)
        return min(size, BODY_STEP_BYTES) if self._chunked else size

    def _refuse(self, reason: str) -> None:
        """End the connection, and whatever is asked over it."""
        error = FramingError(reason)
        transport, content = self.transport, self._content
        if transport is not None:
            transport.abort()
        self.set_exception(error)
        if content is not None and not content.is_eof():
            content.set_exception(error)
