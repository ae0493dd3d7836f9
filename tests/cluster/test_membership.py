"""Membership of a cluster: who is alive by the database's clock, and whom the database refuses."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.cluster.nodes.leader import ClusterLeader
from imgkeep.cluster.nodes.membership import Membership, RefusedByCluster, remove_members
from imgkeep.core.errors import StorageError
from imgkeep.database import DatabaseEngine
from tests.support.clock import FakeClock
from tests.support.members import SECRET, make_identity, make_session
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Node:
    """One process: a session and a membership, whose timer a test can move."""

    def __init__(self, url: str, name: str, **changes: Any) -> None:
        self.offset_s = 0.0
        self.waits: list[float] = []
        self.pass_time: Callable[[float], Awaitable[object]] = lambda _: asyncio.sleep(0)
        self.session = make_session(url)
        identity = make_identity(name, **{"is_only_process": True, **changes})
        self.membership = Membership(identity, self.session, timer=self.timer, sleep=self.wait)
        self.leader = ClusterLeader(self.session)

    def timer(self) -> float:
        return time.monotonic() + self.offset_s

    async def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.offset_s += seconds
        await self.pass_time(seconds)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        task = asyncio.create_task(self.session.run())
        try:
            await self.session.attempted.wait()
            yield self
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.fixture
async def url(postgresql_url: str) -> str:
    """Give the URL of a database with its tables."""
    engine = DatabaseEngine(postgresql_url.replace("postgresql:", "postgresql+psycopg:"), FakeClock())
    await engine.open()
    await engine.aclose()
    return postgresql_url


async def test_members_see_each_other(url: str) -> None:
    a, b = Node(url, "a"), Node(url, "b")
    counts: list[int] = []
    gone: list[str] = []
    a.membership.when_count_changes(counts.append)
    a.membership.when_gone(gone.append)
    async with a.running(), b.running():
        assert a.membership.is_joined
        await a.membership.beat()
        assert {member.node for member in a.membership.members.values()} == {"a", "b"}
        assert counts == [1, 2]
        await b.membership.leave()
        await a.membership.beat()
        assert {member.node for member in a.membership.members.values()} == {"a"}
        assert gone == [b.membership.id]


async def test_silent_member_is_dead_and_loses_its_leases(url: str) -> None:
    a, b = Node(url, "a"), Node(url, "b")
    async with a.running(), b.running():
        insert = "INSERT INTO cluster_leases (name, member, token, until) VALUES (%s, %s, '', now() + interval '1 h')"
        await a.session.execute(insert, ("k", b.membership.id))
        silence = "UPDATE cluster_members SET heartbeat_at = now() - interval '16 s' WHERE id = %s"
        await a.session.execute(silence, (b.membership.id,))
        await a.membership.beat()
        assert list(a.membership.members) == [a.membership.id]
        assert await a.session.execute("SELECT * FROM cluster_leases") == []
        await b.membership.beat()
        assert not b.membership.is_joined


async def test_member_catches_up_before_it_joins_again(url: str) -> None:
    a, b = Node(url, "a"), Node(url, "b")
    seen: list[bool] = []

    async def catch_up() -> None:
        seen.append(b.membership.is_joined)

    b.membership.before_joining(catch_up)
    async with a.running(), b.running():
        await remove_members(a.session, [b.membership.id])
        beats = asyncio.create_task(b.membership.run())
        await until(lambda: len(seen) == 2 and b.membership.is_joined)
        beats.cancel()
        await asyncio.wait([beats])
        assert seen == [False, False]


async def test_unexpected_error_ends_no_heartbeat(url: str, caplog: pytest.LogCaptureFixture) -> None:
    a = Node(url, "a")
    told: list[float | None] = []

    def fail_once(at: float | None) -> None:
        told.append(at)
        if len(told) == 2:
            raise ValueError("one of the listeners fails")

    a.membership.when_confirmed(fail_once)
    async with a.running():
        beats = asyncio.create_task(a.membership.run())
        await until(lambda: len(told) > 2 or beats.done())
        assert not beats.done()
        beats.cancel()
        await asyncio.wait([beats])
    assert "heartbeat failed unexpectedly" in caplog.text


async def test_restarted_process_replaces_its_predecessor(url: str) -> None:
    before, after = Node(url, "a"), Node(url, "a")
    async with before.running(), after.running():
        await after.membership.beat()
        assert list(after.membership.members) == [after.membership.id]


async def test_clock_of_a_node_does_not_count(url: str) -> None:
    a, b = Node(url, "a"), Node(url, "b")
    b.offset_s = 300
    async with a.running(), b.running():
        assert abs(a.membership.now() - b.membership.now()) < 5


async def test_time_is_not_known_without_the_database() -> None:
    with pytest.raises(StorageError, match="not known"):
        Node("postgresql://imgkeep@127.0.0.1:1/none", "a").membership.now()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"store": "bucket other"}, "belongs to another store (bucket b): set store.url"),
        ({"secret": "t" * 32}, "have another cluster.secret"),
        ({"secret": ""}, "set cluster.secret and cluster.advertise_url"),
    ],
    ids=["store", "secret", "no secret"],
)
async def test_another_cluster_is_refused(url: str, change: dict[str, str], message: str) -> None:
    a, b = Node(url, "a"), Node(url, "b", **change)
    async with a.running(), b.running():
        assert isinstance(b.membership.refused, RefusedByCluster)
        assert message in str(b.membership.refused)
        assert b.membership.found_refused.is_set()
        assert SECRET not in str(await a.session.execute("SELECT * FROM state"))


async def test_secret_can_change_while_no_member_lives(url: str) -> None:
    a, b = Node(url, "a"), Node(url, "b", secret="t" * 32)
    async with a.running():
        await a.membership.leave()
    async with b.running():
        assert b.membership.is_joined


@pytest.mark.parametrize(
    ("name", "address", "message"),
    [("a", "http://other:1", "same cluster.name, 'a'"), ("b", "http://a:1", "same cluster.advertise_url, http://a:1")],
    ids=["name", "address"],
)
async def test_machine_that_passes_for_another_one_is_refused(url: str, name: str, address: str, message: str) -> None:
    a, b = Node(url, "a", host="1"), Node(url, name, host="2", advertise_url=address)
    async with a.running():
        # On a busy machine the test may take longer than a member may be silent.
        await a.session.execute("UPDATE cluster_members SET heartbeat_at = now() + interval '1 h'")
        async with b.running():
            refused = str(b.membership.refused)
        assert message in refused
        assert sum(b.waits) >= 15


async def test_machine_that_lost_its_disk_waits_for_the_death_of_its_predecessor(url: str) -> None:
    a, b = Node(url, "a", host="1"), Node(url, "a", host="2")
    async with a.running():
        # The seconds that the new one waits pass for the row of the old one alone.
        await a.session.execute("UPDATE cluster_members SET heartbeat_at = now() - interval '5 s'")
        age = "UPDATE cluster_members SET heartbeat_at = heartbeat_at - make_interval(secs => %s)"
        b.pass_time = lambda seconds: a.session.execute(age, (seconds,))
        async with b.running():
            assert b.membership.is_joined
            assert b.waits


async def test_one_member_leads_until_its_session_ends(url: str) -> None:
    a, b = Node(url, "a"), Node(url, "b")
    async with b.running():
        async with a.running():
            assert await a.leader.acquire()
            assert not await b.leader.acquire()
        assert not a.leader.is_held
        await _acquire(b.leader)
        await b.leader.release()
        assert not b.leader.is_held


async def _acquire(leader: ClusterLeader) -> None:
    """Wait until the server has noticed the end of the session before."""
    while not await leader.acquire():  # noqa: ASYNC110 - the server tells no one
        await asyncio.sleep(0.01)
