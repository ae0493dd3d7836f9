"""Located images: found by their record or filled first, with the same permissions as deliveries."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from imgkeep.core.errors import (
    LoopDetected,
    Removed,
    SignatureRequired,
    SourceNotFound,
    StorageError,
)
from imgkeep.core.source_url import read_source
from imgkeep.images.background_refresh import SourceRules
from imgkeep.images.request_context import CacheStatus, Located, RedirectToSource, RequestContext
from imgkeep.web.client_presence import ClientPresence
from tests.support.fakes import FakeResponse, World, settle
from tests.support.images import make_image
from tests.support.temporary_links import EXPIRED, FRESH, PLAIN, by_provider_rules

URL = "https://images.example/a.png"
IMAGE, OTHER = make_image(seed=1), make_image(seed=2)
CLIENT = RequestContext()


async def locate(
    world: World, url: str = URL, request_context: RequestContext = CLIENT, *, checked: bool = False
) -> Located:
    source = read_source(url)
    located = await world.image_service.locate(
        source, world.image_service.identify(source), request_context, checked=checked
    )
    assert isinstance(located, Located)
    return located


async def test_cold_image_is_stored_and_then_found() -> None:
    world = World()
    world.origin.gives(URL, IMAGE)
    cold = await locate(world)
    assert (cold.cache_status, cold.is_new, cold.immutable) == (CacheStatus.STORED, True, True)
    assert world.store.objects[cold.record.object_name] == IMAGE
    warm = await locate(world)
    assert (warm.record, warm.cache_status, warm.is_new) == (cold.record, CacheStatus.HIT, False)
    assert world.origin.asked == [URL]
    assert world.store.calls["fetch"] == 0, "a record is all that it takes"


async def test_requests_for_a_cold_image_share_its_fill() -> None:
    world = World()
    feed = FakeResponse(len(IMAGE))
    world.origin.gives(URL, lambda: feed)
    asked = [asyncio.create_task(locate(world)) for _ in range(5)]
    delivery = asyncio.create_task(world.get(URL))
    await settle()
    feed.push(IMAGE).end()
    located = await asyncio.gather(*asked)
    assert [each.cache_status for each in located] == [CacheStatus.STORED] + [CacheStatus.COLLAPSED] * 4
    assert len({each.record.etag for each in located}) == 1
    assert await delivery == ("collapsed", IMAGE)
    assert world.origin.asked == [URL]


async def test_client_that_leaves_does_not_end_the_fill() -> None:
    world = World()
    feed = FakeResponse(len(IMAGE))
    world.origin.gives(URL, lambda: feed)
    presence = ClientPresence()
    asked = asyncio.create_task(locate(world, request_context=RequestContext(wait=presence.wait)))
    await settle()
    presence.leave()
    with pytest.raises(ConnectionResetError):
        await asked
    feed.push(IMAGE).end()
    await world.image_service.drain()
    assert (await locate(world)).cache_status is CacheStatus.HIT


async def test_image_that_no_store_takes_is_a_fault_of_the_store() -> None:
    world = World()
    world.origin.gives(URL, IMAGE)
    world.store.faults["put"] = StorageError("the disk is full")
    with pytest.raises(StorageError, match="full"):
        await locate(world)


async def test_lost_object_is_fetched_again_where_the_caller_needs_it() -> None:
    world = World()
    world.origin.gives(URL, IMAGE)
    first = await locate(world)
    world.store.objects.clear()
    assert (await locate(world)).cache_status is CacheStatus.HIT
    again = await locate(world, checked=True)
    assert (again.cache_status, again.record.digest) == (CacheStatus.STORED, first.record.digest)
    assert world.origin.asked == [URL, URL]


async def test_dead_link_fails_as_it_does_for_a_delivery() -> None:
    world = World()
    with pytest.raises(SourceNotFound):
        await locate(world)


async def test_client_that_may_cause_no_fetch_is_shown_stored_images_alone() -> None:
    def refuse() -> None:
        raise SignatureRequired("sign the URL")

    world = World()
    world.origin.gives(URL, IMAGE)
    with pytest.raises(SignatureRequired):
        await locate(world, request_context=RequestContext(authorize_fetch=refuse))
    await locate(world)
    assert (await locate(world, request_context=RequestContext(authorize_fetch=refuse))).record.size == len(IMAGE)


async def test_another_node_of_this_installation_causes_no_fill() -> None:
    world = World()
    world.origin.gives(URL, IMAGE)
    with pytest.raises(LoopDetected):
        await locate(world, request_context=RequestContext(from_own_node=True))


async def test_removed_image_is_not_located() -> None:
    world = World()
    world.origin.gives(URL, IMAGE)
    located = await locate(world)
    world.blocked.add(located.record.digest)
    with pytest.raises(Removed):
        await locate(world)


async def test_operator_who_stores_no_permanent_links_redirects_to_them() -> None:
    world = World(rules=SourceRules(redirect_permanent=True))
    source = read_source(URL)
    located = await world.image_service.locate(source, world.image_service.identify(source), CLIENT)
    assert located == RedirectToSource(URL)


async def test_unverified_link_tries_its_own_image_first() -> None:
    """As a delivery does: the stored image may be another one than this link names."""
    world = World(identify=lambda source: replace(by_provider_rules(source), enforced=False, enforced_by_host=False))
    world.origin.gives(PLAIN, IMAGE)
    world.origin.gives(FRESH, OTHER)
    world.origin.gives(EXPIRED, OTHER)
    for url, body in ((FRESH, OTHER), (EXPIRED, OTHER)):
        located = await locate(world, url)
        delivered = await world.get(url)
        assert world.store.objects[located.record.object_name] == body == delivered[1]
        assert not located.immutable
