"""
Keeping an image before anyone looks: by its link, or by its bytes.

Rules:
- What is answered is durable, in the primary or in the fallback.
- The same image saved again is found, not fetched or written again; a fill that is under way is joined.
- Bytes are judged as those of an origin are: an image of a kind that we keep, whole, and within the limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.core.content import identify_bytes
from proxy.core.errors import Conflict, NotAnImage, Removed, StorageError, TooLarge
from proxy.core.model import Format, Record
from proxy.core.sniff import HEAD_BYTES_MAX, UNDECIDED, is_whole, measure, sniff
from proxy.core.stored import REMOVED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.core.model import Source, SourceInfo
    from proxy.ports import Draft
    from proxy.service.fill import Neighbours
    from proxy.service.keep import Keeper


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
            Conflict: Another image is kept under `info`.
            StorageError: It is not kept.
        """
        draft = await self._begin(size)
        try:
            async for chunk in chunks:
                if draft.size + len(chunk) > self._body_bytes_max:
                    raise TooLarge(f"the image is larger than {self._body_bytes_max} bytes, see fetch.body_bytes_max")
                await draft.write(chunk)
            format_ = None
            if draft.size:
                format_ = await draft.judge(lambda body: _judge(bytes(body[:HEAD_BYTES_MAX]), len(body)))
            # Of a naked JPEG XL codestream only a decoder finds the end; there HTTP's own framing has to do.
            if format_ is None or not (
                format_ is Format.JXL or await draft.judge(lambda body: is_whole(format_, body))
            ):
                raise NotAnImage("the bytes are not a whole image of a supported format")
            return await self._keep(draft, format_, info or identify_bytes(draft.digest))
        finally:
            await draft.aclose()

    async def _begin(self, size: int | None) -> Draft:
        try:
            return await self._to.disk.begin(size)
        except StorageError:
            if self._to.store.disk_only:
                raise
            return await self._to.memory.begin(size)

    async def _keep(self, draft: Draft, format_: Format, info: SourceInfo) -> Saved:
        if draft.digest in self._to.refused:
            raise Removed(REMOVED)
        pixel_size = await draft.judge(lambda body: measure(format_, body))
        if pixel_size is not None and pixel_size.pixels > self._to.pixels_max:
            raise TooLarge(f"the image has {pixel_size.pixels} pixels, more than fetch.pixels_max")
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
            raise Removed(REMOVED)
        self._to.observer.filled(draft.size, pending=kept.pending)
        await self._keeper.kept(kept)
        return Saved(kept, created=True)


def _judge(head: bytes, size: int) -> Format | None:
    format_ = sniff(head, ended=len(head) == size)
    return None if format_ is UNDECIDED else format_
