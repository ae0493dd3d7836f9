"""
Rewrites one body on its way out.

Rules:
- The work comes in turns of a few milliseconds at most, whatever is in a page, so that an event loop can see to others
  between them. What may take longer, because much is held back, is told by `is_heavy`, for a thread.
- Each piece goes out as soon as it can; what is held back is a part of a tag.
- A body that is there as a whole keeps a `Content-Length`, and its very bytes where no link changes.
- Whatever goes wrong, the bytes that are missing go out as they are: in `HtmlStream.held`, and all that follows.
- The application's `Content-Length` counts. What goes beyond it is no part of the message; where less comes, the
  response must not look whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.core.rewrite import HtmlStream
from imgkeep.integrations.content_encoding import Decoder, Encoder, Undecodable
from imgkeep.integrations.links import log_fault

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from imgkeep.integrations.links import PageLinks
    from imgkeep.integrations.responses import Plan

STEP_BYTES: Final = 4096
"""
What is read at a time: a tenth of a millisecond for a page that people write, eight milliseconds for one that is made
to be slow.
"""
HEAVY_CHARS: Final = 8192
"""Of what is held back: a tag, a style sheet or the like of this length is worth a thread."""
HEAVY_STEP_BYTES: Final = 65_536
"""What is read at a time while much is held back."""

GATHERED_BYTES: Final = 65_536
"""What goes out at once where that much is there."""

WHOLE_BYTES_MAX: Final = 1 << 24
"""Of a body that is held as a whole; few pages have more than two megabytes, and none needs its length."""


class CutShort(RuntimeError):
    """The application sent less than its `Content-Length` says."""


@dataclass(frozen=True, slots=True)
class Unaltered:
    """The response goes out as the application made it."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The body is this; nothing follows."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Streamed:
    """The body comes by `feed` and `close`."""


def gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Put small pieces together: each one that goes out costs a system call."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= GATHERED_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if size:
        yield b"".join(waiting)


class Body:
    """
    One body that is rewritten as planned.

    Attributes:
        step_bytes: What was read since others had their turn; whoever gives it to them sets it to 0.
    """

    def __init__(self, plan: Plan, links: PageLinks, *, whole_bytes_max: int = WHOLE_BYTES_MAX) -> None:
        self._plan, self._links, self._whole_bytes_max = plan, links, whole_bytes_max
        self._left = plan.length
        self._is_done = False
        self.step_bytes = 0
        self._restart()

    def _restart(self) -> None:
        is_coded = self._plan.coding != "identity"
        self._stream = HtmlStream(self._links, url=self._links.url, charset=self._plan.charset)
        self._decoder = Decoder(self._plan.coding) if is_coded else None
        self._encoder: Encoder | None = None
        self._unsent = b""
        """All of a coded body until something of it has gone out; up to there it can go out as it came."""
        self._passes = False
        self._is_doubtful = False

    @property
    def is_heavy(self) -> bool:
        """Return whether the next turn may be a long one."""
        return not self._passes and not self._is_doubtful and self._stream.held_chars > HEAVY_CHARS

    def begin(self, data: bytes, *, is_last: bool) -> Unaltered | Whole | Streamed:
        """Do all of `begin_in_steps` at once."""
        steps = self.begin_in_steps(data, is_last=is_last)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                decision: Unaltered | Whole | Streamed = end.value
                return decision

    def begin_in_steps(self, data: bytes, *, is_last: bool) -> Generator[None, None, Unaltered | Whole | Streamed]:
        """
        Return what to do, before the headers go out; yields between steps.

        Args:
            data: What is there of the body.
            is_last: That is all. A body that is as long as `Content-Length` says is all there, too.
        """
        length = self._plan.length
        if length is not None and (len(data) > length or (is_last and len(data) < length)):
            return Unaltered()
        if not is_last and len(data) != length:
            return Streamed()
        whole = yield from self._whole(data)
        if whole is None:
            self._restart()
            return Streamed()
        self._is_done = True
        return Whole(data if self._is_doubtful or not self._links.count else whole)

    def feed_whole(self, data: bytes) -> Iterator[bytes]:
        """Do what `feed` does for a caller that has no event loop: in larger pieces."""
        return gathered(self.feed(data))

    def _whole(self, data: bytes) -> Generator[None, None, bytes | None]:
        pieces, size = [], 0
        for piece in self._rewritten(data):
            pieces.append(piece)
            size += len(piece)
            if size > self._whole_bytes_max:
                return None
            yield
        return b"".join((*pieces, *self._rest()))

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take what comes, yield after each turn what can go out; maybe nothing."""
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        if data and not self._is_done:
            yield from self._rewritten(data)

    def close(self) -> Iterator[bytes]:
        """
        Yield what is left.

        Raises:
            CutShort: Behind that.
        """
        if not self._is_done:
            self._is_done = True
            yield from self._rest()
            if self._left:
                raise CutShort(f"the application sent {self._left} bytes less than its Content-Length")

    def abandon(self) -> Iterator[bytes]:
        """Yield what is held back: the application has failed, and nothing will come any more."""
        if not self._is_done:
            self._is_done = True
            yield from self._rest()

    def _rewritten(self, data: bytes) -> Iterator[bytes]:
        if self._passes:
            yield data
        elif self._decoder is None:
            yield from self._html(data)
        else:
            yield from self._recoded(self._decoder, data)

    def _recoded(self, decoder: Decoder, data: bytes) -> Iterator[bytes]:
        if self._encoder is None:
            self._unsent += data
        try:
            for piece in decoder.feed(data):
                for html in self._html(piece):
                    yield self._begun(decoder).feed(html) if html else b""
        except Undecodable as error:
            log_fault("a body stays as it is", error)
            self._passes = True
            self._is_doubtful = True
            if self._encoder is None:
                yield self._unsent
            else:
                yield self._encoder.feed(self._stream.held()) + self._encoder.end_invalid()
            return
        if decoder.is_at_end:
            yield from self._ended(decoder)
        elif self._encoder is not None:
            yield self._encoder.flush()

    def _ended(self, decoder: Decoder) -> Iterator[bytes]:
        """End with the coded body; what is behind that, browsers pass over, and we pass on."""
        self._passes = True
        encoder = self._begun(decoder)
        yield encoder.feed(self._html_end()) + encoder.close() + decoder.rest

    def _begun(self, decoder: Decoder) -> Encoder:
        if self._encoder is None:
            self._encoder, self._unsent = Encoder(self._plan.coding, decoder.header), b""
        return self._encoder

    def _rest(self) -> Iterator[bytes]:
        if self._passes:
            return
        if self._decoder is None:
            yield self._html_end()
        elif self._encoder is None:
            self._is_doubtful = True
            yield self._unsent
        else:
            # It was cut, so it stays cut.
            last = self._encoder.feed(self._html_end()) + self._encoder.flush()
            self._is_doubtful = True
            yield last

    def _html(self, data: bytes) -> Iterator[bytes]:
        """Yield what is rewritten, turn by turn."""
        at = 0
        while at < len(data):
            if self._is_doubtful:
                yield data[at:]
                return
            size = HEAVY_STEP_BYTES if self.is_heavy else STEP_BYTES
            yield self._html_step(data[at : at + size])
            at += size

    def _html_step(self, data: bytes) -> bytes:
        self.step_bytes += len(data)
        try:
            return self._stream.feed(data)
        except Exception as error:  # noqa: BLE001 - nothing in here may break a page
            return self._given_up(error)

    def _html_end(self) -> bytes:
        if self._is_doubtful:
            return b""
        self.step_bytes += self._stream.held_chars
        try:
            return self._stream.close()
        except Exception as error:  # noqa: BLE001 - as above
            return self._given_up(error)

    def _given_up(self, error: Exception) -> bytes:
        log_fault("the rest of a page stays as it is", error)
        self._is_doubtful = True
        return self._stream.held()
