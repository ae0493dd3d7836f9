"""
The main story: find the image, or fill; then deliver.

The order of a look-up is fixed: memory, database, store, remembered failures, origin. What is stored always wins over
what once failed, and what an unverified link brings never takes the place of what is stored (`core/confirmation.py`).

A link that is not known to be entitled to what is stored is tried: it makes a fill of its own beside the key's, under
the same permissions, limits and leases as any other. Where one of them or the origin refuses, it gets what is stored.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from imgkeep.core.confirmation import OTHERS, Use, judge_record, lasts, own_info, read_link
from imgkeep.core.errors import (
    Busy,
    ImgkeepError,
    LoopDetected,
    OriginError,
    Removed,
    SourceForbidden,
    StorageError,
    Unreachable,
    Yielded,
)
from imgkeep.core.layout import REMOVED, read_object_name
from imgkeep.core.policy import judge
from imgkeep.core.records import Doubt, Key, Record, Subject
from imgkeep.images.confirmation import Confirmer
from imgkeep.images.context import (
    INTERNAL,
    CacheStatus,
    Delivery,
    HeldByPeer,
    RedirectToObject,
    RedirectToSource,
    RequestContext,
)
from imgkeep.images.fill import Fill
from imgkeep.images.incomplete_refetch import IncompleteRefetcher
from imgkeep.images.negative_cache import NegativeCache, fingerprint
from imgkeep.images.peer_fill import FillFailure, PeerFill
from imgkeep.images.record_cache import RecordCache
from imgkeep.images.record_facts import describe_record
from imgkeep.images.refresh import Refresher, Rules
from imgkeep.images.singleflight import SingleFlight
from imgkeep.images.source_order import SourceOrder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from imgkeep.core.confirmation import Link
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Digest, Format, Source, SourceInfo
    from imgkeep.database.interfaces import ImageIndex
    from imgkeep.images.fill import FillDependencies, FillHead, Settle
    from imgkeep.images.peer_fill import FillLeases, FillPeers
    from imgkeep.images.rate_limit import RateLimiter
    from imgkeep.images.record_facts import ImageFacts
    from imgkeep.images.redirects import ObjectUrls
    from imgkeep.storage.interfaces import Body, Store

DEFAULT_RULES: Final = Rules()

FOLLOW_ATTEMPTS_MAX: Final = 50
"""So often a fill is looked for in the worker that had it a moment ago."""

TRY_PREFIX: Final = "try."
"""What the name of a fill begins with that tries a link beside what is stored under its key."""

T = TypeVar("T")

log = logging.getLogger(__name__)


def _spoil_nothing(_source: Source) -> Source | None:
    """No link can be spoiled."""


@dataclass(frozen=True, slots=True)
class LookupResult:
    """
    What a link has found.

    Attributes:
        info: What identifies its picture: its own identity where the key does not stand for it.
        record: `None`: nothing.
        link: What counts of the link; `None`: the record stands for every link.
        use: What to do with the record.
    """

    info: SourceInfo
    record: Record | None
    link: Link | None
    use: Use


class ImageService:
    """Finds, fills and delivers images. One per process; the `Tower` of its fills."""

    def __init__(  # noqa: PLR0913 - all by keyword, in one place
        self,
        *,
        store: Store,
        database: ImageIndex,
        policy: Policy,
        dependencies: FillDependencies,
        timer: Callable[[], float],
        identify: Callable[[Source], SourceInfo],
        rules: Rules = DEFAULT_RULES,
        object_urls: ObjectUrls | None = None,
        rate_limiter: RateLimiter | None = None,
        refused: Container[Digest] = frozenset(),
        leases: FillLeases | None = None,
        peers: FillPeers | None = None,
        spoil: Callable[[Source], Source | None] = _spoil_nothing,
    ) -> None:
        self.identify = identify
        """Tells which picture a source names and what kind of link it is."""
        self._rules = rules
        self._object_urls = object_urls
        """Where clients can be sent; `None`: every image is served."""
        self._rate_limiter = rate_limiter
        self._refused = refused
        """The digests of pictures that were removed."""
        self.changed: Callable[[Key], None] = lambda _: None
        """Is told of every key under which something else is kept than before, or elsewhere."""
        self._store = store
        self._policy = policy
        self._dependencies = dependencies
        self._leases = leases
        """`None`: we are the only worker, and so is `_peers`."""
        self._peers = peers
        self._timer = timer
        self._flights: SingleFlight[Fill] = SingleFlight()
        self._peer_fills: SingleFlight[PeerFill] = SingleFlight()
        """Fills of other workers that are followed here."""
        self.records = RecordCache(store, database, self._flights, timer)
        self._negative_cache = NegativeCache(timer)
        self._source_order = SourceOrder(policy, timer)
        self._confirmer = Confirmer(
            dependencies, kept=self.kept, tell=self.tell, leases=leases, spoil=spoil, timer=timer
        )
        self._incomplete_refetcher = IncompleteRefetcher(
            policy,
            dependencies,
            tower=self,
            flights=self._flights,
            leases=leases,
            confirmer=self._confirmer,
            routes=self._source_order,
            failures=self._negative_cache,
            rate_limiter=rate_limiter,
            timer=timer,
        )
        self._refresher = Refresher(
            rules,
            policy,
            dependencies,
            tower=self,
            flights=self._flights,
            leases=leases,
            confirmer=self._confirmer,
            routes=self._source_order,
            failures=self._negative_cache,
            timer=timer,
        )

    @property
    def fills_in_flight(self) -> int:
        return len(self._flights)

    async def deliver(
        self, source: Source, info: SourceInfo, request_context: RequestContext = INTERNAL
    ) -> Delivery | RedirectToObject | RedirectToSource:
        """
        Deliver the image that `source` names, from the store or from its origin, by whichever worker fetches it.

        Args:
            source: The link, read but not judged.
            info: What `identify` tells of it.
            request_context: Who asks, and how.

        Raises:
            SourceRejected, OriginError, StorageError, Busy: As their classes say.
        """
        self._require_not_denied(_subject_of(source, info), self._policy.denial(source, info.places))
        for _ in range(FOLLOW_ATTEMPTS_MAX):
            began = self._timer()
            met, fault = await self._look_up_link(source, info)
            if met.record is not None:
                shown, fault = await self._show_or_try(source, info, met, met.record, request_context)
                if shown is not None:
                    return shown
            request_context.authorize_fetch()
            self._require_allowed(source, info)
            if self._rules.redirect_permanent and not info.temporary:
                return RedirectToSource(source.url)
            joined = await self._join_fill(
                source, met.info, request_context, fault, partial(self._follow, request_context), began=began
            )
            if isinstance(joined, HeldByPeer):
                joined = await self._follow_elsewhere(joined, source, met.info, request_context, fault)
            if joined is not None:
                return joined
        raise Busy("the image is fetched now by this worker, now by another")

    async def _show_or_try(
        self, source: Source, info: SourceInfo, met: LookupResult, record: Record, request_context: RequestContext
    ) -> tuple[Delivery | RedirectToObject | None, StorageError | None]:
        """Show a link what is stored, or what it brings itself where that does not stand for it."""
        if met.use is Use.TRY:
            tried = await self._try(source, met.info, record, request_context, partial(self._follow, request_context))
            if isinstance(tried, HeldByPeer):
                tried = await self._follow_trial(tried, source, met.info, request_context)
                if tried is None:
                    met, fault = await self._look_up_link(source, info)  # with what the other worker has stored
                    if met.record is None:
                        return None, fault
            return (tried, None) if tried is not None else await self._show(met, request_context)
        shown, fault = await self._show(met, request_context)
        if shown is not None and not self._incomplete_refetcher.look(source, met.info, record, request_context):
            self._refresher.look(source, met.info, record, request_context, seek_secure=met.use is Use.SEEK_SECURE)
        return shown, fault

    async def keep(self, source: Source, info: SourceInfo) -> tuple[Record, bool]:
        """
        Keep the image that `source` names, and return its record and whether it was not kept before.

        Raises:
            SourceRejected, OriginError, StorageError, Busy: As their classes say; it is not kept.
        """
        self._require_not_denied(_subject_of(source, info), self._policy.denial(source, info.places))
        while True:
            began = self._timer()
            met, fault = await self._look_up_link(source, info)
            known, kept = met.record, None
            if known is not None and met.use is Use.TRY:
                kept = await self._try(source, met.info, known, INTERNAL, self._wait)
                if isinstance(kept, tuple):
                    record = kept[0]
                    return record, (record.key, record.digest) != (known.key, known.digest)
            if known is not None and kept is None:
                held, fault = await self._hold_if_there(known)
                if held is not None:
                    self._incomplete_refetcher.look(source, met.info, held, INTERNAL)
                    return held, False
            if kept is None:
                self._require_allowed(source, info)
                kept = await self._join_fill(source, met.info, INTERNAL, fault, self._wait, began=began)
            if isinstance(kept, HeldByPeer):
                assert self._peers is not None
                await self._peers.wait(kept.holder, kept.lease)
            elif kept is not None:
                record, departed = kept
                if departed or not record.doubts:
                    return kept
                # What another link has brought meanwhile may not stand for ours: look again.

    async def find(self, key: Key) -> Record | None:
        """
        Return the record of an image whose object is there, as far as its size tells.

        Raises:
            StorageError: The store cannot tell.
        """
        record = await self.records.find(key)
        return None if record is None else await self._held(record)

    async def _hold_if_there(self, record: Record) -> tuple[Record | None, StorageError | None]:
        """As `_held`. A fault is told beside the `None`."""
        try:
            return await self._held(record), None
        except StorageError as fault:
            return None, fault

    async def _held(self, record: Record) -> Record | None:
        """Return a record whose object is there, if need be the one that the store has in its place."""
        self._require_servable(record)
        if await self._store.holds(record.object_name, record.size):
            return record
        another = await self._find_another(record)
        held = another is not None and await self._store.holds(another.object_name, another.size)
        return another if held else None

    async def deliver_object(self, name: str, *, head: bool = False) -> Delivery | RedirectToObject | None:
        """
        Deliver the object `<digest>.<ext>` under its permanent URL; `None` if there is none.

        Raises:
            StorageError: The store cannot tell.
        """
        read = read_object_name(name)
        if read is None:
            return None
        digest, format_ = read
        self.require_not_removed(digest)
        referral = await self._refer(name, f'"{digest}"', head=head)
        if referral is not None:
            return referral
        body = await self._store.fetch(name, None)
        if body is None:
            return None
        return Delivery(name, CacheStatus.HIT, format_, f'"{digest}"', _file_name(digest, format_), body, name)

    async def deliver_stored(self, key: Key, *, head: bool = False) -> Delivery | RedirectToObject | None:
        """
        Deliver what is kept under a key that no link leads to; `None` if there is nothing.

        Raises:
            Removed: It was removed.
            StorageError: The store cannot tell.
        """
        record = await self.records.find(key)
        if record is None:
            return None
        self.require_not_removed(record.digest)
        delivery, fault = await self._open(record, head=head, immutable=not record.doubts, repeatable=True)
        if fault is not None:
            raise fault
        return delivery

    async def look_up(self, key: Key) -> Record | None:
        """Return the record under a key, whether its object is there or not. Raises as `Store.find`."""
        return await self.records.find(key)

    async def shown(self, source: Source) -> Key:
        """
        Return the key of the image that a link is shown, whether one is stored or not.

        Raises:
            Removed: It was removed.
            StorageError: The store cannot tell.
        """
        met, fault = await self._look_up_link(source, self.identify(source))
        if fault is not None:
            raise fault
        return met.info.key

    def keys_of(self, source: Source) -> tuple[Key, Key]:
        """Return the two keys under which the image of a link may be stored: the one that it shares, and its own."""
        info = self.identify(source)
        return info.key, own_info(info, read_link(source, info, self._dependencies.clock()).fingerprint).key

    def forget(self, key: Key) -> None:
        """Hold nothing in memory that says that an image is kept."""
        self.records.forget(key)
        self.changed(key)

    def restored(self) -> None:
        """A removal was undone: no link is refused any more for the bytes that it brought."""
        self._negative_cache.forget_removals()

    def learn(self, name: str) -> None:
        """Another worker has changed what is kept under a key, or has tried a link."""
        if not self._confirmer.learn(name):
            self.forget(Key(name))

    async def kept(self, record: Record) -> None:
        known = self.records.at_hand(record.key)
        self.records.hold(record)
        self.changed(record.key)
        await self.records.note(record)
        if known is not None and known != record:
            await self.tell(record.key)

    async def tell(self, key: str) -> None:
        """Tell other workers that something else is kept under a key, or elsewhere, or what `learn` understands."""
        if self._peers is not None:
            with suppress(StorageError):  # they look again some time (`web/fastpath/response_cache.py`)
                await self._peers.notify(changed=[Key(key)])

    def failed(self, source: Source, error: BaseException) -> None:
        if isinstance(error, ImgkeepError):
            self._negative_cache.remember(source, error)
        else:
            # Its readers tell as well, but there may be none left.
            log.error("a fill failed as nobody foresaw", exc_info=error)

    async def wait_for_fill(self, key: Key) -> None:
        """Wait until nothing is fetched for a key any more, however it ends."""
        fill = self._flights.find(key)
        if fill is None:
            return
        fill.hold()
        try:
            with suppress(ImgkeepError):
                await fill.wait_for_size()
        finally:
            await fill.aclose()

    async def join(self, name: str) -> tuple[Fill, FillHead] | FillFailure | None:
        """
        Join a fill by the name of its lease for another worker, which closes it; `None`: there is none.

        What such a worker may see or cause was judged there, so nothing is judged here, and nothing is begun.
        """
        fill = self._flights.find(name)
        if fill is None:
            await self._unclaim(name)
            return None
        fill.hold()
        try:
            return fill, await fill.judged()
        except ImgkeepError as error:
            await fill.aclose()
            if not isinstance(error, OriginError | SourceForbidden | Removed):
                return FillFailure(None, error)
            return FillFailure(
                fingerprint(fill.source), error if fill.doubt is None else _neither_available(fill.doubt)
            )
        except BaseException:
            await fill.aclose()
            raise

    async def drain(self) -> None:
        """Wait until the fills in the air have wait_for_fill, and what is looked for after them."""
        await self._flights.drain()
        await self._confirmer.drain()

    async def aclose(self) -> None:
        await self._peer_fills.aclose()
        await self._flights.aclose()
        await self._confirmer.aclose()

    async def _join_fill(  # noqa: PLR0913 - what was found so far, and when
        self,
        source: Source,
        info: SourceInfo,
        request_context: RequestContext,
        fault: StorageError | None,
        ride: Callable[[Fill, Source, SourceInfo, bool], Awaitable[T]],
        *,
        began: float,
    ) -> T | HeldByPeer | None:
        """
        Join the fill of a key or acquire with a new one, and return what `ride` makes of it. Whoever rides closes it.

        `None`: look again. It was another link that failed, and ours gets a try of its own; or the look-up that `began`
        then is too old to be believed.
        """
        self._check_may_fetch(source, fault, from_own_node=request_context.from_own_node)
        # No await between the look-up's last word and the departure: see collapse.py, and cluster/leases.py.
        if self._leases is not None and info.key not in self._flights:
            holder = self._leases.acquire(info.key)
            if holder is not None:
                return HeldByPeer(holder, info.key)
            if fault is None and self._timer() - began > self._leases.grace_s:
                self._leases.release(info.key)
                return None
        fill, departs = self._flights.join(
            info.key, partial(self._start_fill, source, info, request_context, info.key, fault=fault)
        )
        self._refresher.note_asked(source)
        fill.hold()
        try:
            return await ride(fill, source, info, departs)
        except Yielded:
            await fill.aclose()
            return None  # we came when it had just been stopped, because no client had been left
        except (OriginError, SourceForbidden, Removed) as error:
            await fill.aclose()
            if fill.source != source:
                return None
            doubt = fault or fill.doubt
            if doubt is not None and not isinstance(error, Removed):
                raise _neither_available(doubt) from error
            raise
        except BaseException:
            await fill.aclose()
            raise

    async def _unclaim(self, name: str) -> None:
        """Let others fetch what a lease says to be here, unless a look-up finds it: see `cluster/leases.py`."""
        record = None
        if not name.startswith(TRY_PREFIX):
            try:
                record = await self.records.find(Key(name))
            except Removed:
                return
            except StorageError:
                pass  # who asks finds out as well
        if record is None and name not in self._flights:
            self._release(name)

    async def _follow_trial(
        self, elsewhere: HeldByPeer, source: Source, info: SourceInfo, request_context: RequestContext
    ) -> Delivery | None:
        """Deliver what another worker fetches by the same link; `None`: what is stored has to do."""
        with suppress(ImgkeepError):
            return await self._follow_elsewhere(elsewhere, source, info, request_context, None)
        return None

    async def _follow_elsewhere(
        self,
        elsewhere: HeldByPeer,
        source: Source,
        info: SourceInfo,
        request_context: RequestContext,
        fault: StorageError | None,
    ) -> Delivery | None:
        """
        Deliver what another worker fetches; `None`: look again.

        Raises:
            ImgkeepError: The fill failed by this link, or would by any.
        """
        peers = self._peers
        assert peers is not None
        holder, name = elsewhere.holder, elsewhere.lease
        peer_fill, _ = self._peer_fills.join(
            name,
            lambda: PeerFill(partial(peers.follow, holder, name), self._dependencies.disk, self._dependencies.memory),
        )
        peer_fill.hold()
        try:
            head: FillHead | FillFailure | None = await request_context.wait(asyncio.shield(peer_fill.head))
        except BaseException:
            await peer_fill.aclose()
            raise
        if head is None or isinstance(head, FillFailure):
            await peer_fill.aclose()
        if head is None:
            await request_context.wait(peers.wait(holder, name))
            return None
        if isinstance(head, FillFailure):
            if head.link not in {None, fingerprint(source)}:
                return None
            if head.link is not None and fault is not None:
                raise _neither_available(fault) from head.error
            raise copy.copy(head.error)  # each who waits has a traceback of its own
        return _deliver(
            info.key, head, peer_fill, CacheStatus.COLLAPSED, read_link(source, info, self._dependencies.clock())
        )

    async def _try(
        self,
        source: Source,
        info: SourceInfo,
        known: Record,
        request_context: RequestContext,
        ride: Callable[[Fill, Source, SourceInfo, bool], Awaitable[T]],
    ) -> T | HeldByPeer | None:
        """Have a link make a fill of its own beside what is stored; `None`: what is stored has to do."""
        if self._rules.redirect_permanent and not info.temporary:
            return None  # the operator wants no more such images
        name = f"{TRY_PREFIX}{fingerprint(source).hex()}"
        try:
            request_context.authorize_fetch()
            self._require_allowed(source, info)
            self._check_may_fetch(source, None, from_own_node=request_context.from_own_node)
            if self._leases is not None and name not in self._flights:
                holder = self._leases.acquire(name)
                if holder is not None:
                    return HeldByPeer(holder, name)
            settle = partial(self._confirmer.settle, source, info, known)
            fill, departs = self._flights.join(
                name, partial(self._start_fill, source, info, request_context, name, settle=settle)
            )
            fill.hold()
            try:
                return await ride(fill, source, info, departs)
            except BaseException:
                await fill.aclose()
                raise
        except ImgkeepError:
            return None

    def _start_fill(  # noqa: PLR0913 - the last two tell rare kinds of fill
        self,
        source: Source,
        info: SourceInfo,
        request_context: RequestContext,
        name: str,
        *,
        fault: StorageError | None = None,
        settle: Settle | None = None,
    ) -> Fill:
        """Begin a fill that a visitor causes, under the lease `name`."""
        permit = None
        if self._rate_limiter is not None and not request_context.client.own:
            try:
                permit = self._rate_limiter.acquire(request_context.client.networks)
            except ImgkeepError:
                self._release(name)
                raise
        not_stored = None if isinstance(fault, Unreachable) else fault
        return Fill(
            source,
            info,
            self._dependencies,
            self,
            routes=self._source_order.find(source, info),
            settle=settle,
            unreachable=self._source_order.note_unreachable,
            fault=not_stored,
            doubt=fault,
            permit=permit,
            over=partial(self._release, name),
            client=request_context.client,
        )

    def _release(self, key: str, *, kept: bool = False) -> None:
        if self._leases is not None:
            self._leases.release(key, stored=kept)

    def _require_allowed(self, source: Source, info: SourceInfo) -> None:
        """Judge before anything is fetched, and only then: what is kept stays, whatever may be fetched today."""
        self._require_not_denied(_subject_of(source, info), judge(source, self._policy))

    def _check_may_fetch(self, source: Source, fault: StorageError | None, *, from_own_node: bool) -> None:
        """Raise what spares the origin a request."""
        remembered = self._negative_cache.find(source)
        if remembered is not None:
            raise remembered if fault is None else _neither_available(fault)
        if from_own_node:
            raise fault or LoopDetected("the request came from this server or from another node of it")

    def permanent_url(self, record: Record) -> str | None:
        """Return where an image is for ever; `None`: under our own `/images/<name>`."""
        return None if record.pending else self._permanent_url(record.object_name)

    def storage_of(self, record: Record) -> str:
        """Return where an image is at the moment: `local`, `s3`, ..."""
        return "local" if record.pending else self._store.name

    def is_current(self, delivery: Delivery) -> bool:
        """
        Whether what was found stands: while its bytes were fetched it may have been removed, replaced or moved. Where
        clients are sent away, what is served for once never stands.
        """
        if self._object_urls is not None and self._object_urls.redirects_clients:
            return False
        if (delivery.object_name or "").partition(".")[0] in self._refused:
            return False
        record = self.records.at_hand(delivery.key)  # type: ignore[arg-type]  # a name is nobody's key
        return record is None or record == delivery.record

    def _require_servable(self, record: Record) -> None:
        """Raise for what is stored and may not be shown: by whichever link it came, and by whichever it is found."""
        self.require_not_removed(record.digest)
        if self._policy.denies_record(record.host, record.identity):
            self._require_not_denied(Subject(record.key, record.host, record.provider), "host is in sources.deny")

    def _require_not_denied(self, subject: Subject, reason: str | None) -> None:
        if reason is not None:
            error = SourceForbidden(f"the source is refused: {reason}")
            self._dependencies.observer.refused(subject, error)
            raise error

    def require_not_removed(self, digest: Digest) -> None:
        """Raise `Removed` if a picture was removed."""
        if digest in self._refused:
            raise Removed(REMOVED)

    def describe(self, record: Record, *, base: str) -> ImageFacts:
        """Return what is told of a record, whatever the store; `base` stands before our own paths."""
        return describe_record(
            record,
            url=self.permanent_url(record) or f"{base}/images/{record.object_name}",
            storage=self.storage_of(record),
            suspect=self._dependencies.suspects is not None and self._dependencies.suspects.include(record),
        )

    async def _refer(self, name: str, etag: str, *, head: bool, immutable: bool = True) -> RedirectToObject | None:
        address = None if self._object_urls is None else await self._object_urls.find(name, head=head)
        return None if address is None else RedirectToObject(address, etag, name, self._permanent_url(name), immutable)

    def _permanent_url(self, name: str) -> str | None:
        return None if self._object_urls is None else self._object_urls.permanent(name)

    async def _look_up_link(self, source: Source, info: SourceInfo) -> tuple[LookupResult, StorageError | None]:
        """Find what is stored for a link. A fault is not a miss: it is told beside it."""
        try:
            record = await self.records.find(info.key)
            if record is None or not record.doubts:
                return LookupResult(info, record, None, Use.SERVE), None
            link, tried = read_link(source, info, self._dependencies.clock()), False
            if not lasts(record.doubts, link):
                record = await self.records.review(record)
            if record.brought_by != link.fingerprint and record.doubts & OTHERS:
                own = own_info(info, link.fingerprint)
                theirs = await self.records.find(own.key)
                if Doubt.SPLIT in record.doubts or (theirs is not None and theirs.digest != record.digest):
                    return LookupResult(own, theirs, link, Use.SERVE), None
                tried = theirs is not None
            use = judge_record(record, link, tried=tried or self._confirmer.was_tried(link, record))
        except StorageError as fault:
            return LookupResult(info, None, None, Use.SERVE), fault
        return LookupResult(info, record, link, use), None

    async def _show(
        self, met: LookupResult, request_context: RequestContext
    ) -> tuple[Delivery | RedirectToObject | None, StorageError | None]:
        """Show a link what is stored for it."""
        record = met.record
        assert record is not None
        self._require_servable(record)
        immutable = met.link is None or lasts(record.doubts, met.link)
        return await self._open(
            record, head=request_context.head, immutable=immutable, repeatable=met.use is not Use.TRY
        )

    async def _open(
        self, record: Record, *, head: bool, immutable: bool, repeatable: bool
    ) -> tuple[Delivery | RedirectToObject | None, StorageError | None]:
        """Open what a record points at, here or elsewhere. A fault is told beside the `None`."""
        try:
            if not record.pending:
                referral = await self._refer(record.object_name, record.etag, head=head, immutable=immutable)
                if referral is not None:
                    return referral, None
            body = await self._store.fetch(record.object_name, record.size)
            if body is None:
                another, body = await self._find_again(record)
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
            _file_name(record.key, record.format),
            body,
            record.object_name,
            self.permanent_url(record),
            immutable=immutable,
            repeatable=repeatable,
            record=record,
        ), None

    async def _find_another(self, lacking: Record) -> Record | None:
        record = await self.records.find_another(lacking)
        if record is not None:
            await self.kept(record)
        return record

    async def _find_again(self, lacking: Record) -> tuple[Record | None, Body | None]:
        record = await self._find_another(lacking)
        return record, None if record is None else await self._store.fetch(record.object_name, record.size)

    async def _wait(self, fill: Fill, _source: Source, _info: SourceInfo, departs: bool) -> tuple[Record, bool]:  # noqa: FBT001
        await fill.wait_for_size()
        outcome = fill.outcome
        await fill.aclose()
        if isinstance(outcome, Record):
            return outcome, departs
        raise outcome or StorageError("the image is not kept")

    async def _follow(
        self,
        request_context: RequestContext,
        fill: Fill,
        source: Source,
        info: SourceInfo,
        departs: bool,  # noqa: FBT001
    ) -> Delivery:
        head: FillHead = await request_context.wait(fill.judged())
        link = fill.link if source == fill.source else read_link(source, info, self._dependencies.clock())
        return _deliver(info.key, head, fill, CacheStatus.STORED if departs else CacheStatus.COLLAPSED, link)


def _deliver(key: Key, head: FillHead, body: Fill | PeerFill, outcome: CacheStatus, link: Link) -> Delivery:
    name = _file_name(key, head.format)
    outcome = outcome if head.storing else CacheStatus.NOT_STORED
    immutable = lasts(head.doubts, link)
    return Delivery(key, outcome, head.format, head.etag, name, body, growing=body, immutable=immutable)


def _neither_available(fault: StorageError) -> StorageError:
    """Neither store nor origin gave the image: what is stored may be there all the same, so this is no 404."""
    return StorageError(f"the store cannot be read, and the origin does not give the image: {fault}")


def _file_name(name: str, format_: Format) -> str:
    """Return a file name that is the same for hit and miss, and safe anywhere."""
    return f"{name[:16]}.{format_.extension}"


def _subject_of(source: Source, info: SourceInfo) -> Subject:
    return Subject(info.key, source.host, info.provider)
