"""
The main story: find the image, or fill; then deliver.

The order of a look-up is fixed: memory, catalog, store, remembered failures, origin. What is stored always wins over
what once failed, and nothing that an origin answers touches what is stored.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from cachetools import LRUCache

from proxy.collapse import Flights
from proxy.core.errors import (
    ImgkeepError,
    LoopDetected,
    OriginError,
    Removed,
    SourceForbidden,
    SourceRejected,
    StorageError,
    Unreachable,
)
from proxy.core.model import Record
from proxy.core.policy import judge
from proxy.core.stored import REMOVED, read_object_name
from proxy.service.failures import Failures, fingerprint
from proxy.service.fill import Fill
from proxy.service.mirror import Mirror
from proxy.service.records import Records
from proxy.service.visit import SOMEBODY, Delivery, Elsewhere, Outcome, Redirect, Referral, Visit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Container
    from pathlib import Path

    from proxy.core.model import Digest, Format, Key, Source, SourceInfo
    from proxy.core.policy import Policy
    from proxy.ports import Body, Catalog, Claims, Siblings, Store
    from proxy.service.address import Addresses
    from proxy.service.allowance import Allowances
    from proxy.service.fill import Neighbours

LINKS_MAX: Final = 65_536
"""With `sources.refresh`, so many links are known to have been asked by already; 150 bytes each, 10 MB."""

NOBODY: Final = ""
"""No worker's name: who asked begins anew."""

T = TypeVar("T")

log = logging.getLogger(__name__)


async def _leave(_record: Record) -> None:
    """Remove nothing."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator wants beyond keeping every image for ever: `sources.permanent` and `sources.refresh`."""

    redirect_permanent: bool = False
    refresh: bool = False


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
        rules: Rules = Rules(),
        addresses: Addresses | None = None,
        allowances: Allowances | None = None,
        refused: Container[Digest] = frozenset(),
        claims: Claims | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        self.identify = identify
        """Tells which picture a source names and what kind of link it is."""
        self._rules = rules
        self._addresses = addresses
        """Where clients can be sent; `None`: every image is served."""
        self._allowances = allowances
        self._refused = refused
        """The digests of pictures that were removed."""
        self.remove: Callable[[Record], Awaitable[None]] = _leave
        """Is told of what has to be removed by every link."""
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
        self.records = Records(store, catalog, self._flights, timer)
        self._failures = Failures(timer)
        self._asked: LRUCache[bytes, bool] = LRUCache(LINKS_MAX)
        """Fingerprints of the links that their origins were asked by."""

    @property
    def fills_in_air(self) -> int:
        return len(self._flights)

    async def deliver(
        self, source: Source, info: SourceInfo, visit: Visit = SOMEBODY
    ) -> Delivery | Referral | Redirect | Elsewhere:
        """
        Deliver the image that `source` names, from the store or from its origin.

        Args:
            source: The link, read but not judged.
            info: What `identify` tells of it.
            visit: Who asks, and how.

        Raises:
            SourceRejected, OriginError, StorageError, Busy: As their classes say.
        """
        if self._policy.denies(source.host):
            raise SourceForbidden("the source is refused: host is in sources.deny")
        while True:
            began = self._timer()
            delivery, fault = await self._find(info.key, head=visit.head)
            if delivery is not None:
                self._refresh(source, info, visit)
                return delivery
            visit.insist()
            self._insist_on_policy(source)
            if self._rules.redirect_permanent and not info.temporary:
                return Redirect(source.url)
            boarded = await self._board(source, info, visit, fault, self._follow, began=began)
            if boarded is not None:
                return boarded

    async def keep(self, source: Source, info: SourceInfo) -> tuple[Record, bool]:
        """
        Keep the image that `source` names, and return its record and whether it was not kept before.

        Raises:
            SourceRejected, OriginError, StorageError, Busy: As their classes say; it is not kept.
        """
        if self._policy.denies(source.host):
            raise SourceForbidden("the source is refused: host is in sources.deny")
        while True:
            began = self._timer()
            fault = None
            try:
                record = await self.find(info.key)
            except StorageError as error:
                record, fault = None, error
            if record is not None:
                return record, False
            self._insist_on_policy(source)
            kept = await self._board(source, info, SOMEBODY, fault, self._wait, began=began)
            if isinstance(kept, Elsewhere):
                assert self._siblings is not None
                await self._siblings.wait(kept.holder, info.key)
            elif kept is not None:
                return kept

    async def find(self, key: Key) -> Record | None:
        """
        Return the record of an image whose object is there, as far as its size tells.

        Raises:
            StorageError: The store cannot tell.
        """
        record = await self.records.find(key)
        if record is not None:
            self.insist_on_life(record.digest)
        if record is None or await self._store.holds(record.object_name, record.size):
            return record
        record = await self._find_another(record)
        held = record is not None and await self._store.holds(record.object_name, record.size)
        return record if held else None

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
        delivery, fault = await self._find(key, head=head)
        if fault is not None:
            raise fault
        return delivery

    async def look_up(self, key: Key) -> Record | None:
        """Return the record under a key, whether its object is there or not. Raises as `ports.Store.find`."""
        return await self.records.find(key)

    def forget(self, key: Key) -> None:
        """Hold nothing in memory that says that an image is kept."""
        self.records.forget(key)
        self.changed(key)

    async def kept(self, record: Record) -> None:
        known = self.records.at_hand(record.key)
        self.records.hold(record)
        self.changed(record.key)
        await self.records.note(record)
        if known is not None and known != record:
            await self.tell(record.key)

    async def tell(self, key: Key) -> None:
        """Tell other workers that something else is kept under a key, or elsewhere."""
        if self._siblings is not None:
            with suppress(StorageError):  # they look again some time (`web/prepared.py`)
                await self._siblings.tell(changed=[key])

    async def removed(self, record: Record) -> None:
        # Where it cannot be noted, the next fill comes to the same end.
        with suppress(StorageError):
            await self.remove(record)

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

    async def land(self) -> None:
        """Wait until the fills in the air have landed."""
        await self._flights.land()

    async def aclose(self) -> None:
        await self._flights.aclose()

    async def _board(  # noqa: PLR0913 - what was found so far, and when
        self,
        source: Source,
        info: SourceInfo,
        visit: Visit,
        fault: StorageError | None,
        ride: Callable[[Fill, SourceInfo, bool], Awaitable[T]],
        *,
        began: float,
    ) -> T | Elsewhere | None:
        """
        Join the fill of a key or depart with a new one, and return what `ride` makes of it. Whoever rides closes it.

        `None`: look again. It was another link that failed, and ours gets a try of its own; or the look-up that `began`
        then is too old to be believed.
        """
        self._check_departure(source, fault, came_from_us=visit.came_from_us)
        # No await between the look-up's last word and the departure: see collapse.py, and storage/claims.py.
        if self._claims is not None and info.key not in self._flights:
            holder = self._claim(self._claims, info.key, visit)
            if holder is not None:
                return Elsewhere(holder)
            if fault is None and self._timer() - began > self._claims.linger_s:
                self._claims.release(info.key)
                return None
        fill, departs = self._flights.join(info.key, partial(self._depart, source, info, visit, fault))
        self._note_asked(source)
        fill.hold()
        try:
            return await ride(fill, info, departs)
        except (OriginError, SourceForbidden) as error:
            await fill.aclose()
            if fill.source != source:
                return None
            doubt = fault or fill.doubt
            if doubt is not None:
                raise _neither(doubt) from error
            raise
        except BaseException:
            await fill.aclose()
            raise

    def _claim(self, claims: Claims, key: Key, visit: Visit) -> str | None:
        """Have the right to fetch an image, among all workers, or return who has it."""
        if visit.joins_only:
            claims.release(key)  # there is nothing here to be joined any more
            return NOBODY
        return claims.take(key)

    def _depart(self, source: Source, info: SourceInfo, visit: Visit, fault: StorageError | None) -> Fill:
        permit = None
        if self._allowances is not None and visit.client is not None:
            try:
                permit = self._allowances.depart(visit.client)
            except ImgkeepError:
                self._release(info.key)
                raise
        unkept = None if isinstance(fault, Unreachable) else fault
        over = partial(self._release, info.key)
        return Fill(source, info, self._to, self, fault=unkept, doubt=fault, permit=permit, over=over)

    def _release(self, key: str, *, kept: bool = False) -> None:
        if self._claims is not None:
            self._claims.release(key, kept=kept)

    def _insist_on_policy(self, source: Source) -> None:
        """Judge before anything is fetched, and only then: what is kept stays, whatever may be fetched today."""
        reason = judge(source, self._policy)
        if reason is not None:
            raise SourceForbidden(f"the source is refused: {reason}")

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
        return record is None or (record.etag, self.permanent_url(record)) == (delivery.etag, delivery.permanent_url)

    def insist_on_life(self, digest: Digest) -> None:
        """Raise `Removed` if a picture was removed."""
        if digest in self._refused:
            raise Removed(REMOVED)

    def describe(self, record: Record, *, base: str) -> dict[str, object]:
        """Return what is told of a record, whatever the store; `base` stands before our own paths."""
        return {
            "url": self.permanent_url(record) or f"{base}/images/{record.object_name}",
            "storage": self.place_of(record),
            "key": record.key,
            "digest": record.digest,
            "content_type": record.format.media_type,
            "size": record.size,
            "width": record.pixel_size.width if record.pixel_size else None,
            "height": record.pixel_size.height if record.pixel_size else None,
            "stored_at": record.stored_at,
            "source": {
                "host": record.host or None,
                "provider": record.provider,
                "temporary": record.temporary,
                "expires_at": record.expires_at,
            },
        }

    async def _refer(self, name: str, etag: str, *, head: bool) -> Referral | None:
        address = None if self._addresses is None else await self._addresses.find(name, head=head)
        return None if address is None else Referral(address, etag, name, self._permanent_url(name))

    def _permanent_url(self, name: str) -> str | None:
        return None if self._addresses is None else self._addresses.permanent(name)

    async def _find(self, key: Key, *, head: bool) -> tuple[Delivery | Referral | None, StorageError | None]:
        """Find what is stored under a key. A fault is not a miss: it is told beside the `None`."""
        try:
            record = await self.records.find(key)
            if record is not None:
                self.insist_on_life(record.digest)
            if record is not None and not record.pending:
                referral = await self._refer(record.object_name, record.etag, head=head)
                if referral is not None:
                    return referral, None
            body = None if record is None else await self._store.fetch(record.object_name, record.size)
            if record is not None and body is None:
                record, body = await self._find_again(record)
        except StorageError as fault:
            return None, fault
        if record is None or body is None:
            return None, None
        name = _name_for_people(record.key, record.format)
        url = self.permanent_url(record)
        return Delivery(key, Outcome.HIT, record.format, record.etag, name, body, record.object_name, url), None

    def _refresh(self, source: Source, info: SourceInfo, visit: Visit) -> None:
        """Look, behind the back of whoever is being served, whether a link that was signed anew shows a new image."""
        if not self._rules.refresh or visit.came_from_us:
            return
        known = self.records.at_hand(info.key)
        if known is None or known.validator is None or not info.is_fresh(self._to.clock()):
            return
        if not known.temporary or known.provider != info.provider:
            return  # kept by a link of another kind: a signature that anybody can invent must not replace that
        if fingerprint(source) in self._asked or judge(source, self._policy) is not None:
            return
        if self._failures.find(source) is not None:
            return
        try:
            visit.insist()
        except SourceRejected:
            return
        name = f"refresh.{info.key}"
        if self._claims is None or name in self._flights or self._claims.take(name) is None:
            over = partial(self._release, name)
            flight = partial(Fill, source, info, self._to, self, known=known, over=over)
            if self._flights.join(name, flight)[1]:
                self._note_asked(source)

    def _note_asked(self, source: Source) -> None:
        if self._rules.refresh:
            self._asked[fingerprint(source)] = True

    async def _find_another(self, lacking: Record) -> Record | None:
        record = await self.records.find_another(lacking)
        if record is not None:
            await self.kept(record)
        return record

    async def _find_again(self, lacking: Record) -> tuple[Record | None, Body | None]:
        record = await self._find_another(lacking)
        return record, None if record is None else await self._store.fetch(record.object_name, record.size)

    async def _wait(self, fill: Fill, _info: SourceInfo, departs: bool) -> tuple[Record, bool]:  # noqa: FBT001
        await fill.settle()
        outcome = fill.outcome
        await fill.aclose()
        if isinstance(outcome, Record):
            return outcome, departs
        raise outcome or StorageError("the image is not kept")

    async def mirror(
        self, path: Path, steps: AsyncIterator[tuple[int, bytes]], over: Callable[[], None]
    ) -> Mirror | None:
        """
        Read along what another worker fetches into `path`; `None`: that is over.

        Raises:
            StorageError: The file cannot be opened.
        """
        file = await self._to.disk.peek(path)
        return None if file is None else Mirror(file, steps, self._to.memory, over)

    async def _follow(self, fill: Fill, info: SourceInfo, departs: bool) -> Delivery:  # noqa: FBT001
        head = await asyncio.shield(fill.head)
        outcome = Outcome.STORED if departs else Outcome.COLLAPSED
        if not head.keeping:
            outcome = Outcome.UNKEPT
        name = _name_for_people(info.key, head.format)
        return Delivery(info.key, outcome, head.format, head.etag, name, fill, growing=fill)


def _neither(fault: StorageError) -> StorageError:
    """Neither store nor origin gave the image: what is stored may be there all the same, so this is no 404."""
    return StorageError(f"the store cannot be read, and the origin does not give the image: {fault}")


def _name_for_people(name: str, format_: Format) -> str:
    """Return a file name that is the same for hit and miss, and safe anywhere."""
    return f"{name[:16]}.{format_.extension}"
