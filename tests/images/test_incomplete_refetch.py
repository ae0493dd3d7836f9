"""Incomplete images, among fakes: when they are fetched again, and what replaces them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.confirmation import standing_of
from imgkeep.core.errors import Busy, NotAnImage, OriginRefused, OriginTimeout, SourceForbidden, StorageError
from imgkeep.core.identity import identify
from imgkeep.core.records import Doubt, Record, Standing
from imgkeep.core.source_url import read_source
from imgkeep.images import fill_checks
from imgkeep.images.fill_checks import GATHERED_BYTES_MAX
from imgkeep.images.incomplete_refetch import REFETCHES_MAX
from imgkeep.images.request_context import RequestContext
from tests.support.fakes import FakeResponse, World, read_all, settle, whole
from tests.support.images import make_image
from tests.support.temporary_links import FRESH, FRESHER, by_provider_rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Source, SourceInfo

WHOLE, OTHER = make_image(seed=1), make_image(seed=2)
HALF, MORE = WHOLE[: len(WHOLE) // 2], WHOLE[: len(WHOLE) * 3 // 4]
DAY_S = 86_400
BARE = "https://images.example/b.png"
UNVERIFIED = "https://images.example/b.png?Signature=1&Expires=1893456000"
INVENTED = "https://images.example/b.png?Signature=2&Expires=1893456000"


def unverified(source: Source) -> SourceInfo:
    """Take every query for a signature that may be unchecked."""
    bare = read_source(source.url.partition("?")[0])
    info = identify(bare, World().now)
    return replace(info, permission=bare != source, enforced=bare == source)


def immutable(source: Source) -> SourceInfo:
    """Take every link for one that is verified and has no end."""
    return replace(by_provider_rules(source), expires_at=None)


@pytest.fixture
def world() -> World:
    return World(identify=immutable)


async def begin(world: World, *later: Callable[[], FakeResponse] | Exception | bytes, url: str = FRESH) -> Record:
    """Store half an image, and have the origin send `later` from then on."""
    world.origin.gives(url, HALF)
    assert await world.get(url) == ("stored", HALF)
    await world.image_service.drain()
    world.origin.asked.clear()
    if later:
        world.origin.gives(url, *later)
    (record,) = world.store.records.values()
    assert record.doubts >= {Doubt.INCOMPLETE}
    return record


async def look(world: World, url: str = FRESH) -> bytes:
    """Request the image; return what is shown, after the refetch that the request may cause."""
    outcome, shown = await world.get(url)
    assert outcome == "hit"
    await world.image_service.drain()
    return shown


def record_of(world: World) -> Record:
    (record,) = (record for record in world.store.records.values() if "#link=" not in record.identity)
    return record


async def test_half_image_is_stored_and_cached_for_a_minute(world: World) -> None:
    record = await begin(world)
    assert standing_of(record) is Standing.PROVISIONAL
    delivery = await world.ask(FRESH)
    assert not delivery.immutable
    assert await read_all(delivery) == HALF
    assert world.origin.asked == []


@pytest.mark.parametrize("body", [WHOLE, make_image("JPEG"), make_image("GIF"), make_image("WEBP"), make_image("BMP")])
async def test_whole_image_at_once_is_immutable(world: World, body: bytes) -> None:
    world.origin.gives(FRESH, lambda: whole(body, size=len(body)))
    delivery = await world.ask(FRESH)
    assert delivery.immutable
    assert await read_all(delivery) == body
    assert not record_of(world).doubts


@pytest.mark.parametrize("body", [WHOLE, make_image("JPEG"), make_image("GIF"), make_image("WEBP")])
@pytest.mark.parametrize("is_told", [False, True], ids=["size unknown", "size told"])
async def test_chunks_that_have_arrived_show_the_end(
    world: World,
    body: bytes,
    is_told: bool,  # noqa: FBT001 - a table
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fill_checks, "GATHERING_S", 60)  # a busy machine may take long for an iteration
    pieces = [body[at : at + 200] for at in range(0, len(body), 200)]
    world.origin.gives(FRESH, lambda: FakeResponse(len(body) if is_told else None).push(*pieces).end())
    delivery = await world.ask(FRESH)
    assert delivery.immutable
    assert await read_all(delivery) == body


async def test_large_image_is_not_gathered_before_first_byte(world: World) -> None:
    feed = FakeResponse(GATHERED_BYTES_MAX + 1).push(WHOLE[:1000], WHOLE[1000:])
    world.origin.gives(FRESH, lambda: feed)
    delivery = await world.ask(FRESH)
    assert not delivery.immutable
    feed.end(OriginTimeout("cut short"))
    await world.image_service.drain()


@pytest.mark.parametrize("size", [len(WHOLE), None])
async def test_unfinished_image_is_cached_for_a_minute(world: World, size: int | None) -> None:
    feed = FakeResponse(size).push(WHOLE[:500], WHOLE[500:1000])
    world.origin.gives(FRESH, lambda: feed)
    delivery = await world.ask(FRESH)
    assert not delivery.immutable, "its first bytes do not wait for the others"
    feed.push(WHOLE[1000:]).end()
    assert await read_all(delivery) == WHOLE
    later = await world.ask(FRESH)
    assert later.immutable
    await read_all(later)


async def test_last_byte_waits_for_durable_half_image(world: World) -> None:
    world.origin.gives(FRESH, HALF)
    gate = world.store.gates["put"] = asyncio.Event()
    delivery = await world.ask(FRESH)
    reading = asyncio.create_task(read_all(delivery))
    await world.store.reached.wait()
    await settle()
    assert not reading.done()
    gate.set()
    assert await reading == HALF


async def test_whole_image_replaces_half_in_background(world: World) -> None:
    before = await begin(world, WHOLE)
    world.wait(59)
    assert await look(world) == HALF
    assert world.origin.asked == []
    world.wait(1)
    assert await look(world) == HALF, "the client does not wait"
    assert world.origin.asked == [FRESH]
    delivery = await world.ask(FRESH)
    assert delivery.immutable
    assert await read_all(delivery) == WHOLE
    after = record_of(world)
    assert (after.doubts, after.brought_by, after.refetches) == (frozenset(), "", None)
    assert after.etag != before.etag
    assert before.object_name in world.store.objects, "the old bytes stay under their permanent URL"
    assert world.observer.completions == ["whole"]
    world.wait(DAY_S)
    assert await look(world) == WHOLE
    assert world.origin.asked == [FRESH]


async def test_refetch_interval_grows(world: World) -> None:
    await begin(world)
    times = []
    began = world.now
    for _ in range(40):
        world.wait(60)
        before = len(world.origin.asked)
        await look(world)
        await look(world)
        if len(world.origin.asked) > before:
            times.append((world.now - began).total_seconds())
    assert times == [60, 240, 780, 2400]
    assert world.origin.conditions == [None] * 5, "a 304 is in question"


async def test_refetch_interval_survives_restart(world: World) -> None:
    await begin(world)
    world.wait(60)
    await look(world)
    world.restart()
    world.wait(179)
    await look(world)
    assert len(world.origin.asked) == 1
    world.restart()
    world.wait(1)
    await look(world)
    assert len(world.origin.asked) == 2


async def test_equal_bytes_over_a_day_confirm(world: World) -> None:
    await begin(world)
    for _ in range(60):
        world.wait(3600)
        assert await look(world) == HALF
    record = record_of(world)
    assert not record.doubts
    assert record.refetches is not None
    assert record.refetches.equal >= 3
    delivery = await world.ask(FRESH)
    assert delivery.immutable
    await read_all(delivery)
    asked = len(world.origin.asked)
    assert asked == record.refetches.tries
    assert world.observer.completions == ["equal"] * asked + ["confirmed"]
    world.restart()
    world.wait(DAY_S * 30)
    await look(world)
    assert len(world.origin.asked) == asked


async def test_longer_image_replaces_its_beginning_only(world: World) -> None:
    await begin(world, MORE)
    world.wait(60)
    await look(world)
    assert await look(world) == MORE
    world.origin.gives(FRESH, HALF)
    world.wait(180)
    await look(world)
    assert await look(world) == MORE
    world.origin.gives(FRESH, OTHER[:-100])
    world.wait(DAY_S)
    await look(world)
    assert await look(world) == MORE
    assert world.observer.completions == ["longer", "other", "other"]
    assert record_of(world).doubts == {Doubt.INCOMPLETE}


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(OriginTimeout("it hangs"), id="a timeout"),
        pytest.param(OriginRefused("the origin says 403", origin_status=403), id="403"),
        pytest.param(NotAnImage("a page"), id="a page"),
        pytest.param(lambda: FakeResponse().push(WHOLE).end(OriginTimeout("cut short")), id="cut short"),
        pytest.param(lambda: FakeResponse(framed=False).push(HALF).end(), id="cut and unframed"),
        pytest.param(b"<html>", id="html"),
        pytest.param(make_image(width=200, height=200), id="too many pixels"),
    ],
)
async def test_failed_refetch_of_half_image_changes_nothing(
    world: World, failure: Callable[[], FakeResponse] | Exception | bytes
) -> None:
    await begin(world, failure)
    world.wait(60)
    assert await look(world) == HALF
    world.origin.gives(FRESH, WHOLE)
    world.wait(61)
    assert await look(world) == HALF
    world.wait(300)
    assert await look(world) == HALF
    assert await look(world) == WHOLE


async def test_failure_makes_interval_grow(world: World) -> None:
    await begin(world, OriginTimeout("it hangs"))
    world.wait(60)
    await look(world)
    world.wait(179)
    await look(world)
    assert len(world.origin.asked) == 1
    world.wait(1)
    await look(world)
    assert len(world.origin.asked) == 2
    assert world.observer.completions == ["failed", "failed"]


async def test_busy_server_is_no_failure_of_origin(world: World) -> None:
    await begin(world, Busy("too many fetches"), WHOLE)
    world.wait(60)
    await look(world)
    assert record_of(world).refetches is None
    world.wait(60)
    await look(world)
    assert await look(world) == WHOLE


async def test_store_fault_leaves_image(world: World) -> None:
    await begin(world, WHOLE)
    world.wait(60)
    world.store.faults["put"] = StorageError("the disk is full")
    await look(world)
    world.store.faults.clear()
    assert await look(world) == HALF
    world.wait(60)
    await look(world)
    assert await look(world) == WHOLE


async def test_many_requests_cause_one_refetch(world: World) -> None:
    await begin(world, WHOLE)
    world.wait(60)
    world.origin.gate.clear()
    assert [await look_away(world) for _ in range(20)] == [HALF] * 20
    await world.origin.reached.wait()
    assert await look_away(world) == HALF
    world.origin.gate.set()
    await world.image_service.drain()
    assert world.origin.asked == [FRESH]


async def look_away(world: World) -> bytes:
    return (await world.get(FRESH))[1]


async def test_refetch_sees_image_of_other_node(world: World) -> None:
    record = await begin(world, WHOLE)
    world.wait(60)
    noted = replace(record, stored_at=world.now)
    world.store.records[record.key] = noted
    assert await look(world) == HALF
    assert world.origin.asked == [], "the store knows better than memory"


async def test_renewed_link_completes_image(world: World) -> None:
    await begin(world)
    world.origin.gives(FRESH, OriginRefused("the origin says 403", origin_status=403))
    world.origin.gives(FRESHER, OTHER)
    world.wait(60)
    assert await look(world, FRESHER) == HALF
    assert await look(world, FRESHER) == OTHER


async def test_expired_link_is_not_fetched_again() -> None:
    world = World(identify=by_provider_rules)
    await begin(world)
    world.wait(3600)
    assert await look(world) == HALF
    assert world.origin.asked == []


@pytest.mark.parametrize(
    "request_context",
    [
        RequestContext(from_own_node=True),
        RequestContext(authorize_fetch=lambda: (_ for _ in ()).throw(SourceForbidden("no"))),
    ],
)
async def test_unauthorized_client_causes_no_refetch(world: World, request_context: RequestContext) -> None:
    await begin(world)
    world.wait(60)
    source = read_source(FRESH)
    delivery = await world.image_service.deliver(source, by_provider_rules(source), request_context)
    await read_all(delivery)  # type: ignore[arg-type]  # it is one
    await world.image_service.drain()
    assert world.origin.asked == []


async def test_number_of_refetches_is_bounded() -> None:
    world = World()
    urls = [f"https://images.example/{number}.png" for number in range(REFETCHES_MAX + 2)]
    for number, url in enumerate(urls):
        world.origin.gives(url, make_image(seed=number)[:-20])
        await world.get(url)
    await world.image_service.drain()
    world.wait(60)
    world.origin.asked.clear()
    world.origin.gate.clear()
    for url in urls:
        assert (await world.get(url))[0] == "hit"
    await settle()
    assert len(world.origin.asked) == REFETCHES_MAX
    world.origin.gate.set()
    await world.image_service.drain()


async def test_save_of_half_image_refetches_it(world: World) -> None:
    await begin(world, WHOLE)
    world.wait(60)
    source = read_source(FRESH)
    record, created = await world.image_service.save(source, by_provider_rules(source))
    assert (record.doubts, created) == (frozenset({Doubt.INCOMPLETE}), False)
    await world.image_service.drain()
    assert await look(world) == WHOLE


# Links that are not verified


async def test_invented_link_neither_replaces_nor_confirms_nor_delays() -> None:
    world = World(identify=unverified)
    await begin(world, url=UNVERIFIED)
    world.origin.gives(INVENTED, OTHER)
    assert (await world.get(INVENTED))[1] == OTHER, "the link shows what it brings itself"
    await world.image_service.drain()
    assert record_of(world).refetches is None
    assert await look(world, UNVERIFIED) == HALF
    world.origin.gives(INVENTED.replace("=2", "=3"), HALF)
    for _ in range(60):
        world.wait(3600)
        await world.get(INVENTED.replace("=2", "=3"))
        await world.image_service.drain()
    assert record_of(world).doubts >= {Doubt.INCOMPLETE}
    assert record_of(world).refetches is None
    world.origin.gives(UNVERIFIED, WHOLE)
    assert await look(world, UNVERIFIED) == HALF
    assert await look(world, UNVERIFIED) == WHOLE


async def test_longer_image_counts_by_any_link() -> None:
    world = World(identify=unverified)
    await begin(world, url=UNVERIFIED)
    world.origin.gives(INVENTED, WHOLE)
    assert (await world.get(INVENTED))[1] == WHOLE
    await world.image_service.drain()
    assert (await world.get(UNVERIFIED))[1] == HALF, "its second fill brings no more than before"
    await world.image_service.drain()
    assert await look(world, UNVERIFIED) == WHOLE, "its second fill has shown that it names this image"
    assert len(world.store.records) == 1


async def test_link_of_other_kind_is_tried_once() -> None:
    """A confirmed key serves a fresh link without a second fill."""
    world = World(identify=unverified)
    record = await begin(world, url=UNVERIFIED)
    world.store.records[record.key] = record.with_doubts(frozenset({Doubt.INCOMPLETE}))
    world.restart()
    world.origin.gives(INVENTED, OTHER)
    for _ in range(3):
        assert await look(world, INVENTED) == HALF
        world.wait(3600)
    assert world.origin.asked == [INVENTED]
    assert record_of(world).refetches is None
    fresh = INVENTED.replace("=2", "=3")
    world.origin.gives(fresh, WHOLE)
    assert await look(world, fresh) == HALF
    assert await look(world, fresh) == WHOLE


async def test_bare_link_completes_image_of_bare_link() -> None:
    world = World(identify=unverified)
    await begin(world, WHOLE, url=BARE)
    world.wait(60)
    await look(world, BARE)
    assert await look(world, BARE) == WHOLE
    assert record_of(world).doubts == {Doubt.UNSIGNED}


# Links whose signature a stranger may have invented


def shaped(source: Source) -> SourceInfo:
    """Take every query for a signature of a shape that services check, at a host that is not known."""
    return replace(unverified(source), enforced=True, enforced_by_host=False)


def refused() -> OriginRefused:
    return OriginRefused("the origin says 403", origin_status=403)


def shape(number: int) -> str:
    return UNVERIFIED.replace("=1&", f"={number}&")


@pytest.mark.parametrize("failure", [refused(), NotAnImage("a page"), SourceForbidden("it redirects to a login page")])
async def test_refused_links_delay_no_good_link(world: World, failure: Exception) -> None:
    await begin(world)
    for number in range(30):
        invented = FRESH.replace("Signature=0", f"Signature={number % 10 + 1:x}")
        world.origin.gives(invented, failure)
        world.wait(60)
        await look(world, invented)
    assert record_of(world).refetches is None
    asked = len(world.origin.asked)
    assert asked <= 10, "each link once a day"
    world.origin.gives(FRESHER, WHOLE)
    assert await look(world, FRESHER) == HALF, "in the same minute as a refused link"
    assert await look(world, FRESHER) == WHOLE
    assert len(world.origin.asked) == asked + 1


async def test_unreachable_origin_makes_interval_grow(world: World) -> None:
    await begin(world)
    world.origin.gives(FRESHER, OriginTimeout("it hangs"))
    world.wait(60)
    await look(world, FRESHER)
    assert record_of(world).refetches is not None


async def test_invented_shape_neither_replaces_nor_delays_half_image() -> None:
    world = World(identify=shaped)
    await begin(world, url=UNVERIFIED)
    for number in range(2, 40):
        world.origin.gives(shape(number), OTHER if number % 2 else OTHER[:-12])
        world.wait(3600)
        await look(world, shape(number))
        assert await look(world, UNVERIFIED) == HALF
    record = record_of(world)
    assert Doubt.INCOMPLETE not in record.doubts, "its own link has brought the same over a day"
    assert record.refetches is not None
    assert record.refetches.equal >= 3


async def test_shape_with_checked_signature_completes_image() -> None:
    spoiled = read_source(shape(99))
    world = World(identify=shaped, make_invalid_signature=lambda _: spoiled)
    await begin(world, url=UNVERIFIED)
    world.origin.gives(spoiled.url, refused())
    world.origin.gives(UNVERIFIED, refused())
    world.origin.gives(shape(2), OTHER)
    world.wait(60)
    assert await look(world, shape(2)) == HALF
    await world.image_service.drain()
    assert (await world.get(shape(3)))[1] == OTHER
    assert Doubt.INCOMPLETE not in record_of(world).doubts


async def test_plain_http_confirms_nothing_of_https() -> None:
    world = World(identify=unverified)
    await begin(world, OriginTimeout("it hangs"), url=BARE)
    bare = BARE.replace("https", "http")
    world.origin.gives(bare, HALF)
    for _ in range(60):
        world.wait(3600)
        await world.get(bare)
        await world.image_service.drain()
    record = record_of(world)
    assert record.doubts >= {Doubt.INCOMPLETE}
    assert record.refetches is None or record.refetches.equal == 0
