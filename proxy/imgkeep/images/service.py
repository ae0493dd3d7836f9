"""
The main story: find the image, or fill; then deliver.

The order of a look-up is fixed: memory, catalog, store, remembered failures, origin. What is stored always wins over
what once failed, and what an unverified link brings never takes the place of what is stored (`core/confirmation.py`).

A link that is not known to be entitled to what is stored is tried: it makes a fill of its own beside the key's, under
the same permissions, limits and claims as any other. Where one of them or the origin refuses, it gets what is stored.
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
from imgkeep.images.confirmation import Trials
from imgkeep.images.context import SOMEBODY, Delivery, Elsewhere, Outcome, Redirect, Referral, Visit
from imgkeep.images.fill import Fill
from imgkeep.images.incomplete_refetch import Completer
from imgkeep.images.negative_cache import Failures, fingerprint
from imgkeep.images.peer_fill import FillFailure, Mirror
from imgkeep.images.record_cache import Records
from imgkeep.images.record_facts import describe_record
from imgkeep.images.refresh import Refresher, Rules
from imgkeep.images.singleflight import Flights
from imgkeep.images.source_order import Routes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from imgkeep.core.confirmation import Link
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Digest, Format, Source, SourceInfo
    from imgkeep.images.fill import Head, Neighbours, Settle
    from imgkeep.images.peer_fill import Peers
    from imgkeep.images.rate_limit import Allowances
    from imgkeep.images.redirects import Addresses
    from imgkeep.ports import Body, Catalog, Claims, Store

DEFAULT_RULES: Final = Rules()

TRIES_MAX: Final = 50
"""So often a fill is looked for in the worker that had it a moment ago."""

TRIAL: Final = "try."
"""What the name of a fill begins with that tries a link beside what is stored under its key."""

T = TypeVar("T")

log = logging.getLogger(__name__)


def _spoil_nothing(_source: Source) -> Source | None:
    """No link can be spoiled."""


@dataclass(frozen=True, slots=True)
class Meeting:
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


class Keeper:
    """Finds, fills and delivers images. One per process; the `Tower` of its fills."""

    def __init__(  # noqa: PLR0913 - all by keyword, in one place
        self,
        *,
        store: Store,
        catalog: Catalog,
        policy: Policy,
        neighbours: Neighbours,
        timer: Callable[[], float],
        identify: Callable[[Source], SourceInfo],
        rules: Rules = DEFAULT_RULES,
        addresses: Addresses | None = None,
        allowances: Allowances | None = None,
        refused: Container[Digest] = frozenset(),
        claims: Claims | None = None,
        siblings: Peers | None = None,
        spoil: Callable[[Source], Source | None] = _spoil_nothing,
    ) -> None:
        self.identify = identify
        """Tells which picture a source names and what kind of link it is."""
        self._rules = rules
        self._addresses = addresses
        """Where clients can be sent; `None`: every image is served."""
        self._allowances = allowances
        self._refused = refused
        """The digests of pictures that were removed."""
        self.changed: Callable[[Key], None] = lambda _: None
        """Is told of every key under which something else is kept than before, or elsewhere."""
        self._store = store
        self._policy = policy
        self._to = neighbours
        self._claims = claims
        """`None`: we are the only worker, and so is `_siblings`."""
        self._siblings = siblings
        self._timer = timer
        self._flights: Flights[Fill] = Flights()
        self._mirrors: Flights[Mirror] = Flights()
        """Fills of other workers that are followed here."""
        self.records = Records(store, catalog, self._flights, timer)
        self._failures = Failures(timer)
        self._routes = Routes(policy, timer)
        self._trials = Trials(neighbours, kept=self.kept, tell=self.tell, claims=claims, spoil=spoil, timer=timer)
        self._completer = Completer(
            policy,
            neighbours,
            tower=self,
            flights=self._flights,
            claims=claims,
            trials=self._trials,
            routes=self._routes,
            failures=self._failures,
            allowances=allowances,
            timer=timer,
        )
        self._refresher = Refresher(
            rules,
            policy,
            neighbours,
            tower=self,
            flights=self._flights,
            claims=claims,
            trials=self._trials,
            routes=self._routes,
            failures=self._failures,
            timer=timer,
        )

    @property
    def fills_in_air(self) -> int:
        return len(self._flights)

    async def deliver(
        self, source: Source, info: SourceInfo, visit: Visit = SOMEBODY
    ) -> Delivery | Referral | Redirect:
        """
        Deliver the image that `source` names, from the store or from its origin, by whichever worker fetches it.

        Args:
            source: The link, read but not judged.
            info: What `identify` tells of it.
            visit: Who asks, and how.

        Raises:
            SourceRejected, OriginError, StorageError, Busy: As their classes say.
        """
        self._insist_on_no_denial(_subject_of(source, info), self._policy.denial(source, info.places))
        for _ in range(TRIES_MAX):
            began = self._timer()
            met, fault = await self._meet(source, info)
            if met.record is not None:
                shown, fault = await self._show_or_try(source, info, met, met.record, visit)
                if shown is not None:
                    return shown
            visit.insist()
            self._insist_on_policy(source, info)
            if self._rules.redirect_permanent and not info.temporary:
                return Redirect(source.url)
            boarded = await self._board(source, met.info, visit, fault, partial(self._follow, visit), began=began)
            if isinstance(boarded, Elsewhere):
                boarded = await self._follow_elsewhere(boarded, source, met.info, visit, fault)
            if boarded is not None:
                return boarded
        raise Busy("the image is fetched now by this worker, now by another")

    async def _show_or_try(
        self, source: Source, info: SourceInfo, met: Meeting, record: Record, visit: Visit
    ) -> tuple[Delivery | Referral | None, StorageError | None]:
        """Show a link what is stored, or what it brings itself where that does not stand for it."""
        if met.use is Use.TRY:
            tried = await self._try(source, met.info, record, visit, partial(self._follow, visit))
            if isinstance(tried, Elsewhere):
                tried = await self._follow_trial(tried, source, met.info, visit)
                if tried is None:
                    met, fault = await self._meet(source, info)  # with what the other worker has stored
                    if met.record is None:
                        return None, fault
            return (tried, None) if tried is not None else await self._show(met, visit)
        shown, fault = await self._show(met, visit)
        if shown is not None and not self._completer.look(source, met.info, record, visit):
            self._refresher.look(source, met.info, record, visit, seek_secure=met.use is Use.SEEK_SECURE)
        return shown, fault

    async def keep(self, source: Source, info: SourceInfo) -> tuple[Record, bool]:
        """
        Keep the image that `source` names, and return its record and whether it was not kept before.

        Raises:
            SourceRejected, OriginError, StorageError, Busy: As their classes say; it is not kept.
        """
        self._insist_on_no_denial(_subject_of(source, info), self._policy.denial(source, info.places))
        while True:
            began = self._timer()
            met, fault = await self._meet(source, info)
            known, kept = met.record, None
            if known is not None and met.use is Use.TRY:
                kept = await self._try(source, met.info, known, SOMEBODY, self._wait)
                if isinstance(kept, tuple):
                    record = kept[0]
                    return record, (record.key, record.digest) != (known.key, known.digest)
            if known is not None and kept is None:
                held, fault = await self._hold_if_there(known)
                if held is not None:
                    self._completer.look(source, met.info, held, SOMEBODY)
                    return held, False
            if kept is None:
                self._insist_on_policy(source, info)
                kept = await self._board(source, met.info, SOMEBODY, fault, self._wait, began=began)
            if isinstance(kept, Elsewhere):
                assert self._siblings is not None
                await self._siblings.wait(kept.holder, kept.claim)
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
        self._insist_on_record(record)
        if await self._store.holds(record.object_name, record.size):
            return record
        another = await self._find_another(record)
        held = another is not None and await self._store.holds(another.object_name, another.size)
        return another if held else None

    async def deliver_object(self, name: str, *, head: bool = False) -> Delivery | Referral | None:
        """
        Deliver the object `<digest>.<ext>` under its permanent URL; `None` if there is none.

        Raises:
            StorageError: The store cannot tell.
        """
        read = read_object_name(name)
        if read is None:
            return None
        digest, format_ = read
        self.insist_on_life(digest)
        referral = await self._refer(name, f'"{digest}"', head=head)
        if referral is not None:
            return referral
        body = await self._store.fetch(name, None)
        if body is None:
            return None
        return Delivery(name, Outcome.HIT, format_, f'"{digest}"', _name_for_people(digest, format_), body, name)

    async def deliver_kept(self, key: Key, *, head: bool = False) -> Delivery | Referral | None:
        """
        Deliver what is kept under a key that no link leads to; `None` if there is nothing.

        Raises:
            Removed: It was removed.
            StorageError: The store cannot tell.
        """
        record = await self.records.find(key)
        if record is None:
            return None
        self.insist_on_life(record.digest)
        delivery, fault = await self._open(record, head=head, lasting=not record.doubts, settled=True)
        if fault is not None:
            raise fault
        return delivery

    async def look_up(self, key: Key) -> Record | None:
        """Return the record under a key, whether its object is there or not. Raises as `ports.Store.find`."""
        return await self.records.find(key)

    async def shown(self, source: Source) -> Key:
        """
        Return the key of the image that a link is shown, whether one is stored or not.

        Raises:
            Removed: It was removed.
            StorageError: The store cannot tell.
        """
        met, fault = await self._meet(source, self.identify(source))
        if fault is not None:
            raise fault
        return met.info.key

    def keys_of(self, source: Source) -> tuple[Key, Key]:
        """Return the two keys under which the image of a link may be stored: the one that it shares, and its own."""
        info = self.identify(source)
        return info.key, own_info(info, read_link(source, info, self._to.clock()).fingerprint).key

    def forget(self, key: Key) -> None:
        """Hold nothing in memory that says that an image is kept."""
        self.records.forget(key)
        self.changed(key)

    def restored(self) -> None:
        """A removal was undone: no link is refused any more for the bytes that it brought."""
        self._failures.forget_removals()

    def learn(self, name: str) -> None:
        """Another worker has changed what is kept under a key, or has tried a link."""
        if not self._trials.learn(name):
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
        if self._siblings is not None:
            with suppress(StorageError):  # they look again some time (`web/fastpath/response_cache.py`)
                await self._siblings.tell(changed=[Key(key)])

    def failed(self, source: Source, error: BaseException) -> None:
        if isinstance(error, ImgkeepError):
            self._failures.remember(source, error)
        else:
            # Its readers tell as well, but there may be none left.
            log.error("a fill failed as nobody foresaw", exc_info=error)

    async def landed(self, key: Key) -> None:
        """Wait until nothing is fetched for a key any more, however it ends."""
        fill = self._flights.find(key)
        if fill is None:
            return
        fill.hold()
        try:
            with suppress(ImgkeepError):
                await fill.settle()
        finally:
            await fill.aclose()

    async def join(self, name: str) -> tuple[Fill, Head] | FillFailure | None:
        """
        Join a fill by the name of its claim for another worker, which closes it; `None`: there is none.

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
            return FillFailure(fingerprint(fill.source), error if fill.doubt is None else _neither(fill.doubt))
        except BaseException:
            await fill.aclose()
            raise

    async def land(self) -> None:
        """Wait until the fills in the air have landed, and what is looked for after them."""
        await self._flights.land()
        await self._trials.land()

    async def aclose(self) -> None:
        await self._mirrors.aclose()
        await self._flights.aclose()
        await self._trials.aclose()

    async def _board(  # noqa: PLR0913 - what was found so far, and when
        self,
        source: Source,
        info: SourceInfo,
        visit: Visit,
        fault: StorageError | None,
        ride: Callable[[Fill, Source, SourceInfo, bool], Awaitable[T]],
        *,
        began: float,
    ) -> T | Elsewhere | None:
        """
        Join the fill of a key or depart with a new one, and return what `ride` makes of it. Whoever rides closes it.

        `None`: look again. It was another link that failed, and ours gets a try of its own; or the look-up that `began`
        then is too old to be believed.
        """
        self._check_departure(source, fault, came_from_us=visit.came_from_us)
        # No await between the look-up's last word and the departure: see collapse.py, and cluster/leases.py.
        if self._claims is not None and info.key not in self._flights:
            holder = self._claims.take(info.key)
            if holder is not None:
                return Elsewhere(holder, info.key)
            if fault is None and self._timer() - began > self._claims.linger_s:
                self._claims.release(info.key)
                return None
        fill, departs = self._flights.join(info.key, partial(self._depart, source, info, visit, info.key, fault=fault))
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
                raise _neither(doubt) from error
            raise
        except BaseException:
            await fill.aclose()
            raise

    async def _unclaim(self, name: str) -> None:
        """Let others fetch what a claim says to be here, unless a look-up finds it: see `cluster/leases.py`."""
        record = None
        if not name.startswith(TRIAL):
            try:
                record = await self.records.find(Key(name))
            except Removed:
                return
            except StorageError:
                pass  # who asks finds out as well
        if record is None and name not in self._flights:
            self._release(name)

    async def _follow_trial(
        self, elsewhere: Elsewhere, source: Source, info: SourceInfo, visit: Visit
    ) -> Delivery | None:
        """Deliver what another worker fetches by the same link; `None`: what is stored has to do."""
        with suppress(ImgkeepError):
            return await self._follow_elsewhere(elsewhere, source, info, visit, None)
        return None

    async def _follow_elsewhere(
        self, elsewhere: Elsewhere, source: Source, info: SourceInfo, visit: Visit, fault: StorageError | None
    ) -> Delivery | None:
        """
        Deliver what another worker fetches; `None`: look again.

        Raises:
            ImgkeepError: The fill failed by this link, or would by any.
        """
        siblings = self._siblings
        assert siblings is not None
        holder, name = elsewhere.holder, elsewhere.claim
        mirror, _ = self._mirrors.join(
            name, lambda: Mirror(partial(siblings.follow, holder, name), self._to.disk, self._to.memory)
        )
        mirror.hold()
        try:
            head: Head | FillFailure | None = await visit.wait(asyncio.shield(mirror.head))
        except BaseException:
            await mirror.aclose()
            raise
        if head is None or isinstance(head, FillFailure):
            await mirror.aclose()
        if head is None:
            await visit.wait(siblings.wait(holder, name))
            return None
        if isinstance(head, FillFailure):
            if head.link not in {None, fingerprint(source)}:
                return None
            if head.link is not None and fault is not None:
                raise _neither(fault) from head.error
            raise copy.copy(head.error)  # each who waits has a traceback of its own
        return _deliver(info.key, head, mirror, Outcome.COLLAPSED, read_link(source, info, self._to.clock()))

    async def _try(
        self,
        source: Source,
        info: SourceInfo,
        known: Record,
        visit: Visit,
        ride: Callable[[Fill, Source, SourceInfo, bool], Awaitable[T]],
    ) -> T | Elsewhere | None:
        """Have a link make a fill of its own beside what is stored; `None`: what is stored has to do."""
        if self._rules.redirect_permanent and not info.temporary:
            return None  # the operator wants no more such images
        name = f"{TRIAL}{fingerprint(source).hex()}"
        try:
            visit.insist()
            self._insist_on_policy(source, info)
            self._check_departure(source, None, came_from_us=visit.came_from_us)
            if self._claims is not None and name not in self._flights:
                holder = self._claims.take(name)
                if holder is not None:
                    return Elsewhere(holder, name)
            settle = partial(self._trials.settle, source, info, known)
            fill, departs = self._flights.join(name, partial(self._depart, source, info, visit, name, settle=settle))
            fill.hold()
            try:
                return await ride(fill, source, info, departs)
            except BaseException:
                await fill.aclose()
                raise
        except ImgkeepError:
            return None

    def _depart(  # noqa: PLR0913 - the last two tell rare kinds of fill
        self,
        source: Source,
        info: SourceInfo,
        visit: Visit,
        name: str,
        *,
        fault: StorageError | None = None,
        settle: Settle | None = None,
    ) -> Fill:
        """Begin a fill that a visitor causes, under the claim `name`."""
        permit = None
        if self._allowances is not None and not visit.client.own:
            try:
                permit = self._allowances.depart(visit.client.networks)
            except ImgkeepError:
                self._release(name)
                raise
        unkept = None if isinstance(fault, Unreachable) else fault
        return Fill(
            source,
            info,
            self._to,
            self,
            routes=self._routes.find(source, info),
            settle=settle,
            unreachable=self._routes.note_unreachable,
            fault=unkept,
            doubt=fault,
            permit=permit,
            over=partial(self._release, name),
            client=visit.client,
        )

    def _release(self, key: str, *, kept: bool = False) -> None:
        if self._claims is not None:
            self._claims.release(key, kept=kept)

    def _insist_on_policy(self, source: Source, info: SourceInfo) -> None:
        """Judge before anything is fetched, and only then: what is kept stays, whatever may be fetched today."""
        self._insist_on_no_denial(_subject_of(source, info), judge(source, self._policy))

    def _check_departure(self, source: Source, fault: StorageError | None, *, came_from_us: bool) -> None:
        """Raise what spares the origin a request."""
        remembered = self._failures.find(source)
        if remembered is not None:
            raise remembered if fault is None else _neither(fault)
        if came_from_us:
            raise fault or LoopDetected("the request came from this server or from another node of it")

    def permanent_url(self, record: Record) -> str | None:
        """Return where an image is for ever; `None`: under our own `/images/<name>`."""
        return None if record.pending else self._permanent_url(record.object_name)

    def place_of(self, record: Record) -> str:
        """Return where an image is at the moment: `local`, `s3`, ..."""
        return "local" if record.pending else self._store.name

    def is_current(self, delivery: Delivery) -> bool:
        """
        Whether what was found stands: while its bytes were fetched it may have been removed, replaced or moved. Where
        clients are sent away, what is served for once never stands.
        """
        if self._addresses is not None and self._addresses.refers:
            return False
        if (delivery.object_name or "").partition(".")[0] in self._refused:
            return False
        record = self.records.at_hand(delivery.key)  # type: ignore[arg-type]  # a name is nobody's key
        return record is None or record == delivery.record

    def _insist_on_record(self, record: Record) -> None:
        """Raise for what is stored and may not be shown: by whichever link it came, and by whichever it is found."""
        self.insist_on_life(record.digest)
        if self._policy.denies_record(record.host, record.identity):
            self._insist_on_no_denial(Subject(record.key, record.host, record.provider), "host is in sources.deny")

    def _insist_on_no_denial(self, subject: Subject, reason: str | None) -> None:
        if reason is not None:
            error = SourceForbidden(f"the source is refused: {reason}")
            self._to.observer.refused(subject, error)
            raise error

    def insist_on_life(self, digest: Digest) -> None:
        """Raise `Removed` if a picture was removed."""
        if digest in self._refused:
            raise Removed(REMOVED)

    def describe(self, record: Record, *, base: str) -> dict[str, object]:
        """Return what is told of a record, whatever the store; `base` stands before our own paths."""
        return describe_record(
            record,
            url=self.permanent_url(record) or f"{base}/images/{record.object_name}",
            storage=self.place_of(record),
            suspect=self._to.suspects is not None and self._to.suspects.include(record),
        )

    async def _refer(self, name: str, etag: str, *, head: bool, lasting: bool = True) -> Referral | None:
        address = None if self._addresses is None else await self._addresses.find(name, head=head)
        return None if address is None else Referral(address, etag, name, self._permanent_url(name), lasting)

    def _permanent_url(self, name: str) -> str | None:
        return None if self._addresses is None else self._addresses.permanent(name)

    async def _meet(self, source: Source, info: SourceInfo) -> tuple[Meeting, StorageError | None]:
        """Find what is stored for a link. A fault is not a miss: it is told beside it."""
        try:
            record = await self.records.find(info.key)
            if record is None or not record.doubts:
                return Meeting(info, record, None, Use.SERVE), None
            link, tried = read_link(source, info, self._to.clock()), False
            if not lasts(record.doubts, link):
                record = await self.records.review(record)
            if record.brought_by != link.fingerprint and record.doubts & OTHERS:
                own = own_info(info, link.fingerprint)
                theirs = await self.records.find(own.key)
                if Doubt.SPLIT in record.doubts or (theirs is not None and theirs.digest != record.digest):
                    return Meeting(own, theirs, link, Use.SERVE), None
                tried = theirs is not None
            use = judge_record(record, link, tried=tried or self._trials.was_tried(link, record))
        except StorageError as fault:
            return Meeting(info, None, None, Use.SERVE), fault
        return Meeting(info, record, link, use), None

    async def _show(self, met: Meeting, visit: Visit) -> tuple[Delivery | Referral | None, StorageError | None]:
        """Show a link what is stored for it."""
        record = met.record
        assert record is not None
        self._insist_on_record(record)
        lasting = met.link is None or lasts(record.doubts, met.link)
        return await self._open(record, head=visit.head, lasting=lasting, settled=met.use is not Use.TRY)

    async def _open(
        self, record: Record, *, head: bool, lasting: bool, settled: bool
    ) -> tuple[Delivery | Referral | None, StorageError | None]:
        """Open what a record points at, here or elsewhere. A fault is told beside the `None`."""
        try:
            if not record.pending:
                referral = await self._refer(record.object_name, record.etag, head=head, lasting=lasting)
                if referral is not None:
                    return referral, None
            body = await self._store.fetch(record.object_name, record.size)
            if body is None:
                another, body = await self._find_again(record)
                if another is None or body is None:
                    return None, None
                record, lasting, settled = another, lasting and not another.doubts, False
        except StorageError as fault:
            return None, fault
        return Delivery(
            record.key,
            Outcome.HIT,
            record.format,
            record.etag,
            _name_for_people(record.key, record.format),
            body,
            record.object_name,
            self.permanent_url(record),
            lasting=lasting,
            settled=settled,
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
        await fill.settle()
        outcome = fill.outcome
        await fill.aclose()
        if isinstance(outcome, Record):
            return outcome, departs
        raise outcome or StorageError("the image is not kept")

    async def _follow(
        self,
        visit: Visit,
        fill: Fill,
        source: Source,
        info: SourceInfo,
        departs: bool,  # noqa: FBT001
    ) -> Delivery:
        head: Head = await visit.wait(fill.judged())
        link = fill.link if source == fill.source else read_link(source, info, self._to.clock())
        return _deliver(info.key, head, fill, Outcome.STORED if departs else Outcome.COLLAPSED, link)


def _deliver(key: Key, head: Head, body: Fill | Mirror, outcome: Outcome, link: Link) -> Delivery:
    name = _name_for_people(key, head.format)
    outcome = outcome if head.keeping else Outcome.UNKEPT
    lasting = lasts(head.doubts, link)
    return Delivery(key, outcome, head.format, head.etag, name, body, growing=body, lasting=lasting)


def _neither(fault: StorageError) -> StorageError:
    """Neither store nor origin gave the image: what is stored may be there all the same, so this is no 404."""
    return StorageError(f"the store cannot be read, and the origin does not give the image: {fault}")


def _name_for_people(name: str, format_: Format) -> str:
    """Return a file name that is the same for hit and miss, and safe anywhere."""
    return f"{name[:16]}.{format_.extension}"


def _subject_of(source: Source, info: SourceInfo) -> Subject:
    return Subject(info.key, source.host, info.provider)
