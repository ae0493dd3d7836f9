"""Fills of every kind on several nodes: saves, second fills, refetches and refreshes, once in the cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import SourceNotFound
from imgkeep.core.records import Key
from imgkeep.core.source_url import read_source
from imgkeep.images.interfaces import NO_LINK
from imgkeep.images.operator_refetch import Refetcher
from imgkeep.images.request_context import HeldByPeer
from imgkeep.images.signature_probe import SignatureProbe
from tests.support.fakes import OPEN_POLICY, settle
from tests.support.fills import IMAGE, URL
from tests.support.images import make_image
from tests.support.lease_nodes import LeaseNode, lease_database, lease_nodes, two_workers
from tests.support.temporary_links import EXPIRED, FRESH, by_provider_rules
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from imgkeep.core.records import Record
    from tests.support.postgresql import PostgresqlServer


@pytest.fixture(scope="module")
def database(postgresql: PostgresqlServer) -> Iterator[str]:
    with lease_database(postgresql) as url:
        yield url


@pytest.fixture
def url(database: str, postgresql: PostgresqlServer) -> str:
    """Give the URL of a database without members and leases."""
    postgresql.execute("TRUNCATE cluster_members, cluster_leases", database.rpartition("/")[2])
    return database


async def save(node: LeaseNode, link: str) -> tuple[Record, bool]:
    source = read_source(link)
    return await node.world.image_service.save(source, node.world.image_service.identify(source))


async def test_saves_on_several_nodes_fetch_once(url: str) -> None:
    async with lease_nodes(url, "a", "b", "c") as nodes:
        for node in nodes:
            node.world.origin.gives(URL, IMAGE)
        saved = await asyncio.gather(*(save(node, URL) for node in nodes))
        assert sorted(created for _, created in saved) == [False, False, True]
        assert len({record.etag for record, _ in saved}) == 1
        assert sum(len(node.world.origin.asked) for node in nodes) == 1


async def test_save_does_not_wait_for_a_node_that_cannot_be_reached(url: str) -> None:
    async with lease_nodes(url, "a", "b") as (a, b):
        a.world.origin.gate.clear()
        a.world.origin.gives(URL, IMAGE)
        b.world.origin.gives(URL, IMAGE)
        first = asyncio.create_task(save(a, URL))
        await a.world.origin.reached.wait()
        a.is_cut_off = True
        assert (await save(b, URL))[1]
        assert b.leases.unleased == 1
        a.world.origin.gate.set()
        assert not (await first)[0].pending


async def test_second_fill_runs_on_one_node(url: str) -> None:
    old, new = make_image(seed=1), make_image(seed=2)
    async with lease_nodes(url, "a", "b", identify=by_provider_rules) as (a, b):
        a.world.origin.gives(EXPIRED, old)
        await a.world.get(EXPIRED)
        await a.world.image_service.drain()
        for node in (a, b):
            node.world.origin.gives(FRESH, new)
            node.world.origin.gate.clear()
        asking = [asyncio.create_task(node.world.get(FRESH)) for node in (a, b)]
        await until(lambda: bool(a.followed or b.followed))
        for node in (a, b):
            node.world.origin.gate.set()
        assert {body for _, body in await asyncio.gather(*asking)} == {new}
        assert [link for node in (a, b) for link in node.world.origin.asked].count(FRESH) == 1


async def test_refetches_of_an_image_run_one_after_the_other(url: str) -> None:
    async with lease_nodes(url, "a", "b", identify=by_provider_rules) as (a, b):
        a.world.origin.gives(FRESH, make_image(seed=1))
        await a.world.get(FRESH)
        await a.world.image_service.drain()
        refetchers = [make_refetcher(node) for node in (a, b)]
        for node in (a, b):
            node.world.origin.gives(FRESH, make_image(seed=2))
        a.world.origin.gate.clear()
        a.world.origin.reached.clear()
        first = asyncio.create_task(refetchers[0].refetch_source(read_source(FRESH)))
        await a.world.origin.reached.wait()
        second = asyncio.create_task(refetchers[1].refetch_source(read_source(FRESH)))
        await until(lambda: b.waits >= 2)
        assert b.world.origin.asked == []
        a.world.origin.gate.set()
        assert await first is not None
        await a.sent()
        b.may_wait.set()
        assert await second is not None
        assert b.world.origin.asked == [FRESH]


def make_refetcher(node: LeaseNode) -> Refetcher:
    async def wait(_seconds: float) -> None:
        node.waits += 1
        if node.waits > 1:
            await node.may_wait.wait()

    return Refetcher(
        node.world.image_service,
        node.world.dependencies,
        policy=OPEN_POLICY,
        sleep=wait,
        leases=node.leases,
    )


async def test_refresh_of_another_node_is_not_repeated(url: str) -> None:
    whole = make_image(seed=1)
    async with lease_nodes(url, "a", "b", identify=by_provider_rules) as (a, b):
        a.world.origin.gives(FRESH, whole[: len(whole) // 2])
        delivery = await a.world.ask(FRESH)
        await delivery.body.aclose()
        await a.world.image_service.drain()
        assert await b.leases.request(f"refresh.{delivery.key}", NO_LINK).answer() is None
        a.world.wait(60)
        await (await a.world.ask(FRESH)).body.aclose()
        await a.world.image_service.drain()
        assert a.world.origin.asked == [FRESH]
        assert [type(result.outcome).__name__ for result in a.world.observer.results] == ["Stored", "NotBegun"]


async def test_probe_of_another_node_is_not_repeated() -> None:
    concluded: list[object] = []
    released: list[bool] = []

    class Held:
        async def answer(self) -> HeldByPeer:
            return HeldByPeer("b/1", "probe.k")

    async def conclude(*what: object) -> None:
        concluded.append(what)

    nothing: Any = None
    probe = SignatureProbe(
        nothing, nothing, lambda _: None, conclude, request=Held(), release=lambda: released.append(True)
    )
    await probe.run()
    await probe.aclose()
    assert (concluded, released) == ([], [True])


async def test_workers_of_a_node_share_failure_and_fill(url: str) -> None:
    async with two_workers(url) as (one, other):
        one.world.origin.gives(URL, SourceNotFound("the origin said 404", origin_status=404))
        with pytest.raises(SourceNotFound):
            await one.world.get(URL)
        with pytest.raises(SourceNotFound):
            await other.world.get(URL)
        assert other.world.origin.asked == []
        key = other.world.image_service.identify(read_source(URL)).key
        assert other.leases.acquire(key) is None, "no worker holds the local lease any more"
        other.leases.release(key)


async def test_worker_follows_the_node_that_its_neighbour_follows(url: str) -> None:
    async with two_workers(url, "b") as (one, other, b):
        b.world.origin.gives(URL, IMAGE)
        b.world.origin.gate.clear()
        asking = [asyncio.create_task(b.world.get(URL))]
        await b.world.origin.reached.wait()
        asking += [asyncio.create_task(node.world.get(URL)) for node in (one, other, one, other)]
        await until(lambda: b.id in one.followed and b.id in other.followed)
        await settle()
        b.world.origin.gate.set()
        assert [body == IMAGE for _, body in await asyncio.gather(*asking)] == [True] * 5
        assert one.world.origin.asked == other.world.origin.asked == []
        assert one.leases.unleased == other.leases.unleased == 0
        assert b.world.image_service.identify(read_source(URL)).key not in [Key(name) for name in one.leases._requests]
