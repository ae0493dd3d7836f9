"""Find, fill, deliver: among fakes, with every race opened by an event."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from imgkeep.cluster.leases import FillLeases
from imgkeep.core.errors import (
    Busy,
    ImgkeepError,
    LoopDetected,
    NotAnImage,
    OriginError,
    OriginRefused,
    OriginTimeout,
    Removed,
    SourceExpired,
    SourceForbidden,
    SourceNotFound,
    StorageError,
    TooLarge,
)
from imgkeep.core.records import Digest, Format, Key
from imgkeep.core.source_url import read_source
from imgkeep.images.context import Delivery
from imgkeep.images.fill import RECENT_BYTES_MAX, RECENT_CHUNKS_MAX, Fill, FillHead
from imgkeep.images.negative_cache import NegativeCache, failure_ttl_s
from imgkeep.images.peer_fill import FillFailure, PeerFill
from imgkeep.images.peer_fill import RemoteFill as Followed
from imgkeep.images.service import FOLLOW_ATTEMPTS_MAX

from tests.support.fakes import GROWING, RemoteFill, Timer, World, drain, settle
from tests.support.pictures import picture, picture_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


URL = "https://images.example/a.png?sig=1"
OTHER = "https://images.example/a.png?sig=2"
IMAGE = picture_of(100_000)


async def stored(world: World, url: str = URL, body: bytes = IMAGE) -> None:
    """Let the world keep `body`."""
    world.origin.gives(url, body)
    assert (await world.get(url))[0] == "stored"
    await world.image_service.drain()


def forget_memory(world: World) -> None:
    """Make the image_service look into database and store again, as after a restart."""
    world.image_service.records._held.clear()


# One fill for many


async def test_many_clients_cause_one_fetch_and_get_the_same_bytes() -> None:
    world = World()
    world.origin.gives(URL, IMAGE)
    world.origin.gate.clear()
    clients = [asyncio.create_task(world.get(URL)) for _ in range(100)]
    await settle()
    assert world.image_service.fills_in_flight == 1
    world.origin.gate.set()
    answers = await asyncio.gather(*clients)
    assert world.origin.asked == [URL]
    assert sorted(outcome for outcome, _ in answers) == ["collapsed"] * 99 + ["stored"]
    assert {body for _, body in answers} == {IMAGE}
    assert world.observer.sizes == [len(IMAGE)]
    assert await world.get(URL) == ("hit", IMAGE)


async def test_whoever_comes_late_gets_the_image_from_its_first_byte_at_its_own_speed() -> None:
    world = World()
    feed = RemoteFill(len(IMAGE)).push(IMAGE[:60_000])
    world.origin.gives(URL, lambda: feed)
    early = await world.ask(URL)
    assert await early.body.read(0, 50_000) == IMAGE[:50_000]
    late = await world.ask(OTHER)
    assert (late.outcome.value, late.etag, late.name, late.body.size) == (
        "collapsed",
        early.etag,
        early.name,
        len(IMAGE),
    )
    assert await late.body.read(0, 10) == IMAGE[:10]
    assert await early.body.read(50_000, 50_000) == IMAGE[50_000:59_999]
    feed.push(IMAGE[60_000:]).end()
    assert await drain(early) == IMAGE
    assert await late.body.read(10, 5) == IMAGE[10:15]
    assert await drain(late) == IMAGE
    assert len(world.origin.asked) == 1


async def test_the_last_byte_is_held_back_until_the_image_is_durable() -> None:
    world = World()
    world.origin.gives(URL, IMAGE)
    durable = world.store.gates["put"] = asyncio.Event()
    delivery = await world.ask(URL)
    await world.store.reached.wait()
    data = bytearray()
    while len(data) < len(IMAGE) - 1:
        data += await delivery.body.read(len(data), 32_768)
    assert len(data) == len(IMAGE) - 1
    last = asyncio.create_task(delivery.body.read(len(data), 32_768))
    size = asyncio.create_task(delivery.body.wait_for_size())
    await settle()
    assert not last.done()
    assert not size.done()
    assert not world.store.records
    durable.set()
    assert await last == IMAGE[-1:]
    assert await size == len(IMAGE)
    assert await world.get(URL) == ("hit", IMAGE)
    await delivery.body.aclose()


async def test_readers_cost_no_copy_of_the_image() -> None:
    world = World()
    body = picture_of(4_000_000)
    feed = RemoteFill(len(body))
    world.origin.gives(URL, lambda: feed.push(*(body[at : at + 65_536] for at in range(0, len(body), 65_536))))
    deliveries = [await world.ask(URL) for _ in range(200)]
    await settle()
    fill = deliveries[0].body
    assert isinstance(fill, Fill)
    assert all(delivery.body is fill for delivery in deliveries)
    assert len(world.disk.drafts) == 1
    assert world.disk.drafts[0].size == len(body)
    assert 0 < sum(len(chunk) for _, chunk in fill._recent) <= RECENT_BYTES_MAX
    # Those behind read from the draft, those who keep up from what came last.
    assert await fill.read(0, 1000) == body[:1000]
    assert world.disk.drafts[0].reads == 1
    assert await fill.read(len(body) - 1000, 100) == body[-1000:-900]
    assert world.disk.drafts[0].reads == 1
    feed.end()
    assert {await drain(delivery, piece=1_000_000) for delivery in deliveries} == {body}
    assert world.disk.drafts[0].closed == 1
    assert not fill._recent


async def test_an_origin_that_sends_byte_by_byte_costs_no_more() -> None:
    world = World()
    body = picture_of(3000)
    feed = RemoteFill().push(*(body[at : at + 1] for at in range(len(body))))
    world.origin.gives(URL, lambda: feed)
    delivery = await world.ask(URL)
    for _ in range(len(body)):
        await asyncio.sleep(0)
    fill = delivery.body
    assert isinstance(fill, Fill)
    assert world.disk.drafts[0].size == len(body)
    assert len(fill._recent) <= RECENT_CHUNKS_MAX
    assert await fill.read(0, 2000) == body[:2000]
    feed.end()
    assert await drain(delivery) == body


async def test_a_fill_whose_readers_have_all_left_finishes() -> None:
    world = World()
    feed = RemoteFill().push(IMAGE[:50_000])
    world.origin.gives(URL, lambda: feed)
    for _ in range(3):
        delivery = await world.ask(URL)
        assert await delivery.body.read(0, 10)
        await delivery.body.aclose()
    feed.push(IMAGE[50_000:]).end()
    await world.image_service.drain()
    assert world.disk.drafts[0].closed == 1
    assert world.observer.sizes == [len(IMAGE)]
    assert await world.get(URL) == ("hit", IMAGE)


async def test_clients_who_leave_before_the_head_disturb_nobody() -> None:
    world = World()
    world.origin.gives(URL, IMAGE)
    world.origin.gate.clear()
    leader, follower = (asyncio.create_task(world.get(URL)) for _ in range(2))
    await settle()
    leader.cancel()
    await asyncio.wait([leader])
    world.origin.gate.set()
    assert await follower == ("collapsed", IMAGE)
    await world.image_service.drain()
    assert world.disk.drafts[0].closed == 1


async def test_who_looked_before_a_fill_landed_looks_again_before_departing() -> None:
    """
    1. C looks into the store and finds nothing; the answer is still on its way.
    2. A looks, finds nothing, departs, lands: the image is stored and the key free.
    3. C's answer arrives. It must find the image and not fetch it again.
    """
    world = World()
    world.origin.gives(URL, IMAGE)
    arrives = world.store.gates["find"] = asyncio.Event()
    slow = asyncio.create_task(world.get(URL))
    await world.store.reached.wait()
    assert await world.get(URL) == ("stored", IMAGE)
    await world.image_service.drain()
    arrives.set()
    assert await slow == ("hit", IMAGE)
    assert world.origin.asked == [URL]


async def test_a_damaged_object_does_not_make_a_newer_record_forgotten() -> None:
    """
    1. The object is damaged. C has the record and asks the store for the object: nothing; the answer is on its way.
    2. A meets the same, fills, lands: a new record is known.
    3. C's answer arrives. It may fetch once more, but a third client must find A's record in memory.
    """
    world = World()
    await stored(world)
    world.store.objects.clear()
    arrives = world.store.gates["fetch"] = asyncio.Event()
    slow = asyncio.create_task(world.get(URL))
    await world.store.reached.wait()
    assert await world.get(URL) == ("stored", IMAGE)
    await world.image_service.drain()
    looked = world.database.calls["find"]
    world.origin.gate.clear()
    arrives.set()
    await settle()
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.database.calls["find"] == looked
    world.origin.gate.set()
    assert (await slow)[1] == IMAGE


# Links


async def test_followers_with_another_link_get_a_try_of_their_own() -> None:
    world = World()
    refused = OriginRefused("the origin says 403", origin_status=403)
    world.origin.gives(URL, refused)
    world.origin.gives(OTHER, IMAGE)
    world.origin.gate.clear()
    leader = asyncio.create_task(world.get(URL))
    await settle()
    same = asyncio.create_task(world.get(URL))
    others = [asyncio.create_task(world.get(OTHER)) for _ in range(5)]
    await settle()
    assert world.origin.asked == [URL]
    world.origin.gate.set()
    for dead in (leader, same):
        with pytest.raises(OriginRefused):
            await dead
    answers = await asyncio.gather(*others)
    assert sorted(outcome for outcome, _ in answers) == ["collapsed"] * 4 + ["stored"]
    assert world.origin.asked == [URL, OTHER]
    assert world.origin.most_under_way == 1
    await world.image_service.drain()
    assert [draft.closed for draft in world.disk.drafts] == [1]


async def test_followers_whose_links_are_all_dead_get_their_own_failure_each() -> None:
    world = World()
    urls = [f"https://images.example/a.png?sig={number}" for number in range(5)]
    world.origin.gate.clear()
    clients = [asyncio.create_task(world.get(url)) for url in urls]
    await settle()
    world.origin.gate.set()
    answers = await asyncio.gather(*clients, return_exceptions=True)
    assert all(isinstance(answer, SourceNotFound) for answer in answers)
    assert sorted(world.origin.asked) == sorted(urls)
    assert world.origin.most_under_way == 1


async def test_a_source_that_policy_refuses_costs_nothing() -> None:
    world = World()
    with pytest.raises(SourceForbidden):
        await world.ask("https://refused.example/a.png")
    assert not world.origin.asked
    assert not world.store.calls


async def test_what_came_from_us_is_served_but_never_filled() -> None:
    world = World()
    with pytest.raises(LoopDetected):
        await world.ask(URL, from_own_node=True)
    assert not world.origin.asked
    await stored(world)
    assert (await world.ask(URL, from_own_node=True)).outcome.value == "hit"


async def test_what_came_from_us_is_no_loop_while_the_store_cannot_tell() -> None:
    world = World()
    world.store.faults["find"] = StorageError("down")
    with pytest.raises(StorageError):
        await world.ask(URL, from_own_node=True)


# NegativeCache remembered

CAUSES = [
    pytest.param(SourceExpired("x", origin_status=403), 300, id="expired"),
    pytest.param(SourceNotFound("x", origin_status=404), 120, id="not found"),
    pytest.param(OriginRefused("x", origin_status=403), 60, id="refused"),
    pytest.param(NotAnImage("x"), 60, id="not an image"),
    pytest.param(TooLarge("x"), 60, id="too large"),
    pytest.param(SourceForbidden("x"), 30, id="forbidden"),
    pytest.param(OriginTimeout("x"), 5, id="timeout"),
    pytest.param(OriginError("x", origin_status=500), 5, id="500"),
    pytest.param(OriginError("x", origin_status=429, retry_after_s=17), 17, id="429"),
    pytest.param(OriginError("x", origin_status=503, retry_after_s=3000), 5, id="503"),
    pytest.param(OriginError("x"), 0, id="connection"),
    pytest.param(Busy("x"), 0, id="busy"),
    pytest.param(LoopDetected("x"), 0, id="loop"),
    pytest.param(StorageError("x"), 0, id="storage"),
]


@pytest.mark.parametrize(("error", "seconds"), CAUSES)
async def test_a_failure_is_remembered_by_cause_and_forgotten_in_time(error: ImgkeepError, seconds: int) -> None:
    world = World()
    world.origin.gives(URL, error, IMAGE)
    with pytest.raises(type(error)) as first:
        await world.ask(URL)
    assert str(first.value) == str(error)
    if seconds:
        world.timer.seconds += seconds - 1
        with pytest.raises(type(error)) as again:
            await world.ask(URL)
        assert vars(again.value) == vars(error)
        assert again.value.code == error.code
        assert len(world.origin.asked) == 1
        world.timer.seconds += 1
    assert await world.get(URL) == ("stored", IMAGE)


async def test_a_failure_is_remembered_for_its_link_and_not_for_its_picture() -> None:
    world = World()
    world.origin.gives(OTHER, IMAGE)
    with pytest.raises(SourceNotFound):
        await world.ask(URL)
    assert await world.get(OTHER) == ("stored", IMAGE)
    # And what is stored wins over what is remembered.
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.origin.asked == [URL, OTHER]


async def test_a_remembered_failure_keeps_nothing_else_alive() -> None:
    class Witness:
        pass

    def fail(failures: NegativeCache) -> weakref.ref[Witness]:
        witness = Witness()
        try:
            raise SourceNotFound("gone", origin_status=404)  # noqa: TRY301 - with this frame in its traceback
        except SourceNotFound as error:
            failures.remember(read_source(URL), error)
        return weakref.ref(witness)

    failures = NegativeCache(Timer())
    witness = fail(failures)
    gc.collect()
    assert witness() is None
    found = failures.find(read_source(URL))
    assert isinstance(found, SourceNotFound)
    assert found.__traceback__ is None
    assert found is not failures.find(read_source(URL))


def test_every_remembered_time_is_short() -> None:
    assert all(0 <= failure_ttl_s(case.values[0]) <= 3600 for case in CAUSES)  # type: ignore[arg-type]  # a table


async def test_a_body_that_was_cut_is_not_remembered_and_not_kept() -> None:
    world = World()
    world.origin.gives(URL, lambda: RemoteFill(len(IMAGE)).push(IMAGE[:50_000]).end(OriginError("broke off")), IMAGE)
    delivery = await world.ask(URL)
    with pytest.raises(OriginError):
        await drain(delivery)
    await world.image_service.drain()
    assert not world.store.calls["put"]
    assert world.disk.drafts[0].closed == 1
    assert [type(error) for error in world.observer.errors] == [OriginError]
    assert await world.get(URL) == ("stored", IMAGE)


# Judged by the bytes


@pytest.mark.parametrize(
    ("feed", "error"),
    [
        pytest.param(lambda: RemoteFill().end(), NotAnImage, id="nothing"),
        pytest.param(lambda: RemoteFill().push(b"\x89").end(), NotAnImage, id="one byte"),
        pytest.param(lambda: RemoteFill().push(b"<html>", b"<p>expired</p>").end(), NotAnImage, id="HTML"),
        pytest.param(lambda: RemoteFill().push(picture(width=101, height=100)).end(), TooLarge, id="too many pixels"),
        pytest.param(lambda: RemoteFill().end(OriginTimeout("slow")), OriginTimeout, id="no first byte"),
    ],
)
async def test_nothing_of_what_is_no_image_reaches_a_reader(
    feed: Callable[[], RemoteFill], error: type[Exception]
) -> None:
    world = World()
    world.origin.gives(URL, feed)
    with pytest.raises(error):
        await world.ask(URL)
    await world.image_service.drain()
    assert not world.store.calls["put"]
    assert not world.disk.drafts


async def test_an_image_whose_end_nobody_proves_must_be_whole_by_itself() -> None:
    world = World()
    world.origin.gives(
        URL,
        lambda: RemoteFill(framed=False).push(IMAGE[:-5]).end(),
        lambda: RemoteFill(framed=False).push(IMAGE).end(),
    )
    delivery = await world.ask(URL)
    with pytest.raises(OriginError, match="broke off"):
        await drain(delivery)
    assert await world.get(URL) == ("stored", IMAGE)


async def test_an_image_that_comes_byte_by_byte_is_judged_as_if_it_came_at_once() -> None:
    world = World()
    body = picture("WEBP")
    world.origin.gives(URL, lambda: RemoteFill().push(*(body[at : at + 1] for at in range(len(body)))).end())
    assert await world.get(URL) == ("stored", body)
    (record,) = world.store.records.values()
    assert record.pixel_size is not None
    assert (record.pixel_size.width, record.pixel_size.height, record.size) == (64, 48, len(body))


async def test_an_unknown_size_is_told_as_soon_as_it_is_certain() -> None:
    world = World()
    feed = RemoteFill().push(IMAGE[:1000])
    world.origin.gives(URL, lambda: feed)
    delivery = await world.ask(URL)
    assert delivery.body.size is None
    size = asyncio.create_task(delivery.body.wait_for_size())
    await settle()
    assert not size.done()
    feed.push(IMAGE[1000:]).end()
    assert await size == delivery.body.size == len(IMAGE)
    await delivery.body.aclose()


async def test_a_size_that_never_comes_is_told_as_the_failure() -> None:
    world = World()
    world.origin.gives(URL, lambda: RemoteFill().push(IMAGE[:1000]).end(OriginTimeout("slow")))
    delivery = await world.ask(URL)
    with pytest.raises(OriginTimeout):
        await delivery.body.wait_for_size()
    await delivery.body.aclose()


# Faults of ours


@pytest.mark.parametrize("verb", ["find", "fetch"])
async def test_while_the_store_cannot_be_read_the_origin_is_asked(verb: str) -> None:
    world = World()
    await stored(world)
    forget_memory(world)
    world.database.records.clear()
    world.store.faults[verb] = StorageError("down")
    assert await world.get(URL) == ("not_stored", IMAGE)
    assert len(world.origin.asked) == 2


async def test_what_an_origin_sends_while_the_store_cannot_be_read_replaces_nothing() -> None:
    world = World()
    await stored(world)
    forget_memory(world)
    world.database.records.clear()
    expired = picture(seed=1)
    world.origin.gives(URL, expired)
    world.store.faults["find"] = StorageError("down")
    assert await world.get(URL) == ("not_stored", expired)
    world.store.faults.clear()
    assert await world.get(URL) == ("hit", IMAGE)


@pytest.mark.parametrize("verb", ["find", "fetch"])
@pytest.mark.parametrize("error", [SourceNotFound("x"), OriginRefused("x"), OriginError("x"), SourceForbidden("x")])
async def test_a_store_that_cannot_be_read_is_not_told_as_the_origins_failure(verb: str, error: ImgkeepError) -> None:
    world = World()
    await stored(world)
    forget_memory(world)
    world.database.records.clear()
    world.origin.gives(URL, error)
    world.store.faults[verb] = StorageError("down")
    for _ in range(2):  # the second time the failure is remembered
        with pytest.raises(StorageError) as caught:
            await world.ask(URL)
        assert caught.value.code == "storage_unavailable"
    world.store.faults.clear()
    assert await world.get(URL) == ("hit", IMAGE)


async def test_a_catalog_that_fails_costs_a_look_into_the_store_and_nothing_else() -> None:
    world = World()
    world.store.local_drafts_only = False
    world.database.fault = StorageError("locked")
    await stored(world)
    forget_memory(world)
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.store.calls["find"] == 2
    world.database.fault = None
    forget_memory(world)
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.store.calls["find"] == 3
    assert world.database.records
    forget_memory(world)
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.store.calls["find"] == 3


FULL = StorageError("the disk is full")


def at_begin(world: World) -> None:
    world.disk.fault = FULL


def at_the_first_write(world: World) -> None:
    world.disk.bytes_max = 0


def midway(world: World) -> None:
    world.disk.bytes_max = 60_000


def at_the_last_write(world: World) -> None:
    world.disk.bytes_max = len(IMAGE) - 1


def at_put(world: World) -> None:
    world.store.faults["put"] = FULL


PLACES = [at_begin, at_the_first_write, midway, at_the_last_write, at_put]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize("break_disk", PLACES)
async def test_a_disk_that_fails_does_not_fail_the_readers(
    break_disk: Callable[[World], None],
    declared: bool,  # noqa: FBT001 - a table
) -> None:
    world = World(memory_bytes=len(IMAGE))
    break_disk(world)
    feed = RemoteFill(len(IMAGE) if declared else None).push(IMAGE[:30_000])
    world.origin.gives(URL, lambda: feed, IMAGE)
    early = await world.ask(URL)
    assert early.outcome.value == ("not_stored" if break_disk is at_begin else "stored")
    assert await early.body.read(0, 20_000) == IMAGE[:20_000]
    feed.push(IMAGE[30_000:70_000], IMAGE[70_000:])
    await settle()
    late = await world.ask(URL)
    feed.end()
    assert await drain(late) == IMAGE
    assert await drain(early, piece=777) == IMAGE
    await world.image_service.drain()
    assert world.observer.reasons == ["the disk is full"]
    assert not world.observer.sizes
    assert not world.store.records
    assert world.memory.bytes_left == len(IMAGE)
    assert [draft.closed for draft in world.disk.drafts] == [1] * len(world.disk.drafts)
    # Nothing was promised: the next one asks the origin again, and with a disk that works the image is kept.
    world.disk.fault, world.disk.bytes_max, world.store.faults = None, None, {}
    assert await world.get(URL) == ("stored", IMAGE)


@dataclass
class FakePeers:
    """Other workers, of which one fetches in `world`, and tells of it as it would over a socket."""

    world: World
    calls: int = 0
    waits: int = 0

    @asynccontextmanager
    async def follow(self, _holder: str, name: str) -> AsyncIterator[Followed | FillFailure | None]:
        self.calls += 1
        joined = await self.world.image_service.join(name)
        if joined is None or isinstance(joined, FillFailure):
            yield joined
            return
        fill, head = joined
        trace = await fill.share_file()
        yield Followed(head, None, along(fill)) if trace is None else Followed(head, trace.path, trace.steps)
        await fill.aclose()

    async def wait(self, _holder: str, key: str) -> None:
        self.waits += 1
        await self.world.image_service.wait_for_fill(Key(key))

    async def notify(self, **_what: object) -> None:
        """They know."""


async def along(fill: Fill) -> AsyncIterator[tuple[int, bytes]]:
    offset = 0
    while data := await fill.read(offset, 10_000):
        offset += len(data)
        yield offset, data


@dataclass
class Elsewhere:
    """Says that another worker fetches everything, as long as `holds`."""

    holds: bool = True
    grace_s: float = 10
    released: list[str] = field(default_factory=list)

    def acquire(self, _key: str) -> str | None:
        return "1.1" if self.holds else None

    def release(self, key: str, *, stored: bool = False) -> None:
        del stored
        self.released.append(key)


def beside(world: World, *, memory_bytes: int = 100_000_000) -> tuple[World, FakePeers]:
    """Return another worker with the same stores."""
    other = World(memory_bytes=memory_bytes)
    other.disk, other.store, other.database = world.disk, world.store, world.database
    peers = FakePeers(world)
    other.image_service._dependencies = replace(other.image_service._dependencies, disk=world.disk, store=world.store)
    other.image_service._store = other.image_service.records._store = world.store
    other.image_service._peers, other.image_service._leases = peers, Elsewhere()
    return other, peers


def nowhere(_world: World) -> None:
    """Every disk works."""


@pytest.mark.parametrize("break_disk", [nowhere, midway, at_the_first_write, at_the_last_write, at_put])
async def test_another_worker_reads_along_what_a_disk_takes_and_what_it_does_not(
    break_disk: Callable[[World], None],
) -> None:
    world = World(memory_bytes=len(IMAGE))
    break_disk(world)
    feed = RemoteFill().push(IMAGE[:30_000])
    world.origin.gives(URL, lambda: feed)
    delivery = await world.ask(URL)
    other, peers = beside(world, memory_bytes=len(IMAGE))
    followers = await asyncio.gather(*(other.ask(url) for url in (URL, OTHER, URL)))
    assert {(it.outcome.value, it.etag, it.name) for it in followers} == {("collapsed", delivery.etag, delivery.name)}
    assert await followers[0].body.read(0, 100_000), "what has come, but for its last byte"
    feed.push(IMAGE[30_000:70_000], IMAGE[70_000:])
    await settle()
    assert not any(follower.growing.ended for follower in followers if follower.growing)
    feed.end()
    assert {await follower.body.wait_for_size() for follower in followers} == {len(IMAGE)}
    assert [await drain(it, piece=piece) == IMAGE for it, piece in zip(followers, (777, 40_000, 9), strict=True)]
    assert peers.calls == 1, "one line, however many follow"
    assert await drain(delivery) == IMAGE
    await world.image_service.drain()
    await other.image_service.aclose()
    assert world.memory.bytes_left == other.memory.bytes_left == len(IMAGE)
    assert [draft.closed for draft in world.disk.drafts] == [1] * len(world.disk.drafts)


async def test_what_is_in_memory_only_is_not_laid_open() -> None:
    world = World()
    at_the_first_write(world)
    feed = RemoteFill().push(IMAGE[:30_000])
    world.origin.gives(URL, lambda: feed)
    delivery = await world.ask(URL)
    assert delivery.growing is not None
    assert await delivery.growing.share_file() is None
    feed.push(IMAGE[30_000:]).end()
    assert await drain(delivery) == IMAGE


async def test_a_follower_ends_as_what_it_follows_does() -> None:
    world = World()
    feed = RemoteFill(len(IMAGE)).push(IMAGE[:30_000])
    world.origin.gives(URL, lambda: feed)
    delivery = await world.ask(URL)
    other, _ = beside(world)
    follower = await other.ask(URL)
    assert follower.body.size == len(IMAGE)
    feed.end(OriginError("it broke off"))
    await settle()
    assert await follower.body.read(0, 40_000) == IMAGE[:29_999]
    with pytest.raises(OriginError, match="it broke off"):
        await drain(follower)
    with pytest.raises(OriginError):
        await drain(delivery)


@pytest.mark.parametrize(("url", "error"), [(URL, SourceNotFound), (OTHER, None)], ids=["same link", "another link"])
async def test_a_fill_that_fails_elsewhere_fails_its_own_link_and_no_other(
    url: str, error: type[ImgkeepError] | None
) -> None:
    world = World()
    world.origin.gives(URL, SourceNotFound("the origin said 404", origin_status=404))
    world.origin.gate.clear()
    fetching = asyncio.create_task(world.get(URL))
    await settle()
    other, peers = beside(world)
    other.origin.gives(OTHER, IMAGE)
    asking = asyncio.create_task(other.get(url))
    await settle()
    leases = other.image_service._leases
    assert isinstance(leases, Elsewhere)
    leases.holds = False
    world.origin.gate.set()
    if error is None:
        assert await asking == ("stored", IMAGE)
    else:
        with pytest.raises(error, match="404") as raised:
            await asking
        assert raised.value.origin_status == 404  # type: ignore[attr-defined]
        assert other.origin.asked == []
    assert peers.calls == 1
    with pytest.raises(SourceNotFound):
        await fetching


async def test_a_follower_that_finds_nothing_to_follow_looks_again() -> None:
    world = World()
    other, peers = beside(world)
    with pytest.raises(Busy):
        await other.ask(URL)
    assert peers.calls == peers.waits == FOLLOW_ATTEMPTS_MAX
    await stored(world)
    assert await other.get(URL) == ("hit", IMAGE)
    assert peers.calls == FOLLOW_ATTEMPTS_MAX


async def test_a_follower_without_memory_for_what_no_disk_takes_is_a_fault() -> None:
    world = World()
    midway(world)
    feed = RemoteFill(len(IMAGE)).push(IMAGE[:30_000])
    world.origin.gives(URL, lambda: feed)
    delivery = await world.ask(URL)
    other, _ = beside(world, memory_bytes=1000)
    follower = await other.ask(URL)
    feed.push(IMAGE[30_000:70_000], IMAGE[70_000:]).end()
    await settle()
    assert await follower.body.read(0, 100_000) == IMAGE[:30_000]
    with pytest.raises(StorageError, match="memory"):
        await drain(follower)
    assert await drain(delivery) == IMAGE, "the fill has what there was"


async def test_who_asks_whether_an_image_has_landed_lets_nobody_fetch_it_again(tmp_path: Path) -> None:
    world = World()
    ours, theirs = (FillLeases(tmp_path, name, grace_s=10, timer=world.timer) for name in ("0.1", "1.2"))
    world.image_service._leases = ours
    assert await asyncio.to_thread(ours.acquire, "a") is None
    ours.release("a", stored=True)
    await world.image_service.wait_for_fill(Key("a"))
    assert await asyncio.to_thread(theirs.acquire, "a") == "0.1"


async def test_a_file_that_is_gone_is_not_read_along() -> None:
    async def steps() -> AsyncIterator[tuple[int, bytes]]:
        yield 1, b""

    @asynccontextmanager
    async def call() -> AsyncIterator[Followed]:
        yield Followed(FillHead(Format.PNG, None, '"e"', storing=True, doubts=frozenset()), GROWING, steps())

    world = World()
    peer_fill = PeerFill(call, world.disk, world.memory)
    await peer_fill.run()
    assert await peer_fill.head is None
    assert peer_fill.ended


@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "not stored"])
async def test_a_claim_that_stands_for_nothing_is_given_up_when_another_worker_asks(*, is_stored: bool) -> None:
    world = World()
    leases = world.image_service._leases = Elsewhere(holds=False)
    if is_stored:
        await stored(world)
    leases.released.clear()
    key = world.image_service.identify(read_source(URL)).key
    assert await world.image_service.join(key) is None
    assert leases.released == ([] if is_stored else [key])


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize("break_disk", PLACES[:-1])
async def test_the_budget_of_memory_is_respected_and_given_back(
    break_disk: Callable[[World], None],
    declared: bool,  # noqa: FBT001 - a table
) -> None:
    world = World(memory_bytes=len(IMAGE) - 1)
    break_disk(world)
    world.origin.gives(
        URL, lambda: RemoteFill(len(IMAGE) if declared else None).push(IMAGE[:50_000], IMAGE[50_000:]).end()
    )
    with pytest.raises(StorageError, match="memory set aside"):
        await drain(await world.ask(URL))
    await world.image_service.drain()
    assert world.memory.bytes_left == len(IMAGE) - 1
    assert [draft.closed for draft in world.disk.drafts] == [1] * len(world.disk.drafts)


async def test_a_shutdown_in_the_middle_of_a_fill_leaves_nothing_behind() -> None:
    world = World()
    world.origin.gives(URL, lambda: RemoteFill(len(IMAGE)).push(IMAGE[:50_000]))
    delivery = await world.ask(URL)
    assert await delivery.body.read(0, 10)
    waiting = asyncio.create_task(drain(delivery))
    world.origin.gives(OTHER.replace("a.png", "b.png"), RemoteFill)
    headless = asyncio.create_task(world.ask(OTHER.replace("a.png", "b.png")))
    await settle()
    await world.image_service.aclose()
    for reader in (waiting, headless):
        with pytest.raises(StorageError, match="shut down"):
            await reader
    assert world.image_service.fills_in_flight == world.origin.under_way == 0
    assert not world.store.calls["put"]
    assert [draft.closed for draft in world.disk.drafts] == [1]


async def test_a_shutdown_waits_for_fills_that_are_about_to_land() -> None:
    world = World()
    feed = RemoteFill().push(IMAGE[:50_000])
    world.origin.gives(URL, lambda: feed)
    delivery = await world.ask(URL)
    await delivery.body.aclose()
    landing = asyncio.create_task(world.image_service.drain())
    await settle()
    assert not landing.done()
    feed.push(IMAGE[50_000:]).end()
    await landing
    assert len(world.store.records) == 1


async def test_what_nobody_foresaw_is_told_to_the_readers_and_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.origin.gives(URL, lambda: RemoteFill().push(IMAGE[:50_000]).end(ZeroDivisionError("a bug")), IMAGE)
    delivery = await world.ask(URL)
    with caplog.at_level(logging.ERROR), pytest.raises(ZeroDivisionError):
        await drain(delivery)
    await world.image_service.drain()
    assert [record.getMessage() for record in caplog.records] == ["a fill failed as nobody foresaw"]
    assert await world.get(URL) == ("stored", IMAGE)


# What is stored


async def test_a_warm_hit_asks_neither_the_catalog_nor_for_the_record() -> None:
    world = World()
    await stored(world)
    database, store = world.database.calls.copy(), world.store.calls.copy()
    for _ in range(10):
        assert await world.get(URL) == ("hit", IMAGE)
    assert world.database.calls == database
    assert world.store.calls - store == {"fetch": 10}
    assert len(world.origin.asked) == 1


async def test_a_record_of_the_catalog_spares_the_look_into_a_store_behind_a_network() -> None:
    world = World()
    world.store.local_drafts_only = False
    await stored(world)
    forget_memory(world)
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.store.calls["find"] == 1


async def test_an_object_that_is_damaged_is_fetched_again() -> None:
    world = World()
    await stored(world)
    world.store.objects.clear()
    assert await world.get(URL) == ("stored", IMAGE)
    assert await world.get(OTHER) == ("hit", IMAGE)


async def test_a_row_of_the_catalog_that_names_a_missing_object_gives_way_to_the_record() -> None:
    world = World()
    await stored(world)
    key, record = next(iter(world.database.records.items()))
    world.database.records[key] = replace(record, digest=Digest("0" * 64))
    forget_memory(world)
    world.origin.gives(URL, SourceNotFound("x"))
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.database.records[key] == record


async def test_no_answer_of_an_origin_removes_what_is_stored() -> None:
    world = World()
    await stored(world)
    objects, records = dict(world.store.objects), dict(world.store.records)
    world.store.objects.clear()
    for error in (SourceNotFound("x"), SourceExpired("x"), OriginError("x")):
        world.origin.gives(URL, error)
        with pytest.raises(type(error)):
            await world.ask(URL)
        world.timer.seconds += 3600
    assert world.store.records == records
    world.store.objects |= objects
    assert await world.get(URL) == ("hit", IMAGE)


async def test_an_object_is_delivered_by_its_name() -> None:
    world = World()
    await stored(world)
    (name,) = world.store.objects
    delivery = await world.image_service.deliver_object(name)
    assert isinstance(delivery, Delivery)
    assert (delivery.etag, delivery.object_name, await drain(delivery)) == (f'"{name[:64]}"', name, IMAGE)


@pytest.mark.parametrize(
    "name", ["", "a.png", "0" * 64 + ".exe", "0" * 64, "../" + "0" * 64 + ".png", "0" * 64 + ".png"]
)
async def test_other_names_are_a_miss(name: str) -> None:
    world = World()
    assert await world.image_service.deliver_object(name) is None
    assert world.store.calls["fetch"] == (name == "0" * 64 + ".png")


async def test_a_store_that_cannot_tell_about_an_object_is_no_miss() -> None:
    world = World()
    world.store.faults["fetch"] = StorageError("down")
    with pytest.raises(StorageError):
        await world.image_service.deliver_object("0" * 64 + ".png")


async def test_every_fill_draws_its_own_tag_and_the_record_keeps_it() -> None:
    world = World()
    world.origin.gives(URL, IMAGE)
    miss = await world.ask(URL)
    await drain(miss)
    await world.image_service.drain()
    hit = await world.ask(URL)
    assert (hit.etag, hit.name) == (miss.etag, miss.name)
    forget_memory(world)
    world.database.records.clear()
    assert (await world.ask(URL)).etag == miss.etag
    url = "https://images.example/same.png"
    world.origin.gives(url, IMAGE)
    assert (await world.ask(url)).etag != miss.etag
    await world.image_service.drain()


async def test_counters_add_up() -> None:
    world = World()
    kept, dead, full = (f"https://images.example/{name}.png" for name in ("kept", "dead", "full"))
    world.origin.gives(kept, IMAGE)
    world.origin.gives(full, IMAGE)
    await world.get(kept)
    with pytest.raises(SourceNotFound):
        await world.get(dead)
    world.store.faults["put"] = FULL
    await world.get(full)
    await world.image_service.drain()
    assert (world.observer.sizes, world.observer.reasons) == ([len(IMAGE)], ["the disk is full"])
    assert world.observer.ended == len(world.origin.asked) == 3


# --- removal


async def test_a_picture_that_is_removed_while_it_is_being_put_is_not_shown() -> None:
    world = World()
    body = picture()
    world.origin.gives(URL, body)
    durable = world.store.gates["put"] = asyncio.Event()
    getting = asyncio.create_task(world.get(URL))
    await world.store.reached.wait()
    world.refused.add(Digest(sha256(body).hexdigest()))
    durable.set()
    with pytest.raises(Removed):
        await getting
    assert world.store.tombstones == [], "the link may bring another picture some day"
    with pytest.raises(Removed):
        await world.get(URL)
