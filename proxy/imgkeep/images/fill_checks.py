"""Checks of the bytes of a fill: the format, the number of pixels, and whether bytes are missing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import Busy, NotAnImage, OriginError, TooLarge
from imgkeep.images.ingest import require_pixels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.core.formats import Ending, Seen
    from imgkeep.core.records import Client, Format, PixelSize
    from imgkeep.images.dependencies import FillDependencies
    from imgkeep.origin.response import OriginResponse
    from imgkeep.storage.interfaces import Draft

GATHERED_BYTES_MAX: Final = 2_097_152
"""Maximum size of an image whose head goes out after the bytes that have come already."""
GATHERING_S: Final = 0.005
"""Maximum time in which the fill gathers these bytes."""
IDLE_ITERATIONS_MAX: Final = 4
"""Maximum number of iterations of the loop, one after the other, that bring no byte: some 100 us."""
ERROR_IMAGE_BYTES_MAX: Final = 1_048_576
"""Maximum size of an image that comes with an error and is shown: memory holds it. Real ones have a tenth."""
PARTIAL_DETAIL: Final = "the origin sent a part only, without a request for one"


class FillChecks:
    """
    Checks of one fill.

    Args:
        client: The client whose share of the format checker's threads the checks take.
        background: Whether the whole image is checked, even where its first bytes and its framing show its end.
    """

    def __init__(self, dependencies: FillDependencies, client: Client, *, background: bool) -> None:
        self._dependencies = dependencies
        self._client = client
        self._background = background

    async def read_head(self, response: OriginResponse, chunks: AsyncIterator[bytes]) -> tuple[bytes, Seen]:
        """Return the first bytes, and the format and size that they show."""
        try:
            first, seen = await self._dependencies.format_checker.read_head(chunks, self._client)
        except NotAnImage as error:
            if response.is_part:
                raise OriginError(PARTIAL_DETAIL, origin_status=206) from None
            error.media_type, error.refusal = response.media_type, response.beginning
            raise
        require_pixels(self._dependencies, seen.pixel_size)
        return first, seen

    async def gather_to_end(
        self, response: OriginResponse, chunks: AsyncIterator[bytes], ending: Ending, size: int
    ) -> tuple[list[bytes], bool]:
        """
        Take the bytes that have arrived, as long as the next iterations of the loop bring more, up to the end of the
        image. Return them, and whether the image is complete.

        If the end is known before the head goes out, the first client gets the image as `immutable`. The fill does not
        wait for an origin that sends slowly, so no reader does.
        """
        if await self._foresees_end(ending, response.size):
            return [], True
        gathered: list[bytes] = []
        loop, idle = asyncio.get_running_loop(), 0
        until = loop.time() + GATHERING_S
        while not ending.is_seen and size != response.size and (response.size or size) <= GATHERED_BYTES_MAX:
            await asyncio.sleep(0)
            idle = 0 if response.at_hand else idle + 1
            if idle > IDLE_ITERATIONS_MAX or loop.time() > until:
                break
            if response.at_hand:
                chunk = await anext(chunks)
                ending.feed(chunk)
                size += len(chunk)
                gathered.append(chunk)
        return gathered, bool(gathered) and await self._foresees_end(ending, response.size)

    async def _foresees_end(self, ending: Ending, size: int | None) -> bool:
        """Tell whether the bytes so far show that the image is complete, if its framing brings `size` bytes."""
        if ending.is_walked or size is None:
            return ending.is_seen or (size is not None and ending.is_foreseen(size))
        return await self._dependencies.format_checker.foresees_end(ending, size)

    async def is_complete(self, response: OriginResponse, ending: Ending, draft: Draft) -> bool:
        """Tell whether the image is complete by its format; if its framing has no end, raise unless it is whole."""
        checker, client = self._dependencies.format_checker, self._client
        if response.framed:
            if not self._background and await self._foresees_end(ending, draft.size):
                return True
            return not await checker.is_incomplete(draft, ending.format, client)
        if not await checker.is_whole(draft, ending.format, client):
            raise OriginError(
                PARTIAL_DETAIL if response.is_part else "the origin's answer broke off before the end of the image"
            )
        return True

    async def measure(self, draft: Draft, format_: Format) -> PixelSize | None:
        """Measure the whole file again: some formats keep their header at the end."""
        pixel_size = await self._dependencies.format_checker.measure(draft, format_, self._client)
        require_pixels(self._dependencies, pixel_size)
        return pixel_size

    async def check_error_image(self, error: OriginError) -> None:
        """Find out whether an image came with an error, where clients are shown it."""
        body = error.refusal
        if not self._dependencies.show_errors or isinstance(error, NotAnImage) or error.refusal_broke_off:
            return
        if not 0 < len(body) <= ERROR_IMAGE_BYTES_MAX:
            return
        with suppress(NotAnImage, TooLarge, Busy):
            _, seen = await self._dependencies.format_checker.read_head(_once(body), self._client)
            require_pixels(self._dependencies, seen.pixel_size)
            error.image = seen.format.media_type, body


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
