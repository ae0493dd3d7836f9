"""
Refetches of stored images that an operator asks for: to replace a wrong image, or to confirm a right one.

Rules:
- The stored image stays until the new one is whole: framed whole by HTTP, complete by its format, within the limits.
- An image that its format calls incomplete replaces nothing. If it is the stored image, the refetch counts as one that
  a client caused (`core/refetch_rules.py`).
- No answer of the origin, no fault and no crash changes the stored image. The bytes of the old image are never deleted:
  they stay under their permanent URL.
- A link is fetched under the same policy as in a fill, and only if its identity has the key that is to be replaced.
- There is one fetch of a key at a time, among all workers, and it goes on when its client leaves. The number of fetches
  at a time is bounded, and there is no queue.
- An image that waits in the outbox is not replaced: only the primary knows whether it may be.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

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
from imgkeep.core.layout import REMOVED
from imgkeep.core.policy import judge
from imgkeep.core.records import Doubt, Key, Provenance, Record, Subject, Trust
from imgkeep.core.refetch_rules import RefetchOutcome, is_confirmed_as_it_is, is_incomplete, record_after_refetch
from imgkeep.core.source_url import read_source
from imgkeep.images.fill_result import Failed, FillResult, Stored, Unchanged
from imgkeep.images.fill_starter import REFRESH_PREFIX
from imgkeep.images.ingest import begin_draft, check_image, require_complete
from imgkeep.images.interfaces import NO_LINK
from imgkeep.images.singleflight import Call, SingleFlight
from imgkeep.origin.demand import Demand

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgkeep.clock import Sleep
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Source, SourceInfo, Validator
    from imgkeep.images.dependencies import FillDependencies
    from imgkeep.images.format_checker import CheckedImage
    from imgkeep.images.interfaces import Leases
    from imgkeep.images.service import ImageService
    from imgkeep.origin.response import OriginResponse
    from imgkeep.storage.interfaces import Draft

REFETCHES_MAX: Final = 8
"""Maximum number of refetches at a time, each key counted once: an eighth of the fetches, the rest is for clients."""
PUTS_MAX: Final = 3
"""Maximum number of attempts to put an image while other replacements of the key cross them."""
LEASE_POLL_INTERVAL_S: Final = 0.25
"""Interval of attempts to acquire the lease of a key that another worker has."""
LEASE_POLLS_MAX: Final = 240
"""Maximum number of these attempts: a minute, as long as a fetch may take."""

WAITS: Final = "the stored image waits for the primary store: fetch it again once it is there"

LASTING_DOUBTS: Final = frozenset({Doubt.SPLIT, Doubt.CONTESTED})
"""Doubts about the key, which remain after an operator has confirmed one link."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refetched:
    """The outcome of a refetch: the record from now on. `replaced`: its bytes changed; else they were confirmed."""

    record: Record
    replaced: bool


@dataclass(frozen=True, slots=True)
class _Fetched:
    """The image that a link brought, whole by its framing."""

    source: Source
    info: SourceInfo
    draft: Draft
    validator: Validator | None
    plaintext: bool


class Refetcher:
    """
    Fetches stored images again. One per process.

    Args:
        leases: The right to fetch, among several workers; `None`: there is one.
    """

    def __init__(
        self,
        image_service: ImageService,
        dependencies: FillDependencies,
        *,
        policy: Policy,
        sleep: Sleep,
        leases: Leases | None = None,
    ) -> None:
        self._image_service = image_service
        self._dependencies = dependencies
        self._policy = policy
        self._sleep = sleep
        self._leases = leases
        self._calls: SingleFlight[_Refetch] = SingleFlight()

    async def aclose(self) -> None:
        """Cancel the running refetches."""
        await self._calls.aclose()

    async def refetch_source(self, source: Source) -> Refetched | None:
        """Fetch the image that a link is shown again, by this link. As `refetch`."""
        return await self.refetch(await self._image_service.find_key(source), source)

    async def refetch(self, key: Key, source: Source | None = None) -> Refetched | None:
        """
        Fetch the image under a key again; `None`: none is stored.

        Args:
            key: The key.
            source: The link to fetch by. `None`: the link that its identity names, which works for unsigned links.

        Raises:
            InvalidRequest: The link names another image, or there is none to fetch by.
            Removed: The stored image was removed, or the fetched one was.
            SourceRejected, OriginError, StorageError, Busy: As their classes say; nothing was changed.
        """
        known = await self._dependencies.store.find(key)
        if known is None:
            waiting = await self._image_service.look_up(key)
            if waiting is not None and waiting.pending:
                raise StorageError(WAITS)  # on another node
            return None
        source = self._choose_link(known, source)
        reason = judge(source, self._policy)
        if reason is not None:
            raise SourceForbidden(f"the source is refused: {reason}")
        while True:
            await self._acquire_lease(key)
            # No await between the lease and the start: see singleflight.py.
            call, starts = self._calls.join(key, partial(self._make_call, key, source))
            try:
                return await asyncio.shield(call.done)
            except OriginError:
                if starts or call.source == source:
                    raise
                # Another link failed: this one gets a fetch of its own.

    def _choose_link(self, known: Record, source: Source | None) -> Source:
        """Return the link to fetch by. A link that names another image must not replace this one."""
        if source is None:
            if not known.identity.startswith(("//", "https://", "http://")):
                raise InvalidRequest("the image was uploaded or imported: there is no origin to fetch it from")
            try:
                # The claims after `#` are no part of a link; with `sources.identity = "exact"` it is the link itself.
                link = known.identity.partition("#")[0]
                source = read_source(f"https:{link}" if link.startswith("//") else link)
            except ImgkeepError:
                raise InvalidRequest("the image's identity is no link: send the link to fetch by") from None
            if known.key not in self._image_service.keys_of(source):
                raise InvalidRequest("the image's identity does not name it alone: send the link to fetch by")
        elif known.key not in self._image_service.keys_of(source):
            raise InvalidRequest("the link names another image than this key")
        if Doubt.SPLIT in known.doubts and known.brought_by != fingerprint(source):
            raise InvalidRequest("the signature names the image at this host: send the link that brought this one")
        return source

    async def _acquire_lease(self, key: Key) -> None:
        """Acquire the lease of a key, unless a call of this process has it."""
        name = _lease_name(key)
        for _ in range(LEASE_POLLS_MAX):
            await self._image_service.wait_for_fill(name)  # a refresh of the same image
            if key in self._calls:
                return
            if len(self._calls) >= REFETCHES_MAX:
                raise Busy("too many images are being fetched again", retry_after_s=2)
            if self._leases is None or self._leases.acquire(name) is None:
                return
            await self._sleep(LEASE_POLL_INTERVAL_S)
        raise Busy("another worker is fetching this image", retry_after_s=2)

    def _make_call(self, key: Key, source: Source) -> _Refetch:
        return _Refetch(source, partial(self._run, key, source), partial(self._release_lease, key))

    async def _wait_for_nodes(self, key: Key) -> None:
        """
        Wait until no other node fetches the image of a key again.

        Raises:
            Busy: One still does.
        """
        for _ in range(LEASE_POLLS_MAX):
            request = None if self._leases is None else self._leases.request(_lease_name(key), NO_LINK)
            if request is None or await request.answer() is None:
                return
            await self._sleep(LEASE_POLL_INTERVAL_S)
        raise Busy("another node is fetching this image", retry_after_s=2)

    def _release_lease(self, key: Key) -> None:
        if self._leases is not None:
            self._leases.release(_lease_name(key))

    async def _run(self, key: Key, source: Source) -> Refetched | None:
        await self._wait_for_nodes(key)
        info = self._image_service.identify(source)
        subject = Subject(key, source.host, info.provider)
        try:
            refetched = await self._fetch(key, source, info)
        except ImgkeepError as error:
            told = explain(error, info, self._dependencies.clock())
            await self._dependencies.observer.fill_ended(FillResult(subject, 0, Failed(told)))
            raise told from None
        if refetched is None:
            return None
        size, outcome = refetched.record.size, Stored(refetched.record) if refetched.replaced else Unchanged()
        await self._dependencies.observer.fill_ended(FillResult(subject, size, outcome))
        log.info("image fetched again", extra={"key": key, "replaced": refetched.replaced})
        return refetched

    async def _fetch(self, key: Key, source: Source, info: SourceInfo) -> Refetched | None:
        fetched = await self._spool(source, info)
        try:
            refetched = await self._store(key, fetched)
        finally:
            await fetched.draft.aclose()
        if refetched is not None:
            await self._image_service.changes.note_stored(refetched.record)
        return refetched

    async def _spool(self, source: Source, info: SourceInfo) -> _Fetched:
        """Fetch what the link brings, whole by its framing. The fetch ends before anything is checked."""
        # Without a validator: a 304 of the origin would prove nothing.
        demand = Demand(refusal_size=lambda status: refusal_size(status, info, self._dependencies.clock()))
        async with self._dependencies.origin.fetch(source, demand=demand) as response:
            draft = await begin_draft(self._dependencies, response.size)
            try:
                async for chunk in response.chunks():
                    await draft.write(chunk)
                _require_framing(response)
            except BaseException:
                await draft.aclose()
                raise
            return _Fetched(source, info, draft, response.validator, response.plaintext)

    async def _store(self, key: Key, fetched: _Fetched) -> Refetched | None:
        draft = fetched.draft
        if draft.digest in self._dependencies.blocked:
            raise Removed(REMOVED)
        checked = await check_image(self._dependencies, draft)
        for attempt in range(1, PUTS_MAX + 1):
            known = await self._dependencies.store.find(key)
            if known is None:
                return None
            if known.pending:
                raise StorageError(WAITS)
            same = known.digest == draft.digest
            if checked.is_incomplete and not same:
                require_complete(checked)
            record = self._record(known, fetched, checked)
            try:
                stored = await self._dependencies.store.put(draft, record, known.digest)
            except Conflict:
                if attempt == PUTS_MAX:
                    raise
                continue  # another replacement crossed this one, which has to differ from what is stored now
            if draft.digest in self._dependencies.blocked:
                # A removal during the put takes precedence; the former record is stored again.
                if not same:
                    await self._dependencies.store.put_record(known, replaces=draft.digest)
                await self._dependencies.store.delete_object(draft.digest)
                raise Removed(REMOVED)
            return Refetched(stored, replaced=not same)
        raise AssertionError("the last attempt returns or raises")

    def _record(self, known: Record, fetched: _Fetched, checked: CheckedImage) -> Record:
        source, info, draft = fetched.source, fetched.info, fetched.draft
        now = self._dependencies.clock().replace(microsecond=0)
        same = known.digest == draft.digest
        # The operator's request removes the doubts about the link only.
        doubts = known.doubts & LASTING_DOUBTS
        if fetched.plaintext and read_link(source, info, now).folded:
            doubts |= {Doubt.PLAINTEXT}
        if checked.is_incomplete and not is_confirmed_as_it_is(known):
            doubts |= {Doubt.INCOMPLETE}
        record = Record(
            key=known.key,
            identity=known.identity,
            digest=draft.digest,
            format=checked.format,
            size=draft.size,
            pixel_size=checked.pixel_size,
            etag=known.etag if same else self._dependencies.draw_etag(),
            stored_at=known.stored_at if same else now,
            validator=fetched.validator,
            provenance=Provenance(
                host=source.host,
                provider=info.provider or known.provider,
                temporary=info.temporary or known.temporary,
                expires_at=info.expires_at or known.expires_at,
            ),
            trust=Trust(
                doubts=doubts,
                brought_by=fingerprint(source) if doubts else "",
                refetches=known.refetches if same else None,
            ),
        )
        return record_after_refetch(record, RefetchOutcome.EQUAL, now) if is_incomplete(record) else record


class _Refetch(Call):
    """One fetch, and its followers."""

    def __init__(
        self, source: Source, run: Callable[[], Awaitable[Refetched | None]], release: Callable[[], None]
    ) -> None:
        self.source = source
        self.done: asyncio.Future[Refetched | None] = asyncio.get_running_loop().create_future()
        self._run = run
        self._release = release

    async def run(self) -> None:
        self.done.set_result(await self._run())

    def fail(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            error = StorageError("the server is being shut down")
        self.done.set_exception(error)
        self.done.exception()  # marks it as retrieved: its followers may have left

    async def aclose(self) -> None:
        self._release()


def _require_framing(response: OriginResponse) -> None:
    if not response.framed:
        raise OriginError("the origin's answer does not say where the image ends, so it may be cut short")


def _lease_name(key: Key) -> Key:
    """Return the name of the lease: that of a refresh, so that the two do not run at once."""
    return Key(f"{REFRESH_PREFIX}{key}")
