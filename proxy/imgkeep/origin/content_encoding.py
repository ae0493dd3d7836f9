"""
Decoding of content codings that no request asked for (RFC 9110, 8.4): some origins always send gzip.

Rules:
- The measure is what current Chromium shows by `new Image()` (tried with 156). It decodes gzip, x-gzip, deflate with
  the wrapper of zlib or without it, br and zstd, stacked as well; it ignores the bytes behind the end of a gzip,
  deflate or br stream, and reads zstd frame by frame.
- A name that is no coding says nothing about the bytes: object stores return what the uploader wrote (`aws-chunked`,
  `base64`, `utf-8`). Alone it is ignored. Beside a coding the first bytes tell whether that one was applied.
- Each step takes and returns little, so a bomb meets the limit on the body's size before it meets the memory.
  Decompressors with a large window work in threads of their own and hold slots, which bound the memory of all windows.
- `proved` says whether the end of every coding was seen. A stream that was cut looks complete to the framing; then the
  end of the image has to prove it (`images/fill.py`).
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import Busy, OriginError
from imgkeep.core.formats import sniff
from imgkeep.origin.decompressors import DAMAGE, DECOMPRESSORS, is_zlib

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence

    from imgkeep.origin.decompressors import Decompressor

TAKEN_BYTES: Final = 16_384
"""Maximum number of bytes that a step takes: tables of codes without content take longest, some 2 ms."""
CODINGS_MAX: Final = 5
"""Maximum number of codings of one answer. Real ones have one, or two by mistake."""
WIDE_MAX: Final = 2
"""Maximum number of them with a large window."""
OVERHEAD_BYTES_MAX: Final = 131_072
OVERHEAD_PART: Final = 8
"""
Maximum overhead of a coding: so many bytes and an eighth of its content. Compressed images grow by a thousandth; a
stream of nothing but tables costs time and brings no image.
"""
TRAILING_BYTES_MAX: Final = 131_072
"""Maximum number of bytes that are read behind the end of a stream; the rest stays unread."""
SLOTS: Final = 24
"""Maximum number of large windows at a time: one of brotli has 16 MiB, so 384 MiB at worst."""
SLOT_TIMEOUT_S: Final = 10
"""Timeout for a slot."""
THREADS: Final = 2
"""Number of threads for large windows."""
PEEKED_BYTES: Final = 64
"""Number of first bytes that tell a coding or an image."""

_ALIASES: Final = {"x-gzip": "gzip"}
_ZSTD_FRAME: Final = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")


class Decoder:
    """
    The decoder of one answer.

    Args:
        codings: The names of its codings, in the order in which they were applied.
        pool: The threads for large windows.
        unsure: Whether the first bytes have to tell that the codings were applied at all.

    Attributes:
        window_slots: How many slots for large windows it needs.
        applied: Whether the codings were applied; known with the first bytes.
    """

    def __init__(self, codings: Sequence[str], pool: ThreadPoolExecutor, *, unsure: bool = False) -> None:
        self._codings = codings
        self._decompressors = [DECOMPRESSORS[name]() for name in reversed(codings)]
        self._pool = pool
        self._unsure = unsure
        self.window_slots = sum(decompressor.has_large_window for decompressor in self._decompressors)
        self.applied = True

    @property
    def proved(self) -> bool:
        """Whether every coding has reached its end. Where `applied` is false, HTTP's own framing has to tell."""
        return all(decompressor.proved for decompressor in self._decompressors)

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
            for decompressor in self._decompressors:
                chunks = _undo(decompressor, chunks, self._pool)
        async for chunk in chunks:
            yield chunk


class WindowSlots:
    """The slots for decompressors with large windows."""

    def __init__(self, number: int = SLOTS, timeout_s: float = SLOT_TIMEOUT_S) -> None:
        self._free = number
        self._timeout_s = timeout_s
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, number: int) -> AsyncGenerator[None]:
        """
        Hold a number of slots.

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
    """Return the threads for large windows."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="decode")


def read_codings(fields: Iterable[str], pool: ThreadPoolExecutor) -> Decoder | None:
    """
    Return the decoder for the codings that the fields `Content-Encoding` of an answer name; `None`: there are none.

    Raises:
        OriginError: There are too many.
    """
    names = [name for field in fields for part in field.split(",") if (name := part.strip().lower())]
    codings = [_ALIASES.get(name, name) for name in names]
    known = [name for name in codings if name in DECOMPRESSORS]
    if not known:
        return None
    decoder = Decoder(known[: CODINGS_MAX + 1], pool, unsure=len(known) < len(codings))
    if len(known) > CODINGS_MAX or decoder.window_slots > WIDE_MAX:
        raise OriginError("the origin's answer is compressed too many times over")
    return decoder


async def _undo(
    decompressor: Decompressor, chunks: AsyncIterator[bytes], pool: ThreadPoolExecutor
) -> AsyncIterator[bytes]:
    """Yield the decoded bytes of chunks."""
    taken = given = trailing = 0
    async for chunk in chunks:
        for start in range(0, len(chunk), TAKEN_BYTES):
            data = chunk[start : start + TAKEN_BYTES]
            if decompressor.ended:
                trailing += len(data)
            else:
                taken += len(data)
            while True:
                piece = await _step(decompressor, decompressor.step, data, pool)
                given += len(piece)
                if piece:
                    yield piece
                if not decompressor.pending:
                    break
                data = b""
            if taken > OVERHEAD_BYTES_MAX + given + given // OVERHEAD_PART:
                raise OriginError("the origin's compressed answer holds next to nothing")
            if trailing > TRAILING_BYTES_MAX:
                return
    while piece := await _step(decompressor, lambda _: decompressor.finish(), b"", pool):
        yield piece


async def _step(
    decompressor: Decompressor, step: Callable[[bytes], bytes], data: bytes, pool: ThreadPoolExecutor
) -> bytes:
    try:
        if decompressor.has_large_window:
            return await asyncio.get_running_loop().run_in_executor(pool, step, data)
        await asyncio.sleep(0)
        return step(data)
    except DAMAGE:
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
    if coding == "deflate" and is_zlib(head):
        return True
    return sniff(head[:PEEKED_BYTES], ended=False) is None
