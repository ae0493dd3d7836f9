"""
The client of a Cloudinary folder, over Cloudinary's HTTP API.

What the service does otherwise than a bucket:
- Reads go to the API and not to the delivery URLs: the CDN behind those may return old versions and old misses.
- It has no ranges and no conditions. `overwrite=false` is a look when an upload begins ("return immediately if an asset
  with the same public ID was found"), so of two uploads at once both may succeed. Objects use it, because equal names
  mean equal bytes; records do not rely on it. `quarantine` may move a version that another process stored a moment
  ago; it notices that, and moves it back.
- It stores no header fields: `ObjectFields` have no effect. Its CDN sets `Content-Type` and `Cache-Control`.
- The public ID of an image has no extension, so an image has one asset, whatever extension the path has: `delete`
  removes it for any of them.
- Listings come from the Admin API, whose requests are limited by the hour. Nothing else uses it, so `has_any` asks for
  the five assets that an object may be, one after the other.
- An upload in one request has 100 MB at most, so `put_draft` refuses larger drafts.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from imgkeep.clock import read_clock
from imgkeep.storage.bucket.body import DraftPart
from imgkeep.storage.bucket.client import Features, ObjectResponse, ObjectStatus, quarantine_path
from imgkeep.storage.bucket.errors import CHANGED, NOT_TAKEN, BucketError
from imgkeep.storage.bucket.pages import Pages
from imgkeep.storage.cloudinary.answers import etag_of
from imgkeep.storage.cloudinary.api import CloudinaryApi
from imgkeep.storage.cloudinary.assets import (
    IMAGES,
    Asset,
    AssetKind,
    asset_of,
    check_folder,
    delivery_path,
    kinds_below,
    object_assets,
    public_id_prefix,
)
from imgkeep.storage.cloudinary.errors import make_error
from imgkeep.storage.cloudinary.listing import SortedListing, folder_above
from imgkeep.storage.cloudinary.live_checks import OwnChecks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from imgkeep.clock import Clock
    from imgkeep.core.store_url import CloudinaryFolder
    from imgkeep.storage.bucket.client import Check, ObjectFields
    from imgkeep.storage.cloudinary.answers import UploadedAsset
    from imgkeep.storage.interfaces import Draft

UPLOAD_BYTES_MAX: Final = 104_857_600
"""Maximum size of an upload in one request (Cloudinary, "Upload large files"); plans allow less for images."""


class CloudinaryClient:
    """
    The client of one folder of a Cloudinary product environment. Implements `BucketClient`.

    Args:
        observe: Receives operation, outcome and seconds of each call.
        environment: The environment variables; by default those of this process.
    """

    service = "cloudinary"

    def __init__(
        self,
        folder: CloudinaryFolder,
        *,
        timeout_s: float = 5,
        observe: Callable[[str, str, float], None] = lambda *_: None,
        environment: Mapping[str, str] | None = None,
        clock: Clock = read_clock,
    ) -> None:
        self.folder = folder
        self.timeout_s = timeout_s
        self.features = Features(ranges=False, presign=False, cheap_lists=False)
        self._downloads_have_fields = True
        self._listings: dict[tuple[AssetKind, str], SortedListing] = {}
        self._api = CloudinaryApi(
            str(folder), timeout_s=timeout_s, observe=observe, environment=environment, clock=clock
        )

    @property
    def place(self) -> str:
        return self._api.limits.place

    @property
    def answered_at(self) -> float:
        return self._api.limits.answered_at

    async def open(self) -> None:
        check_folder(self.folder)
        await self._api.open()

    async def check_settings(self) -> None:
        check_folder(self.folder)
        self._api.read_account()

    async def aclose(self) -> None:
        await self._api.aclose()

    async def get(self, path: str, *, start: int = 0, end: int | None = None, etag: str = "") -> ObjectResponse | None:  # noqa: ARG002 - it has no ranges
        # The documentation of downloads promises neither size nor ETag. Without them the asset is described first, and
        # not while a download holds a slot: many reads at once would wait for each other.
        status = None
        if not self._downloads_have_fields:
            status = await self.stat(path)
            if status is None:
                return None
        found = await self._api.download(self._asset(path))
        if found is None:
            return None
        if status is None and (not found.etag or found.size is None):
            found.stream.close()
            self._downloads_have_fields = False
            return await self.get(path, etag=etag)
        known = status or ObjectStatus(found.size or 0, found.etag)
        if etag and etag != (found.etag or known.etag):
            found.stream.close()
            raise BucketError(CHANGED, general=False)
        size = known.size if found.size is None else found.size
        return ObjectResponse(size, found.etag or known.etag, found.stream)

    async def stat(self, path: str) -> ObjectStatus | None:
        asset = self._asset(path)
        found = await self._api.describe(asset)
        # An image of another format has other names in the stored layout.
        if found is None or _has_other_format(found, asset):
            return None
        return ObjectStatus(found.bytes, found.etag)

    async def put_bytes(self, path: str, data: bytes, fields: ObjectFields, *, only_if_absent: bool = False) -> None:  # noqa: ARG002 - it has neither
        asset, etag = self._asset(path), etag_of(data)
        stored = await self._api.upload(asset, data, len(data), overwrite=True)
        if not stored.is_copy_of(etag, len(data)):
            raise BucketError(NOT_TAKEN)

    async def put_draft(self, path: str, draft: Draft, fields: ObjectFields) -> None:  # noqa: ARG002 - it stores none
        if draft.size > UPLOAD_BYTES_MAX:
            raise make_error("FileTooLarge", "Cloudinary takes no file of more than 100 MB in one request")
        asset, etag = self._asset(path), await draft.check(etag_of)
        body = DraftPart(draft, 0, draft.size)
        stored = await self._api.upload(asset, body, draft.size, overwrite=False)
        was_there = stored.existing and stored.is_copy_of(etag, draft.size)
        if stored.existing and not was_there:
            # Something else is under the name of these bytes.
            stored = await self._api.upload(asset, body, draft.size, overwrite=True)
        if stored.is_copy_of(etag, draft.size) and not _has_other_format(stored, asset):
            return
        if not was_there:
            with suppress(BucketError):
                await self._api.destroy(asset)
        raise make_error("Changed", "Cloudinary stored the image in another form than it was sent")

    async def delete(self, path: str) -> None:
        await self._api.destroy(self._asset(path))

    async def quarantine(self, path: str, etag: str) -> None:
        status = await self.stat(path)
        if status is None or status.etag != etag:
            return
        asset = self._asset(path)
        kind = AssetKind(asset.kind.resource_type, "authenticated")
        target = Asset(kind, self.folder.path(quarantine_path(asset.public_id)))
        moved = await self._api.rename(asset, target)
        if moved is not None and moved.etag != etag:
            # Another process has put a good one in its place since we looked.
            await self._api.rename(target, asset)

    async def has_any(self, prefix: str) -> bool:
        # The prefix of an object: without the Admin API, because each removal asks for it.
        if assets := object_assets(self.folder, prefix):
            for asset in assets:
                if await self._api.describe(asset) is not None:
                    return True
            return False
        for kind in kinds_below(prefix):
            page = await self._api.list_page(kind, public_id_prefix(self.folder, kind, prefix), size=1)
            if page.resources:
                return True
        return False

    async def walk(self, folder: str) -> AsyncIterator[tuple[str, int]]:
        lists = [self._walk_kind(kind, folder) for kind in kinds_below(f"{folder}/")]
        heads = [await anext(entries, None) for entries in lists]
        while any(head is not None for head in heads):
            _, first = min((head[0], place) for place, head in enumerate(heads) if head is not None)
            head = heads[first]
            assert head is not None
            yield head
            heads[first] = await anext(lists[first], None)

    async def _walk_kind(self, kind: AssetKind, folder: str) -> AsyncIterator[tuple[str, int]]:
        above = folder_above(folder)
        if above is None:
            async for entry in self._list(kind, f"{folder}/"):
                yield entry
            return
        # Taken out while it is read, so that two readers never share it.
        listing = self._listings.pop((kind, above), None)
        if listing is None or listing.has_passed(f"{folder}/"):
            listing = SortedListing(self._list(kind, f"{above}/"))
        async for entry in listing.read(f"{folder}/"):
            yield entry
        self._listings[kind, above] = listing

    async def _list(self, kind: AssetKind, prefix: str) -> AsyncIterator[tuple[str, int]]:
        start, wanted = len(self.folder.path("")), self.folder.path(prefix)
        cursor: str | None = ""
        pages, goes_on = Pages(), True
        while goes_on:
            # With a prefix the service sorts by public ID (Admin API, "Get resources").
            page = await self._api.list_page(kind, wanted, cursor=cursor or "")
            for entry in page.resources:
                if entry.public_id.startswith(wanted):
                    extension = f".{entry.format}" if kind == IMAGES and entry.format else ""
                    yield entry.public_id[start:] + extension, entry.bytes
            cursor = page.next_cursor
            goes_on = pages.go_on(cursor, is_empty=not page.resources)

    async def presign(self, path: str, *, ttl_s: int, head: bool) -> tuple[str, int]:  # noqa: ARG002 - there are none
        """Fail: its links for downloads lead to the API and not to the CDN, and are valid for one hour or more."""
        raise BucketError(
            "Cloudinary has no presigned links", general=False, remedy="use delivery.mode serve or redirect"
        )

    def public_url(self, path: str) -> str:
        return f"{self._api.account.delivery_url}/{delivery_path(self.folder, path)}"

    async def probe_features(self, path: str) -> None:
        """Do nothing: what it can do is known."""

    async def abort_uploads(self) -> int:
        return 0  # each upload is one request

    def live_checks(self, path: str, image: bytes) -> Sequence[Check]:
        return OwnChecks(self, self._api, self.folder, path, image).steps()

    def _asset(self, path: str) -> Asset:
        return asset_of(self.folder, path)


def _has_other_format(found: UploadedAsset, asset: Asset) -> bool:
    """Tell whether an image has another format than its path says."""
    return bool(asset.format and found.format and found.format != asset.format)
