"""
Stored images: finds the record of a link, opens its object or redirects to it, and describes it.

Rules:
- A fault of the store is no miss. If a fill can still answer, the method returns the fault beside `None`.
- An image that an operator removed or denied is never shown, neither by the link that brought it nor by another one.
- The object of a record may be missing or damaged: then the store's own record may name another object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgkeep.core.confirmation import (
    SEPARATE_RECORD_DOUBTS,
    RecordUse,
    is_immutable_for,
    judge_record,
    own_info,
    read_link,
)
from imgkeep.core.errors import Removed, StorageError, Unchecked
from imgkeep.core.layout import REMOVED, read_object_name
from imgkeep.core.records import Doubt
from imgkeep.images.lease_preparation import NOTHING_TO_PREPARE
from imgkeep.images.record_json import describe_record
from imgkeep.images.request_context import CacheStatus, Delivery, RedirectToObject

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.confirmation import Link
    from imgkeep.core.records import Digest, Format, Key, Record, Source, SourceInfo
    from imgkeep.images.dependencies import FillDependencies
    from imgkeep.images.lease_preparation import LeasePreparation
    from imgkeep.images.object_urls import ObjectUrls
    from imgkeep.images.record_changes import RecordChanges
    from imgkeep.images.record_json import ImageFacts
    from imgkeep.images.request_context import RequestContext
    from imgkeep.images.source_policy import SourcePolicy
    from imgkeep.storage.interfaces import Body


@dataclass(frozen=True, slots=True)
class LookupResult:
    """
    The result of a lookup for a link.

    Attributes:
        info: The identity of its image: the identity of the link alone where the shared key does not stand for it.
        record: `None`: nothing is stored, or the store cannot tell.
        link: The properties of the link that the record depends on; `None`: the record stands for every link.
        use: The use of the record: whether to serve it, or to try the link first.
        fault: Why the store cannot tell.
    """

    info: SourceInfo
    record: Record | None = None
    link: Link | None = None
    use: RecordUse = RecordUse.SERVE
    fault: StorageError | None = None


class StoredImages:
    """
    Finds, opens and describes stored images.

    Args:
        object_urls: Where clients can be sent; `None`: every image is served.
        was_tried: Tells whether a second fill compared a link with the stored image.
    """

    def __init__(
        self,
        dependencies: FillDependencies,
        *,
        changes: RecordChanges,
        policy: SourcePolicy,
        object_urls: ObjectUrls | None,
        was_tried: Callable[[Link, Record], bool],
    ) -> None:
        self._dependencies = dependencies
        self._store = dependencies.store
        self._records = changes.records
        self._changes = changes
        self._policy = policy
        self._object_urls = object_urls
        self._was_tried = was_tried

    async def look_up(
        self, source: Source, info: SourceInfo, preparation: LeasePreparation = NOTHING_TO_PREPARE
    ) -> LookupResult:
        """
        Find the record for a link; `preparation`: of the fill that starts if there is none.

        Raises:
            Removed: It was removed.
            Unchecked: The store cannot tell, and a fill could show an image that was removed elsewhere.
        """
        try:
            record = await self._records.find(info.key, preparation)
            if record is None or not record.doubts:
                return LookupResult(info, record)
            link, tried = read_link(source, info, self._dependencies.clock()), False
            if not is_immutable_for(record.doubts, link):
                record = await self._records.recheck(record)
            if record.brought_by != link.fingerprint and record.doubts & SEPARATE_RECORD_DOUBTS:
                own = own_info(info, link.fingerprint)
                own_record = await self._records.find(own.key)
                if Doubt.SPLIT in record.doubts or (own_record is not None and own_record.digest != record.digest):
                    return LookupResult(own, own_record, link)
                tried = own_record is not None
            use = judge_record(record, link, tried=tried or self._was_tried(link, record))
        except Unchecked:
            raise
        except StorageError as fault:
            return LookupResult(info, fault=fault)
        return LookupResult(info, record, link, use)

    async def find(self, key: Key) -> Record | None:
        """
        Return the record of an image whose object is there, as far as its size tells.

        Raises:
            StorageError: The store cannot tell.
        """
        record = await self._records.find(key)
        return None if record is None else await self.find_object_of(record)

    async def find_object_of(self, record: Record) -> Record | None:
        """Return a record whose object is there: the given one, or else the store's own record. Raises as `find`."""
        self.require_servable(record)
        if await self._store.holds(record.object_name, record.size):
            return record
        another = await self._find_another(record)
        is_there = another is not None and await self._store.holds(another.object_name, another.size)
        return another if is_there else None

    async def show(
        self, found: LookupResult, record: Record, request_context: RequestContext
    ) -> tuple[Delivery | RedirectToObject | None, StorageError | None]:
        """Open the stored image of a link. With a fault, return the fault beside `None`."""
        self.require_servable(record)
        immutable = found.link is None or is_immutable_for(record.doubts, found.link)
        return await self._open(
            record, head=request_context.head, immutable=immutable, repeatable=found.use is not RecordUse.SECOND_FILL
        )

    async def open_object(self, name: str, *, head: bool = False) -> Delivery | RedirectToObject | None:
        """
        Open the object `<digest>.<ext>` under its permanent URL; `None` if there is none.

        Raises:
            Removed: It was removed.
            StorageError: The store cannot tell.
        """
        read = read_object_name(name)
        if read is None:
            return None
        digest, format_ = read
        await self.learn_removal(digest)
        redirect = await self._redirect(name, f'"{digest}"', head=head)
        if redirect is not None:
            return redirect
        body = await self._store.fetch(name, None)
        if body is None:
            return None
        return Delivery(name, CacheStatus.HIT, format_, f'"{digest}"', file_name(digest, format_), body, name)

    async def open_key(self, key: Key, *, head: bool = False) -> Delivery | RedirectToObject | None:
        """
        Open the stored image of a key without a link; `None`: none is stored.

        Raises:
            Removed: It was removed.
            StorageError: The store cannot tell.
        """
        record = await self._records.find(key)
        if record is None:
            return None
        self.require_not_removed(record.digest)
        delivery, fault = await self._open(record, head=head, immutable=not record.doubts, repeatable=True)
        if fault is not None:
            raise fault
        return delivery

    def is_current(self, delivery: Delivery) -> bool:
        """
        Tell whether a delivery is still current: the image may have been removed, replaced or moved since. With
        redirects configured, an image that is served as an exception is never current.
        """
        if self._object_urls is not None and self._object_urls.redirects_clients:
            return False
        blocked = self._dependencies.blocked
        if (delivery.object_name or delivery.key).partition(".")[0] in blocked:
            return False
        if delivery.record is not None and delivery.record.digest in blocked:  # a picture may have no name
            return False
        # A record that was dropped from memory meanwhile may have been replaced by another process.
        return self._records.cached(delivery.key) == delivery.record  # type: ignore[arg-type]  # a name is no key

    async def learn_removal(self, digest: Digest) -> None:
        """Raise `Removed` if an image was removed, also if another process did that and has not told this one yet."""
        await self._records.learn_block(digest)
        self.require_not_removed(digest)

    def require_not_removed(self, digest: Digest) -> None:
        """Raise `Removed` if an image was removed."""
        if digest in self._dependencies.blocked:
            raise Removed(REMOVED)

    def permanent_url(self, record: Record) -> str | None:
        """Return the permanent URL of an image; `None`: `/images/<name>` of this server."""
        return None if record.pending else self._permanent_url(record.object_name)

    def storage_of(self, record: Record) -> str:
        """Return the name of the storage that has an image at the moment: one of `STORES`."""
        return "local" if record.pending else self._store.name

    def describe(self, record: Record, *, base: str) -> ImageFacts:
        """Return the facts of a record, whatever the store; `base` is the prefix of this server's own paths."""
        suspects = self._dependencies.suspects
        return describe_record(
            record,
            url=self.permanent_url(record) or f"{base}/images/{record.object_name}",
            storage=self.storage_of(record),
            suspect=suspects is not None and suspects.include(record),
        )

    def require_servable(self, record: Record) -> None:
        """Raise `Removed` or `SourceForbidden` for an image that is shown by no link."""
        self.require_not_removed(record.digest)
        self._policy.require_record_not_denied(record)

    async def _open(
        self, record: Record, *, head: bool, immutable: bool, repeatable: bool
    ) -> tuple[Delivery | RedirectToObject | None, StorageError | None]:
        """Open the object of a record, or its URL for a redirect. With a fault, return the fault beside `None`."""
        try:
            if not record.pending:
                redirect = await self._redirect(record.object_name, record.etag, head=head, immutable=immutable)
                if redirect is not None:
                    return redirect, None
            body = await self._store.fetch(record.object_name, record.size)
            if body is None:
                another, body = await self._fetch_another(record)
                if another is None or body is None:
                    return None, None
                record, immutable, repeatable = another, immutable and not another.doubts, False
        except StorageError as fault:
            return None, fault
        return Delivery(
            record.key,
            CacheStatus.HIT,
            record.format,
            record.etag,
            file_name(record.key, record.format),
            body,
            record.object_name,
            self.permanent_url(record),
            immutable=immutable,
            repeatable=repeatable,
            record=record,
        ), None

    async def _redirect(self, name: str, etag: str, *, head: bool, immutable: bool = True) -> RedirectToObject | None:
        url = None if self._object_urls is None else await self._object_urls.find(name, head=head)
        return None if url is None else RedirectToObject(url, etag, name, self._permanent_url(name), immutable)

    def _permanent_url(self, name: str) -> str | None:
        return None if self._object_urls is None else self._object_urls.permanent(name)

    async def _find_another(self, lacking: Record) -> Record | None:
        record = await self._records.find_another(lacking)
        if record is not None:
            await self._changes.note_stored(record)
        return record

    async def _fetch_another(self, lacking: Record) -> tuple[Record | None, Body | None]:
        record = await self._find_another(lacking)
        return record, None if record is None else await self._store.fetch(record.object_name, record.size)


def file_name(name: str, format_: Format) -> str:
    """Return a file name that is the same for hit and miss, and safe anywhere."""
    return f"{name[:16]}.{format_.extension}"
