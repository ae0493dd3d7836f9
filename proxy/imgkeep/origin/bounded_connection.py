"""
A connection to an origin: aiohttp's, with a bound on everything that an origin can send instead of an image.

aiohttp parses all bytes that have arrived at once: 256 KiB hold 13,000 interim answers, or as many whole answers to no
request, which hold the event loop for a quarter of a second, and their number has no limit. So this connection hands
the bytes over in steps, and ends itself at bytes that are not part of the one answer that was asked for:

- it skips interim answers (RFC 9110, 15.2), `INTERIM_ANSWERS_MAX` of them;
- a head, those before it included, has `HEAD_BYTES_MAX`, and arrives within the read timeout;
- the framing of a chunked body (RFC 9112, 7.1: sizes, extensions, trailers) is small beside the body;
- bytes outside of an answer belong to none: before the first request, between two, behind the end of a body. Taken for
  the next answer they would be an image under the wrong link. So they end the connection; a body that
  was whole before them stays whole.

`response_parser.py` reads a head that a strict parser refuses and browsers read once more, and reads chunks as well,
within the same bounds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import ClientPayloadError, SocketTimeoutError
from aiohttp.client_proto import ResponseHandler

from imgkeep.origin.response_parser import ChunkParser, HeadParser

if TYPE_CHECKING:
    import asyncio

    from aiohttp import StreamReader
    from aiohttp.http import RawResponseMessage

INTERIM_ANSWERS_MAX: Final = 10
"""Maximum number of interim answers; real origins send one or two."""
HEAD_BYTES_MAX: Final = 262_144
"""Maximum size of a head, as in Chromium, however long one field is; real heads have a few kilobytes."""
HEAD_STEP_BYTES: Final = 2048
"""Maximum size of a step in a head: a common head whole, or a hundred of the shortest interim answers (1 ms)."""
BODY_STEP_BYTES: Final = 16_384
"""Maximum size of a step in a chunked body, whose end is not known beforehand."""
FRAMING_BYTES_MAX: Final = 131_072
FRAMING_PART: Final = 8
"""
Maximum size of the framing: so many bytes, the head's included, and an eighth of the body, which allows chunks of 50
bytes and more. A chunk costs a microsecond, so 50 MB in chunks of one byte would take a minute of this process.
"""


class FramingError(ClientPayloadError):
    """Bytes that are not the answer to a request. The message is for people and holds nothing that the origin sent."""


class OriginConnection(ResponseHandler):
    """One connection, for one request after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._asked = False
        self._head_deadline: asyncio.TimerHandle | None = None
        self._content: StreamReader | None = None
        """The body of the answer, once its head has come."""
        self._chunked = False
        self._left: int | None = None
        """Bytes of the body that have not come, where the head declares its size."""
        self._interims = 0
        self._received = 0
        self._held = b""
        """Bytes of a chunked body that came while its reader could take no more."""
        self.steps = 0
        """Number of calls of the parser for the current request."""

    def set_response_params(self, **how: Any) -> None:
        """Get ready for a request, which aiohttp is about to send."""
        self._asked, self._content, self._chunked, self._left = True, None, False, None
        self._interims = self._received = self.steps = 0
        super().set_response_params(**how)
        # aiohttp's own time limit begins anew with every byte, and interim answers end it.
        self._stop_head_deadline()
        if how["read_timeout"]:
            self._head_deadline = self._loop.call_later(how["read_timeout"], self._end_late_head)
        reader = HeadParser(self._parser, partial(self._renew_parser, how), self._refuse, INTERIM_ANSWERS_MAX)
        self._parser = cast("Any", reader)

    def _renew_parser(self, how: dict[str, Any]) -> Any:
        """Return another parser of aiohttp's, which has seen nothing."""
        current = self._parser
        super().set_response_params(**how)
        new, self._parser = self._parser, current
        return new

    def _stop_head_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _end_late_head(self) -> None:
        self._head_deadline = None
        if self.transport is not None:
            self.transport.abort()
        self.set_exception(SocketTimeoutError("the head of the origin's answer did not come in time"))

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take a head from the parser, and the body to come."""
        message, content = data
        if self._content is not None:
            self._refuse("the origin sent more than one answer")
        elif 100 <= message.code < 200 and message.code != 101:
            self._interims += 1
            if self._interims > INTERIM_ANSWERS_MAX:
                self._refuse(f"the origin sent more than {INTERIM_ANSWERS_MAX} interim answers")
        else:
            self._stop_head_deadline()
            self._content, self._chunked = content, message.chunked
            parser: Any = self._parser
            if isinstance(parser, HeadParser):
                self._parser = parser.strict
            length = message.headers.get("Content-Length", "")
            self._left = int(length) if length.isdecimal() and not self._chunked else None
            super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        if not data:  # aiohttp goes on with the bytes that it holds
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
        self._stop_head_deadline()
        super().connection_lost(exc)
        content = self._content
        # After an error in a trailer aiohttp tells the reader nothing, and it would wait for its whole time limit.
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
        """Tell whether a body ended in `piece` before its last bytes, and no parser of aiohttp's refused these."""
        if isinstance(self._parser, ChunkParser):
            return self._parser.has_more
        content = self._content
        if content is None or not is_head or piece[-1] not in b"\r\n" or not content.is_eof():
            return False
        # Ends of lines, which the parser skips. If an interim answer came with them, or a part of the head before them,
        # this ends a sound connection: a rare cost.
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
        """End the connection, and the request on it."""
        error = FramingError(reason)
        transport, content = self.transport, self._content
        if transport is not None:
            transport.abort()
        self.set_exception(error)
        if content is not None and not content.is_eof():
            content.set_exception(error)
