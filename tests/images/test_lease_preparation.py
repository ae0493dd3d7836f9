"""Leases that are requested while the store looks an image up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import Removed, SignatureRequired
from imgkeep.core.source_url import read_source
from imgkeep.images.interfaces import Cluster
from imgkeep.images.request_context import RequestContext
from tests.support.fakes import World, settle
from tests.support.fills import IMAGE, OTHER, URL, forget_memory, store_image
from tests.support.leases import LocalLeases
from tests.support.peer_fills import NoPeers

if TYPE_CHECKING:
    from imgkeep.core.records import Key, Record
    from imgkeep.images.interfaces import LeaseRequest


class Granted:
    """The answer that this worker has the lease."""

    async def answer(self) -> None:
        return None


class NodesLeases(LocalLeases):
    """Leases of a cluster whose other nodes want nothing; notes what happens to them."""

    grace_s: float = 10

    def __init__(self) -> None:
        self.calls: list[str] = []

    def acquire(self, name: str) -> str | None:
        del name
        return None

    def prepare(self, _name: str, _link: bytes) -> bool:
        self.calls.append("prepare")
        return True

    def request(self, _name: str, _link: bytes) -> LeaseRequest:
        self.calls.append("request")
        return Granted()

    def release(self, name: str, *, stored: bool = False) -> None:
        del name
        self.calls.append("stored" if stored else "release")


def on_nodes(beside: World | None = None) -> tuple[World, NodesLeases]:
    leases = NodesLeases()
    return World(beside=beside, cluster=Cluster(leases, NoPeers())), leases


async def test_fill_takes_the_lease() -> None:
    world, leases = on_nodes()
    await store_image(world)
    assert leases.calls == ["prepare", "request", "stored"]
    assert await world.get(URL) == ("hit", IMAGE)
    assert leases.calls == ["prepare", "request", "stored"], "a hit asks for nothing"


async def test_last_lookup_that_finds_the_image_releases() -> None:
    other, _ = on_nodes()
    await store_image(other)
    world, leases = on_nodes(other)
    world.image_index.records.clear()
    gates = [asyncio.Event(), asyncio.Event()]
    asking = []
    for gate, link in zip(gates, (URL, OTHER), strict=True):
        world.store.gates["find"] = gate
        asking.append(asyncio.create_task(world.get(link)))
        await settle()
    gates[1].set()
    assert await asking[1] == ("hit", IMAGE)
    assert leases.calls == ["prepare"]
    gates[0].set()
    assert await asking[0] == ("hit", IMAGE)
    assert leases.calls == ["prepare", "release"]


async def test_lookup_of_a_client_that_left_releases() -> None:
    world, leases = on_nodes()
    world.store.gates["find"] = asyncio.Event()
    asking = asyncio.create_task(world.get(URL))
    await world.store.reached.wait()
    asking.cancel()
    await asyncio.wait([asking])
    assert leases.calls == ["prepare", "release"]


async def test_peer_waits_until_the_lookup_has_ended() -> None:
    world, leases = on_nodes()
    world.origin.gives(URL, IMAGE)
    gate = world.store.gates["find"] = asyncio.Event()
    asking = asyncio.create_task(world.get(URL))
    await world.store.reached.wait()
    key = world.image_service.identify(read_source(URL)).key
    joining = asyncio.create_task(world.image_service.join_for_peer(key))
    waiting = asyncio.create_task(world.image_service.wait_for_fill(key))
    await settle()
    assert not joining.done()
    assert not waiting.done()
    gate.set()
    joined = await joining
    assert isinstance(joined, tuple)
    await joined[0].aclose()
    await waiting
    assert await asking == ("stored", IMAGE)
    assert leases.calls == ["prepare", "request", "stored"]


async def test_request_that_may_cause_no_fill_prepares_none() -> None:
    world, leases = on_nodes()

    def refuse() -> None:
        raise SignatureRequired("sign it")

    source = read_source(URL)
    info = world.image_service.identify(source)
    with pytest.raises(SignatureRequired):
        await world.image_service.deliver(source, info, RequestContext(authorize_fetch=refuse))
    assert leases.calls == []


async def test_removed_image_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world, leases = on_nodes()

    async def find_removed(_key: Key) -> Record | None:
        raise Removed("an operator has removed it")

    monkeypatch.setattr(world.store, "find", find_removed)
    for _ in range(2):
        forget_memory(world)
        with pytest.raises(Removed):
            await world.get(URL)
    assert leases.calls == ["prepare", "release"]
