"""
One fill: fetch an image, judge it, spool it, keep it, while any number of readers follow.

Rules:
- Nothing goes to a reader before the bytes were judged to be an image, and nothing is kept that is not whole.
- The last byte is held back until the image is durable, so whoever has it all may rely on finding it again.
- A disk that fails does not fail the reader: the bytes go on in memory, within a budget, and are not kept.
- A fill never reports a store's trouble as the origin's, nor the other way round.
- A fill without readers goes on, but yields its place when another one waits for it: unless the API or a job wants
  the image, or more than half of it has come.
- Bytes that are blocked, or suspected to be a placeholder where those are refused, end the fill that brought them, and
  nothing else: an unverified link must not decide what becomes of a key.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

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
)
from imgkeep.core.formats import Ending
from imgkeep.core.layout import REMOVED
from imgkeep.core.records import OWN, Doubt, Record, Subject
from imgkeep.images.context import SharedFile
from imgkeep.images.drafts import continue_draft, undo_put
from imgkeep.images.singleflight import Watermark
from imgkeep.origin.demand import Demand, NotModified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence

    from imgkeep.clock import Clock
    from imgkeep.core.records import Client, Digest, Format, PixelSize, Source, SourceInfo, Validator
    from imgkeep.images.format_checker import FormatChecker
    from imgkeep.images.placeholder_suspects import PlaceholderSuspects
    from imgkeep.images.rate_limit import Permit
    from imgkeep.origin.client import OriginClient, OriginResponse
    from imgkeep.storage.interfaces import Disk, Draft, Spool, Store

    Settle = Callable[[Draft, Record], Awaitable[Record]]
    """Keeps a whole image, and returns the record under which it is found from now on. Raises as `Store.put`."""

RECENT_BYTES_MAX: Final = 1_048_576
"""So many of the newest bytes stay in memory, once per fill: readers who keep up need no look at the draft."""
GATHERED_BYTES_MAX: Final = 2_097_152
"""Maximum size of an image whose head goes out after the bytes that have come already."""
GATHERING_S: Final = 0.005
"""Maximum time for which these bytes are taken."""
IDLE_ITERATIONS_MAX: Final = 4
"""Maximum number of turns of the loop, one after the other, that bring no byte: some 100 us."""
READER_ITERATIONS: Final = 4
STEP_BYTES: Final = 65_536
ERROR_IMAGE_BYTES_MAX: Final = 1_048_576
"""Maximum size of a picture that comes with an error and is shown: it is held in memory. Real ones have a tenth."""
PARTIAL_DETAIL: Final = "the origin sent a part only, though nobody asked for one"
REACHED_ORIGIN: Final = (NotAnImage, TooLarge, OriginRefused, SourceNotFound)
"""Failures that show that the origin can be reached."""
RECENT_CHUNKS_MAX: Final = 256
"""And in so many pieces at most: an origin that sends byte by byte must cost neither memory nor long searches."""


@dataclass(frozen=True, slots=True)
class FillHead:
    """What is known of an image when its first bytes have been judged."""

    format: Format
    size: int | None
    etag: str
    storing: bool
    """Whether the image is being kept, or only passed on because no store can take it."""
    doubts: frozenset[Doubt]
    """What will be doubted about it."""


@dataclass(frozen=True, slots=True)
class FillDependencies:
    """What every fill works with."""

    origin: OriginClient
    store: Store
    disk: Disk
    memory: Spool
    format_checker: FormatChecker
    observer: Observer
    clock: Clock
    draw_etag: Callable[[], str]
    pixels_max: int
    refused: Container[Digest] = frozenset()
    """The digests of pictures that were removed."""
    suspects: PlaceholderSuspects | None = None
    """What is suspected to be a placeholder; `None`: nothing is."""
    show_errors: bool = False
    """Whether clients are shown the pictures that come with errors."""


class Observer(Protocol):
    """Who wants to know what happened to fills; counts, and never fails."""

    def weighed(self, outcome: str) -> None:
        """What a link brought was compared with what was stored under its key, or a probe has ended."""

    def completed(self, outcome: str) -> None:
        """An incomplete image was fetched again, or that failed; or it was confirmed as it is."""

    def suspected(self, record: Record) -> None:
        """The bytes of a record came under so many identities of its host that they may be a placeholder."""

    def filled(self, subject: Subject, size: int, *, pending: bool) -> None:
        """An image was fetched and kept; `pending`: in the fallback only."""

    def unchanged(self, subject: Subject) -> None:
        """An origin was asked whether an image changed, and it did not."""

    def not_stored(self, subject: Subject, fault: StorageError) -> None:
        """An image was fetched and delivered, but not kept; a `Conflict` is nobody's trouble."""

    def failed(self, subject: Subject, error: BaseException) -> None:
        """A fill ended without an image."""

    def refused(self, subject: Subject, error: SourceForbidden) -> None:
        """The policy forbids a link, so nothing was fetched."""


class Over(Protocol):
    """Who wants to know that a fill is over."""

    def __call__(self, *, kept: bool) -> None: ...


class Tower(Protocol):
    """Who wants to know how a fill ended, before its readers do."""

    async def kept(self, record: Record) -> None:
        """The image is durable; no reader has the last byte yet."""

    def failed(self, source: Source, error: BaseException) -> None:
        """There will be no image by this link, or not all of it."""


class Fill:
    """
    A flight of `collapse.SingleFlight`: runs once, and is the body that its readers read from.

    Attributes:
        source: The link that this fill tries; followers with another link may want a try of their own.
        link: What counts of it.
        head: Resolved once with what was judged, or with the failure.
        doubt: Why nobody could tell whether the image is stored already, kept or not: its failure is then no miss.
        outcome: Once it is over: the record under which the image is kept, or why it is not.

    Args:
        fault: Why nobody could tell whether the image is stored already. It is fetched for those who ask, and not kept:
            what an origin sends now must not replace what may be there.
        routes: The links to ask by, in this order, until one brings an image; as a rule the source itself.
        settle: Keeps the image; as a rule under the key of `info`.
        known: What is stored already, when this fill is to look whether it changed. Such a fill has no readers.
        permit: Of the visitor whom this fill counts against.
        unreachable: Is told of a route that cannot be connected to, when there is another.
        over: Is called once when the fill is over, with whether the image can be found from now on.
        client: Whose share of the places for fetches it takes.
        background: Whether it has no readers from the start: it yields, and what it brings is judged to the last byte.
    """

    def __init__(  # noqa: PLR0913 - the last seven tell rare kinds of fill
        self,
        source: Source,
        info: SourceInfo,
        dependencies: FillDependencies,
        tower: Tower,
        *,
        routes: Sequence[Source] = (),
        settle: Settle | None = None,
        unreachable: Callable[[Source], None] = lambda _: None,
        fault: StorageError | None = None,
        known: Record | None = None,
        doubt: StorageError | None = None,
        permit: Permit | None = None,
        over: Over | None = None,
        client: Client = OWN,
        background: bool = False,
    ) -> None:
        self.source = source
        self.link = read_link(source, info, dependencies.clock())
        self.doubt = doubt
        self.outcome: Record | StorageError | None = None
        self.head: asyncio.Future[FillHead] = asyncio.get_running_loop().create_future()
        self._info = info
        self._subject = Subject(info.key, source.host, info.provider)
        self._routes = routes or (source,)
        self._settle = settle
        self._unreachable = unreachable
        self._dependencies = dependencies
        self._tower = tower
        self._fault = fault
        self._known = known
        self._permit = permit
        self._over = over
        yields = (background or known is not None) and not client.own
        # No method of ours: a cycle would hold what failed until the collector comes.
        self._demand = Demand(client, yields=yields, refusal_size=partial(_refusal_size, info, dependencies))
        self._background = background
        self._watermark = Watermark()
        self._drafts: list[Draft] = []
        """The last one is written to; one before it is a disk's that failed, which readers may still be reading."""
        self._recent: deque[tuple[int, bytes]] = deque()
        self._recent_bytes = 0
        self._size: int | None = None
        self._pending = False
        self._holders = 1

    @property
    def size(self) -> int | None:
        """The size in bytes, as the origin declares it or, once everything has come, as it is."""
        return self._size

    @property
    def cache_entry(self) -> None:
        """Nothing is stored yet."""

    @property
    def ended(self) -> bool:
        return self._watermark.ended

    async def wait_for_size(self) -> int:
        while not self._watermark.ended:
            await self._watermark.beyond(self._watermark.height)
        return await self._watermark.beyond(self._watermark.height)

    async def run(self) -> None:
        try:
            record, fault = await self._fetch()
        except NotModified:
            self._dependencies.observer.unchanged(self._subject)
            self.stop()
            return
        except OriginError as error:
            await self._judge_error(error)
            raise
        if record is not None:
            # Those who wait for the head have it some turns of the loop later. A disk that is set to work before that
            # takes the interpreter from them, and they would wait for it with their first byte.
            for _ in range(READER_ITERATIONS):
                await asyncio.sleep(0)
            fault = await self._keep(record)
        if fault is None:
            self._dependencies.observer.filled(self._subject, self._draft.size, pending=self._pending)
        else:
            self.outcome = fault
            self._dependencies.observer.not_stored(self._subject, fault)
        self._size = self._draft.size
        self._land()
        self._watermark.advance(self._size)
        self._watermark.end()

    def stop(self) -> None:
        """End a fill without readers that has nothing to bring."""
        self.head.cancel()
        self._land()
        self._watermark.end()

    async def _fetch(self) -> tuple[Record | None, StorageError | None]:
        """Fetch by the first route that brings an image."""
        for route in self._routes[:-1]:
            try:
                return await self._fetch_by(route, fail_fast=True)
            except (Busy, LoopDetected):
                raise
            except (OriginError, SourceForbidden) as error:
                if self.head.done():
                    raise
                self._note_route(route, error)
        last = self._routes[-1]
        try:
            return await self._fetch_by(last, fail_fast=last != self.source)
        except OriginError as error:
            if last != self.source:
                self._note_route(last, error)
            raise

    def _note_route(self, route: Source, error: OriginError | SourceForbidden) -> None:
        """Tell of a route on which nothing is answered, whatever is asked for."""
        if isinstance(error, OriginError) and error.origin_status is None and not isinstance(error, REACHED_ORIGIN):
            self._unreachable(route)

    async def _fetch_by(self, route: Source, *, fail_fast: bool = False) -> tuple[Record | None, StorageError | None]:
        """Fetch, judge and spool; return what there is to keep, or why it cannot be."""
        validator = None if self._known is None else self._known.validator
        async with self._dependencies.origin.fetch(route, validator, self._demand, fail_fast=fail_fast) as response:
            self._size = response.size
            chunks = response.chunks()
            try:
                first, seen = await self._dependencies.format_checker.read_head(chunks, self._demand.client)
            except NotAnImage as error:
                if response.is_part:
                    raise OriginError(PARTIAL_DETAIL, origin_status=206) from None
                error.media_type, error.refusal = response.media_type, response.beginning
                raise
            self._check_pixels(seen.pixel_size)
            format_, pixel_size = seen.format, seen.pixel_size
            draft, fault = await self._begin(response.size)
            self._drafts.append(draft)
            etag = self._dependencies.draw_etag()
            doubts = self._doubts(plaintext=response.plaintext)
            ending = Ending(format_)
            ending.feed(first)
            gathered: list[bytes] = []
            is_foreseen = await self._foresees_end(ending, response.size)
            if not is_foreseen:
                gathered = await self._gather(response, chunks, ending, len(first))
                is_foreseen = bool(gathered) and await self._foresees_end(ending, response.size)
            if not is_foreseen:
                doubts |= {Doubt.INCOMPLETE}  # as long as nobody has seen its end, no client may keep it for long
            self.head.set_result(FillHead(format_, response.size, etag, storing=fault is None, doubts=doubts))
            for chunk in (first, *gathered):
                fault = await self._take(chunk, fault)
            async for chunk in chunks:
                ending.feed(chunk)
                fault = await self._take(chunk, fault)
        # The origin's part is over: what takes long to judge holds no place among the fetches.
        is_complete = await self._check_end(response, ending)
        if not seen.is_measured:
            pixel_size = await self._measure(format_)
        if fault is not None:
            return None, fault
        doubts = self._doubts(plaintext=response.plaintext)  # it may have ended meanwhile
        if not is_complete:
            doubts |= {Doubt.INCOMPLETE}
        return self._record(format_, pixel_size, etag, response.validator, doubts), None

    async def _gather(
        self, response: OriginResponse, chunks: AsyncIterator[bytes], ending: Ending, size: int
    ) -> list[bytes]:
        """
        Take what has come of a body, as long as more comes with the next turns of the loop, until its end is seen. An
        image whose end is known before its head goes out is kept for ever by its first client. No reader waits for an
        origin that lets us wait.
        """
        gathered: list[bytes] = []
        loop, idle = asyncio.get_running_loop(), 0
        until = loop.time() + GATHERING_S
        while not ending.is_seen and size != response.size and (response.size or size) <= GATHERED_BYTES_MAX:
            await asyncio.sleep(0)
            idle = 0 if response.at_hand else idle + 1
            if idle > IDLE_ITERATIONS_MAX or loop.time() > until:
                break
            if response.at_hand:
                chunk = await anext(chunks)
                ending.feed(chunk)
                size += len(chunk)
                gathered.append(chunk)
        return gathered

    def fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            error = StorageError("the server is being shut down")
        elif isinstance(error, ImgkeepError):
            error = explain(error, self._info, self._dependencies.clock())
            if isinstance(error, OriginError):
                error.refusal = b""  # it has said what it could
        self._land()
        # Without its traceback, which knows this fill and all its bytes: reference counts would never free them.
        told = copy.copy(error) if isinstance(error, ImgkeepError) else error
        if not self.head.done():
            self.head.set_exception(told)
            self.head.exception()  # marks it as retrieved: all who waited may have left
        self._watermark.end(told)
        self._tower.failed(self.source, error)
        self._dependencies.observer.failed(self._subject, told)

    async def _judge_error(self, error: OriginError) -> None:
        """Find out whether a picture came with an error, where clients are shown it."""
        body = error.refusal
        if not self._dependencies.show_errors or isinstance(error, NotAnImage) or error.refusal_broke_off:
            return
        if not 0 < len(body) <= ERROR_IMAGE_BYTES_MAX:
            return
        with suppress(NotAnImage, TooLarge, Busy):
            _, seen = await self._dependencies.format_checker.read_head(_once(body), self._demand.client)
            self._check_pixels(seen.pixel_size)
            error.picture = seen.format.media_type, body

    async def judged(self) -> FillHead:
        """
        Wait for `head`. Its failure is raised as a copy, as in `Watermark.beyond`.

        Raises:
            ImgkeepError: What the fill failed with.
        """
        try:
            return await asyncio.shield(self.head)
        except ImgkeepError as error:
            error.__traceback__ = None
            raise copy.copy(error) from None

    def hold(self) -> None:
        """Announce one more reader, who calls `aclose` when done."""
        self._holders += 1
        self._demand.set(yields=False)

    async def share_file(self) -> SharedFile | None:
        draft = self._draft
        with suppress(StorageError):  # the fill finds that out by itself
            path = await draft.share_file()
            if path is not None:
                return SharedFile(path, self._steps(draft))
        return None

    async def read(self, offset: int, size: int) -> bytes:
        """Return the next bytes from `offset` on as soon as there are some; nothing at the end."""
        height = await self._watermark.beyond(offset)
        size = min(size, height - offset)
        if size <= 0:
            return b""
        if self._recent and offset >= self._recent[0][0]:
            for start, chunk in reversed(self._recent):
                if start <= offset:
                    return chunk[offset - start : offset - start + size]
        return await self._draft.read(offset, size)

    async def aclose(self) -> None:
        self._holders -= 1
        if self._holders == 1 and not self._demand.client.own:
            self._demand.set(yields=not self._nearly_here)
        if self._holders == 0:
            self._recent.clear()
            for draft in reversed(self._drafts):
                await draft.aclose()

    @property
    def _nearly_here(self) -> bool:
        """Whether more than half has come: to stop now would waste more than it gains."""
        return bool(self._size and self._drafts and self._draft.size * 2 > self._size)

    async def _steps(self, draft: Draft) -> AsyncIterator[tuple[int, bytes]]:
        """As `SharedFile.steps`, of what `draft` holds and what did not fit into it."""
        offset = 0
        while (height := await self._watermark.beyond(offset)) > offset:
            # One that failed is left behind, and stays as it is.
            if offset < draft.size:
                offset = min(height, draft.size)
                yield offset, b""
            else:
                data = await self.read(offset, STEP_BYTES)
                offset += len(data)
                yield offset, data

    def _land(self) -> None:
        if self._over is not None:
            self._over(kept=isinstance(self.outcome, Record))
        if self._permit is not None:
            self._permit.land(self._draft.size if self._drafts else 0)

    @property
    def _draft(self) -> Draft:
        return self._drafts[-1]

    async def _begin(self, size: int | None) -> tuple[Draft, StorageError | None]:
        try:
            return await self._dependencies.disk.begin(size), self._fault
        except StorageError as fault:
            return await self._dependencies.memory.begin(size), self._unless_remote(fault)

    async def _take(self, chunk: bytes, fault: StorageError | None) -> StorageError | None:
        """Write a chunk and let readers have all but its last byte; on a fault go on in memory."""
        try:
            await self._draft.write(chunk)
        except StorageError as error:
            if len(self._drafts) > 1:
                raise
            fault = fault or self._unless_remote(error)
            self._drafts.append(await continue_draft(self._draft, self._dependencies.memory, self._size, chunk))
        height = self._draft.size
        if self._demand.yields and self._nearly_here:
            self._demand.set(yields=False)
        self._recent.append((height - len(chunk), chunk))
        self._recent_bytes += len(chunk)
        while self._recent_bytes > RECENT_BYTES_MAX or len(self._recent) > RECENT_CHUNKS_MAX:
            self._recent_bytes -= len(self._recent.popleft()[1])
        self._watermark.advance(height - 1)
        return fault

    def _unless_remote(self, fault: StorageError) -> StorageError | None:
        """A disk that fails keeps nobody from putting what is in memory into a bucket."""
        return self._fault or (fault if self._dependencies.store.local_drafts_only else None)

    async def _foresees_end(self, ending: Ending, size: int | None) -> bool:
        """Return whether the bytes so far tell that the image is complete, if its framing brings `size` bytes."""
        if ending.is_walked or size is None:
            return ending.is_seen or (size is not None and ending.is_foreseen(size))
        return await self._dependencies.format_checker.foresees_end(ending, size)

    async def _check_end(self, response: OriginResponse, ending: Ending) -> bool:
        """Return whether the image is complete by its format. What its framing does not prove whole has to be."""
        format_checker, client = self._dependencies.format_checker, self._demand.client
        if response.framed:
            if not self._background and await self._foresees_end(ending, self._draft.size):
                return True
            return not await format_checker.is_incomplete(self._draft, ending.format, client)
        if not await format_checker.is_whole(self._draft, ending.format, client):
            raise OriginError(
                PARTIAL_DETAIL if response.is_part else "the origin's answer broke off before the end of the image"
            )
        return True

    async def _measure(self, format_: Format) -> PixelSize | None:
        """Measure again with the whole file at hand: some formats keep their header at the end."""
        pixel_size = await self._dependencies.format_checker.measure(self._draft, format_, self._demand.client)
        self._check_pixels(pixel_size)
        return pixel_size

    def _check_pixels(self, pixel_size: PixelSize | None) -> None:
        if pixel_size is not None and pixel_size.pixels > self._dependencies.pixels_max:
            raise TooLarge(f"the image has {pixel_size.pixels} pixels, more than fetch.pixels_max")

    def _doubts(self, *, plaintext: bool) -> frozenset[Doubt]:
        if self._info.expires_at is not None:
            self.link = read_link(self.source, self._info, self._dependencies.clock())  # it may have ended by now
        return doubts_of(self.link, plaintext=plaintext)

    def _record(
        self,
        format_: Format,
        pixel_size: PixelSize | None,
        etag: str,
        validator: Validator | None,
        doubts: frozenset[Doubt],
    ) -> Record:
        info, known = self._info, self._known
        if known is not None and known.digest == self._draft.digest:
            etag = known.etag  # the same bytes: clients' copies are as good as they were
        return Record(
            key=info.key,
            identity=info.identity,
            host=self.source.host,
            digest=self._draft.digest,
            format=format_,
            size=self._draft.size,
            pixel_size=pixel_size,
            etag=etag,
            stored_at=self._dependencies.clock().replace(microsecond=0),
            provider=info.provider,
            temporary=info.temporary,
            expires_at=info.expires_at,
            validator=validator,
            doubts=doubts,
            brought_by=self.link.fingerprint if doubts else "",
        )

    async def _put(self, draft: Draft, record: Record) -> Record:
        return await self._dependencies.store.put(draft, record, None if self._known is None else self._known.digest)

    def _require_acceptable(self, record: Record) -> None:
        """Raise what forbids these bytes, whatever link they came by."""
        if record.digest in self._dependencies.refused:
            raise Removed(REMOVED)
        if self._dependencies.suspects is not None:
            self._dependencies.suspects.reject(record)

    async def _keep(self, record: Record) -> StorageError | None:
        self._require_acceptable(record)
        try:
            # Not bound to the fill for good: a cycle would hold what failed until the collector comes.
            kept = await (self._settle or self._put)(self._draft, record)
        except StorageError as fault:
            return fault
        if record.digest in self._dependencies.refused:  # removed while it was being put
            await undo_put(self._dependencies.store, kept)
            raise Removed(REMOVED)
        if self._dependencies.suspects is not None and self._dependencies.suspects.count(kept):
            self._dependencies.observer.suspected(kept)
        self._pending = kept.pending
        self.outcome = kept
        await self._tower.kept(kept)
        return None


def _refusal_size(info: SourceInfo, to: FillDependencies, status: int) -> int:
    """Return how much of what comes with an error is wanted."""
    return ERROR_IMAGE_BYTES_MAX + 1 if to.show_errors else refusal_size(status, info, to.clock())


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
