"""
Images that the API, a job or a command stores: by their link, or by their bytes.

Rules:
- A saved image is durable, in the primary or in the fallback.
- The same image saved again is found, and neither fetched nor written again; a save joins a running fill.
- Uploaded bytes are checked as those of an origin are: an image of a supported format, and within the limits. An image
  that its format calls incomplete is refused: there is no origin to fetch it from again, and its sender can send it
  whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgkeep.core.data_url import identify_bytes
from imgkeep.core.errors import Conflict, Removed, TooLarge
from imgkeep.core.layout import REMOVED
from imgkeep.core.records import Record, Subject
from imgkeep.images.fill_result import FillResult, Stored
from imgkeep.images.ingest import begin_draft, check_whole_image, undo_put

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.core.records import Format, PixelSize, Source, SourceInfo
    from imgkeep.images.dependencies import FillDependencies
    from imgkeep.images.service import ImageService
    from imgkeep.storage.interfaces import Draft


@dataclass(frozen=True, slots=True)
class Saved:
    """A stored image. `created`: it was not stored before."""

    record: Record
    created: bool


class Saver:
    """Stores images by link and by bytes. `body_bytes_max`: maximum size of uploaded bytes."""

    def __init__(self, image_service: ImageService, dependencies: FillDependencies, *, body_bytes_max: int) -> None:
        self._image_service = image_service
        self._dependencies = dependencies
        self._body_bytes_max = body_bytes_max

    async def save_link(self, source: Source) -> Saved:
        """
        Store the image that a link names.

        Raises:
            SourceRejected, OriginError, StorageError, Busy: As their classes say; it is not stored.
        """
        return Saved(*await self._image_service.save(source, self._image_service.identify(source)))

    async def save_bytes(self, chunks: AsyncIterator[bytes], size: int | None, info: SourceInfo | None = None) -> Saved:
        """
        Store uploaded bytes, under the key of `info` or else of the bytes themselves; `size` is a hint.

        Raises:
            NotAnImage, TooLarge, Removed: They are refused.
            Busy: Too many images are being checked.
            Conflict: Another image is stored under the key of `info`.
            StorageError: They are not stored.
        """
        draft = await begin_draft(self._dependencies, size)
        try:
            async for chunk in chunks:
                if draft.size + len(chunk) > self._body_bytes_max:
                    raise TooLarge(f"the image is larger than {self._body_bytes_max} bytes, see fetch.body_bytes_max")
                await draft.write(chunk)
            if draft.digest in self._dependencies.blocked:
                raise Removed(REMOVED)
            checked = await check_whole_image(self._dependencies, draft)
            return await self._store(draft, checked.format, checked.pixel_size, info or identify_bytes(draft.digest))
        finally:
            await draft.aclose()

    async def _store(self, draft: Draft, format_: Format, pixel_size: PixelSize | None, info: SourceInfo) -> Saved:
        known = await self._image_service.find(info.key)
        if known is not None:
            if known.digest != draft.digest:
                raise Conflict("another image is stored under this name")
            return Saved(known, created=False)
        record = Record(
            key=info.key,
            identity=info.identity,
            digest=draft.digest,
            format=format_,
            size=draft.size,
            pixel_size=pixel_size,
            etag=self._dependencies.draw_etag(),
            stored_at=self._dependencies.clock().replace(microsecond=0),
        )
        stored = await self._dependencies.store.put(draft, record)
        if record.digest in self._dependencies.blocked:  # removed while it was being put
            await undo_put(self._dependencies.store, stored)
            raise Removed(REMOVED)
        subject = Subject(stored.key, stored.host, stored.provider)
        await self._dependencies.observer.fill_ended(FillResult(subject, draft.size, Stored(stored)))
        await self._image_service.changes.note_stored(stored, is_first=True)
        return Saved(stored, created=True)
