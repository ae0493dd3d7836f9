"""Concurrent requests for one image: one fill, many followers."""

from __future__ import annotations

import asyncio

import pytest

from imgkeep.core.errors import (
    LoopDetected,
    OriginRefused,
    SourceForbidden,
    SourceNotFound,
    StorageError,
)
from imgkeep.images.fill import RECENT_BYTES_MAX
from imgkeep.images.shared_body import RECENT_CHUNKS_MAX, SharedBody
from tests.support.fakes import FakeResponse, World, read_all, settle
from tests.support.fills import (
    IMAGE,
    OTHER,
    URL,
    store_image,
)
from tests.support.images import png_of


async def test_concurrent_requests_share_one_fill() -> None:
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


async def test_late_follower_reads_from_byte_zero() -> None:
    world = World()
    response = FakeResponse(len(IMAGE)).push(IMAGE[:60_000])
    world.origin.gives(URL, lambda: response)
    early = await world.ask(URL)
    assert await early.body.read(0, 50_000) == IMAGE[:50_000]
    late = await world.ask(OTHER)
    assert (late.cache_status.value, late.etag, late.name, late.body.size) == (
        "collapsed",
        early.etag,
        early.name,
        len(IMAGE),
    )
    assert await late.body.read(0, 10) == IMAGE[:10]
    assert await early.body.read(50_000, 50_000) == IMAGE[50_000:59_999]
    response.push(IMAGE[60_000:]).end()
    assert await read_all(early) == IMAGE
    assert await late.body.read(10, 5) == IMAGE[10:15]
    assert await read_all(late) == IMAGE
    assert len(world.origin.asked) == 1


async def test_last_byte_waits_for_durability() -> None:
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


async def test_readers_share_one_copy() -> None:
    world = World()
    body = png_of(4_000_000)
    response = FakeResponse(len(body))
    world.origin.gives(URL, lambda: response.push(*(body[at : at + 65_536] for at in range(0, len(body), 65_536))))
    deliveries = [await world.ask(URL) for _ in range(200)]
    await settle()
    fill = deliveries[0].body
    assert isinstance(fill, SharedBody)
    assert all(delivery.body is fill for delivery in deliveries)
    assert len(world.disk.drafts) == 1
    assert world.disk.drafts[0].size == len(body)
    assert 0 < sum(len(chunk) for _, chunk in fill._recent) <= RECENT_BYTES_MAX
    # Slow readers read from the draft, those that keep up from what came last.
    assert await fill.read(0, 1000) == body[:1000]
    assert world.disk.drafts[0].reads == 1
    assert await fill.read(len(body) - 1000, 100) == body[-1000:-900]
    assert world.disk.drafts[0].reads == 1
    response.end()
    assert {await read_all(delivery, piece=1_000_000) for delivery in deliveries} == {body}
    assert world.disk.drafts[0].closed == 1
    assert not fill._recent


async def test_byte_by_byte_origin_costs_no_more() -> None:
    world = World()
    body = png_of(3000)
    response = FakeResponse().push(*(body[at : at + 1] for at in range(len(body))))
    world.origin.gives(URL, lambda: response)
    delivery = await world.ask(URL)
    for _ in range(len(body)):
        await asyncio.sleep(0)
    fill = delivery.body
    assert isinstance(fill, SharedBody)
    assert world.disk.drafts[0].size == len(body)
    assert len(fill._recent) <= RECENT_CHUNKS_MAX
    assert await fill.read(0, 2000) == body[:2000]
    response.end()
    assert await read_all(delivery) == body


async def test_fill_without_readers_finishes() -> None:
    world = World()
    response = FakeResponse().push(IMAGE[:50_000])
    world.origin.gives(URL, lambda: response)
    for _ in range(3):
        delivery = await world.ask(URL)
        assert await delivery.body.read(0, 10)
        await delivery.body.aclose()
    response.push(IMAGE[50_000:]).end()
    await world.image_service.drain()
    assert world.disk.drafts[0].closed == 1
    assert world.observer.sizes == [len(IMAGE)]
    assert await world.get(URL) == ("hit", IMAGE)


async def test_client_that_leaves_before_the_head_stops_no_fill() -> None:
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


async def test_lookup_older_than_a_fill_is_repeated() -> None:
    """
    1. C looks into the store and finds nothing; the answer is still on its way.
    2. A looks, finds nothing, starts a fill that ends: the image is stored and the key free.
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


async def test_damaged_object_forgets_no_newer_record() -> None:
    """
    1. The object is damaged. C has the record and asks the store for the object: nothing; the answer is on its way.
    2. A meets the same, and its fill ends: a new record is known.
    3. C's answer arrives. It may fetch once more, but a third client must find A's record in memory.
    """
    world = World()
    await store_image(world)
    world.store.objects.clear()
    arrives = world.store.gates["fetch"] = asyncio.Event()
    slow = asyncio.create_task(world.get(URL))
    await world.store.reached.wait()
    assert await world.get(URL) == ("stored", IMAGE)
    await world.image_service.drain()
    looked = world.image_index.calls["find"]
    world.origin.gate.clear()
    arrives.set()
    await settle()
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.image_index.calls["find"] == looked
    world.origin.gate.set()
    assert (await slow)[1] == IMAGE


async def test_follower_with_another_link_starts_its_own_fill() -> None:
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


async def test_each_dead_link_fails_by_itself() -> None:
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


async def test_denied_source_costs_nothing() -> None:
    world = World()
    with pytest.raises(SourceForbidden):
        await world.ask("https://refused.example/a.png")
    assert not world.origin.asked
    assert not world.store.calls


async def test_own_node_is_served_and_starts_no_fill() -> None:
    world = World()
    with pytest.raises(LoopDetected):
        await world.ask(URL, from_own_node=True)
    assert not world.origin.asked
    await store_image(world)
    assert (await world.ask(URL, from_own_node=True)).cache_status.value == "hit"


async def test_own_node_is_no_loop_while_the_store_fails() -> None:
    world = World()
    world.store.faults["find"] = StorageError("down")
    with pytest.raises(StorageError):
        await world.ask(URL, from_own_node=True)
