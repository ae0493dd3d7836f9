"""
Locates images: finds the record of a link whose image is stored, and fills the image first where none is.

A delivery streams an image while a fill stores it; here the caller waits until it is stored. The permissions, limits,
leases and second fills are the same (`service.py`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from imgkeep.core.confirmation import RecordUse, fingerprint, is_immutable_for, read_link
from imgkeep.core.errors import Busy, StorageError
from imgkeep.images.request_context import (
    FOLLOW_ATTEMPTS_MAX,
    FRUITLESS_MAX,
    INTERNAL,
    CacheStatus,
    HeldByPeer,
    Located,
    RedirectToSource,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Record, Source, SourceInfo
    from imgkeep.images.background_refresh import Refresher, SourceRules
    from imgkeep.images.fill_coalescing import FillCoalescer
    from imgkeep.images.fill_starter import FillStarter
    from imgkeep.images.incomplete_refetch import IncompleteRefetcher
    from imgkeep.images.request_context import RequestContext
    from imgkeep.images.second_fills import SecondFills
    from imgkeep.images.source_policy import SourcePolicy
    from imgkeep.images.stored_images import LookupResult, StoredImages

NOT_STORED: Final = "no store can take the image at the moment, and pictures are made of stored images alone"


class ImageLocator:
    """
    The locator of images, which finds or fills them and returns their records.

    Args:
        stored: The stored images.
        policy: The source policy.
        rules: The settings of refreshes and redirects.
        timer: Gives monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - all by keyword, in one place
        self,
        *,
        stored: StoredImages,
        fills: FillStarter,
        coalescer: FillCoalescer,
        second_fills: SecondFills,
        incomplete_refetcher: IncompleteRefetcher,
        refresher: Refresher,
        policy: SourcePolicy,
        rules: SourceRules,
        timer: Callable[[], float],
    ) -> None:
        self._stored = stored
        self._fills = fills
        self._coalescer = coalescer
        self._second_fills = second_fills
        self._incomplete_refetcher = incomplete_refetcher
        self._refresher = refresher
        self._policy = policy
        self._rules = rules
        self._timer = timer

    async def locate(
        self, source: Source, info: SourceInfo, request_context: RequestContext, *, checked: bool = False
    ) -> Located | RedirectToSource:
        """
        Return the record of the image that `source` names, as soon as the image is stored.

        `checked`: only if its object is there, as far as its size tells; else it is filled again.

        Raises:
            SourceRejected, OriginError, StorageError, Busy: As their classes say; `StorageError` also if it cannot be
                stored.
        """
        self._policy.require_not_denied(source, info)
        wait = partial(self._coalescer.wait, request_context)
        for attempt in range(FOLLOW_ATTEMPTS_MAX):
            began = self._timer()
            with self._fills.prepare(info.key, source, request_context) as preparation:
                found = await self._stored.look_up(source, info, preparation)
                fault = found.fault
                if found.record is not None:
                    located, fault = await self._use_record(source, info, found, request_context, checked=checked)
                    if located is not None:
                        return located
                request_context.authorize_fetch()
                self._policy.require_fetch_allowed(source, info)
                if self._rules.redirect_permanent and not info.temporary and request_context is not INTERNAL:
                    return RedirectToSource(source.url)
                joined: tuple[Record, bool] | HeldByPeer | None = await self._coalescer.join(
                    source, found.info, request_context, wait, fault=fault, began=began
                )
            if isinstance(joined, HeldByPeer):
                if attempt == FRUITLESS_MAX:
                    self._coalescer.give_up_on(joined)
                await self._wait_for_peer(joined, source, found.info, request_context, fault)
            elif joined is not None:
                record, starts = joined
                # The image of another link may not stand for this one.
                if starts or not record.doubts or record.brought_by == fingerprint(source):
                    return self._describe_filled(source, found.info, record, starts=starts, is_new=starts)
        raise Busy("the fill of the image moved between workers too often: retry the request")

    async def _use_record(
        self,
        source: Source,
        info: SourceInfo,
        found: LookupResult,
        request_context: RequestContext,
        *,
        checked: bool,
    ) -> tuple[Located | None, StorageError | None]:
        """Locate the stored image, or that of a second fill. With a fault, return the fault beside `None`."""
        assert found.record is not None
        if found.use is RecordUse.SECOND_FILL:
            known = found.record
            wait = partial(self._coalescer.wait, request_context)
            tried = await self._second_fills.try_link(source, found.info, known, request_context, wait)
            if isinstance(tried, HeldByPeer):
                await request_context.wait(self._coalescer.wait_for_peer(tried))
                found = await self._stored.look_up(source, info)  # the other worker may have stored the image
            elif tried is not None:
                record, starts = tried
                is_new = (record.key, record.digest) != (known.key, known.digest)
                return self._describe_filled(source, found.info, record, starts=starts, is_new=is_new), None
        if found.record is None:
            return None, found.fault
        current, fault = await self._find_object_of(found.record) if checked else (found.record, None)
        if current is None:
            return None, fault
        self._stored.require_servable(current)
        self._start_if_due(source, found, current, request_context)
        immutable = found.link is None or is_immutable_for(current.doubts, found.link)
        repeatable = found.use is not RecordUse.SECOND_FILL
        return Located(current, CacheStatus.HIT, immutable=immutable, repeatable=repeatable), None

    def _start_if_due(
        self, source: Source, found: LookupResult, record: Record, request_context: RequestContext
    ) -> None:
        """Start what a use of a stored image may cause in the background."""
        is_client = request_context is not INTERNAL
        if is_client and found.use is RecordUse.SECOND_FILL:
            return
        if not self._incomplete_refetcher.start_if_due(source, found.info, record, request_context) and is_client:
            seek_https = found.use is RecordUse.SERVE_AND_SEEK_HTTPS
            self._refresher.start_if_due(source, found.info, record, request_context, seek_https=seek_https)

    async def _wait_for_peer(
        self,
        held: HeldByPeer,
        source: Source,
        info: SourceInfo,
        request_context: RequestContext,
        fault: StorageError | None,
    ) -> None:
        """
        Wait until another worker has stored the image.

        Raises:
            StorageError: It cannot store it. Or as `FillCoalescer.follow_peer`.
        """
        if request_context is INTERNAL:
            await self._coalescer.wait_for_peer(held)
            return
        delivery = await self._coalescer.follow_peer(held, source, info, request_context, fault)
        if delivery is None:
            return
        try:
            await request_context.wait(delivery.body.wait_for_size())
        finally:
            await delivery.body.aclose()
        if delivery.cache_status is CacheStatus.NOT_STORED:
            raise StorageError(NOT_STORED)

    def _describe_filled(
        self, source: Source, info: SourceInfo, record: Record, *, starts: bool, is_new: bool
    ) -> Located:
        link = read_link(source, info, self._fills.dependencies.clock())
        status = CacheStatus.STORED if starts else CacheStatus.COLLAPSED
        return Located(record, status, immutable=is_immutable_for(record.doubts, link), is_new=is_new)

    async def _find_object_of(self, record: Record) -> tuple[Record | None, StorageError | None]:
        """Find a record whose object is there. With a fault, return the fault beside `None`."""
        try:
            return await self._stored.find_object_of(record), None
        except StorageError as fault:
            return None, fault
