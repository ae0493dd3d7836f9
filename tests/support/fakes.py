"""What the image service works with, in memory: it does what a test says, holds what it says, and counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from imgkeep.core.confirmation import adopt
from imgkeep.core.errors import SourceNotFound, StorageError
from imgkeep.core.layout import object_names
from imgkeep.core.policy import Policy
from imgkeep.core.records import Digest, Key, SourceInfo
from imgkeep.core.source_url import read_source
from imgkeep.database import ImageIndex
from imgkeep.images.background_refresh import SourceRules
from imgkeep.images.dependencies import FillDependencies
from imgkeep.images.fill_result import Failed, NotStored, Stored, Unchanged
from imgkeep.images.format_checker import FormatChecker
from imgkeep.images.observer import FillObserver
from imgkeep.images.record_sharing import RecordSharing
from imgkeep.images.request_context import Delivery, RequestContext
from imgkeep.images.service import ImageService
from imgkeep.origin.client import OriginClient
from imgkeep.origin.demand import Demand
from imgkeep.origin.response import OriginResponse
from imgkeep.storage.memory import MemoryBody, MemorySpool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
    from mmap import mmap

    from imgkeep.core.errors import SourceForbidden
    from imgkeep.core.records import Record, Source, Subject, Tombstone, Validator
    from imgkeep.images.fill_result import FillResult
    from imgkeep.images.interfaces import Cluster
    from imgkeep.storage.interfaces import Body, Draft

T = TypeVar("T")
GROWING = Path("/nowhere/growing")
OPEN_POLICY = Policy(hosts_allowed=None, hosts_denied=("refused.example",), ports=frozenset({80, 443}), networks=())


class FakeResponse(OriginResponse):
    """An origin's answer, which comes as the test lets it."""

    framed = True

    def __init__(self, size: int | None = None, *, framed: bool = True) -> None:
        self.size = size
        self.framed = framed
        self.validator: Validator | None = None
        self.plaintext = False
        self.media_type = "image/png"
        self.is_part = False
        self.beginning = b""
        self._items: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()

    def push(self, *chunks: bytes) -> FakeResponse:
        for chunk in chunks:
            self._items.put_nowait(chunk)
        return self

    def end(self, error: BaseException | None = None) -> FakeResponse:
        self._items.put_nowait(error)
        return self

    @property
    def at_hand(self) -> int:
        queued = self._items._queue  # type: ignore[attr-defined]  # as a stream knows it
        return sum(len(item) for item in queued if isinstance(item, bytes))

    async def chunks(self) -> AsyncIterator[bytes]:
        while (item := await self._items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self.beginning = self.beginning or item[:4096]
            yield item


def whole(body: bytes, *, size: int | None = None) -> FakeResponse:
    """Return an answer that has come."""
    return FakeResponse(size).push(body).end()


@dataclass
class FakeOrigin(OriginClient):
    """
    Gives each URL its answers in turn, the last one again and again; unknown URLs get 404.

    Attributes:
        gate: Closed, it holds every answer back.
    """

    answers: dict[str, list[Callable[[], FakeResponse] | Exception]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    conditions: list[Validator | None] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def gives(self, url: str, *answers: Callable[[], FakeResponse] | Exception | bytes) -> None:
        self.answers[url] = [
            (lambda body=item: whole(body)) if isinstance(item, bytes) else item  # type: ignore[misc]  # a default
            for item in answers
        ]

    @asynccontextmanager
    async def fetch(
        self,
        source: Source,
        known: Validator | None = None,
        demand: Demand | None = None,
        *,
        fail_fast: bool = False,
    ) -> AsyncGenerator[FakeResponse]:
        del fail_fast
        self.demands.append(demand or Demand())
        self.asked.append(source.url)
        self.conditions.append(known)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.reached.set()
        try:
            await self.gate.wait()
            answers = self.answers.get(source.url, [SourceNotFound("the origin says 404", origin_status=404)])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, Exception):
                raise answer
            response = answer()
            response.plaintext = source.scheme == "http"
            yield response
        finally:
            self.under_way -= 1


class FakeDraft:
    """Bytes in memory; fails to take more than `bytes_max`."""

    def __init__(self, bytes_max: int | None) -> None:
        self.data = bytearray()
        self.bytes_max = bytes_max
        self.closed = 0
        self.reads = 0

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def digest(self) -> Digest:
        return Digest(sha256(self.data).hexdigest())

    async def write(self, data: bytes) -> None:
        assert not self.closed
        if self.bytes_max is not None and self.size + len(data) > self.bytes_max:
            raise StorageError("the disk is full")
        self.data += data

    async def read(self, offset: int, size: int) -> bytes:
        assert not self.closed
        self.reads += 1
        return bytes(self.data[offset : offset + size])

    async def check(self, check: Callable[[bytearray | mmap], T]) -> T:
        return check(self.data)

    def check_blocking(self, check: Callable[[bytearray | mmap], T]) -> T:
        return check(self.data)

    async def share_file(self) -> Path:
        return GROWING

    async def aclose(self) -> None:
        self.closed += 1


@dataclass
class FakeSpool:
    fault: StorageError | None = None
    bytes_max: int | None = None
    drafts: list[FakeDraft] = field(default_factory=list)

    async def begin(self, size: int | None) -> FakeDraft:
        del size
        if self.fault is not None:
            raise self.fault
        self.drafts.append(FakeDraft(self.bytes_max))
        return self.drafts[-1]

    async def open_shared(self, path: Path) -> Body | None:
        return MemoryBody(self.drafts[0].data) if path == GROWING and self.drafts else None


@dataclass
class FakeStore:
    """
    A store whose verbs can fail (`faults`), be held (`gates`, closed events) and are counted (`calls`).

    What a held verb will answer is decided before it waits, as with a request that is on its way back.
    """

    name: str = "fake"
    local_drafts_only: bool = True
    records: dict[Key, Record] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, StorageError] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    tombstones: list[Key] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def find(self, key: Key) -> Record | None:
        return await self._called("find", self.records.get(key))

    async def fetch(self, name: str, size: int | None) -> Body | None:
        del size
        data = self.objects.get(name)
        return await self._called("fetch", None if data is None else MemoryBody(data))

    async def holds(self, name: str, size: int) -> bool:
        return await self._called("holds", len(self.objects.get(name, b"")) == size)

    async def put(self, draft: Draft, record: Record, replaces: Digest | None = None) -> Record:
        await self._called("put", None)
        assert isinstance(draft, FakeDraft)
        theirs = self.records.get(record.key)
        if theirs and theirs.object_name in self.objects and theirs.digest not in {record.digest, replaces}:
            raise StorageError("another image was stored under this link meanwhile")
        self.objects[record.object_name] = bytes(draft.data)
        adopted = adopt(theirs, record) if theirs and replaces is None else None
        self.records[record.key] = adopted or record
        return self.records[record.key]

    async def put_record(self, record: Record, replaces: Digest | None = None) -> Record:
        await self._called("put_record", None)
        theirs = self.records.get(record.key)
        if theirs and theirs.object_name in self.objects and theirs.digest not in {record.digest, replaces}:
            raise StorageError("another image was stored under this link meanwhile")
        self.records[record.key] = record
        return record

    async def put_tombstone(self, tombstone: Tombstone) -> None:
        self.tombstones.append(tombstone.key)

    async def block(self, digest: Digest, removed_at: datetime, keys: Collection[Key] = ()) -> None:
        raise AssertionError(f"nothing may refuse {digest} of {keys} at {removed_at}")

    async def list_blocked(self) -> set[Digest]:
        return set()

    async def delete_object(self, digest: Digest) -> None:
        for name in object_names(digest):
            self.objects.pop(name, None)

    async def find_block(self, digest: Digest) -> Collection[Key] | None:
        raise AssertionError(f"nothing may ask for the block of {digest}")

    async def unblock(self, digest: Digest) -> None:
        raise AssertionError(f"nothing may unblock {digest}")

    async def find_tombstone(self, key: Key) -> Tombstone | None:
        raise AssertionError(f"nothing may ask for the tombstone of {key}")

    async def delete_tombstone(self, tombstone: Tombstone) -> None:
        raise AssertionError(f"nothing may delete {tombstone}")

    async def has_object(self, digest: Digest) -> bool:
        raise AssertionError(f"nothing may ask for {digest}")

    async def _called(self, verb: str, answer: T) -> T:
        self.calls[verb] += 1
        gate = self.gates.pop(verb, None)
        if gate is not None:
            self.reached.set()
            await gate.wait()
        if verb in self.faults:
            raise self.faults[verb]
        return answer


@dataclass
class FakeImageIndex(ImageIndex):
    records: dict[Key, Record] = field(default_factory=dict)
    fault: StorageError | None = None
    calls: Counter[str] = field(default_factory=Counter)

    async def find(self, key: Key) -> Record | None:
        self.calls["find"] += 1
        if self.fault is not None:
            raise self.fault
        return self.records.get(key)

    async def put(self, record: Record, *, is_adopted: bool = False) -> None:
        del is_adopted
        self.calls["put"] += 1
        if self.fault is not None:
            raise self.fault
        self.records[record.key] = record

    def doubt(self, key: Key) -> None:
        """Note nothing: every record is written at once."""

    async def flush(self) -> None:
        self.calls["flush"] += 1

    async def drop(self, keys: Collection[Key]) -> None:
        if self.fault is not None:
            raise self.fault
        for key in keys:
            self.records.pop(key, None)

    async def block(self, digest: Digest) -> Sequence[Key]:
        return await self.keys_of(digest)

    async def keys_of(self, digest: Digest) -> Sequence[Key]:
        return [key for key, record in self.records.items() if record.digest == digest]


class FakeObserver(FillObserver):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.results: list[FillResult] = []
        self.outcomes: list[str] = []
        self.completions: list[str] = []
        self.suspects: list[Record] = []
        self.refusals: list[tuple[Subject, SourceForbidden]] = []

    async def fill_ended(self, result: FillResult) -> None:
        self.results.append(result)

    def weighed(self, outcome: str) -> None:
        self.outcomes.append(outcome)

    def completed(self, outcome: str) -> None:
        self.completions.append(outcome)

    def suspected(self, record: Record) -> None:
        self.suspects.append(record)

    def refused(self, subject: Subject, error: SourceForbidden) -> None:
        self.refusals.append((subject, error))

    @property
    def sizes(self) -> list[int]:
        """The sizes of what was stored."""
        return [result.size for result in self.results if isinstance(result.outcome, Stored)]

    @property
    def reasons(self) -> list[str]:
        """Why images were not stored."""
        return [str(result.outcome.fault) for result in self.results if isinstance(result.outcome, NotStored)]

    @property
    def errors(self) -> list[BaseException]:
        return [result.outcome.error for result in self.results if isinstance(result.outcome, Failed)]

    @property
    def unchanged_count(self) -> int:
        return sum(isinstance(result.outcome, Unchanged) for result in self.results)


@dataclass
class Timer:
    """Monotonic seconds, moved by hand."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


def without_query(source: Source) -> SourceInfo:
    """Tell an identity that the query does not belong to, as for signed links."""
    identity = source.url.partition("?")[0]
    return SourceInfo(identity=identity, key=Key(sha256(identity.encode()).hexdigest()))


class World:
    """An image service among fakes."""

    def __init__(
        self,
        *,
        memory_bytes: int = 100_000_000,
        identify: Callable[[Source], SourceInfo] = without_query,
        rules: SourceRules | None = None,
        make_invalid_signature: Callable[[Source], Source | None] = lambda _: None,
        origin: FakeOrigin | None = None,
        cluster: Cluster | None = None,
        beside: World | None = None,
        sharing: RecordSharing | None = None,
        store: Any = None,
        blocked: Any = None,
        image_index: Any = None,
    ) -> None:
        """Make a service, `beside` another one on the same stores, or on a real `store` with its `blocked` digests."""
        self.origin = origin or FakeOrigin()
        self.store: FakeStore = store or (FakeStore() if beside is None else beside.store)
        self.disk: FakeSpool = FakeSpool() if beside is None else beside.disk
        self.image_index: FakeImageIndex = image_index or (FakeImageIndex() if beside is None else beside.image_index)
        self.memory = MemorySpool(memory_bytes)
        self.format_checker = FormatChecker()
        self.observer = FakeObserver()
        self.blocked: set[Digest] = set() if blocked is None else blocked
        self.timer = Timer()
        self.now = datetime(2026, 11, 22, 10, tzinfo=UTC)
        self._tags = count(1)
        self._options: dict[str, Any] = {
            "identify": identify,
            "rules": rules or SourceRules(),
            "make_invalid_signature": make_invalid_signature,
            "sharing": sharing or RecordSharing(),
        }
        self.restart(cluster)

    def restart(self, cluster: Cluster | None = None) -> None:
        """Begin anew on what is stored, as after a restart."""
        self.cluster = cluster
        self.dependencies = FillDependencies(
            origin=self.origin,
            store=self.store,
            disk=self.disk,
            memory=self.memory,
            format_checker=self.format_checker,
            observer=self.observer,
            clock=lambda: self.now,
            draw_etag=lambda: f'"{next(self._tags)}"',
            pixels_max=10_000,
            blocked=self.blocked,
        )
        self.image_service = ImageService(
            self.dependencies,
            image_index=self.image_index,
            policy=OPEN_POLICY,
            cluster=cluster,
            timer=self.timer,
            **self._options,
        )

    def wait(self, seconds: float) -> None:
        """Let so much time go by."""
        self.now += timedelta(seconds=seconds)
        self.timer.seconds += seconds

    async def ask(self, url: str, *, from_own_node: bool = False) -> Delivery:
        source = read_source(url)
        request_context = RequestContext(from_own_node=from_own_node)
        delivery = await self.image_service.deliver(source, self.image_service.identify(source), request_context)
        assert isinstance(delivery, Delivery)
        return delivery

    async def get(self, url: str) -> tuple[str, bytes]:
        """Return outcome and bytes."""
        delivery = await self.ask(url)
        return delivery.cache_status.value, await read_all(delivery)


async def read_all(delivery: Delivery, *, piece: int = 32_768) -> bytes:
    """Read to the end and close."""
    data = bytearray()
    try:
        while chunk := await delivery.body.read(len(data), piece):
            data += chunk
    finally:
        await delivery.body.aclose()
    return bytes(data)


async def settle() -> None:
    """Let everything that can run without a further event run."""
    for _ in range(50):
        await asyncio.sleep(0)
