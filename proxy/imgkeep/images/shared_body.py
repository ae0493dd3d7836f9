"""
A growing body with many readers, each at its own speed.

A producer (`Fill`, `PeerFill`, `RemoteRead`) feeds it: the head, once; the bytes, into drafts or in another process's
file; the watermark, up to which readers may read; the end. The producer decides when readers may have the last byte.

Rules:
- Readers cost no copy: they read by offset from the draft, and from the newest bytes in memory if they keep up.
- A disk that fails does not fail the readers: the body continues in a draft in memory, within that spool's budget.
- Each reader gets a copy of a failure. The traceback of a raised error refers to the reader's frames, and through them
  to all that the producer holds.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from imgkeep.core.errors import ImgkeepError, StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from imgkeep.storage.interfaces import Body, Draft, Spool

RECENT_CHUNKS_MAX: Final = 256
"""Maximum number of pieces of the newest bytes: an origin that sends byte by byte must cost neither memory nor long
searches."""
COPY_BYTES: Final = 1_048_576
"""Size of the pieces in which a body moves from a disk that failed into memory."""
STEP_BYTES: Final = 65_536
"""Size of the pieces of a draft in memory that another process reads."""

H = TypeVar("H")


@dataclass(frozen=True, slots=True)
class SharedFile:
    """
    How a body grows, for another process on this machine.

    Attributes:
        path: The file that it grows in, for now: the store moves it when it puts the image.
        steps: The watermark after each growth, with the new bytes if no file holds them. As long as the file grows, a
            step has no bytes. After a failure of the disk, each step has the bytes up to its watermark. Raises as
            `read` does.
    """

    path: Path
    steps: AsyncIterator[tuple[int, bytes]]


class Watermark:
    """How many bytes of a growing body readers may read, and the readers that wait for more."""

    def __init__(self) -> None:
        self.position = 0
        self.ended = False
        self.error: BaseException | None = None
        self._waiting: list[asyncio.Future[None]] = []

    def advance(self, position: int) -> None:
        """Let readers read the bytes up to `position`."""
        self.position = position
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """End the body: at its last byte, or because of `error`."""
        if not self.ended:
            self.ended = True
            self.error = error
            self._wake()

    async def wait_beyond(self, offset: int) -> int:
        """
        Wait until readers may read more than `offset` bytes, or the end is reached; return the position.

        Raises:
            BaseException: The failure that ended the body. Readers can still read the bytes below the watermark.
        """
        while self.position <= offset and not self.ended:
            # A future for each reader: a reader that is cancelled cancels no other one.
            more = asyncio.get_running_loop().create_future()
            self._waiting.append(more)
            await more
        if self.position <= offset and self.error is not None:
            raise _copy(self.error)
        return self.position

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for more in waiting:
            if not more.done():
                more.set_result(None)


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes of the body from `start` on. The last part that starts at or before an offset has the byte there."""

    start: int
    bytes: Body | Draft


class SharedBody(Generic[H]):
    """
    A body that one producer feeds and many readers read. Implements `Body`.

    Attributes:
        head: The future for which readers wait before the first byte: resolved once, with the head or the failure.
        size: The size in bytes, as the source declares it or, at the end, as it is; `None`: not known yet.
        written: How many bytes the newest draft holds.

    Args:
        memory: Where the body continues when a disk fails.
        recent_bytes_max: Maximum size of the newest bytes that stay in memory for readers that keep up.
        readers_changed: Called while the producer feeds the body: with the first reader, and when the last one left.
    """

    def __init__(
        self,
        memory: Spool,
        *,
        recent_bytes_max: int = 0,
        readers_changed: Callable[[SharedBody[H]], None] | None = None,
    ) -> None:
        self.head: asyncio.Future[H] = asyncio.get_running_loop().create_future()
        self.size: int | None = None
        self.written = 0
        self._memory = memory
        self._watermark = Watermark()
        self._parts: list[_Part] = []
        self._drafts: list[Draft] = []
        """Own drafts among the parts. The last one grows; one before it is on a disk that failed."""
        self._is_in_memory = False
        self._recent: deque[tuple[int, bytes]] = deque()
        self._recent_bytes = 0
        self._recent_bytes_max = recent_bytes_max
        self._readers_changed = readers_changed
        self._holders = 1
        """The producer, and each reader."""

    # For readers

    @property
    def cache_entry(self) -> None:
        """There is no stored object yet, so no cache has it."""

    @property
    def ended(self) -> bool:
        """Whether the body has ended."""
        return self._watermark.ended

    @property
    def has_readers(self) -> bool:
        return self._holders > 1

    async def wait_head(self) -> H:
        """
        Wait for the head.

        Raises:
            BaseException: A copy of the failure of the producer.
        """
        try:
            return await asyncio.shield(self.head)
        except ImgkeepError as error:
            error.__traceback__ = None
            raise copy.copy(error) from None

    async def wait_for_size(self) -> int:
        """Wait until the body has ended, and return its size. Raises as `read` does."""
        while not self._watermark.ended:
            await self._watermark.wait_beyond(self._watermark.position)
        return await self._watermark.wait_beyond(self._watermark.position)

    async def read(self, offset: int, size: int) -> bytes:
        """Return the next bytes from `offset` on as soon as there are some; nothing at the end."""
        end = await self._watermark.wait_beyond(offset)
        size = min(size, end - offset)
        if size <= 0:
            return b""
        if self._recent and offset >= self._recent[0][0]:
            for start, chunk in reversed(self._recent):
                if start <= offset:
                    return chunk[offset - start : offset - start + size]
        for part in reversed(self._parts):
            if part.start <= offset:
                return await part.bytes.read(offset - part.start, min(size, end - offset))
            end = part.start
        return b""

    def hold(self) -> None:
        """Add a reader, which calls `aclose` when done."""
        self._holders += 1
        if self._holders == 2 and self._readers_changed is not None:
            self._readers_changed(self)

    async def aclose(self) -> None:
        """Remove a reader, or the producer. The last one deletes drafts that were not stored."""
        self._holders -= 1
        if self._holders == 1 and self._readers_changed is not None:
            self._readers_changed(self)
        if self._holders == 0:
            self._recent.clear()
            for part in reversed(self._parts):
                await part.bytes.aclose()

    async def share_file(self) -> SharedFile | None:
        """Share the growing file with another process; `None`: this process has no file of the body."""
        if not self._drafts:
            return None
        draft = self._drafts[-1]
        with suppress(StorageError):  # the producer meets the fault as well
            path = await draft.share_file()
            if path is not None:
                return SharedFile(path, self._steps(draft))
        return None

    # For the producer

    @property
    def draft(self) -> Draft:
        """The draft that takes the next bytes."""
        return self._drafts[-1]

    @property
    def is_mostly_written(self) -> bool:
        """Whether more than half of the declared size is in drafts."""
        return bool(self.size and self.written * 2 > self.size)

    async def begin(self, spool: Spool) -> StorageError | None:
        """
        Begin a draft for the body; return the fault of a disk in whose place the memory takes it.

        Raises:
            StorageError: The memory has no room either.
        """
        fault = None
        try:
            draft = await spool.begin(self.size)
        except StorageError as error:
            fault = error
            draft, self._is_in_memory = await self._memory.begin(self.size), True
        self._add_draft(draft)
        return fault

    async def begin_in_memory(self, start: int) -> None:
        """Begin a draft in memory for the bytes from `start` on. Raises as `begin`."""
        self._add_draft(await self._memory.begin(None), start)
        self._is_in_memory = True

    def add_file(self, file: Body) -> None:
        """Read from a file that another process grows, up to where the next part starts."""
        self._parts.append(_Part(0, file))

    async def write(self, chunk: bytes) -> StorageError | None:
        """
        Write the next bytes; return the fault of a disk, once, when the body continues in memory.

        Raises:
            StorageError: The memory has no room.
        """
        fault = None
        draft = self._drafts[-1]
        try:
            await draft.write(chunk)
            self.written = draft.size
        except StorageError as error:
            if self._is_in_memory:
                raise
            fault = error
            await self._continue_in_memory(chunk)
        if self._recent_bytes_max:
            self._note_recent(chunk)
        return fault

    def advance(self, position: int) -> None:
        """Let readers read the bytes up to `position`."""
        self._watermark.advance(position)

    def finish(self, size: int) -> None:
        """Let readers read all bytes, and end the body."""
        self._readers_changed = None
        self.size = size
        self._watermark.advance(size)
        self._watermark.end()

    def end(self) -> None:
        """End the body at the present watermark; cancel the readers that wait for the head."""
        self._readers_changed = None
        self.head.cancel()
        self._watermark.end()

    def fail(self, error: BaseException) -> None:
        """End the body with `error`: each reader gets it after the bytes below the watermark."""
        self._readers_changed = None
        if isinstance(error, asyncio.CancelledError):
            error = StorageError("the server is being shut down")
        if not self.head.done():
            self.head.set_exception(error)
            self.head.exception()  # marks it as retrieved: all readers may have left
        self._watermark.end(error)

    def _add_draft(self, draft: Draft, start: int = 0) -> None:
        self._drafts.append(draft)
        self._parts.append(_Part(start, draft))

    async def _continue_in_memory(self, chunk: bytes) -> None:
        """Copy what a disk took, and add the `chunk` that it did not. Readers notice nothing: they read by offset."""
        broken = self.draft
        draft = await self._memory.begin(self.size)
        try:
            while data := await broken.read(draft.size, min(COPY_BYTES, broken.size - draft.size)):
                await draft.write(data)
            await draft.write(chunk)
        except StorageError:
            await draft.aclose()
            raise
        self._add_draft(draft)
        self._is_in_memory, self.written = True, draft.size

    def _note_recent(self, chunk: bytes) -> None:
        self._recent.append((self.written - len(chunk), chunk))
        self._recent_bytes += len(chunk)
        while self._recent_bytes > self._recent_bytes_max or len(self._recent) > RECENT_CHUNKS_MAX:
            self._recent_bytes -= len(self._recent.popleft()[1])

    async def _steps(self, draft: Draft) -> AsyncIterator[tuple[int, bytes]]:
        """Yield as `SharedFile.steps` what `draft` holds, and what it could not take."""
        offset = 0
        while (position := await self._watermark.wait_beyond(offset)) > offset:
            # A draft on a disk that failed grows no more.
            if offset < draft.size:
                offset = min(position, draft.size)
                yield offset, b""
            else:
                data = await self.read(offset, STEP_BYTES)
                offset += len(data)
                yield offset, data


def _copy(error: BaseException) -> BaseException:
    return copy.copy(error) if isinstance(error, ImgkeepError) else error
