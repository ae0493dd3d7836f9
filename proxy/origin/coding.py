"""
Undoing content codings that we did not ask for (RFC 9110, 8.4): some origins send gzip whatever the client accepts.

Rules:
- The measure is what current Chromium shows by `new Image()` (tried with 156). It undoes gzip, x-gzip, deflate with
  the wrapper of zlib or without it, br and zstd, stacked as well; it takes no notice of the bytes behind the end of a
  gzip, deflate or br stream, and reads zstd frame by frame.
- A name that is no coding says nothing about the bytes: object stores give back what the uploader wrote (`aws-chunked`,
  `base64`, `utf-8`). Alone it is passed over. Beside a coding the first bytes tell whether that one was applied.
- Each step takes and gives little, so a bomb meets the limit on the body's size before it meets the memory. What has a
  large window works in threads of its own, and holds a place: places bound the memory of all windows.
- `proved` says whether the end of every coding was seen. A stream that was cut looks complete to the framing; then the
  end of the image has to prove it (`service/fill.py`).
"""

from __future__ import annotations

import asyncio
import re
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import brotli  # type: ignore[import-untyped]  # it has no annotations

from proxy.core.errors import Busy, OriginError
from proxy.core.sniff import sniff

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence

TAKEN_BYTES: Final = 16_384
"""Maximum number of bytes that a step takes: tables of codes without content are what takes longest, some 2 ms."""
STEP_BYTES_MAX: Final = 262_144
"""Maximum number of bytes that a step gives."""
CODINGS_MAX: Final = 5
"""Maximum number of codings of one answer. Real ones have one, or two by mistake."""
WIDE_MAX: Final = 2
"""Maximum number of them with a large window."""
ZSTD_WINDOW_LOG_MAX: Final = 23
"""8 MiB, as RFC 9659 demands of zstd on the web and Chromium insists."""
FRAMES_MAX: Final = 1000
"""Maximum number of zstd frames; `pzstd` makes one of every few megabytes."""
OVERHEAD_BYTES_MAX: Final = 131_072
OVERHEAD_PART: Final = 8
"""
Besides so many bytes, a coding may be an eighth longer than what it holds. Compressed images grow by a thousandth; a
stream that holds nothing but tables costs time and gives no image.
"""
TRAILING_BYTES_MAX: Final = 131_072
"""Maximum number of bytes that are read behind the end of a stream; what follows is left unread."""
BROTLI_TAIL_BYTES: Final = 1024
"""Fed one by one: the library refuses bytes behind the end, and what it has decoded in that call is lost."""
PLACES: Final = 24
"""Maximum number of decoders with large windows at a time: a brotli window has 16 MiB, so 384 MiB at worst."""
PLACE_TIMEOUT_S: Final = 10
"""Timeout for a place."""
THREADS: Final = 2
PEEKED_BYTES: Final = 64
"""Enough to tell a coding or an image by its first bytes."""

_ALIASES: Final = {"x-gzip": "gzip"}
_PADDING: Final = b"\0\t\n\r "
_ZSTD_FRAME: Final = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")


class Coder(Protocol):
    """
    A decoder that works step by step.

    Attributes:
        wide: Whether it has a large window.
        proved: Whether the end was seen, and nothing but padding came behind it.
        ended: Whether the end was seen: what comes now changes at most `proved`.
        pending: Whether another step without data may give more.
    """

    wide: bool

    @property
    def proved(self) -> bool: ...

    @property
    def ended(self) -> bool: ...

    @property
    def pending(self) -> bool: ...

    def step(self, data: bytes) -> bytes:
        """Take some bytes and return up to `STEP_BYTES_MAX` decoded ones. Raises an error of its library."""

    def finish(self) -> bytes:
        """Return what was held back, when no more bytes come."""


class _Trailing:
    """What comes behind the end of a stream."""

    def __init__(self) -> None:
        self.is_padding = True

    def note(self, data: bytes) -> None:
        if data.strip(_PADDING):
            self.is_padding = False


class _Inflate:
    """One gzip member (RFC 1952), or deflate with or without zlib's wrapper: the first two bytes tell."""

    wide = False

    def __init__(self, *, gzip: bool) -> None:
        self._zlib = zlib.decompressobj(wbits=31) if gzip else None
        self._head = b""
        self._rest = b""
        self._trailing = _Trailing()

    @property
    def proved(self) -> bool:
        return self.ended and self._trailing.is_padding

    @property
    def ended(self) -> bool:
        return self._zlib is not None and self._zlib.eof

    @property
    def pending(self) -> bool:
        return bool(self._rest)

    def step(self, data: bytes) -> bytes:
        if self.ended:
            self._trailing.note(data)
            return b""
        if self._zlib is None:
            self._head += data
            if len(self._head) < 2:
                return b""
            self._zlib = zlib.decompressobj(wbits=15 if _is_zlib(self._head) else -15)
            data, self._head = self._head, b""
        piece = self._zlib.decompress(self._rest + data, STEP_BYTES_MAX)
        self._rest = self._zlib.unconsumed_tail
        if self._zlib.eof:
            self._trailing.note(self._zlib.unused_data)
        return piece

    def finish(self) -> bytes:
        return b""


class _Brotli:
    """A brotli stream (RFC 7932)."""

    wide = True

    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()
        self._held = b""
        self._trailing = _Trailing()

    @property
    def proved(self) -> bool:
        return self.ended and self._trailing.is_padding

    @property
    def ended(self) -> bool:
        return bool(self._decoder.is_finished())

    @property
    def pending(self) -> bool:
        return not self.ended and not self._decoder.can_accept_more_data()

    def step(self, data: bytes) -> bytes:
        if self.ended:
            self._trailing.note(data)
            return b""
        if data:
            data = self._held + data
            data, self._held = data[:-BROTLI_TAIL_BYTES], data[-BROTLI_TAIL_BYTES:]
            if not data:
                return b""
        return bytes(self._decoder.process(data, output_buffer_limit=STEP_BYTES_MAX))

    def finish(self) -> bytes:
        """Feed what was held back until there is enough to give; called again as long as something is left."""
        pieces, given = [], 0
        while self._held and not self.ended and given < STEP_BYTES_MAX:
            data = b""
            if self._decoder.can_accept_more_data():
                data, self._held = self._held[:1], self._held[1:]
            pieces.append(self._decoder.process(data, output_buffer_limit=STEP_BYTES_MAX))
            given += len(pieces[-1])
        if self.ended:
            self._trailing.note(self._held)
            self._held = b""
        elif self.pending and not given:
            pieces.append(self._decoder.process(b"", output_buffer_limit=STEP_BYTES_MAX))
        return b"".join(pieces)


class _Zstd:
    """Zstandard frames, one after the other (RFC 8878)."""

    wide = True

    def __init__(self) -> None:
        self._frames = 0
        self._decoder = self._begin()

    @property
    def proved(self) -> bool:
        return self._decoder.eof

    @property
    def ended(self) -> bool:
        return False  # another frame may follow

    @property
    def pending(self) -> bool:
        return not self._decoder.eof and not self._decoder.needs_input

    def step(self, data: bytes) -> bytes:
        pieces, room = [], STEP_BYTES_MAX
        while True:
            if self._decoder.eof and data:
                self._decoder = self._begin()
            piece = self._decoder.decompress(data, room)
            pieces.append(piece)
            room -= len(piece)
            data = self._decoder.unused_data if self._decoder.eof else b""
            if not data:
                return b"".join(pieces)
            room = max(room, 1)

    def finish(self) -> bytes:
        return b""

    def _begin(self) -> zstd.ZstdDecompressor:
        self._frames += 1
        if self._frames > FRAMES_MAX:
            raise OriginError("the origin's compressed answer has too many frames")
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX})


_CODERS: Final[dict[str, Callable[[], Coder]]] = {
    "gzip": lambda: _Inflate(gzip=True),
    "deflate": lambda: _Inflate(gzip=False),
    "br": _Brotli,
    "zstd": _Zstd,
}


class Decoder:
    """
    Undoes the codings of one answer.

    Args:
        codings: The names of those to undo, in the order in which they were applied.
        unsure: Whether the first bytes have to tell that they were applied at all.
        pool: Where decoders with large windows work.

    Attributes:
        places: How many places it needs.
        applied: Whether the codings were undone; told with the first bytes.
    """

    def __init__(self, codings: Sequence[str], pool: ThreadPoolExecutor, *, unsure: bool = False) -> None:
        self._codings = codings
        self._coders = [_CODERS[name]() for name in reversed(codings)]
        self._pool = pool
        self._unsure = unsure
        self.places = sum(coder.wide for coder in self._coders)
        self.applied = True

    @property
    def proved(self) -> bool:
        """Whether all was seen to be there. Where `applied` is false, HTTP's own framing has to tell."""
        return all(coder.proved for coder in self._coders)

    async def decode(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """
        Yield the decoded body.

        Raises:
            OriginError: It is damaged.
        """
        if self._unsure:
            head = await _peek(chunks)
            self.applied = _is_applied(self._codings[-1], head)
            chunks = _again(head, chunks)
        if self.applied:
            for coder in self._coders:
                chunks = _undo(coder, chunks, self._pool)
        async for chunk in chunks:
            yield chunk


class Places:
    """Places for decoders with large windows."""

    def __init__(self, number: int = PLACES, timeout_s: float = PLACE_TIMEOUT_S) -> None:
        self._free = number
        self._timeout_s = timeout_s
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, number: int) -> AsyncGenerator[None]:
        """
        Hold so many places.

        Raises:
            Busy: They did not become free in time.
        """
        if number == 0:
            yield
            return
        try:
            async with asyncio.timeout(self._timeout_s), self._freed:
                await self._freed.wait_for(lambda: self._free >= number)
                self._free -= number
        except TimeoutError:
            raise Busy("too many compressed answers are being decoded", retry_after_s=2) from None
        try:
            yield
        finally:
            self._free += number
            async with self._freed:
                self._freed.notify_all()


def make_pool() -> ThreadPoolExecutor:
    """Return the threads for decoders with large windows."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="decode")


def read_codings(fields: Iterable[str], pool: ThreadPoolExecutor) -> Decoder | None:
    """
    Return what undoes the codings that the fields `Content-Encoding` of an answer name; `None`: there are none.

    Raises:
        OriginError: There are too many.
    """
    names = [name for field in fields for part in field.split(",") if (name := part.strip().lower())]
    codings = [_ALIASES.get(name, name) for name in names]
    known = [name for name in codings if name in _CODERS]
    if not known:
        return None
    decoder = Decoder(known[: CODINGS_MAX + 1], pool, unsure=len(known) < len(codings))
    if len(known) > CODINGS_MAX or decoder.places > WIDE_MAX:
        raise OriginError("the origin's answer is compressed too many times over")
    return decoder


async def _undo(coder: Coder, chunks: AsyncIterator[bytes], pool: ThreadPoolExecutor) -> AsyncIterator[bytes]:
    """Yield what a decoder makes of chunks."""
    taken = given = trailing = 0
    async for chunk in chunks:
        for start in range(0, len(chunk), TAKEN_BYTES):
            data = chunk[start : start + TAKEN_BYTES]
            if coder.ended:
                trailing += len(data)
            else:
                taken += len(data)
            while True:
                piece = await _step(coder, coder.step, data, pool)
                given += len(piece)
                if piece:
                    yield piece
                if not coder.pending:
                    break
                data = b""
            if taken > OVERHEAD_BYTES_MAX + given + given // OVERHEAD_PART:
                raise OriginError("the origin's compressed answer holds next to nothing")
            if trailing > TRAILING_BYTES_MAX:
                return
    while piece := await _step(coder, lambda _: coder.finish(), b"", pool):
        yield piece


async def _step(coder: Coder, step: Callable[[bytes], bytes], data: bytes, pool: ThreadPoolExecutor) -> bytes:
    try:
        if coder.wide:
            return await asyncio.get_running_loop().run_in_executor(pool, step, data)
        await asyncio.sleep(0)
        return step(data)
    except (zlib.error, brotli.error, zstd.ZstdError):
        raise OriginError("the origin's compressed answer is damaged") from None
    except RuntimeError:  # the pool was closed
        raise OriginError("the server is being shut down") from None


async def _peek(chunks: AsyncIterator[bytes]) -> bytes:
    head = b""
    while len(head) < PEEKED_BYTES and (chunk := await anext(chunks, None)) is not None:
        head += chunk
    return head


async def _again(head: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if head:
        yield head
    async for chunk in chunks:
        yield chunk


def _is_applied(coding: str, head: bytes) -> bool:
    """Tell by the first bytes whether a coding was applied; `br` and bare deflate begin with anything but an image."""
    if coding == "gzip":
        return head.startswith(b"\x1f\x8b")
    if coding == "zstd":
        return _ZSTD_FRAME.match(head) is not None
    if coding == "deflate" and _is_zlib(head):
        return True
    return sniff(head[:PEEKED_BYTES], ended=False) is None


def _is_zlib(head: bytes) -> bool:
    """Whether bytes begin with the header of zlib (RFC 1950, 2.2)."""
    return len(head) > 1 and head[0] & 0x8F == 8 and int.from_bytes(head[:2]) % 31 == 0
