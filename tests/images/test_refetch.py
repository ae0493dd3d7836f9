"""Refetches of stored images, among fakes: what they replace, and how many fetches they take."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import (
    Busy,
    Conflict,
    InvalidRequest,
    NotAnImage,
    OriginError,
    OriginRefused,
    OriginTimeout,
    Removed,
    SourceExpired,
    SourceForbidden,
    StorageError,
    TooLarge,
)
from imgkeep.core.identity import identify
from imgkeep.core.records import Digest, Doubt, Key, Record, Refetches
from imgkeep.core.source_url import read_source
from imgkeep.images.operator_refetch import LEASE_POLLS_MAX, REFETCHES_MAX, Refetcher
from imgkeep.images.record_sharing import RecordSharing
from tests.support.fakes import OPEN_POLICY, FakeResponse, World, settle, without_query
from tests.support.images import make_image
from tests.support.leases import LocalLeases
from tests.support.temporary_links import EXPIRED, FRESH, FRESHER, NOW, PLAIN, by_provider_rules, exactly

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Source, SourceInfo
    from imgkeep.images.interfaces import Leases
    from imgkeep.images.operator_refetch import Refetched

OLD, NEW = make_image(seed=1), make_image(seed=2)
BY_IDENTITY = "https://bucket.s3.amazonaws.com/a.png"


def digest_of(body: bytes) -> Digest:
    return Digest(sha256(body).hexdigest())


@dataclass
class FakeLeases(LocalLeases):
    """Leases, which another worker has for a number of attempts."""

    grace_s: float = 0
    held_for: int = 0
    taken: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    def acquire(self, name: str) -> str | None:
        if self.held_for:
            self.held_for -= 1
            return "other"
        self.taken.append(name)
        return None

    def release(self, name: str, *, stored: bool = False) -> None:
        del stored
        self.released.append(name)


class Setup:
    """A refetcher in a world where FRESH has brought OLD."""

    def __init__(
        self, identify_by: Callable[[Source], SourceInfo] = by_provider_rules, leases: Leases | None = None
    ) -> None:
        self.changed: list[Key] = []
        self.world = World(identify=identify_by, sharing=RecordSharing(changed=self.changed.append))
        self.slept = 0
        self.refetcher = Refetcher(
            self.world.image_service,
            self.world.dependencies,
            policy=OPEN_POLICY,
            sleep=self.sleep,
            leases=leases,
        )

    async def sleep(self, _seconds: float) -> None:
        self.slept += 1

    async def begin(self, url: str = FRESH) -> Record:
        self.world.origin.gives(url, OLD)
        assert await self.world.get(url) == ("stored", OLD)
        await self.world.image_service.drain()
        self.world.origin.asked.clear()
        (record,) = self.world.store.records.values()
        return record

    async def refetch(self, record: Record, url: str | None = None) -> Refetched:
        refetched = await self.refetcher.refetch(record.key, None if url is None else read_source(url))
        assert refetched is not None
        return refetched

    @property
    def objects(self) -> set[bytes]:
        return set(self.world.store.objects.values())


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def test_whole_image_replaces_and_old_bytes_stay(setup: Setup) -> None:
    before = await setup.begin()
    setup.changed.clear()
    setup.world.origin.gives(FRESHER, lambda: FakeResponse().push(NEW[:100], NEW[100:]).end())
    refetched = await setup.refetch(before, FRESHER)
    assert refetched.replaced
    assert (refetched.record.digest, refetched.record.size) == (digest_of(NEW), len(NEW))
    assert refetched.record.etag != before.etag
    assert refetched.record.identity == before.identity
    assert (refetched.record.temporary, refetched.record.provider) == (True, before.provider)
    assert await setup.world.get(FRESH) == ("hit", NEW)
    assert setup.objects == {OLD, NEW}
    assert setup.world.origin.asked == [FRESHER]
    assert setup.world.origin.conditions[-1] is None, "a 304 is in question"
    assert setup.changed == [before.key]


async def test_equal_bytes_are_confirmed(setup: Setup) -> None:
    before = await setup.begin()
    setup.world.origin.gives(FRESHER, OLD)
    refetched = await setup.refetch(before, FRESHER)
    assert not refetched.replaced
    assert (refetched.record.etag, refetched.record.stored_at) == (before.etag, before.stored_at)
    assert setup.world.observer.unchanged_count == 1
    assert setup.objects == {OLD}


async def test_refetch_restores_lost_bytes(setup: Setup) -> None:
    before = await setup.begin()
    setup.world.store.objects.clear()
    setup.world.origin.gives(FRESHER, OLD)
    assert not (await setup.refetch(before, FRESHER)).replaced
    assert setup.objects == {OLD}


FAILURES = [
    pytest.param(OriginRefused("403", origin_status=403), SourceExpired, id="refused"),
    pytest.param(OriginTimeout("slow"), OriginTimeout, id="slow"),
    pytest.param(lambda: FakeResponse().push(b"<html>expired</html>").end(), NotAnImage, id="no image"),
    pytest.param(lambda: FakeResponse().push(b"").end(), NotAnImage, id="nothing"),
    pytest.param(lambda: FakeResponse().push(NEW[:-20]).end(), NotAnImage, id="framed whole, cut by its format"),
    pytest.param(lambda: FakeResponse(framed=False).push(NEW).end(), OriginError, id="whole by its format, not framed"),
    pytest.param(lambda: FakeResponse().push(NEW[:50]).end(OriginError("broke off")), OriginError, id="cut"),
    pytest.param(lambda: FakeResponse().push(make_image(width=200, height=100)).end(), TooLarge, id="too many pixels"),
]


@pytest.mark.parametrize(("answer", "error"), FAILURES)
async def test_failed_refetch_changes_nothing(
    setup: Setup, answer: Callable[[], FakeResponse] | Exception, error: type[Exception]
) -> None:
    before = await setup.begin()
    setup.changed.clear()
    setup.world.origin.gives(FRESHER, answer)
    for number in (1, 2):
        with pytest.raises(error) as caught:
            await setup.refetch(before, FRESHER)
        assert type(caught.value) is error
        assert len(setup.world.origin.asked) == number, "the negative cache does not apply to operators"
    assert list(setup.world.store.records.values()) == [before]
    assert setup.objects == {OLD}
    assert setup.changed == []
    assert await setup.world.get(FRESH) == ("hit", OLD)
    assert {draft.closed for draft in setup.world.disk.drafts} == {1}
    assert len(setup.world.observer.errors) == 2


async def test_full_disk_changes_nothing(setup: Setup) -> None:
    before = await setup.begin()
    setup.world.origin.gives(FRESHER, NEW)
    setup.world.disk.bytes_max = 10
    with pytest.raises(StorageError):
        await setup.refetch(before, FRESHER)
    setup.world.disk.bytes_max = None
    setup.world.store.faults["put"] = StorageError("the disk is full")
    with pytest.raises(StorageError):
        await setup.refetch(before, FRESHER)
    assert list(setup.world.store.records.values()) == [before]


async def test_blocked_bytes_change_nothing(setup: Setup) -> None:
    before = await setup.begin()
    setup.world.blocked.add(digest_of(NEW))
    setup.world.origin.gives(FRESHER, NEW)
    with pytest.raises(Removed):
        await setup.refetch(before, FRESHER)
    assert list(setup.world.store.records.values()) == [before]
    assert setup.world.store.tombstones == []
    assert setup.objects == {OLD}


# --- the link


@pytest.mark.parametrize(
    "url", ["https://bucket.s3.amazonaws.com/b.png", "https://images.example/a.png", EXPIRED + "&v=1"]
)
async def test_link_of_other_key_is_not_fetched(setup: Setup, url: str) -> None:
    before = await setup.begin()
    with pytest.raises(InvalidRequest):
        await setup.refetch(before, url)
    assert setup.world.origin.asked == []


async def test_refetch_without_link_fetches_identity(setup: Setup) -> None:
    before = await setup.begin()
    setup.world.origin.gives(BY_IDENTITY, NEW)
    refetched = await setup.refetch(before)
    assert refetched.replaced
    assert setup.world.origin.asked == [BY_IDENTITY]
    assert refetched.record.temporary, "a link without signature does not make the image permanent"
    assert refetched.record.expires_at == before.expires_at


async def test_exact_identity_is_the_link() -> None:
    setup = Setup(exactly)
    before = await setup.begin()
    setup.world.origin.gives(FRESH, NEW)
    assert (await setup.refetch(before)).replaced
    assert setup.world.origin.asked == [FRESH]


async def test_ambiguous_identity_is_not_fetched(setup: Setup) -> None:
    before = await setup.begin()
    identity = f"{before.identity}#width=100"
    leases = replace(before, identity=identity, key=Key(sha256(identity.encode()).hexdigest()))
    setup.world.store.records[leases.key] = leases
    with pytest.raises(InvalidRequest, match="send the link"):
        await setup.refetch(leases)
    assert setup.world.origin.asked == []


@pytest.mark.parametrize("identity", ["ni:///sha-256;abc", "legacy:old/a.png", "//"])
async def test_image_without_origin_cannot_be_fetched(setup: Setup, identity: str) -> None:
    before = await setup.begin()
    setup.world.store.records[before.key] = replace(before, identity=identity)
    with pytest.raises(InvalidRequest):
        await setup.refetch(before)


async def test_refetch_follows_the_policy() -> None:
    setup = Setup(without_query)
    setup.world.origin.gives(PLAIN, OLD)
    await setup.world.get(PLAIN)
    (before,) = setup.world.store.records.values()
    for host in ("refused.example", "127.0.0.1", "[::1]", "metadata"):
        url = f"https://{host}/a.png"
        info = without_query(read_source(url))
        setup.world.store.records[info.key] = replace(before, key=info.key, identity=info.identity)
        with pytest.raises(SourceForbidden):
            await setup.refetcher.refetch_source(read_source(url))
    assert setup.world.origin.asked == [PLAIN]


async def test_missing_image_is_not_fetched(setup: Setup) -> None:
    assert await setup.refetcher.refetch_source(read_source(FRESH)) is None
    assert setup.world.origin.asked == []


# --- number of fetches


async def test_concurrent_refetches_share_one_fetch(setup: Setup) -> None:
    before = await setup.begin()
    setup.world.origin.gives(FRESHER, NEW)
    setup.world.origin.gate.clear()
    asking = [asyncio.create_task(setup.refetch(before, FRESHER)) for _ in range(50)]
    await settle()
    setup.world.origin.gate.set()
    assert {(await each).replaced for each in asking} == {True}
    assert setup.world.origin.asked == [FRESHER]


async def test_cancelled_follower_leaves_refetch_running(setup: Setup) -> None:
    before = await setup.begin()
    setup.world.origin.gives(FRESHER, NEW)
    setup.world.origin.gate.clear()
    leaving, staying = (asyncio.create_task(setup.refetch(before, FRESHER)) for _ in range(2))
    await settle()
    leaving.cancel()
    setup.world.origin.gate.set()
    assert (await staying).replaced
    assert setup.world.origin.asked == [FRESHER]


async def test_follower_with_other_link_fetches_after_failure(setup: Setup) -> None:
    before = await setup.begin()
    setup.world.origin.gives(EXPIRED, OriginRefused("403", origin_status=403))
    setup.world.origin.gives(FRESHER, NEW)
    setup.world.origin.gate.clear()
    first = asyncio.create_task(setup.refetch(before, EXPIRED))
    await settle()
    again, other = (asyncio.create_task(setup.refetch(before, url)) for url in (EXPIRED, FRESHER))
    await settle()
    setup.world.origin.gate.set()
    for failing in (first, again):
        with pytest.raises(SourceExpired):
            await failing
    assert (await other).replaced
    assert setup.world.origin.asked == [EXPIRED, FRESHER]


async def test_refetches_beyond_limit_are_busy() -> None:
    setup = Setup(without_query)
    urls = [f"https://images.example/{number}.png" for number in range(REFETCHES_MAX + 1)]
    for url in urls:
        setup.world.origin.gives(url, OLD)
        await setup.world.get(url)
    setup.world.origin.asked.clear()
    setup.world.origin.gate.clear()
    sources = [read_source(url) for url in urls]
    asking = [asyncio.create_task(setup.refetcher.refetch_source(source)) for source in sources[:-1]]
    await settle()
    with pytest.raises(Busy):
        await setup.refetcher.refetch_source(sources[-1])
    joining = asyncio.create_task(setup.refetcher.refetch_source(sources[0]))
    setup.world.origin.gate.set()
    for each in (*asking, joining):
        assert await each is not None
    assert setup.world.origin.asked == urls[:-1]
    assert await setup.refetcher.refetch_source(sources[-1]) is not None


async def test_refetch_waits_for_other_worker() -> None:
    leases = FakeLeases(held_for=3)
    setup = Setup(leases=leases)
    leases.held_for = 0
    before = await setup.begin()
    leases.held_for = 3
    setup.world.origin.gives(FRESHER, NEW)
    assert (await setup.refetch(before, FRESHER)).replaced
    assert setup.slept == 3
    assert leases.taken == leases.released == [f"refresh.{before.key}"]


async def test_wait_for_other_worker_is_bounded() -> None:
    leases = FakeLeases(held_for=10 * LEASE_POLLS_MAX)
    setup = Setup(leases=leases)
    before = await setup.begin()
    with pytest.raises(Busy):
        await setup.refetch(before, FRESHER)
    assert setup.slept == LEASE_POLLS_MAX
    assert setup.world.origin.asked == []


async def test_failed_refetch_releases_lease() -> None:
    leases = FakeLeases()
    setup = Setup(leases=leases)
    before = await setup.begin()
    setup.world.origin.gives(FRESHER, OriginTimeout("slow"))
    with pytest.raises(OriginTimeout):
        await setup.refetch(before, FRESHER)
    assert leases.released == [f"refresh.{before.key}"]


async def test_shutdown_cancels_refetch(setup: Setup) -> None:
    before = await setup.begin()
    setup.world.origin.gives(FRESHER, NEW)
    setup.world.origin.gate.clear()
    asking = asyncio.create_task(setup.refetch(before, FRESHER))
    await settle()
    await setup.refetcher.aclose()
    with pytest.raises(StorageError):
        await asking
    assert list(setup.world.store.records.values()) == [before]


# --- crossing changes


async def test_image_in_outbox_is_not_replaced(setup: Setup) -> None:
    before = await setup.begin()
    setup.world.store.records[before.key] = replace(before, waits_at="")
    setup.world.origin.gives(FRESHER, NEW)
    with pytest.raises(StorageError, match="primary"):
        await setup.refetch(before, FRESHER)
    assert setup.objects == {OLD}


async def test_image_in_the_outbox_of_another_node_is_not_replaced(setup: Setup) -> None:
    before = await setup.begin()
    del setup.world.store.records[before.key]
    setup.world.image_service.records.put(replace(before, waits_at="b"))
    with pytest.raises(StorageError, match="primary"):
        await setup.refetch(before, FRESHER)


async def test_refetch_repeats_put_after_crossing_replacement(setup: Setup) -> None:
    before = await setup.begin()
    store, third = setup.world.store, make_image(seed=3)
    crossing = replace(before, digest=digest_of(third), size=len(third))
    put, puts = store.put, 0

    async def crossed(*arguments: object) -> Record:
        nonlocal puts
        puts += 1
        if puts == 1:
            store.objects[crossing.object_name], store.records[before.key] = third, crossing
            raise Conflict("another image was stored under this link meanwhile")
        return await put(*arguments)  # type: ignore[arg-type]  # what it was called with

    store.put = crossed  # type: ignore[method-assign, assignment]  # at the edge between the two
    setup.world.origin.gives(FRESHER, NEW)
    assert (await setup.refetch(before, FRESHER)).replaced
    assert puts == 2
    assert store.records[before.key].digest == digest_of(NEW)
    assert setup.objects == {OLD, NEW, third}


async def test_removal_during_put_wins(setup: Setup) -> None:
    before = await setup.begin()
    setup.world.origin.gives(FRESHER, NEW)
    durable = setup.world.store.gates["put"] = asyncio.Event()
    setup.world.store.reached.clear()
    asking = asyncio.create_task(setup.refetch(before, FRESHER))
    await setup.world.store.reached.wait()
    setup.world.blocked.add(digest_of(NEW))
    durable.set()
    with pytest.raises(Removed):
        await asking
    assert OLD in setup.objects


def test_clock_of_fakes_fits_the_links() -> None:
    before, link = identify(read_source(FRESH), NOW), identify(read_source(BY_IDENTITY), NOW)
    assert before.key == link.key


async def test_incomplete_image_replaces_nothing_and_counts_as_refetch(setup: Setup) -> None:
    half = NEW[:-100]
    record = await setup.begin()
    setup.world.origin.gives(FRESH, half)
    with pytest.raises(NotAnImage, match="incomplete"):
        await setup.refetch(record, FRESH)
    assert setup.objects == {OLD}
    setup.world.store.objects[f"{digest_of(half)}.png"] = half
    incomplete = replace(
        record,
        digest=digest_of(half),
        size=len(half),
        trust=replace(record.trust, doubts=frozenset({Doubt.INCOMPLETE})),
    )
    setup.world.store.records[record.key] = incomplete
    equal = await setup.refetch(record, FRESH)
    assert not equal.replaced
    assert equal.record.doubts == {Doubt.INCOMPLETE}
    assert equal.record.refetches is not None
    assert (equal.record.refetches.tries, equal.record.refetches.equal) == (1, 1)
    setup.world.origin.gives(FRESH, NEW)
    whole = await setup.refetch(record, FRESH)
    assert whole.replaced
    assert (whole.record.doubts, whole.record.refetches) == (frozenset(), None)


async def test_image_confirmed_as_it_is_stays_confirmed(setup: Setup) -> None:
    half = NEW[:-100]
    record = await setup.begin()
    setup.world.store.objects[f"{digest_of(half)}.png"] = half
    refetches = Refetches(8, 3, NOW, NOW)
    setup.world.store.records[record.key] = replace(
        record, digest=digest_of(half), trust=replace(record.trust, refetches=refetches)
    )
    setup.world.origin.gives(FRESH, half)
    same = await setup.refetch(record, FRESH)
    assert (same.record.doubts, same.record.refetches) == (frozenset(), refetches)
