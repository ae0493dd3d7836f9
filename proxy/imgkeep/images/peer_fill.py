"""
A mirror: what another worker fetches, for any number of readers here, from the file that grows there.

Workers speak of keys: the one line between the two says what is fetched, how far the file has come, and at the end that
this was all. Nothing of a client's request goes over it; ranges and conditions are answered here. There is one line a
key, whoever asks. The file's descriptor stays good when the file is moved to its place or removed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from imgkeep.core.errors import StorageError
from imgkeep.images.singleflight import Watermark

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from imgkeep.core.errors import ImgkeepError
    from imgkeep.core.records import Digest, Key
    from imgkeep.images.fill import FillHead
    from imgkeep.storage.interfaces import Disk, Draft, Readable, Spool


@dataclass(frozen=True, slots=True)
class RemoteFill:
    """
    A fill in another worker.

    Attributes:
        path: The file that it grows in; `None`: all bytes come with the steps.
        steps: As `SharedFile.steps`.
    """

    head: FillHead
    path: Path | None
    steps: AsyncIterator[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class FillFailure:
    """
    Why a fill in another worker has brought nothing.

    Attributes:
        link: The fingerprint of the link that failed: one that differs may do better. `None`: none would.
    """

    link: bytes | None
    error: ImgkeepError


class FillLeases(Protocol):
    """
    Which of several workers fetches which image.

    Attributes:
        grace_s: So long a claim is seen after its image was kept. A look-up that began earlier says nothing.
    """

    grace_s: float

    def acquire(self, key: str) -> str | None:
        """Claim a key; `None`: it is ours, now or already. Else the name of the worker that has it."""

    def release(self, key: str, *, stored: bool = False) -> None:
        """Let go of a claim of ours, if there is one: at once, or when nobody can have missed what was `stored`."""


class Peers(Protocol):
    """The other workers that share our port."""

    async def wait(self, holder: str, key: str) -> None:
        """
        Wait until a worker does not fetch the image of a key any more.

        Raises:
            Busy: It cannot be asked.
        """

    async def notify(
        self,
        *,
        refused: Collection[Digest] = (),
        changed: Collection[Key] = (),
        copies: Mapping[str, int] = ...,
        restored: Collection[Digest] = (),
    ) -> None:
        """
        Tell all others, and wait until they know: what is refused from now on, under which keys something else is kept,
        which local copies were brought or used, by name and size, and which digests may be blocked no longer.

        Raises:
            StorageError: Not everybody is certain to know.
        """


class FillPeers(Peers, Protocol):
    """Other workers whose fills can be followed."""

    def follow(self, holder: str, name: str) -> AbstractAsyncContextManager[RemoteFill | FillFailure | None]:
        """
        Follow a fill in another worker, by the name of its lease; `None`: there is none to follow, or not any more.

        Raises:
            Busy: It cannot be asked.
            StorageError: It fails unexpectedly.
        """


class PeerFill:
    """
    A flight of `collapse.SingleFlight`, and a body. Implements `Growing` and `Body`.

    Attributes:
        head: Resolved once: with what is fetched, with why nothing is, or with `None`: there is nothing to follow.

    Args:
        call: Begins to follow the other worker, until the end of the block.
        disk: Where the file is.
        rest: Where bytes that are in no file are held.
    """

    def __init__(
        self, call: Callable[[], AbstractAsyncContextManager[RemoteFill | FillFailure | None]], disk: Disk, rest: Spool
    ) -> None:
        self.head: asyncio.Future[FillHead | FillFailure | None] = asyncio.get_running_loop().create_future()
        self._call = call
        self._disk = disk
        self._spool = rest
        self._file: Readable | None = None
        self._file_size = 0
        self._rest: Draft | None = None
        self._size: int | None = None
        self._watermark = Watermark()
        self._holders = 1

    @property
    def size(self) -> int | None:
        return self._size

    @property
    def cache_entry(self) -> None:
        """Nothing is stored yet."""

    @property
    def ended(self) -> bool:
        return self._watermark.ended

    async def wait_for_size(self) -> int:
        while not self._watermark.ended:
            await self._watermark.beyond(self._watermark.height)
        return await self._watermark.beyond(self._watermark.height)

    def hold(self) -> None:
        """Announce one more reader, who calls `aclose` when done."""
        self._holders += 1

    async def share_file(self) -> None:
        """Others ask the worker that fetches."""

    async def run(self) -> None:
        async with self._call() as feed:
            if isinstance(feed, RemoteFill):
                if feed.path is not None:
                    self._file = await self._disk.open_shared(feed.path)
                if feed.path is None or self._file is not None:
                    self._size = feed.head.size
                    self.head.set_result(feed.head)
                    async for height, data in feed.steps:
                        await self._take(height, data)
                        self._watermark.advance(height)
                    self._size = self._watermark.height
                else:  # it is being given its name
                    self.head.set_result(None)
            else:
                self.head.set_result(feed)
        self._watermark.end()

    def fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            error = StorageError("the server is being shut down")
        if not self.head.done():
            self.head.set_exception(error)
            self.head.exception()  # marks it as retrieved: all who waited may have left
        self._watermark.end(error)

    async def read(self, offset: int, size: int) -> bytes:
        height = await self._watermark.beyond(offset)
        if self._file is not None and offset < self._file_size:
            return await self._file.read(offset, min(size, self._file_size - offset))
        if self._rest is None:
            return b""
        return await self._rest.read(offset - self._file_size, min(size, height - offset))

    async def aclose(self) -> None:
        self._holders -= 1
        if self._holders > 0:
            return
        if self._file is not None:
            await self._file.aclose()
        if self._rest is not None:
            await self._rest.aclose()

    async def _take(self, height: int, data: bytes) -> None:
        if not data:
            self._file_size = height
            return
        if self._rest is None:
            self._rest = await self._spool.begin(None)
        await self._rest.write(data)
