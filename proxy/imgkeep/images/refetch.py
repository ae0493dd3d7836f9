"""
Fetching a stored image again, because an operator says so: to replace a wrong picture, or to confirm a right one.

Rules:
- The stored image stays until the new one is whole: framed whole by HTTP, complete by its format, within the limits.
- An image that its format calls incomplete replaces nothing. Where it is what is stored, that counts as a refetch that
  a visitor caused (`core/incomplete_image.py`).
- No answer of the origin, no fault and no crash changes what is stored. The bytes of the old image are never deleted:
  they stay under their permanent URL.
- A link is fetched under the same policy as a fill, and only if its identity has the key that is to be replaced.
- One fetch per key, among all workers; it goes on when its client leaves. So many fetches at a time, and no queue.
- What waits in the outbox is not replaced: whether it may be is only known where the primary is.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from imgkeep.core.confirmation import fingerprint, read_link
from imgkeep.core.dead_link import explain, refusal_size
from imgkeep.core.errors import (
    Busy,
    Conflict,
    ImgkeepError,
    InvalidRequest,
    OriginError,
    Removed,
    SourceForbidden,
    StorageError,
)
from imgkeep.core.incomplete_image import Outcome, after_refetch, is_confirmed_as_it_is, is_incomplete
from imgkeep.core.layout import REMOVED
from imgkeep.core.policy import judge
from imgkeep.core.records import Doubt, Key, Record, Subject
from imgkeep.core.source_url import read_source
from imgkeep.images.ingest import begin, check_image, require_complete
from imgkeep.images.singleflight import SingleFlight
from imgkeep.origin.demand import Demand

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.clock import Sleep
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Source, SourceInfo, Validator
    from imgkeep.images.fill import FillDependencies
    from imgkeep.images.format_checker import CheckedImage
    from imgkeep.images.peer_fill import FillLeases
    from imgkeep.origin.client import OriginResponse
    from imgkeep.storage.interfaces import Draft

REFETCHES_MAX: Final = 8
"""Maximum number of refetches at a time, each key counted once: an eighth of the fetches, so visitors keep theirs."""
PUTS_MAX: Final = 3
"""Maximum number of times that a put is tried which another replacement crossed."""
CLAIM_EVERY_S: Final = 0.25
"""Interval of the looks whether another worker has finished with the key."""
CLAIM_LOOKS_MAX: Final = 240
"""Maximum number of these looks: a minute, as long as a fetch may take."""

LASTING_DOUBTS: Final = frozenset({Doubt.SPLIT, Doubt.CONTESTED})
"""Doubts that say something of the key, which an operator's word for one link does not take away."""

log = logging.getLogger(__name__)


class ImageService(Protocol):
    """The image_service, as far as a refetch needs it."""

    identify: Callable[[Source], SourceInfo]

    async def shown(self, source: Source) -> Key:
        """Return the key of the image that a link is shown, whether one is stored or not."""

    def keys_of(self, source: Source) -> tuple[Key, Key]:
        """Return the two keys under which the image of a link may be stored: the one that it shares, and its own."""

    async def wait_for_fill(self, key: Key) -> None:
        """Wait until nothing is fetched for a key any more, however it ends."""

    async def kept(self, record: Record) -> None:
        """Another image stands under a key from now on."""

    async def tell(self, key: Key) -> None:
        """Tell other workers that something else is kept under a key."""


@dataclass(frozen=True, slots=True)
class Refetched:
    """The record as it stands now. `replaced`: its bytes are other than before; else they were confirmed."""

    record: Record
    replaced: bool


class Refetcher:
    """
    Fetches stored images again. One per process.

    Args:
        settle: Waits until other workers find in the database what was put there.
        leases: Among several workers the right to fetch; `None`: there is one.
    """

    def __init__(  # noqa: PLR0913 - all but two by keyword
        self,
        image_service: ImageService,
        dependencies: FillDependencies,
        *,
        policy: Policy,
        settle: Callable[[], Awaitable[None]],
        sleep: Sleep,
        leases: FillLeases | None = None,
    ) -> None:
        self._image_service = image_service
        self._dependencies = dependencies
        self._policy = policy
        self._settle = settle
        self._sleep = sleep
        self._leases = leases
        self._flights: SingleFlight[_Flight] = SingleFlight()

    async def aclose(self) -> None:
        """Break off what is under way."""
        await self._flights.aclose()

    async def refetch_source(self, source: Source) -> Refetched | None:
        """Fetch the image that a link is shown again, by this link. As `refetch`."""
        return await self.refetch(await self._image_service.shown(source), source)

    async def refetch(self, key: Key, source: Source | None = None) -> Refetched | None:
        """
        Fetch the image under a key again; `None`: none is stored.

        Args:
            key: Which one.
            source: The link to fetch by. `None`: what its identity says, which works for unsigned links.

        Raises:
            InvalidRequest: The link names another image, or there is none to fetch by.
            Removed: The image was removed, or what came was.
            SourceRejected, OriginError, StorageError, Busy: As their classes say; nothing was changed.
        """
        known = await self._dependencies.store.find(key)
        if known is None:
            return None
        source = self._choose_link(known, source)
        reason = judge(source, self._policy)
        if reason is not None:
            raise SourceForbidden(f"the source is refused: {reason}")
        while True:
            await self._claim(key)
            # No await between the lease and the departure: see collapse.py.
            flight, departs = self._flights.join(key, partial(self._depart, key, source))
            try:
                return await asyncio.shield(flight.done)
            except OriginError:
                if departs or flight.source == source:
                    raise
                # Another link failed: ours gets a try of its own.

    def _choose_link(self, known: Record, source: Source | None) -> Source:
        """Return the link to fetch by. What names another image must not take the place of this one."""
        if source is None:
            if not known.identity.startswith(("//", "https://", "http://")):
                raise InvalidRequest("the image was uploaded or imported: there is no origin to fetch it from")
            try:
                # The leases behind `#` are no part of a link; with `sources.identity = "exact"` it is the link itself.
                place = known.identity.partition("#")[0]
                source = read_source(f"https:{place}" if place.startswith("//") else place)
            except ImgkeepError:
                raise InvalidRequest("the image's identity is no link: send the link to fetch by") from None
            if known.key not in self._image_service.keys_of(source):
                raise InvalidRequest("the image's identity does not name it alone: send the link to fetch by")
        elif known.key not in self._image_service.keys_of(source):
            raise InvalidRequest("the link names another image than this key")
        if Doubt.SPLIT in known.doubts and known.brought_by != fingerprint(source):
            raise InvalidRequest("the signature names the picture there: send the link that brought this one")
        return source

    async def _claim(self, key: Key) -> None:
        """Have the right to fetch, or join who has it in this process."""
        name = _name_of(key)
        for _ in range(CLAIM_LOOKS_MAX):
            await self._image_service.wait_for_fill(name)  # a look of `sources.refresh` at the same image
            if key in self._flights:
                return
            if len(self._flights) >= REFETCHES_MAX:
                raise Busy("too many images are being fetched again", retry_after_s=2)
            if self._leases is None or self._leases.acquire(name) is None:
                return
            await self._sleep(CLAIM_EVERY_S)
        raise Busy("another worker is fetching this image", retry_after_s=2)

    def _depart(self, key: Key, source: Source) -> _Flight:
        return _Flight(source, partial(self._run, key, source), partial(self._over, key))

    def _over(self, key: Key) -> None:
        if self._leases is not None:
            self._leases.release(_name_of(key))

    async def _run(self, key: Key, source: Source) -> Refetched | None:
        info = self._image_service.identify(source)
        subject = Subject(key, source.host, info.provider)
        try:
            refetched = await self._fetch(key, source, info)
        except ImgkeepError as error:
            told = explain(error, info, self._dependencies.clock())
            self._dependencies.observer.failed(subject, told)
            raise told from None
        if refetched is None:
            return None
        if refetched.replaced:
            self._dependencies.observer.filled(subject, refetched.record.size, pending=False)
        else:
            self._dependencies.observer.unchanged(subject)
        log.info("image fetched again", extra={"key": key, "replaced": refetched.replaced})
        return refetched

    async def _fetch(self, key: Key, source: Source, info: SourceInfo) -> Refetched | None:
        draft, validator, plaintext = await self._spool(source, info)
        try:
            refetched = await self._keep(key, source, info, draft, validator, plaintext=plaintext)
        finally:
            await draft.aclose()
        if refetched is not None:
            await self._image_service.kept(refetched.record)
            await self._settle()
            await self._image_service.tell(key)
        return refetched

    async def _spool(self, source: Source, info: SourceInfo) -> tuple[Draft, Validator | None, bool]:
        """Fetch what the link brings, whole by its framing. The origin is done with before anything is judged."""
        # Without a validator: whether the origin's word for "unchanged" can be believed is what is in question.
        demand = Demand(refusal_size=lambda status: refusal_size(status, info, self._dependencies.clock()))
        async with self._dependencies.origin.fetch(source, demand=demand) as response:
            draft = await begin(self._dependencies, response.size)
            try:
                async for chunk in response.chunks():
                    await draft.write(chunk)
                _insist_on_framing(response)
            except BaseException:
                await draft.aclose()
                raise
            return draft, response.validator, response.plaintext

    async def _keep(  # noqa: PLR0913 - what a record is made of
        self, key: Key, source: Source, info: SourceInfo, draft: Draft, validator: Validator | None, *, plaintext: bool
    ) -> Refetched | None:
        if draft.digest in self._dependencies.refused:
            raise Removed(REMOVED)
        judged = await check_image(self._dependencies, draft)
        for attempt in range(1, PUTS_MAX + 1):
            known = await self._dependencies.store.find(key)
            if known is None:
                return None
            if known.pending:
                raise StorageError("the stored image waits for the primary store: fetch it again once it is there")
            same = known.digest == draft.digest
            if judged.is_incomplete and not same:
                require_complete(judged)
            record = self._record(known, source, info, draft, judged, validator, plaintext=plaintext)
            try:
                kept = await self._dependencies.store.put(draft, record, known.digest)
            except Conflict:
                if attempt == PUTS_MAX:
                    raise
                continue  # another replacement crossed ours: what stands now is what we have to differ from
            if draft.digest in self._dependencies.refused:
                # A removal that came while it was being put wins; what stood here before stands again.
                if not same:
                    await self._dependencies.store.put_record(known, replaces=draft.digest)
                await self._dependencies.store.delete_object(draft.digest)
                raise Removed(REMOVED)
            return Refetched(kept, replaced=not same)
        raise AssertionError("the last attempt returns or raises")

    def _record(  # noqa: PLR0913, PLR0917 - what a record is made of
        self,
        known: Record,
        source: Source,
        info: SourceInfo,
        draft: Draft,
        judged: CheckedImage,
        validator: Validator | None,
        *,
        plaintext: bool,
    ) -> Record:
        now = self._dependencies.clock().replace(microsecond=0)
        same = known.digest == draft.digest
        # The operator's word takes away what was doubted of the link, and nothing else.
        doubts = known.doubts & LASTING_DOUBTS
        if plaintext and read_link(source, info, now).folded:
            doubts |= {Doubt.PLAINTEXT}
        if judged.is_incomplete and not is_confirmed_as_it_is(known):
            doubts |= {Doubt.INCOMPLETE}
        record = Record(
            key=known.key,
            identity=known.identity,
            host=source.host,
            digest=draft.digest,
            format=judged.format,
            size=draft.size,
            pixel_size=judged.pixel_size,
            etag=known.etag if same else self._dependencies.draw_etag(),
            stored_at=known.stored_at if same else now,
            # A link without its signature does not tell what kind of link it was.
            provider=info.provider or known.provider,
            temporary=info.temporary or known.temporary,
            expires_at=info.expires_at or known.expires_at,
            validator=validator,
            doubts=doubts,
            brought_by=fingerprint(source) if doubts else "",
            refetches=known.refetches if same else None,
        )
        return after_refetch(record, Outcome.EQUAL, now) if is_incomplete(record) else record


class _Flight:
    """A flight of `collapse.SingleFlight`: one fetch, and all who wait for it."""

    def __init__(
        self, source: Source, run: Callable[[], Awaitable[Refetched | None]], over: Callable[[], None]
    ) -> None:
        self.source = source
        self.done: asyncio.Future[Refetched | None] = asyncio.get_running_loop().create_future()
        self._run = run
        self._over = over

    async def run(self) -> None:
        self.done.set_result(await self._run())

    def fail(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            error = StorageError("the server is being shut down")
        self.done.set_exception(error)
        self.done.exception()  # marks it as retrieved: all who waited may have left

    async def aclose(self) -> None:
        self._over()


def _insist_on_framing(response: OriginResponse) -> None:
    if not response.framed:
        raise OriginError("the origin's answer does not say where the image ends, so it may be cut short")


def _name_of(key: Key) -> Key:
    """Return the name of the lease: that of a look of `sources.refresh`, so that the two do not run at once."""
    return Key(f"refresh.{key}")
