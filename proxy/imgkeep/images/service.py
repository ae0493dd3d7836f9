"""
The image service: finds the image of a link or fills it, and delivers it.

The order of a lookup is fixed: memory, image index, store, negative cache, origin. A stored image takes precedence over
a failure in the negative cache, and the image of an unverified link never replaces a stored image
(`core/confirmation.py`).

If the service does not know whether a link may get the stored image, it starts a second fill by that link, under the
same permissions, limits and leases as any other fill. If one of them or the origin refuses, the client gets the stored
image.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from imgkeep.core.confirmation import RecordUse, own_info, read_link
from imgkeep.core.errors import Busy, StorageError
from imgkeep.core.records import Key, Record
from imgkeep.images.background_refresh import Refresher, SourceRules
from imgkeep.images.confirmer import Confirmer
from imgkeep.images.fill_coalescing import FillCoalescer
from imgkeep.images.fill_starter import FillStarter
from imgkeep.images.image_locator import ImageLocator
from imgkeep.images.incomplete_refetch import IncompleteRefetcher
from imgkeep.images.record_cache import RecordCache
from imgkeep.images.record_changes import RecordChanges
from imgkeep.images.record_sharing import RecordSharing
from imgkeep.images.request_context import (
    FOLLOW_ATTEMPTS_MAX,
    FRUITLESS_MAX,
    INTERNAL,
    HeldByPeer,
    Located,
    RedirectToSource,
)
from imgkeep.images.second_fills import SecondFills
from imgkeep.images.singleflight import SingleFlight
from imgkeep.images.source_policy import SourcePolicy
from imgkeep.images.stored_images import StoredImages

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Digest, Source, SourceInfo
    from imgkeep.database import ImageIndex
    from imgkeep.images.dependencies import FillDependencies
    from imgkeep.images.fill import Fill, FillHead
    from imgkeep.images.fill_rate_limit import RateLimiter
    from imgkeep.images.interfaces import Cluster
    from imgkeep.images.object_urls import ObjectUrls
    from imgkeep.images.peer_fill import FillFailure
    from imgkeep.images.record_json import ImageFacts
    from imgkeep.images.request_context import Delivery, RedirectToObject, RequestContext
    from imgkeep.images.shared_body import SharedBody
    from imgkeep.images.stored_images import LookupResult

T = TypeVar("T")

DEFAULT_RULES: Final = SourceRules()
UNSHARED: Final = RecordSharing()


def _make_no_signature(_source: Source) -> Source | None:
    """Return no link: without probes, no signature is altered."""


class ImageService:
    """
    The service that finds, fills and delivers images. One per process.

    Attributes:
        identify: Returns which image a link names, and what kind of link it is.
        changes: Announces changes of records.
        stored: The stored images.

    Args:
        rules: The settings of refreshes and redirects.
        object_urls: The URLs for redirects of clients; `None`: imgkeep serves every image.
        rate_limiter: `None`: no client has limits.
        cluster: `None`: this is the only worker.
        make_invalid_signature: Returns a link with another, random signature; `None` if there is none.
        sharing: How the records in memory stay those of the store.
        timer: Gives monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - all but one by keyword, in one place
        self,
        dependencies: FillDependencies,
        *,
        image_index: ImageIndex,
        policy: Policy,
        identify: Callable[[Source], SourceInfo],
        rules: SourceRules = DEFAULT_RULES,
        object_urls: ObjectUrls | None = None,
        rate_limiter: RateLimiter | None = None,
        cluster: Cluster | None = None,
        make_invalid_signature: Callable[[Source], Source | None] = _make_no_signature,
        sharing: RecordSharing = UNSHARED,
        timer: Callable[[], float],
    ) -> None:
        self.identify = identify
        self._dependencies = dependencies
        self._rules = rules
        leases = None if cluster is None else cluster.leases
        running: SingleFlight[Fill] = SingleFlight()
        self.records = RecordCache(dependencies.store, image_index, running, timer, sharing)
        self.changes = RecordChanges(self.records, sharing)
        self._policy = SourcePolicy(policy, dependencies.observer)
        self._confirmer = Confirmer(
            dependencies, changes=self.changes, leases=leases, alter=make_invalid_signature, timer=timer
        )
        self.stored = StoredImages(
            dependencies,
            changes=self.changes,
            policy=self._policy,
            object_urls=object_urls,
            was_tried=self._confirmer.was_tried,
        )
        self._fills = FillStarter(
            dependencies,
            policy=policy,
            running=running,
            changes=self.changes,
            leases=leases,
            rate_limiter=rate_limiter,
            timer=timer,
        )
        self._incomplete_refetcher = IncompleteRefetcher(self._fills, self._confirmer, timer)
        self._refresher = Refresher(rules, self._fills, self._confirmer, timer)
        self._coalescer = FillCoalescer(
            self._fills, self.records, cluster, link_asked=self._refresher.note_asked, timer=timer
        )
        self._second_fills = SecondFills(self._coalescer, self._confirmer, policy=self._policy, rules=rules)
        self._timer = timer
        self._locator = self._make_locator(rules)

    @property
    def fills_in_flight(self) -> int:
        return len(self._fills.running)

    async def deliver(
        self, source: Source, info: SourceInfo, request_context: RequestContext = INTERNAL
    ) -> Delivery | RedirectToObject | RedirectToSource:
        """
        Deliver the image that `source` names, from the store or from its origin, by whichever worker fetches it.

        Args:
            source: The link, read but not checked against the policy.
            info: The result of `identify` for the link.
            request_context: The client, and how it asks.

        Raises:
            SourceRejected, OriginError, StorageError, Busy: As their classes say.
        """
        self._policy.require_not_denied(source, info)
        follow = partial(self._coalescer.follow, request_context)
        for attempt in range(FOLLOW_ATTEMPTS_MAX):
            began = self._timer()
            with self._fills.prepare(info.key, source, request_context) as preparation:
                found = await self.stored.look_up(source, info, preparation)
                fault = found.fault
                if found.record is not None:
                    shown, fault = await self._show_or_try(source, info, found, found.record, request_context)
                    if shown is not None:
                        return shown
                request_context.authorize_fetch()
                self._policy.require_fetch_allowed(source, info)
                if self._rules.redirect_permanent and not info.temporary:
                    return RedirectToSource(source.url)
                joined: Delivery | HeldByPeer | None = await self._coalescer.join(
                    source, found.info, request_context, follow, fault=fault, began=began
                )
            if isinstance(joined, HeldByPeer):
                if attempt == FRUITLESS_MAX:
                    self._coalescer.give_up_on(joined)
                joined = await self._coalescer.follow_peer(joined, source, found.info, request_context, fault)
            if joined is not None:
                return joined
        raise Busy("the fill of the image moved between workers too often: retry the request")

    async def save(self, source: Source, info: SourceInfo) -> tuple[Record, bool]:
        """
        Store the image that `source` names; return its record, and whether it was not stored before.

        Raises:
            SourceRejected, OriginError, StorageError, Busy: As their classes say; it is not stored.
        """
        located = await self._locator.locate(source, info, INTERNAL, checked=True)
        assert isinstance(located, Located)  # the program itself is sent nowhere
        return located.record, located.is_new

    async def locate(
        self, source: Source, info: SourceInfo, request_context: RequestContext, *, checked: bool = False
    ) -> Located | RedirectToSource:
        """Return the record of the image that `source` names, once it is stored. As `ImageLocator.locate`."""
        return await self._locator.locate(source, info, request_context, checked=checked)

    async def deliver_object(self, name: str, *, head: bool = False) -> Delivery | RedirectToObject | None:
        """Deliver an object under its permanent URL. As `StoredImages.open_object`."""
        return await self.stored.open_object(name, head=head)

    async def deliver_stored(self, key: Key, *, head: bool = False) -> Delivery | RedirectToObject | None:
        """Deliver the image of a key without a link. As `StoredImages.open_key`."""
        return await self.stored.open_key(key, head=head)

    def is_current(self, delivery: Delivery) -> bool:
        """Tell whether a delivery still stands. As `StoredImages.is_current`."""
        return self.stored.is_current(delivery)

    def require_not_removed(self, digest: Digest) -> None:
        """Raise `Removed` if an image was removed."""
        self.stored.require_not_removed(digest)

    def describe(self, record: Record, *, base: str) -> ImageFacts:
        """Return the facts of a record. As `StoredImages.describe`."""
        return self.stored.describe(record, base=base)

    async def find(self, key: Key) -> Record | None:
        """Return the record of an image whose object is there. Raises as `StoredImages.find`."""
        return await self.stored.find(key)

    async def look_up(self, key: Key) -> Record | None:
        """Return the record under a key, whether its object is there or not. Raises as `Store.find`."""
        return await self.records.find(key)

    async def find_key(self, source: Source) -> Key:
        """
        Return the key of the image that a link is shown, whether one is stored or not.

        Raises:
            Removed: It was removed.
            StorageError: The store cannot tell.
        """
        found = await self.stored.look_up(source, self.identify(source))
        if found.fault is not None:
            raise found.fault
        return found.info.key

    def keys_of(self, source: Source) -> tuple[Key, Key]:
        """Return the two keys under which the image of a link may be stored: the one that it shares, and its own."""
        info = self.identify(source)
        return info.key, own_info(info, read_link(source, info, self._dependencies.clock()).fingerprint).key

    def forget(self, key: Key) -> None:
        """Drop the record or the tombstone of a key from memory."""
        self.changes.forget(key)

    def forget_removals(self) -> None:
        """Forget which links brought removed bytes, because an operator undid a removal."""
        self._fills.negative_cache.forget_removals()

    def forget_all(self) -> None:
        """Drop everything from memory that another process may have changed."""
        self.changes.forget_all()
        self.forget_removals()

    def learn(self, name: str) -> None:
        """Apply the notice of another process: the record of a key has changed, or a link was tried."""
        if not self._confirmer.learn(name):
            self.changes.forget(Key(name))

    async def wait_for_fill(self, key: Key) -> None:
        """Wait until this worker runs no fill of a key, whether the fill succeeds or fails."""
        await self._coalescer.wait_for_fill(key)

    async def join_for_peer(self, name: str) -> tuple[SharedBody[FillHead], FillHead] | FillFailure | None:
        """Follow a fill for a peer. As `FillCoalescer.join_for_peer`."""
        return await self._coalescer.join_for_peer(name)

    async def drain(self) -> None:
        """Wait until the running fills have ended, and the probes that they cause."""
        await self._fills.running.drain()
        await self._confirmer.drain()

    async def aclose(self) -> None:
        await self._coalescer.aclose()
        await self._fills.running.aclose()
        await self._confirmer.aclose()

    def _make_locator(self, rules: SourceRules) -> ImageLocator:
        return ImageLocator(
            stored=self.stored,
            fills=self._fills,
            coalescer=self._coalescer,
            second_fills=self._second_fills,
            incomplete_refetcher=self._incomplete_refetcher,
            refresher=self._refresher,
            policy=self._policy,
            rules=rules,
            timer=self._timer,
        )

    async def _show_or_try(
        self,
        source: Source,
        info: SourceInfo,
        found: LookupResult,
        record: Record,
        request_context: RequestContext,
    ) -> tuple[Delivery | RedirectToObject | None, StorageError | None]:
        """Deliver the stored image to a link, or start a second fill if that image does not stand for the link."""
        if found.use is RecordUse.SECOND_FILL:
            follow = partial(self._coalescer.follow, request_context)
            tried = await self._second_fills.try_link(source, found.info, record, request_context, follow)
            if isinstance(tried, HeldByPeer):
                tried = await self._second_fills.follow_peer(tried, source, found.info, request_context)
                if tried is None:
                    found = await self.stored.look_up(source, info)  # the other worker may have stored the image
                    if found.record is None:
                        return None, found.fault
                    record = found.record
            return (tried, None) if tried is not None else await self.stored.show(found, record, request_context)
        shown, fault = await self.stored.show(found, record, request_context)
        if shown is not None and not self._incomplete_refetcher.start_if_due(
            source, found.info, record, request_context
        ):
            seek_secure = found.use is RecordUse.SERVE_AND_SEEK_HTTPS
            self._refresher.start_if_due(source, found.info, record, request_context, seek_https=seek_secure)
        return shown, fault
