"""The result of a fill reaches every listener, so no lease stays behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from imgkeep.core.errors import Removed
from imgkeep.images.fill_result import Stored
from imgkeep.images.interfaces import Cluster
from tests.support.fakes import World
from tests.support.fills import IMAGE, URL
from tests.support.images import make_image
from tests.support.leases import LocalLeases
from tests.support.peer_fills import NoPeers
from tests.support.temporary_links import FRESH, by_provider_rules

if TYPE_CHECKING:
    import pytest

    from imgkeep.core.records import Key, Record, Source, SourceInfo


class OwnLeases(LocalLeases):
    """Leases that no other worker wants."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    def acquire(self, name: str) -> str | None:
        self.held.add(name)
        return None

    def release(self, name: str, *, stored: bool = False) -> None:
        del stored
        self.held.remove(name)


async def test_cancelled_listener_leaves_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    leases = OwnLeases()
    world = World(cluster=Cluster(leases, NoPeers()))
    world.origin.gives(URL, IMAGE)
    reached = asyncio.Event()

    async def hang(_record: Record) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(world.image_index, "put", hang)
    delivery = await world.ask(URL)
    await reached.wait()
    assert leases.held == {delivery.key}
    await world.image_service.aclose()
    await delivery.body.aclose()
    assert not leases.held
    assert [type(result.outcome) for result in world.observer.results] == [Stored]


def immutable(source: Source) -> SourceInfo:
    """Take every link for one that is verified and has no end."""
    return replace(by_provider_rules(source), expires_at=None)


async def test_refetch_of_removed_image_leaves_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    leases, whole = OwnLeases(), make_image(seed=1)
    world = World(identify=immutable, cluster=Cluster(leases, NoPeers()))
    world.origin.gives(FRESH, whole[: len(whole) // 2], whole)
    await world.get(FRESH)
    await world.image_service.drain()
    world.wait(60)
    delivery = await world.ask(FRESH)
    assert leases.held == {f"refresh.{delivery.key}"}

    async def find_removed(_key: Key) -> Record | None:
        raise Removed("another node has removed it")

    monkeypatch.setattr(world.store, "find", find_removed)
    await world.image_service.drain()
    await delivery.body.aclose()
    assert not leases.held
