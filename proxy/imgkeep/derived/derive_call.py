"""One running derivation of a picture, and the requests that wait for it (`images/singleflight.py`)."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import ImgkeepError, StorageError
from imgkeep.images.singleflight import Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.derived.picture_cache import FoundPicture
    from imgkeep.images.request_context import RequestContext
    from imgkeep.storage.interfaces import Body
    from imgkeep.storage.local.memory_cache import CacheEntry

STOPPING: Final = "the server is being shut down"


class HeldBody:
    """The open body of a picture, with several holders. Implements `Body`: each of them closes it once."""

    def __init__(self, body: Body, holders: int) -> None:
        self._body = body
        self._holders = holders

    @property
    def size(self) -> int | None:
        return self._body.size

    @property
    def cache_entry(self) -> CacheEntry | None:
        return self._body.cache_entry

    async def read(self, offset: int, size: int) -> bytes:
        return await self._body.read(offset, size)

    async def wait_for_size(self) -> int:
        return await self._body.wait_for_size()

    async def aclose(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            await self._body.aclose()


class DeriveCall(Call):
    """
    The making of one picture for all requests that wait for it.

    Attributes:
        is_made: Whether this process has made the picture, and not found it.
        followers: Number of requests that wait for it.

    Args:
        make: Finds or makes the picture; `None`: its original is gone.
    """

    def __init__(self, make: Callable[[DeriveCall], Awaitable[FoundPicture | None]]) -> None:
        self.is_made = False
        self._make = make
        self.followers = 0
        self._done: asyncio.Future[tuple[HeldBody, str] | None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        found = await self._make(self)
        if found is None:
            self._done.set_result(None)
        else:
            # No request can join between this and the end of the call, and each that has joined holds the body.
            self._done.set_result((HeldBody(found.body, self.followers + 1), found.etag))

    def fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            error = StorageError(STOPPING)
        if not self._done.done():
            self._done.set_exception(error)
            self._done.exception()  # marks it as retrieved: all requests may have left

    async def aclose(self) -> None:
        await self._release()

    async def follow(self, request_context: RequestContext) -> tuple[HeldBody, str] | None:
        """
        Wait for the picture; the caller closes its body. `None`: its original is gone.

        Raises:
            ImgkeepError: It cannot be made. A copy, because each request has a traceback of its own.
        """
        self.followers += 1
        try:
            made: tuple[HeldBody, str] | None = await request_context.wait(asyncio.shield(self._done))
        except ImgkeepError as error:
            error.__traceback__ = None
            raise copy.copy(error) from None
        except BaseException:
            self.followers -= 1
            await self._release()
            raise
        return made

    async def _release(self) -> None:
        """Close the body for one holder, if there is one."""
        if self._done.done() and not self._done.cancelled() and self._done.exception() is None:
            result = self._done.result()
            if result is not None:
                await result[0].aclose()
