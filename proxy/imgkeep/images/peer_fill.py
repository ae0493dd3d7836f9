"""
A fill in another worker, followed by any number of readers here, in the file that grows there.

Workers speak of keys. One connection a key tells this worker what the other one fetches, how far the file has come, and
at the end that this was all. Nothing of a client's request goes over it; this worker answers ranges and conditions. The
file's descriptor stays valid when the other worker moves the file to its place or removes it. From another machine the
bytes come, into a draft of this one; it is never put.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imgkeep.images.shared_body import SharedBody
from imgkeep.images.singleflight import Call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from imgkeep.core.errors import ImgkeepError
    from imgkeep.images.fill import FillHead
    from imgkeep.storage.interfaces import Spool

MEMORY_BYTES_MAX: Final = 262_144
"""Maximum size of an image of another machine that stays in memory while it is followed."""


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
    Why a fill in another worker brought nothing.

    Attributes:
        link: The hash of the link that failed: another link may do better. `None`: none would.
    """

    link: bytes | None
    error: ImgkeepError


class PeerFill(Call):
    """
    A fill in another worker, which feeds the body that readers of this worker read from.

    Attributes:
        body: Its head is resolved with what the other worker fetches, with why it fetches nothing, or with `None`:
            there is no fill to follow.

    Args:
        holder: The name of the other worker.
        follow: Follows the fill until the end of the block.
        disk: Where the file is, or the draft of a large image without one.
        memory: Where other bytes go that no file holds.
    """

    def __init__(
        self,
        holder: str,
        follow: Callable[[], AbstractAsyncContextManager[RemoteFill | FillFailure | None]],
        disk: Spool,
        memory: Spool,
    ) -> None:
        self.body: SharedBody[FillHead | FillFailure | None] = SharedBody(memory)
        self.holder = holder
        self._follow = follow
        self._disk = disk

    async def run(self) -> None:
        async with self._follow() as fill:
            if isinstance(fill, RemoteFill) and await self._open(fill):
                self.body.size = fill.head.size
                self.body.head.set_result(fill.head)
                size = await self._read(fill)
            else:
                # The file of a fill that has ended is being given its name, and can be opened no more.
                self.body.head.set_result(None if isinstance(fill, RemoteFill) else fill)
                size = None
        if size is None:
            self.body.end()
        else:
            self.body.finish(size)

    def fail(self, error: BaseException) -> None:
        self.body.fail(error)

    async def aclose(self) -> None:
        await self.body.aclose()

    async def _open(self, fill: RemoteFill) -> bool:
        """Open the file that the fill grows in, if it has one; `False`: it is gone."""
        if fill.path is None:
            return True
        file = await self._disk.open_shared(fill.path)
        if file is not None:
            self.body.add_file(file)
        return file is not None

    async def _begin_draft(self, fill: RemoteFill, start: int) -> None:
        """Begin a draft for the bytes that no file of the other worker has."""
        if fill.path is None and (fill.head.size is None or fill.head.size > MEMORY_BYTES_MAX):
            await self.body.begin(self._disk)
        else:
            await self.body.begin_in_memory(start)

    async def _read(self, fill: RemoteFill) -> int:
        """Let readers have each step of the fill; return the size of the image."""
        position, in_file = 0, True
        async for position, data in fill.steps:
            if data and in_file:
                await self._begin_draft(fill, position - len(data))
                in_file = False
            if data:
                await self.body.write(data)
            self.body.advance(position)
        return position
