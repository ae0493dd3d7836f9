"""Fetching stored images again, among fakes: what replaces them, what does not, and how many fetches that takes."""

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
from imgkeep.images.refetch import CLAIM_LOOKS_MAX, REFETCHES_MAX, Refetcher

from tests.images.test_links import EXPIRED, FRESH, FRESHER, NOW, PLAIN, by_catalogue, exactly
from tests.support.fakes import OPEN_POLICY, RemoteFill, World, settle, without_query
from tests.support.pictures import picture

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Source, SourceInfo
    from imgkeep.images.peer_fill import FillLeases
    from imgkeep.images.refetch import Refetched

OLD, NEW = picture(seed=1), picture(seed=2)
BY_IDENTITY = "https://bucket.s3.amazonaws.com/a.png"


def digest_of(body: bytes) -> Digest:
    return Digest(sha256(body).hexdigest())


@dataclass
class FakeLeases:
    """The right to fetch, which another worker may hold for so many looks."""

    grace_s: float = 0
    held_for: int = 0
    taken: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    def acquire(self, key: str) -> str | None:
        if self.held_for:
            self.held_for -= 1
            return "other"
        self.taken.append(key)
        return None

    def release(self, key: str, *, stored: bool = False) -> None:
        del stored
        self.released.append(key)


class Desk:
    """A refetcher in a world where FRESH has brought OLD."""

    def __init__(
        self, identify_by: Callable[[Source], SourceInfo] = by_catalogue, leases: FillLeases | None = None
    ) -> None:
        self.world = World(identify=identify_by)
        self.settled = 0
        self.changed: list[Key] = []
        self.slept = 0
        self.world.image_service.changed = self.changed.append
        self.refetcher = Refetcher(
            self.world.image_service,
            self.world.image_service._dependencies,
            policy=OPEN_POLICY,
            settle=self.settle,
            sleep=self.sleep,
            leases=leases,
        )

    async def settle(self) -> None:
        self.settled += 1

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
def desk() -> Desk:
    return Desk()


async def test_a_whole_image_that_differs_replaces_and_the_old_bytes_stay(desk: Desk) -> None:
    before = await desk.begin()
    desk.changed.clear()
    desk.world.origin.gives(FRESHER, lambda: RemoteFill().push(NEW[:100], NEW[100:]).end())
    refetched = await desk.refetch(before, FRESHER)
    assert refetched.replaced
    assert (refetched.record.digest, refetched.record.size) == (digest_of(NEW), len(NEW))
    assert refetched.record.etag != before.etag
    assert refetched.record.identity == before.identity
    assert (refetched.record.temporary, refetched.record.provider) == (True, before.provider)
    assert await desk.world.get(FRESH) == ("hit", NEW)
    assert desk.objects == {OLD, NEW}
    assert desk.world.origin.asked == [FRESHER]
    assert desk.world.origin.conditions[-1] is None, "the origin's word for unchanged is in question"
    assert desk.changed == [before.key]
    assert desk.settled == 1


async def test_the_same_bytes_are_confirmed(desk: Desk) -> None:
    before = await desk.begin()
    desk.world.origin.gives(FRESHER, OLD)
    refetched = await desk.refetch(before, FRESHER)
    assert not refetched.replaced
    assert (refetched.record.etag, refetched.record.stored_at) == (before.etag, before.stored_at)
    assert desk.world.observer.unchanged_count == 1
    assert desk.objects == {OLD}


async def test_bytes_that_were_lost_come_back(desk: Desk) -> None:
    before = await desk.begin()
    desk.world.store.objects.clear()
    desk.world.origin.gives(FRESHER, OLD)
    assert not (await desk.refetch(before, FRESHER)).replaced
    assert desk.objects == {OLD}


FAILURES = [
    pytest.param(OriginRefused("403", origin_status=403), SourceExpired, id="refused"),
    pytest.param(OriginTimeout("slow"), OriginTimeout, id="slow"),
    pytest.param(lambda: RemoteFill().push(b"<html>expired</html>").end(), NotAnImage, id="no image"),
    pytest.param(lambda: RemoteFill().push(b"").end(), NotAnImage, id="nothing"),
    pytest.param(lambda: RemoteFill().push(NEW[:-20]).end(), NotAnImage, id="framed whole, cut by its format"),
    pytest.param(lambda: RemoteFill(framed=False).push(NEW).end(), OriginError, id="whole by its format, not framed"),
    pytest.param(lambda: RemoteFill().push(NEW[:50]).end(OriginError("broke off")), OriginError, id="cut"),
    pytest.param(lambda: RemoteFill().push(picture(width=200, height=100)).end(), TooLarge, id="too many pixels"),
]


@pytest.mark.parametrize(("answer", "error"), FAILURES)
async def test_nothing_else_changes_what_is_stored(
    desk: Desk, answer: Callable[[], RemoteFill] | Exception, error: type[Exception]
) -> None:
    before = await desk.begin()
    desk.changed.clear()
    desk.world.origin.gives(FRESHER, answer)
    for number in (1, 2):
        with pytest.raises(error) as caught:
            await desk.refetch(before, FRESHER)
        assert type(caught.value) is error
        assert len(desk.world.origin.asked) == number, "an operator who asks again is not answered from memory"
    assert list(desk.world.store.records.values()) == [before]
    assert desk.objects == {OLD}
    assert desk.changed == []
    assert await desk.world.get(FRESH) == ("hit", OLD)
    assert {draft.closed for draft in desk.world.disk.drafts} == {1}
    assert len(desk.world.observer.errors) == 2


async def test_a_disk_that_is_full_changes_nothing(desk: Desk) -> None:
    before = await desk.begin()
    desk.world.origin.gives(FRESHER, NEW)
    desk.world.disk.bytes_max = 10
    with pytest.raises(StorageError):
        await desk.refetch(before, FRESHER)
    desk.world.disk.bytes_max = None
    desk.world.store.faults["put"] = StorageError("the disk is full")
    with pytest.raises(StorageError):
        await desk.refetch(before, FRESHER)
    assert list(desk.world.store.records.values()) == [before]


async def test_bytes_that_are_blocked_change_nothing(desk: Desk) -> None:
    before = await desk.begin()
    desk.world.refused.add(digest_of(NEW))
    desk.world.origin.gives(FRESHER, NEW)
    with pytest.raises(Removed):
        await desk.refetch(before, FRESHER)
    assert list(desk.world.store.records.values()) == [before]
    assert desk.world.store.tombstones == []
    assert desk.objects == {OLD}


# --- by which link


@pytest.mark.parametrize(
    "url", ["https://bucket.s3.amazonaws.com/b.png", "https://images.example/a.png", EXPIRED + "&v=1"]
)
async def test_the_link_of_another_key_is_not_asked(desk: Desk, url: str) -> None:
    before = await desk.begin()
    with pytest.raises(InvalidRequest):
        await desk.refetch(before, url)
    assert desk.world.origin.asked == []


async def test_without_a_link_the_identity_is_tried_as_one(desk: Desk) -> None:
    before = await desk.begin()
    desk.world.origin.gives(BY_IDENTITY, NEW)
    refetched = await desk.refetch(before)
    assert refetched.replaced
    assert desk.world.origin.asked == [BY_IDENTITY]
    assert refetched.record.temporary, "that it has no signature does not make a picture's links permanent"
    assert refetched.record.expires_at == before.expires_at


async def test_an_exact_identity_is_the_link() -> None:
    desk = Desk(exactly)
    before = await desk.begin()
    desk.world.origin.gives(FRESH, NEW)
    assert (await desk.refetch(before)).replaced
    assert desk.world.origin.asked == [FRESH]


async def test_an_identity_that_does_not_name_the_image_alone_is_not_tried(desk: Desk) -> None:
    before = await desk.begin()
    identity = f"{before.identity}#width=100"
    leases = replace(before, identity=identity, key=Key(sha256(identity.encode()).hexdigest()))
    desk.world.store.records[leases.key] = leases
    with pytest.raises(InvalidRequest, match="send the link"):
        await desk.refetch(leases)
    assert desk.world.origin.asked == []


@pytest.mark.parametrize("identity", ["ni:///sha-256;abc", "legacy:old/a.png", "//"])
async def test_an_image_without_an_origin_cannot_be_fetched(desk: Desk, identity: str) -> None:
    before = await desk.begin()
    desk.world.store.records[before.key] = replace(before, identity=identity)
    with pytest.raises(InvalidRequest):
        await desk.refetch(before)


async def test_policy_is_that_of_a_fill() -> None:
    desk = Desk(without_query)
    desk.world.origin.gives(PLAIN, OLD)
    await desk.world.get(PLAIN)
    (before,) = desk.world.store.records.values()
    for host in ("refused.example", "127.0.0.1", "[::1]", "metadata"):
        url = f"https://{host}/a.png"
        info = without_query(read_source(url))
        desk.world.store.records[info.key] = replace(before, key=info.key, identity=info.identity)
        with pytest.raises(SourceForbidden):
            await desk.refetcher.refetch_source(read_source(url))
    assert desk.world.origin.asked == [PLAIN]


async def test_what_is_not_stored_is_not_fetched(desk: Desk) -> None:
    assert await desk.refetcher.refetch_source(read_source(FRESH)) is None
    assert desk.world.origin.asked == []


# --- how many fetches


async def test_concurrent_refetches_are_one_fetch(desk: Desk) -> None:
    before = await desk.begin()
    desk.world.origin.gives(FRESHER, NEW)
    desk.world.origin.gate.clear()
    asking = [asyncio.create_task(desk.refetch(before, FRESHER)) for _ in range(50)]
    await settle()
    desk.world.origin.gate.set()
    assert {(await each).replaced for each in asking} == {True}
    assert desk.world.origin.asked == [FRESHER]


async def test_who_leaves_does_not_disturb_the_others(desk: Desk) -> None:
    before = await desk.begin()
    desk.world.origin.gives(FRESHER, NEW)
    desk.world.origin.gate.clear()
    leaving, staying = (asyncio.create_task(desk.refetch(before, FRESHER)) for _ in range(2))
    await settle()
    leaving.cancel()
    desk.world.origin.gate.set()
    assert (await staying).replaced
    assert desk.world.origin.asked == [FRESHER]


async def test_who_brings_another_link_than_the_one_that_failed_gets_a_try(desk: Desk) -> None:
    before = await desk.begin()
    desk.world.origin.gives(EXPIRED, OriginRefused("403", origin_status=403))
    desk.world.origin.gives(FRESHER, NEW)
    desk.world.origin.gate.clear()
    first = asyncio.create_task(desk.refetch(before, EXPIRED))
    await settle()
    again, other = (asyncio.create_task(desk.refetch(before, url)) for url in (EXPIRED, FRESHER))
    await settle()
    desk.world.origin.gate.set()
    for failing in (first, again):
        with pytest.raises(SourceExpired):
            await failing
    assert (await other).replaced
    assert desk.world.origin.asked == [EXPIRED, FRESHER]


async def test_so_many_keys_are_fetched_at_a_time_and_no_more() -> None:
    desk = Desk(without_query)
    urls = [f"https://images.example/{number}.png" for number in range(REFETCHES_MAX + 1)]
    for url in urls:
        desk.world.origin.gives(url, OLD)
        await desk.world.get(url)
    desk.world.origin.asked.clear()
    desk.world.origin.gate.clear()
    sources = [read_source(url) for url in urls]
    asking = [asyncio.create_task(desk.refetcher.refetch_source(source)) for source in sources[:-1]]
    await settle()
    with pytest.raises(Busy):
        await desk.refetcher.refetch_source(sources[-1])
    joining = asyncio.create_task(desk.refetcher.refetch_source(sources[0]))
    desk.world.origin.gate.set()
    for each in (*asking, joining):
        assert await each is not None
    assert desk.world.origin.asked == urls[:-1]
    assert await desk.refetcher.refetch_source(sources[-1]) is not None


async def test_another_worker_that_fetches_the_image_is_waited_for() -> None:
    leases = FakeLeases(held_for=3)
    desk = Desk(leases=leases)
    leases.held_for = 0
    before = await desk.begin()
    leases.held_for = 3
    desk.world.origin.gives(FRESHER, NEW)
    assert (await desk.refetch(before, FRESHER)).replaced
    assert desk.slept == 3
    assert leases.taken == leases.released == [f"refresh.{before.key}"]


async def test_another_worker_is_waited_for_so_long_and_no_longer() -> None:
    leases = FakeLeases(held_for=10 * CLAIM_LOOKS_MAX)
    desk = Desk(leases=leases)
    before = await desk.begin()
    with pytest.raises(Busy):
        await desk.refetch(before, FRESHER)
    assert desk.slept == CLAIM_LOOKS_MAX
    assert desk.world.origin.asked == []


async def test_a_claim_is_given_back_after_a_failure() -> None:
    leases = FakeLeases()
    desk = Desk(leases=leases)
    before = await desk.begin()
    desk.world.origin.gives(FRESHER, OriginTimeout("slow"))
    with pytest.raises(OriginTimeout):
        await desk.refetch(before, FRESHER)
    assert leases.released == [f"refresh.{before.key}"]


async def test_a_server_that_stops_breaks_off(desk: Desk) -> None:
    before = await desk.begin()
    desk.world.origin.gives(FRESHER, NEW)
    desk.world.origin.gate.clear()
    asking = asyncio.create_task(desk.refetch(before, FRESHER))
    await settle()
    await desk.refetcher.aclose()
    with pytest.raises(StorageError):
        await asking
    assert list(desk.world.store.records.values()) == [before]


# --- what crosses it


async def test_what_waits_for_the_primary_is_not_replaced(desk: Desk) -> None:
    before = await desk.begin()
    desk.world.store.records[before.key] = replace(before, pending=True)
    desk.world.origin.gives(FRESHER, NEW)
    with pytest.raises(StorageError, match="primary"):
        await desk.refetch(before, FRESHER)
    assert desk.objects == {OLD}


async def test_a_replacement_that_crossed_ours_is_looked_at_again(desk: Desk) -> None:
    before = await desk.begin()
    store, third = desk.world.store, picture(seed=3)
    crossing = replace(before, digest=digest_of(third), size=len(third))
    put, puts = store.put, 0

    async def crossed(*arguments: object) -> Record:
        nonlocal puts
        puts += 1
        if puts == 1:
            store.objects[crossing.object_name], store.records[before.key] = third, crossing
            raise Conflict("another image was kept under this link meanwhile")
        return await put(*arguments)  # type: ignore[arg-type]  # what it was called with

    store.put = crossed  # type: ignore[method-assign, assignment]  # at the edge between the two
    desk.world.origin.gives(FRESHER, NEW)
    assert (await desk.refetch(before, FRESHER)).replaced
    assert puts == 2
    assert store.records[before.key].digest == digest_of(NEW)
    assert desk.objects == {OLD, NEW, third}


async def test_a_removal_that_came_while_it_was_being_put_wins(desk: Desk) -> None:
    before = await desk.begin()
    desk.world.origin.gives(FRESHER, NEW)
    durable = desk.world.store.gates["put"] = asyncio.Event()
    desk.world.store.reached.clear()
    asking = asyncio.create_task(desk.refetch(before, FRESHER))
    await desk.world.store.reached.wait()
    desk.world.refused.add(digest_of(NEW))
    durable.set()
    with pytest.raises(Removed):
        await asking
    assert OLD in desk.objects


def test_the_world_knows_the_links_of_these_tests() -> None:
    before, link = identify(read_source(FRESH), NOW), identify(read_source(BY_IDENTITY), NOW)
    assert before.key == link.key


async def test_an_incomplete_image_replaces_nothing_and_counts_where_it_is_what_is_stored(desk: Desk) -> None:
    half = NEW[:-100]
    record = await desk.begin()
    desk.world.origin.gives(FRESH, half)
    with pytest.raises(NotAnImage, match="incomplete"):
        await desk.refetch(record, FRESH)
    assert desk.objects == {OLD}
    desk.world.store.objects[f"{digest_of(half)}.png"] = half
    incomplete = replace(record, digest=digest_of(half), size=len(half), doubts=frozenset({Doubt.INCOMPLETE}))
    desk.world.store.records[record.key] = incomplete
    equal = await desk.refetch(record, FRESH)
    assert not equal.replaced
    assert equal.record.doubts == {Doubt.INCOMPLETE}
    assert equal.record.refetches is not None
    assert (equal.record.refetches.tries, equal.record.refetches.equal) == (1, 1)
    desk.world.origin.gives(FRESH, NEW)
    whole = await desk.refetch(record, FRESH)
    assert whole.replaced
    assert (whole.record.doubts, whole.record.refetches) == (frozenset(), None)


async def test_what_was_confirmed_as_it_is_stays_so(desk: Desk) -> None:
    half = NEW[:-100]
    record = await desk.begin()
    desk.world.store.objects[f"{digest_of(half)}.png"] = half
    refetches = Refetches(8, 3, NOW, NOW)
    desk.world.store.records[record.key] = replace(record, digest=digest_of(half), refetches=refetches)
    desk.world.origin.gives(FRESH, half)
    same = await desk.refetch(record, FRESH)
    assert (same.record.doubts, same.record.refetches) == (frozenset(), refetches)
