"""
Keeping an image before anyone looks: by its link, or by its bytes.

Rules:
- What is answered is durable, in the primary or in the fallback.
- The same image saved again is found, not fetched or written again; a fill that is under way is joined.
- Bytes are judged as those of an origin are: an image of a kind that we keep, and within the limits. What its format
  calls incomplete is refused: there is no origin to fetch it from again, and its sender can send it whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgkeep.core.data_url import identify_bytes
from imgkeep.core.errors import Conflict, Removed, TooLarge
from imgkeep.core.layout import REMOVED
from imgkeep.core.records import Record, Subject
from imgkeep.images.drafts import take_back
from imgkeep.images.ingest import begin, judge_whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.core.records import Format, PixelSize, Source, SourceInfo
    from imgkeep.images.fill import Neighbours
    from imgkeep.images.service import Keeper
    from imgkeep.ports import Draft


@dataclass(frozen=True, slots=True)
class Saved:
    """An image that is kept. `created`: it was not, before."""

    record: Record
    created: bool


class Saver:
    """Keeps images that nobody has asked for. `body_bytes_max`: of bytes that are handed in."""

    def __init__(self, keeper: Keeper, neighbours: Neighbours, *, body_bytes_max: int) -> None:
        self._keeper = keeper
        self._to = neighbours
        self._body_bytes_max = body_bytes_max

    async def save_link(self, source: Source) -> Saved:
        """
        Keep the image behind a link.

        Raises:
            SourceRejected, OriginError, StorageError, Busy: As their classes say; it is not kept.
        """
        return Saved(*await self._keeper.keep(source, self._keeper.identify(source)))

    async def save_bytes(self, chunks: AsyncIterator[bytes], size: int | None, info: SourceInfo | None = None) -> Saved:
        """
        Keep an image that is handed in, under `info` or else under its bytes; `size` is a hint.

        Raises:
            NotAnImage, TooLarge, Removed: It is refused.
            Busy: Too many images are being judged.
            Conflict: Another image is kept under `info`.
            StorageError: It is not kept.
        """
        draft = await begin(self._to, size)
        try:
            async for chunk in chunks:
                if draft.size + len(chunk) > self._body_bytes_max:
                    raise TooLarge(f"the image is larger than {self._body_bytes_max} bytes, see fetch.body_bytes_max")
                await draft.write(chunk)
            if draft.digest in self._to.refused:
                raise Removed(REMOVED)
            judged = await judge_whole(self._to, draft)
            return await self._keep(draft, judged.format, judged.pixel_size, info or identify_bytes(draft.digest))
        finally:
            await draft.aclose()

    async def _keep(self, draft: Draft, format_: Format, pixel_size: PixelSize | None, info: SourceInfo) -> Saved:
        known = await self._keeper.find(info.key)
        if known is not None:
            if known.digest != draft.digest:
                raise Conflict("another image is kept under this name")
            return Saved(known, created=False)
        record = Record(
            key=info.key,
            identity=info.identity,
            host="",
            digest=draft.digest,
            format=format_,
            size=draft.size,
            pixel_size=pixel_size,
            etag=self._to.draw_etag(),
            stored_at=self._to.clock().replace(microsecond=0),
        )
        kept = await self._to.store.put(draft, record)
        if record.digest in self._to.refused:  # removed while it was being put
            await take_back(self._to.store, kept)
            raise Removed(REMOVED)
        self._to.observer.filled(Subject(kept.key, kept.host, kept.provider), draft.size, pending=kept.pending)
        await self._keeper.kept(kept)
        return Saved(kept, created=True)
