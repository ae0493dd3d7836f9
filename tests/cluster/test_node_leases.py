"""Leases among the nodes of a cluster: one fill per key, and fills where database or holder cannot be reached."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from imgkeep.cluster.nodes import leases
from imgkeep.core.errors import OriginTimeout, SourceNotFound
from imgkeep.core.source_url import read_source
from imgkeep.images.interfaces import NO_LINK
from imgkeep.images.negative_cache import hash_link
from tests.support.fakes import FakeResponse, read_all, settle
from tests.support.fills import IMAGE, OTHER, URL
from tests.support.lease_nodes import LeaseNode, lease_database, lease_nodes
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def asked(*nodes: LeaseNode) -> list[str]:
    """Return the links that the origin was asked for, by all nodes."""
    return [link for node in nodes for link in node.world.origin.asked]


def key_of(node: LeaseNode) -> str:
    return node.world.image_service.identify(read_source(URL)).key


async def test_nodes_fetch_a_key_once(url: str) -> None:
    async with lease_nodes(url, "a", "b", "c") as nodes:
        response = FakeResponse()
        for node in nodes:
            node.world.origin.gives(URL, lambda: response)
            node.world.origin.gives(OTHER, lambda: response)
        asking = [asyncio.create_task(node.world.ask(link)) for node in nodes for link in (URL, OTHER, URL)]
        await until(lambda: asked(*nodes) != [])
        response.push(IMAGE[:60_000])
        deliveries = await asyncio.gather(*asking)
        response.push(IMAGE[60_000:]).end()
        assert {await read_all(delivery) == IMAGE for delivery in deliveries} == {True}
        assert len({delivery.etag for delivery in deliveries}) == 1
        assert len(asked(*nodes)) == 1
        assert [delivery.cache_status.value for delivery in deliveries].count("stored") == 1
        assert [node.leases.unleased for node in nodes] == [0, 0, 0]
        holder = next(node for node in nodes if node.world.origin.asked)
        await holder.world.image_service.drain()
        assert await holder.rows() == [(key_of(holder), holder.id, True, False)]


async def test_fill_costs_one_statement_before_its_end(url: str) -> None:
    async with lease_nodes(url, "a") as (a,):
        a.world.origin.gives(URL, IMAGE)
        before = a.session.statements
        assert await a.world.get(URL) == ("stored", IMAGE)
        assert a.session.statements == before + 1
        assert await a.world.get(URL) == ("hit", IMAGE)
        await a.sent()
        assert a.session.statements == before + 2


async def test_stored_image_is_found_by_the_follower_at_once(url: str) -> None:
    async with lease_nodes(url, "a", "b") as (a, b):
        a.world.origin.gives(URL, IMAGE)
        assert await a.world.get(URL) == ("stored", IMAGE)
        assert await b.world.get(URL) == ("hit", IMAGE)
        await a.sent()
        # A lookup that began before the image was stored ends after that.
        b.world.image_service.records.forget(a.world.image_service.identify(read_source(URL)).key)
        late = asyncio.Event()
        record = b.world.store.records.pop(a.world.image_service.identify(read_source(URL)).key)
        b.world.store.gates["find"] = late
        asking = asyncio.create_task(b.world.get(URL))
        await b.world.store.reached.wait()
        b.world.store.records[record.key] = record
        late.set()
        assert await asking == ("hit", IMAGE)
        assert b.followed == [a.id, a.id], "the holder had no fill, and had ended it"
        assert asked(b) == []


async def test_request_runs_beside_the_lookup(url: str) -> None:
    async with lease_nodes(url, "a", "b") as (a, b):
        for node in (a, b):
            node.world.origin.gives(URL, IMAGE)
        gate = a.world.store.gates["find"] = asyncio.Event()
        first = asyncio.create_task(a.world.get(URL))
        await a.world.store.reached.wait()
        await a.leases._requests[key_of(a)].result
        second = asyncio.create_task(b.world.get(URL))
        await until(lambda: b.followed == [a.id])
        gate.set()
        assert {(await first)[0], (await second)[0]} == {"stored", "collapsed"}
        assert asked(a, b) == [URL]


@pytest.mark.parametrize("is_sent", [True, False])
async def test_prepared_lease_is_released_where_the_store_has_the_image(url: str, *, is_sent: bool) -> None:
    async with lease_nodes(url, "a", "b") as (a, b):
        a.world.origin.gives(URL, IMAGE)
        await a.world.get(URL)
        await a.sent()
        await a.session.execute("DELETE FROM cluster_leases")
        before = b.session.statements
        gate = asyncio.Event()
        if is_sent:
            b.world.store.gates["find"] = gate
        asking = asyncio.create_task(b.world.get(URL))
        if is_sent:
            await b.world.store.reached.wait()
            assert await b.leases._requests[key_of(b)].result is None
            gate.set()
        assert await asking == ("hit", IMAGE)
        assert await b.rows() == []
        assert b.session.statements == before + 1 + 2 * is_sent
        assert not b.leases._requests


@pytest.mark.parametrize("link", [URL, OTHER], ids=["same link", "another link"])
async def test_failure_of_the_holder_is_that_of_its_link(url: str, link: str) -> None:
    async with lease_nodes(url, "a", "b") as (a, b):
        a.world.origin.gives(URL, SourceNotFound("the origin said 404", origin_status=404))
        b.world.origin.gives(link, IMAGE)
        a.world.origin.gate.clear()
        first = asyncio.create_task(a.world.get(URL))
        await a.world.origin.reached.wait()
        second = asyncio.create_task(b.world.get(link))
        await until(lambda: b.followed == [a.id])
        a.world.origin.gate.set()
        with pytest.raises(SourceNotFound):
            await first
        if link == OTHER:
            assert await second == ("stored", IMAGE)
            return
        with pytest.raises(SourceNotFound, match="404"):
            await second
        assert asked(b) == []


async def test_failure_is_remembered_for_all_nodes(url: str) -> None:
    async with lease_nodes(url, "a", "b") as (a, b):
        a.world.origin.gives(URL, SourceNotFound("the origin said 404", origin_status=404))
        with pytest.raises(SourceNotFound):
            await a.world.get(URL)
        assert await a.rows() == [(key_of(a), a.id, False, True)]
        await a.session.execute("UPDATE cluster_leases SET until = now() + interval '30 s'")
        for _ in range(2):
            with pytest.raises(SourceNotFound, match="the origin said 404") as raised:
                await b.world.get(URL)
            assert raised.value.origin_status == 404
        assert asked(b) == []
        assert b.world.observer.results[0].size == 0
        assert b.world.observer.errors == [], "this node has not failed"
        b.world.origin.gives(URL, IMAGE)
        b.world.wait(31)
        await a.session.execute("UPDATE cluster_leases SET until = now()")
        assert await b.world.get(URL) == ("stored", IMAGE)


async def test_failure_that_is_not_remembered_frees_the_lease(url: str) -> None:
    async with lease_nodes(url, "a", "b") as (a, b):
        a.world.origin.gives(URL, ConnectionError("no OriginError: unexpected"))
        b.world.origin.gives(URL, IMAGE)
        with pytest.raises(ConnectionError):
            await a.world.get(URL)
        assert await a.rows() == []
        assert await b.world.get(URL) == ("stored", IMAGE)


@pytest.mark.parametrize("failure", [b"", b"\0\0\0\1x", b"\0\0\0\1\x80"])
async def test_failure_of_another_version_is_no_answer(url: str, failure: bytes) -> None:
    async with lease_nodes(url, "a") as (a,):
        insert = (
            "INSERT INTO cluster_leases (name, member, token, until, link, failure) "
            "VALUES (%s, 'x/1', '', now() + interval '1 h', %s, %s)"
        )
        await a.session.execute(insert, (key_of(a), hash_link(read_source(URL)), failure))
        a.world.origin.gives(URL, IMAGE)
        assert await a.world.get(URL) == ("stored", IMAGE)


async def test_large_failure_is_not_shared(url: str) -> None:
    async with lease_nodes(url, "a") as (a,):
        error = SourceNotFound("404", origin_status=404)
        error.image = ("image/png", bytes(20_000))
        a.world.origin.gives(URL, error)
        with pytest.raises(SourceNotFound):
            await a.world.get(URL)
        assert await a.rows() == []


@pytest.mark.parametrize("is_known_to_be_dead", [True, False])
async def test_dead_holder_is_not_waited_for(url: str, *, is_known_to_be_dead: bool) -> None:
    async with lease_nodes(url, "a", "b") as (a, b):
        response = FakeResponse().push(IMAGE[:60_000])
        a.world.origin.gives(URL, lambda: response)
        b.world.origin.gives(URL, IMAGE)
        delivery = await a.world.ask(URL)
        a.is_cut_off = True
        if is_known_to_be_dead:
            await b.session.execute("UPDATE cluster_members SET heartbeat_at = now() - interval '1 h' WHERE node = 'a'")
            await b.membership.beat()
        assert await b.world.get(URL) == ("stored", IMAGE)
        assert b.leases.unleased == (0 if is_known_to_be_dead else 1)
        response.end(OriginTimeout("the test ends"))
        await settle()
        await delivery.body.aclose()


async def test_holder_that_is_no_member_is_not_waited_for(url: str) -> None:
    async with lease_nodes(url, "a") as (a,):
        insert = (
            "INSERT INTO cluster_leases (name, member, token, until) VALUES (%s, 'x/1', '', now() + interval '1 h')"
        )
        await a.session.execute(insert, (key_of(a),))
        a.world.origin.gives(URL, IMAGE)
        assert await a.world.get(URL) == ("stored", IMAGE)
        assert a.leases.unleased == 1


async def test_row_of_a_killed_worker_whose_node_answers_costs_a_fetch_alone(url: str) -> None:
    async with lease_nodes(url, "a", "b") as (a, b):
        insert = "INSERT INTO cluster_leases (name, member, token, until) VALUES (%s, %s, '', now() + interval '15 s')"
        await a.session.execute(insert, (key_of(a), b.id))  # another worker of its node says that it runs no such fill
        a.world.origin.gives(URL, IMAGE)
        assert await a.world.get(URL) == ("stored", IMAGE)
        assert a.leases.unleased == 1


async def test_wrong_clock_of_a_node_changes_no_lease(url: str) -> None:
    async with lease_nodes(url, "a", "b") as (a, b):
        response = FakeResponse().push(IMAGE[:60_000])
        a.world.origin.gives(URL, lambda: response)
        b.world.wait(3600)
        b.offset_s = -300
        first = await a.world.ask(URL)
        second = await b.world.ask(URL)
        response.push(IMAGE[60_000:]).end()
        assert await read_all(first) == await read_all(second) == IMAGE
        assert asked(b) == []


async def test_late_release_ends_no_other_lease(url: str) -> None:
    async with lease_nodes(url, "a", "b") as (a, b):
        assert await a.leases.request("k", NO_LINK).answer() is None
        await b.session.execute("UPDATE cluster_leases SET until = now()")
        assert await b.leases.request("k", NO_LINK).answer() is None
        await a.membership.beat()
        a.leases.release("k", stored=True)
        await a.sent()
        assert await b.rows() == [("k", b.id, False, False)]


async def test_database_away_before_during_and_after(
    url: str, postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RETRY_INTERVAL_S", 0.02)
    async with lease_nodes(url, "a", "b") as (a, b):
        response = FakeResponse()
        a.world.origin.gives(URL, lambda: response)
        b.world.origin.gives(URL, IMAGE)
        fetching = asyncio.create_task(a.world.get(URL))
        await a.world.origin.reached.wait()
        blocked = await break_off(postgresql, url, allow=False)
        await until(lambda: not (a.session.is_connected or b.session.is_connected))
        assert await b.world.get(URL) == ("stored", IMAGE)
        assert b.leases.unleased == 1
        response.push(IMAGE).end()
        assert (await fetching)[1] == IMAGE
        assert blocked
        for number in range(3):
            with pytest.raises(SourceNotFound):
                await b.world.get(f"https://images.example/missing{number}.png")
        assert b.leases._releases == [], "nothing waits in memory"
        assert not b.leases._requests
        await break_off(postgresql, url, allow=True)
        await a.session.wait_connected()
        assert await a.rows() == [], "what could not be released is released now"
        b.world.origin.gives("https://images.example/b.png", IMAGE)
        await b.session.wait_connected()
        assert await b.world.get("https://images.example/b.png") == ("stored", IMAGE)
        assert b.leases.unleased == 4


async def break_off(postgresql: PostgresqlServer, url: str, *, allow: bool) -> bool:
    """Break off all connections with a database, and refuse or allow new ones."""
    name = url.rpartition("/")[2]

    def work() -> bool:
        postgresql.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allow}")
        ended = postgresql.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        return bool(ended)

    return await asyncio.to_thread(work)


async def test_slow_database_is_not_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "ANSWER_TIMEOUT_S", 0.1)
    async with lease_nodes(url, "a", "b") as (a, b):
        a.world.origin.gives(URL, IMAGE)
        name = key_of(a)
        held = asyncio.Event()
        free = asyncio.Event()

        async def lock(connection: object) -> None:
            await connection.execute("LOCK TABLE cluster_leases")  # type: ignore[attr-defined]
            held.set()
            await free.wait()

        locking = asyncio.create_task(b.session.transaction(lock, timeout_s=20))
        await held.wait()
        assert await a.world.get(URL) == ("stored", IMAGE)
        assert a.leases.unleased == 1
        free.set()
        await locking
        await a.sent()
        assert await a.rows() == [(name, a.id, True, False)], "the request went on, and the release followed it"


async def test_member_takes_over_the_row_of_its_node(url: str) -> None:
    async with lease_nodes(url, "a", "b") as (a, b):
        assert await a.leases.request("k", NO_LINK).answer() is None
        async with LeaseNode(url, "a", {}).running() as restarted:
            assert await restarted.leases.request("k", NO_LINK).answer() is None
            assert await restarted.rows() == [("k", restarted.id, False, False)]
        assert await b.leases.request("k", NO_LINK).answer() is not None


async def test_rows_that_have_ended_are_deleted(url: str) -> None:
    async with lease_nodes(url, "a") as (a,):
        await a.session.execute(
            "INSERT INTO cluster_leases (name, member, token, until) VALUES ('old', 'x/1', '', now() - interval '1 h')"
        )
        a.offset_s = 11
        await a.leases.request("k", NO_LINK).answer()
        a.leases.release("k")
        assert await a.rows() == []
