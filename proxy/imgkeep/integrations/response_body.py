"""
The rewriter of one response body.

Rules:
- The work is split into steps of a few milliseconds at most, whatever the page contains, so that an event loop can run
  other tasks between them. `is_heavy` announces a step that may take longer, because the buffer is large: a thread runs
  it.
- Each piece goes out as soon as possible; the buffer holds a part of a tag.
- A complete body keeps a `Content-Length`, and its exact bytes if no link changes.
- On any fault the missing bytes go out unchanged: the buffer (`HtmlStream.held`), and everything that follows.
- The application's `Content-Length` counts. Bytes beyond it are no part of the message; a response with fewer bytes
  must not look complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.core.rewrite import HtmlStream
from imgkeep.core.rewrite.links import picture_linker
from imgkeep.integrations.content_encoding import Decoder, Encoder, Undecodable
from imgkeep.integrations.links import log_fault

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from imgkeep.integrations.links import PageLinks
    from imgkeep.integrations.responses import Plan

STEP_BYTES: Final = 4096
"""
Size of a step: it takes a tenth of a millisecond for a page that people write, and eight milliseconds for one that is
crafted to be slow.
"""
SRCSET_STEP_BYTES: Final = 256
"""Size of a step where an `<img>` gets a `srcset`: twenty of them, which write three hundred links and sign them."""
HEAVY_CHARS: Final = 8192
"""Minimum size of the buffer for a heavy step: a tag or a style sheet of this length is worth a thread."""
HEAVY_STEP_BYTES: Final = 65_536
"""Size of a heavy step."""

GATHERED_BYTES: Final = 65_536
"""Size at which gathered pieces go out."""

WHOLE_BYTES_MAX: Final = 1 << 24
"""Maximum size of a body that is rewritten as a whole; few pages have more than two megabytes."""


class CutShort(RuntimeError):
    """The application sent less than its `Content-Length` says."""


@dataclass(frozen=True, slots=True)
class Unaltered:
    """The decision to send the response unchanged."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The decision to send `data` as the complete body."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Streamed:
    """The decision to send the body in pieces, from `feed` and `close`."""


def gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces: each piece that goes out costs a system call."""
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
    The rewriter of one body.

    Attributes:
        step_bytes: Number of bytes parsed since other tasks last ran; the caller that lets them run sets it to 0.
        step_bytes_max: Size of a step.
    """

    def __init__(self, plan: Plan, links: PageLinks, *, whole_bytes_max: int = WHOLE_BYTES_MAX) -> None:
        self._plan, self._links, self._whole_bytes_max = plan, links, whole_bytes_max
        self._left = plan.length
        self._is_done = False
        self.step_bytes = 0
        writer = picture_linker(links)
        self.step_bytes_max = STEP_BYTES if writer is None or not writer.pictures.widths else SRCSET_STEP_BYTES
        self._restart()

    def _restart(self) -> None:
        is_coded = self._plan.coding != "identity"
        self._stream = HtmlStream(self._links, url=self._links.url, charset=self._plan.charset)
        self._decoder = Decoder(self._plan.coding) if is_coded else None
        self._encoder: Encoder | None = None
        self._unsent = b""
        """The coded body until the first piece goes out; until then it can go out unchanged."""
        self._passes = False
        self._is_doubtful = False

    @property
    def is_heavy(self) -> bool:
        """Return whether the next step may take long."""
        return not self._passes and not self._is_doubtful and self._stream.held_chars > HEAVY_CHARS

    def begin(self, data: bytes, *, is_last: bool) -> Unaltered | Whole | Streamed:
        """Run all steps of `begin_in_steps`."""
        steps = self.begin_in_steps(data, is_last=is_last)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                decision: Unaltered | Whole | Streamed = end.value
                return decision

    def begin_in_steps(self, data: bytes, *, is_last: bool) -> Generator[None, None, Unaltered | Whole | Streamed]:
        """
        Decide how to send the body, before the headers go out; yield between the steps.

        Args:
            data: The bytes of the body so far.
            is_last: Whether they are complete. A body as long as its `Content-Length` is complete, too.
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
        """Do the same as `feed` for a caller without an event loop: in larger pieces."""
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
        """Rewrite the next bytes; yield the finished bytes of each step, maybe none."""
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        if data and not self._is_done:
            yield from self._rewritten(data)

    def close(self) -> Iterator[bytes]:
        """
        Yield the rest of the body.

        Raises:
            CutShort: The body is shorter than its `Content-Length`; raised behind the rest.
        """
        if not self._is_done:
            self._is_done = True
            yield from self._rest()
            if self._left:
                raise CutShort(f"the application sent {self._left} bytes less than its Content-Length")

    def abandon(self) -> Iterator[bytes]:
        """Yield the buffered bytes, because the application has failed and sends no more."""
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
            log_fault("body not rewritten", error)
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
        """End the coded body, and pass the bytes behind it, which browsers ignore."""
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
            # The coded body was truncated, so it stays truncated.
            last = self._encoder.feed(self._html_end()) + self._encoder.flush()
            self._is_doubtful = True
            yield last

    def _html(self, data: bytes) -> Iterator[bytes]:
        """Yield the rewritten HTML, step by step."""
        at = 0
        while at < len(data):
            if self._is_doubtful:
                yield data[at:]
                return
            size = HEAVY_STEP_BYTES if self.is_heavy else self.step_bytes_max
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
        log_fault("rest of a page not rewritten", error)
        self._is_doubtful = True
        return self._stream.held()
