"""
A mirror: what another worker fetches, for any number of readers here, from the file that grows there.

The one line between the two workers says how far the file has come, and at the end that this was all; each reader reads
the file by itself. The descriptor stays good when the file is moved to its place or removed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.collapse import Tide
from proxy.core.errors import OriginError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from proxy.ports import Draft, Readable, Spool


class Mirror:
    """
    Implements `ports.Growing` and `ports.Readable`.

    Args:
        file: What the other worker writes to.
        steps: As `ports.Trace.steps`, as they come from there.
        rest: Where what did not get into the file is held.
        over: Called once, when nobody follows any more.
    """

    def __init__(
        self, file: Readable, steps: AsyncIterator[tuple[int, bytes]], rest: Spool, over: Callable[[], None]
    ) -> None:
        self._file = file
        self._file_size = 0
        self._steps = steps
        self._spool = rest
        self._rest: Draft | None = None
        self._over = over
        self._tide = Tide()
        self._holders = 1
        self._following = asyncio.create_task(self._follow())

    @property
    def ended(self) -> bool:
        return self._tide.ended

    def hold(self) -> None:
        self._holders += 1

    async def lay_open(self) -> None:
        """Others ask the worker that fetches."""

    async def read(self, offset: int, size: int) -> bytes:
        height = await self._tide.beyond(offset)
        if offset < self._file_size:
            return await self._file.read(offset, min(size, self._file_size - offset))
        if self._rest is None:
            return b""
        return await self._rest.read(offset - self._file_size, min(size, height - offset))

    async def aclose(self) -> None:
        self._holders -= 1
        if self._holders > 0:
            return
        # At once, so that nobody joins what is being closed.
        self._tide.end(OriginError("nobody follows the image any more"))
        self._following.cancel()
        self._over()
        await self._file.aclose()
        if self._rest is not None:
            await self._rest.aclose()

    async def _follow(self) -> None:
        try:
            async for height, data in self._steps:
                await self._take(height, data)
                self._tide.rise(height)
        except Exception as error:  # noqa: BLE001 - those who read raise it
            self._tide.end(error)
        else:
            self._tide.end()

    async def _take(self, height: int, data: bytes) -> None:
        if not data:
            self._file_size = height
            return
        if self._rest is None:
            self._rest = await self._spool.begin(None)
        await self._rest.write(data)
