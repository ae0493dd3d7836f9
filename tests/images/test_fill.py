"""One fill: what it checks, what it stores, and what a fault of the store or the disk costs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import (
    ImgkeepError,
    NotAnImage,
    OriginError,
    OriginRefused,
    OriginTimeout,
    SourceForbidden,
    SourceNotFound,
    StorageError,
    TooLarge,
)
from imgkeep.core.source_url import read_source
from tests.support.fakes import FakeResponse, World, read_all, settle
from tests.support.fills import (
    DISK_FAULTS,
    FULL,
    IMAGE,
    URL,
    at_begin,
    forget_memory,
    store_image,
)
from tests.support.images import make_image

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("response", "error"),
    [
        pytest.param(lambda: FakeResponse().end(), NotAnImage, id="nothing"),
        pytest.param(lambda: FakeResponse().push(b"\x89").end(), NotAnImage, id="one byte"),
        pytest.param(lambda: FakeResponse().push(b"<html>", b"<p>expired</p>").end(), NotAnImage, id="HTML"),
        pytest.param(
            lambda: FakeResponse().push(make_image(width=101, height=100)).end(), TooLarge, id="too many pixels"
        ),
        pytest.param(lambda: FakeResponse().end(OriginTimeout("slow")), OriginTimeout, id="no first byte"),
    ],
)
async def test_no_byte_of_another_kind_reaches_a_reader(
    response: Callable[[], FakeResponse], error: type[Exception]
) -> None:
    world = World()
    world.origin.gives(URL, response)
    with pytest.raises(error):
        await world.ask(URL)
    await world.image_service.drain()
    assert not world.store.calls["put"]
    assert not world.disk.drafts


async def test_unframed_image_must_be_complete_by_its_format() -> None:
    world = World()
    world.origin.gives(
        URL,
        lambda: FakeResponse(framed=False).push(IMAGE[:-5]).end(),
        lambda: FakeResponse(framed=False).push(IMAGE).end(),
    )
    delivery = await world.ask(URL)
    with pytest.raises(OriginError, match="broke off"):
        await read_all(delivery)
    assert await world.get(URL) == ("stored", IMAGE)


async def test_image_in_single_bytes_is_stored() -> None:
    world = World()
    body = make_image("WEBP")
    world.origin.gives(URL, lambda: FakeResponse().push(*(body[at : at + 1] for at in range(len(body)))).end())
    assert await world.get(URL) == ("stored", body)
    (record,) = world.store.records.values()
    assert record.pixel_size is not None
    assert (record.pixel_size.width, record.pixel_size.height, record.size) == (64, 48, len(body))


async def test_size_is_known_at_the_end() -> None:
    world = World()
    response = FakeResponse().push(IMAGE[:1000])
    world.origin.gives(URL, lambda: response)
    delivery = await world.ask(URL)
    assert delivery.body.size is None
    size = asyncio.create_task(delivery.body.wait_for_size())
    await settle()
    assert not size.done()
    response.push(IMAGE[1000:]).end()
    assert await size == delivery.body.size == len(IMAGE)
    await delivery.body.aclose()


async def test_failure_is_raised_in_the_place_of_the_size() -> None:
    world = World()
    world.origin.gives(URL, lambda: FakeResponse().push(IMAGE[:1000]).end(OriginTimeout("slow")))
    delivery = await world.ask(URL)
    with pytest.raises(OriginTimeout):
        await delivery.body.wait_for_size()
    await delivery.body.aclose()


@pytest.mark.parametrize("verb", ["find", "fetch"])
async def test_unreadable_store_makes_the_service_ask_the_origin(verb: str) -> None:
    world = World()
    await store_image(world)
    forget_memory(world)
    world.image_index.records.clear()
    world.store.faults[verb] = StorageError("down")
    assert await world.get(URL) == ("not_stored", IMAGE)
    assert len(world.origin.asked) == 2


async def test_fill_during_a_store_fault_replaces_nothing() -> None:
    world = World()
    await store_image(world)
    forget_memory(world)
    world.image_index.records.clear()
    expired = make_image(seed=1)
    world.origin.gives(URL, expired)
    world.store.faults["find"] = StorageError("down")
    assert await world.get(URL) == ("not_stored", expired)
    world.store.faults.clear()
    assert await world.get(URL) == ("hit", IMAGE)


@pytest.mark.parametrize("verb", ["find", "fetch"])
@pytest.mark.parametrize("error", [SourceNotFound("x"), OriginRefused("x"), OriginError("x"), SourceForbidden("x")])
async def test_store_fault_is_not_reported_as_the_origins(verb: str, error: ImgkeepError) -> None:
    world = World()
    await store_image(world)
    forget_memory(world)
    world.image_index.records.clear()
    world.origin.gives(URL, error)
    world.store.faults[verb] = StorageError("down")
    for _ in range(2):  # the second time the failure is remembered
        with pytest.raises(StorageError) as caught:
            await world.ask(URL)
        assert caught.value.code == "storage_unavailable"
    world.store.faults.clear()
    assert await world.get(URL) == ("hit", IMAGE)


async def test_failing_image_index_costs_a_look_into_the_store() -> None:
    world = World()
    world.store.local_drafts_only = False
    world.image_index.fault = StorageError("locked")
    await store_image(world)
    forget_memory(world)
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.store.calls["find"] == 2
    world.image_index.fault = None
    forget_memory(world)
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.store.calls["find"] == 3
    assert world.image_index.records
    forget_memory(world)
    assert await world.get(URL) == ("hit", IMAGE)
    assert world.store.calls["find"] == 3


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize("break_disk", DISK_FAULTS)
async def test_failing_disk_fails_no_reader(
    break_disk: Callable[[World], None],
    declared: bool,  # noqa: FBT001 - a table
) -> None:
    world = World(memory_bytes=len(IMAGE))
    break_disk(world)
    response = FakeResponse(len(IMAGE) if declared else None).push(IMAGE[:30_000])
    world.origin.gives(URL, lambda: response, IMAGE)
    early = await world.ask(URL)
    assert early.cache_status.value == ("not_stored" if break_disk is at_begin else "stored")
    assert await early.body.read(0, 20_000) == IMAGE[:20_000]
    response.push(IMAGE[30_000:70_000], IMAGE[70_000:])
    await settle()
    late = await world.ask(URL)
    response.end()
    assert await read_all(late) == IMAGE
    assert await read_all(early, piece=777) == IMAGE
    await world.image_service.drain()
    assert world.observer.reasons == ["the disk is full"]
    assert not world.observer.sizes
    assert not world.store.records
    assert world.memory.bytes_left == len(IMAGE)
    assert [draft.closed for draft in world.disk.drafts] == [1] * len(world.disk.drafts)
    # The next request asks the origin again; with a disk that works the image is stored.
    world.disk.fault, world.disk.bytes_max, world.store.faults = None, None, {}
    assert await world.get(URL) == ("stored", IMAGE)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize("break_disk", DISK_FAULTS[:-1])
async def test_memory_budget_is_kept_and_returned(
    break_disk: Callable[[World], None],
    declared: bool,  # noqa: FBT001 - a table
) -> None:
    world = World(memory_bytes=len(IMAGE) - 1)
    break_disk(world)
    world.origin.gives(
        URL, lambda: FakeResponse(len(IMAGE) if declared else None).push(IMAGE[:50_000], IMAGE[50_000:]).end()
    )
    with pytest.raises(StorageError, match="memory for such images"):
        await read_all(await world.ask(URL))
    await world.image_service.drain()
    assert world.memory.bytes_left == len(IMAGE) - 1
    assert [draft.closed for draft in world.disk.drafts] == [1] * len(world.disk.drafts)


async def test_save_that_fails_closes_no_body_under_a_reader() -> None:
    world = World()
    world.origin.gives(URL, lambda: FakeResponse(len(IMAGE)).push(IMAGE[:50_000], IMAGE[50_000:]).end())
    world.store.faults["put"] = FULL
    delivery = await world.ask(URL)
    source = read_source(URL)
    with pytest.raises(StorageError, match="the disk is full"):
        await world.image_service.save(source, world.image_service.identify(source))
    await world.image_service.drain()
    assert [draft.closed for draft in world.disk.drafts] == [0]
    assert await read_all(delivery) == IMAGE
    assert [draft.closed for draft in world.disk.drafts] == [1]


async def test_results_add_up() -> None:
    world = World()
    good, dead, full = (f"https://images.example/{name}.png" for name in ("good", "dead", "full"))
    world.origin.gives(good, IMAGE)
    world.origin.gives(full, IMAGE)
    await world.get(good)
    with pytest.raises(SourceNotFound):
        await world.get(dead)
    world.store.faults["put"] = FULL
    await world.get(full)
    await world.image_service.drain()
    assert (world.observer.sizes, world.observer.reasons) == ([len(IMAGE)], ["the disk is full"])
    assert len(world.observer.results) == len(world.origin.asked) == 3
