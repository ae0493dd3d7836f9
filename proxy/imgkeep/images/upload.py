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
from imgkeep.images.drafts import undo_put
from imgkeep.images.ingest import begin, check_whole_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.core.records import Format, PixelSize, Source, SourceInfo
    from imgkeep.images.fill import FillDependencies
    from imgkeep.images.service import ImageService
    from imgkeep.storage.interfaces import Draft


@dataclass(frozen=True, slots=True)
class Saved:
    """An image that is kept. `created`: it was not, before."""

    record: Record
    created: bool


class Saver:
    """Keeps images that nobody has asked for. `body_bytes_max`: of bytes that are handed in."""

    def __init__(self, image_service: ImageService, dependencies: FillDependencies, *, body_bytes_max: int) -> None:
        self._image_service = image_service
        self._dependencies = dependencies
        self._body_bytes_max = body_bytes_max

    async def save_link(self, source: Source) -> Saved:
        """
        Keep the image behind a link.

        Raises:
            SourceRejected, OriginError, StorageError, Busy: As their classes say; it is not kept.
        """
        return Saved(*await self._image_service.keep(source, self._image_service.identify(source)))

    async def save_bytes(self, chunks: AsyncIterator[bytes], size: int | None, info: SourceInfo | None = None) -> Saved:
        """
        Keep an image that is handed in, under `info` or else under its bytes; `size` is a hint.

        Raises:
            NotAnImage, TooLarge, Removed: It is refused.
            Busy: Too many images are being judged.
            Conflict: Another image is kept under `info`.
            StorageError: It is not kept.
        """
        draft = await begin(self._dependencies, size)
        try:
            async for chunk in chunks:
                if draft.size + len(chunk) > self._body_bytes_max:
                    raise TooLarge(f"the image is larger than {self._body_bytes_max} bytes, see fetch.body_bytes_max")
                await draft.write(chunk)
            if draft.digest in self._dependencies.refused:
                raise Removed(REMOVED)
            judged = await check_whole_image(self._dependencies, draft)
            return await self._keep(draft, judged.format, judged.pixel_size, info or identify_bytes(draft.digest))
        finally:
            await draft.aclose()

    async def _keep(self, draft: Draft, format_: Format, pixel_size: PixelSize | None, info: SourceInfo) -> Saved:
        known = await self._image_service.find(info.key)
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
            etag=self._dependencies.draw_etag(),
            stored_at=self._dependencies.clock().replace(microsecond=0),
        )
        kept = await self._dependencies.store.put(draft, record)
        if record.digest in self._dependencies.refused:  # removed while it was being put
            await undo_put(self._dependencies.store, kept)
            raise Removed(REMOVED)
        self._dependencies.observer.filled(
            Subject(kept.key, kept.host, kept.provider), draft.size, pending=kept.pending
        )
        await self._image_service.kept(kept)
        return Saved(kept, created=True)
