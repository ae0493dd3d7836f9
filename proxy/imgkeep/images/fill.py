"""
One fill: fetch an image, check it, spool it, store it, while any number of readers follow (`images/shared_body.py`).

Rules:
- No byte goes to a reader before the first bytes were found to be an image, and nothing is stored that is not whole.
- The fill holds the last byte back until the image is durable, so a reader that has it all finds it again.
- A disk that fails does not fail the reader: the body continues in memory, within a budget, and is not stored.
- A fill never reports a store's fault as the origin's, nor the other way round.
- A fill without readers continues, but yields its slot when another fill waits for it: unless the API or a job wants
  the image, or more than half of it has come.
- Bytes that are blocked, or suspected to be a placeholder where those are refused, end the fill that brought them, and
  nothing else: an unverified link must not decide what becomes of a key.
- Each listener learns the result once (`images/fill_result.py`): before a reader has the last byte, or the failure.
"""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from imgkeep.core.confirmation import doubts_of, read_link
from imgkeep.core.dead_link import explain, refusal_size
from imgkeep.core.errors import (
    Busy,
    ImgkeepError,
    LoopDetected,
    NotAnImage,
    OriginError,
    OriginRefused,
    Removed,
    SourceForbidden,
    SourceNotFound,
    StorageError,
    TooLarge,
    Unreachable,
)
from imgkeep.core.formats import Ending
from imgkeep.core.layout import REMOVED
from imgkeep.core.records import OWN, Doubt, Provenance, Record, Subject, Trust
from imgkeep.images.fill_checks import ERROR_IMAGE_BYTES_MAX, FillChecks
from imgkeep.images.fill_result import Failed, FillResult, NotBegun, NotStored, Skipped, Stored, Unchanged
from imgkeep.images.ingest import undo_put
from imgkeep.images.shared_body import SharedBody
from imgkeep.images.singleflight import Call
from imgkeep.origin.demand import Demand, NotModified

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from imgkeep.core.records import Client, Format, PixelSize, Source, SourceInfo, Validator
    from imgkeep.images.dependencies import FillDependencies
    from imgkeep.images.fill_result import FillListener, FillOutcome
    from imgkeep.origin.response import OriginResponse
    from imgkeep.storage.interfaces import Draft

    FirstStep = Callable[[], Awaitable[Skipped | NotBegun | None]]
    """Runs before the fetch; a result ends the fill."""
    PutImage = Callable[[Draft, Record], Awaitable[Record]]
    """Stores a whole image, and returns the record under which it is found from now on. Raises as `Store.put`."""

RECENT_BYTES_MAX: Final = 1_048_576
"""Maximum size of the newest bytes in memory, once per fill: readers that keep up need not read the draft."""
READER_ITERATIONS: Final = 4
"""Iterations of the loop after which readers that wait for the head have it."""
REACHED_ORIGIN: Final = (NotAnImage, TooLarge, OriginRefused, SourceNotFound)
"""Failures that show that the origin can be reached."""


@dataclass(frozen=True, slots=True)
class FillHead:
    """
    The facts of an image after its first bytes.

    Attributes:
        storing: Whether the image is going to be stored, or only passed on because no store can take it.
        doubts: The doubts about the image.
    """

    format: Format
    size: int | None
    etag: str
    storing: bool
    doubts: frozenset[Doubt]


@dataclass(frozen=True, slots=True)
class _Fetched:
    """
    A whole image in the draft.

    Attributes:
        record: The record for the store; `None`: no store can take the image.
        fault: The reason for that.
    """

    record: Record | None
    fault: StorageError | None


class Fill(Call):
    """
    A fetch of one image, which runs once and feeds the body that its readers read from.

    Attributes:
        source: The link that this fill tries; followers with another link may want a fill of their own.
        link: The properties of that link that records depend on.
        body: The body of the readers. Its head resolves to the result of the first bytes, or to the failure.
        lookup_fault: As the argument: with it, a failure of the fill is no miss.
        result: How the fill ended; `None`: it runs.

    Args:
        listeners: Learn the result, in this order.
        sources: The links to fetch by, in this order, until one brings an image; as a rule the source itself.
        source_unreachable: Called with a link whose origin cannot be connected to, when there is another link.
        put: Stores the image; as a rule under the key of `info`.
        lookup_fault: Why no store could tell whether the image is stored. An image that the primary may have is
            fetched for its readers, and not stored: what an origin sends now must not replace it.
        known: The stored record, if this fill checks whether the image has changed. Such a fill has no readers.
        client: The client whose share of the fetch slots the fill takes.
        background: Whether the fill starts without readers: it yields, and checks what it brings to the last byte.
        first_step: What comes before the fetch; `None`: nothing does.
    """

    def __init__(  # noqa: PLR0913 - the last ones are for rare kinds of fill
        self,
        source: Source,
        info: SourceInfo,
        dependencies: FillDependencies,
        *,
        listeners: Sequence[FillListener] = (),
        sources: Sequence[Source] = (),
        source_unreachable: Callable[[Source], None] = lambda _: None,
        put: PutImage | None = None,
        lookup_fault: StorageError | None = None,
        known: Record | None = None,
        client: Client = OWN,
        background: bool = False,
        first_step: FirstStep | None = None,
    ) -> None:
        self.source = source
        self.link = read_link(source, info, dependencies.clock())
        self.lookup_fault = lookup_fault
        self.result: FillResult | None = None
        self._info = info
        self._dependencies = dependencies
        self._listeners = listeners
        self._sources = sources or (source,)
        self._source_unreachable = source_unreachable
        self._put_image = put
        self._fault = None if isinstance(lookup_fault, Unreachable) else lookup_fault
        self._known = known
        self._checks = FillChecks(dependencies, client, background=background)
        self._first_step = first_step
        yields = (background or known is not None) and not client.own
        # No bound method of the fill in these two: a cycle would hold what failed until the garbage collector runs.
        self._demand = Demand(client, yields=yields, refusal_size=partial(_refusal_size, info, dependencies))
        self.body: SharedBody[FillHead] = SharedBody(
            dependencies.memory,
            recent_bytes_max=RECENT_BYTES_MAX,
            readers_changed=partial(_update_demand, self._demand),
        )

    async def run(self) -> None:
        try:
            outcome = await self._fetch_and_store()
            await self._end(outcome)
        except BaseException as error:
            await self._end(Failed(self._explain(error)))
            raise
        if isinstance(outcome, NotBegun):
            raise copy.copy(outcome.error)  # `SingleFlight` gives it to `fail`
        if isinstance(outcome, Unchanged | Skipped):
            self.body.end()
        else:
            self.body.finish(self.body.written)

    def fail(self, error: BaseException) -> None:
        outcome = None if self.result is None else self.result.outcome
        self.body.fail(outcome.error if isinstance(outcome, Failed | NotBegun) else self._explain(error))

    async def aclose(self) -> None:
        await self.body.aclose()

    async def _end(self, outcome: FillOutcome) -> None:
        """Give the result to the listeners, once."""
        if self.result is not None:
            return
        subject = Subject(self._info.key, self.source.host, self._info.provider)
        self.result = FillResult(subject, self.body.written, outcome)
        # A listener that is cancelled or fails must not keep the later ones, such as the lease's, from the result.
        first: BaseException | None = None
        for listener in self._listeners:
            try:
                await listener(self.result)
            except BaseException as error:  # noqa: BLE001 - raised below, the first one of them
                first = first or error
        if first is not None:
            raise first

    async def _fetch_and_store(self) -> FillOutcome:
        if self._first_step is not None and (ending := await self._first_step()) is not None:
            return ending
        try:
            fetched = await self._fetch()
        except NotModified:
            return Unchanged()
        except OriginError as error:
            await self._checks.check_error_image(error)
            raise
        if fetched.record is None:
            assert fetched.fault is not None
            return NotStored(fetched.fault)
        # Readers that wait for the head have it some iterations of the loop later. A disk that is set to work before
        # takes the interpreter from them, and they would wait for it with their first byte.
        for _ in range(READER_ITERATIONS):
            await asyncio.sleep(0)
        return await self._store(fetched.record)

    def _explain(self, error: BaseException) -> BaseException:
        """Return the error of this program for an exception of the fill."""
        if isinstance(error, asyncio.CancelledError):
            return StorageError("the server is being shut down")
        if not isinstance(error, ImgkeepError):
            return error
        error = explain(error, self._info, self._dependencies.clock())
        if isinstance(error, OriginError):
            error.refusal = b""  # nothing reads it after this
        # Without its traceback, which refers to this fill and all its bytes: reference counts would never free them.
        return copy.copy(error)

    async def _fetch(self) -> _Fetched:
        """Fetch by the first link that brings an image."""
        for source in self._sources[:-1]:
            try:
                return await self._fetch_by(source, fail_fast=True)
            except (Busy, LoopDetected):
                raise
            except (OriginError, SourceForbidden) as error:
                if self.body.head.done():
                    raise
                self._note_unreachable(source, error)
        last = self._sources[-1]
        try:
            return await self._fetch_by(last, fail_fast=last != self.source)
        except OriginError as error:
            if last != self.source:
                self._note_unreachable(last, error)
            raise

    def _note_unreachable(self, source: Source, error: OriginError | SourceForbidden) -> None:
        """Report a link whose origin cannot be connected to."""
        if isinstance(error, OriginError) and error.origin_status is None and not isinstance(error, REACHED_ORIGIN):
            self._source_unreachable(source)

    async def _fetch_by(self, source: Source, *, fail_fast: bool) -> _Fetched:
        """Fetch, check and spool."""
        dependencies, body = self._dependencies, self.body
        validator = None if self._known is None else self._known.validator
        async with dependencies.origin.fetch(source, validator, self._demand, fail_fast=fail_fast) as response:
            body.size = response.size
            chunks = response.chunks()
            first, seen = await self._checks.read_head(response, chunks)
            fault = self._why_not_stored(await body.begin(dependencies.disk))
            etag = dependencies.draw_etag()
            ending = Ending(seen.format)
            ending.feed(first)
            gathered, is_end_seen = await self._checks.gather_to_end(response, chunks, ending, len(first))
            doubts = self._doubts(response, is_complete=is_end_seen)
            body.head.set_result(FillHead(seen.format, response.size, etag, storing=fault is None, doubts=doubts))
            for chunk in (first, *gathered):
                fault = await self._write(chunk) or fault
            async for chunk in chunks:
                ending.feed(chunk)
                fault = await self._write(chunk) or fault
        # The origin's part is over: a check that takes long holds no fetch slot.
        is_complete = await self._checks.is_complete(response, ending, body.draft)
        pixel_size = seen.pixel_size if seen.is_measured else await self._checks.measure(body.draft, seen.format)
        if fault is not None:
            return _Fetched(None, fault)
        doubts = self._doubts(response, is_complete=is_complete)  # the link may have ended meanwhile
        return _Fetched(self._record(seen.format, pixel_size, etag, response.validator, doubts), None)

    async def _write(self, chunk: bytes) -> StorageError | None:
        """Write a chunk and let readers have all but its last byte; return why the image cannot be stored."""
        fault = await self.body.write(chunk)
        if self._demand.yields and self.body.is_mostly_written:
            self._demand.set(yields=False)
        self.body.advance(self.body.written - 1)
        return None if fault is None else self._why_not_stored(fault)

    def _why_not_stored(self, fault: StorageError | None) -> StorageError | None:
        """Return why the image cannot be stored after a fault of the disk: memory suffices for a store elsewhere."""
        return self._fault or (fault if self._dependencies.store.local_drafts_only else None)

    def _doubts(self, response: OriginResponse, *, is_complete: bool) -> frozenset[Doubt]:
        if self._info.expires_at is not None:
            self.link = read_link(self.source, self._info, self._dependencies.clock())  # it may have ended by now
        doubts = doubts_of(self.link, plaintext=response.plaintext)
        # Until the fill has seen the end, no client may keep the image for long.
        return doubts if is_complete else doubts | {Doubt.INCOMPLETE}

    def _record(
        self,
        format_: Format,
        pixel_size: PixelSize | None,
        etag: str,
        validator: Validator | None,
        doubts: frozenset[Doubt],
    ) -> Record:
        info, known, draft = self._info, self._known, self.body.draft
        if known is not None and known.digest == draft.digest:
            etag = known.etag  # the same bytes: clients' copies stay valid
        return Record(
            key=info.key,
            identity=info.identity,
            digest=draft.digest,
            format=format_,
            size=draft.size,
            pixel_size=pixel_size,
            etag=etag,
            stored_at=self._dependencies.clock().replace(microsecond=0),
            validator=validator,
            provenance=Provenance(
                host=self.source.host, provider=info.provider, temporary=info.temporary, expires_at=info.expires_at
            ),
            trust=Trust(doubts=doubts, brought_by=self.link.fingerprint if doubts else ""),
        )

    async def _store(self, record: Record) -> FillOutcome:
        dependencies = self._dependencies
        if record.digest in dependencies.blocked:
            raise Removed(REMOVED)
        if dependencies.suspects is not None:
            dependencies.suspects.reject(record)
        try:
            # `_put` is not bound in the constructor: a cycle would hold what failed until the garbage collector runs.
            stored = await (self._put_image or self._put)(self.body.draft, record)
        except StorageError as fault:
            return NotStored(fault)
        if record.digest in dependencies.blocked:  # an operator removed it while the store put it
            await undo_put(dependencies.store, stored)
            raise Removed(REMOVED)
        if dependencies.suspects is not None and dependencies.suspects.count(stored):
            dependencies.observer.suspected(stored)
        return Stored(stored)

    async def _put(self, draft: Draft, record: Record) -> Record:
        replaces = None if self._known is None else self._known.digest
        return await self._dependencies.store.put(draft, record, replaces)


def _update_demand(demand: Demand, body: SharedBody[FillHead]) -> None:
    """Let a fetch yield while no reader waits for it."""
    if body.has_readers:
        demand.set(yields=False)
    elif not demand.client.own:
        demand.set(yields=not body.is_mostly_written)


def _refusal_size(info: SourceInfo, dependencies: FillDependencies, status: int) -> int:
    """Return how much of the body of an error the fill wants."""
    if dependencies.show_errors:
        return ERROR_IMAGE_BYTES_MAX + 1
    return refusal_size(status, info, dependencies.clock())
