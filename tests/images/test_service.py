"""What the service finds, delivers and leaves, among fakes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from hashlib import sha256

import pytest

from imgkeep.core.errors import (
    OriginError,
    Removed,
    SourceExpired,
    SourceNotFound,
    StorageError,
)
from imgkeep.core.records import Digest
from imgkeep.images.request_context import Delivery
from tests.support.fakes import FakeResponse, World, read_all, settle
from tests.support.fills import (
    IMAGE,
    OTHER,
    URL,
    forget_memory,
    store_image,
)
from tests.support.images import make_image


async def test_shutdown_during_a_fill_leaves_nothing() -> None:
    world = World()
    world.origin.gives(URL, lambda: FakeResponse(len(IMAGE)).push(IMAGE[:50_000]))
    delivery = await world.ask(URL)
    assert await delivery.body.read(0, 10)
    waiting = asyncio.create_task(read_all(delivery))
    world.origin.gives(OTHER.replace("a.png", "b.png"), FakeResponse)
    headless = asyncio.create_task(world.ask(OTHER.replace("a.png", "b.png")))
    await settle()
    await world.image_service.aclose()
    for reader in (waiting, headless):
        with pytest.raises(StorageError, match="shut down"):
            await reader
    assert world.image_service.fills_in_flight == world.origin.under_way == 0
    assert not world.store.calls["put"]
    assert [draft.closed for draft in world.disk.drafts] == [1]


async def test_drain_waits_for_running_fills() -> None:
    world = World()
    response = FakeResponse().push(IMAGE[:50_000])
    world.origin.gives(URL, lambda: response)
    delivery = await world.ask(URL)
    await delivery.body.aclose()
    landing = asyncio.create_task(world.image_service.drain())
    await settle()
    assert not landing.done()
    response.push(IMAGE[50_000:]).end()
    await landing
    assert len(world.store.records) == 1


async def test_unexpected_error_reaches_readers_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.origin.gives(URL, lambda: FakeResponse().push(IMAGE[:50_000]).end(ZeroDivisionError("a bug")), IMAGE)
    delivery = await world.ask(URL)
    with caplog.at_level(logging.ERROR), pytest.raises(ZeroDivisionError):
        await read_all(delivery)
    await world.image_service.drain()
    assert [record.getMessage() for record in caplog.records] == ["fill failed unexpectedly"]
    assert await world.get(URL) == ("stored", IMAGE)


async def test_warm_hit_looks_up_no_record() -> None:
    world = World()
    await store_image(world)
    database, store = world.image_index.calls.copy(), world.store.calls.copy()
    for _ in range(10):
        assert await world.get(URL) == ("hit", IMAGE)
    assert world.image_index.calls == database
    assert world.store.calls - store == {"fetch": 10}
    assert len(world.origin.asked) == 1


async def test_indexed_record_spares_a_look_into_a_remote_store() -> None:
    world = World()
    world.store.local_drafts_only = False
    await store_image(world)
    forget_memory(world)
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.store.calls["find"] == 1


async def test_damaged_object_is_fetched_again() -> None:
    world = World()
    await store_image(world)
    world.store.objects.clear()
    assert await world.get(URL) == ("stored", IMAGE)
    assert await world.get(OTHER) == ("hit", IMAGE)


async def test_outdated_row_gives_way_to_the_record() -> None:
    world = World()
    await store_image(world)
    key, record = next(iter(world.image_index.records.items()))
    world.image_index.records[key] = replace(record, digest=Digest("0" * 64))
    forget_memory(world)
    world.origin.gives(URL, SourceNotFound("x"))
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.image_index.records[key] == record


async def test_no_answer_of_an_origin_removes_an_image() -> None:
    world = World()
    await store_image(world)
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


async def test_object_is_delivered_by_its_name() -> None:
    world = World()
    await store_image(world)
    (name,) = world.store.objects
    delivery = await world.image_service.deliver_object(name)
    assert isinstance(delivery, Delivery)
    assert (delivery.etag, delivery.object_name, await read_all(delivery)) == (f'"{name[:64]}"', name, IMAGE)


@pytest.mark.parametrize(
    "name", ["", "a.png", "0" * 64 + ".exe", "0" * 64, "../" + "0" * 64 + ".png", "0" * 64 + ".png"]
)
async def test_other_names_are_a_miss(name: str) -> None:
    world = World()
    assert await world.image_service.deliver_object(name) is None
    assert world.store.calls["fetch"] == (name == "0" * 64 + ".png")


async def test_store_fault_is_no_miss() -> None:
    world = World()
    world.store.faults["fetch"] = StorageError("down")
    with pytest.raises(StorageError):
        await world.image_service.deliver_object("0" * 64 + ".png")


async def test_every_fill_draws_its_own_etag() -> None:
    world = World()
    world.origin.gives(URL, IMAGE)
    miss = await world.ask(URL)
    await read_all(miss)
    await world.image_service.drain()
    hit = await world.ask(URL)
    assert (hit.etag, hit.name) == (miss.etag, miss.name)
    forget_memory(world)
    world.image_index.records.clear()
    assert (await world.ask(URL)).etag == miss.etag
    url = "https://images.example/same.png"
    world.origin.gives(url, IMAGE)
    assert (await world.ask(url)).etag != miss.etag
    await world.image_service.drain()


async def test_image_removed_during_its_put_is_not_shown() -> None:
    world = World()
    body = make_image()
    world.origin.gives(URL, body)
    durable = world.store.gates["put"] = asyncio.Event()
    getting = asyncio.create_task(world.get(URL))
    await world.store.reached.wait()
    world.blocked.add(Digest(sha256(body).hexdigest()))
    durable.set()
    with pytest.raises(Removed):
        await getting
    assert world.store.tombstones == [], "the link may bring another image some day"
    with pytest.raises(Removed):
        await world.get(URL)
