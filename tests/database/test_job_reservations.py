"""Reservations of links by members of a cluster, in PostgreSQL: order, limits, dead members, webhooks."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.jobs import NewItem
from imgkeep.core.records import Failure, Key
from imgkeep.database import Database
from imgkeep.database.job_notices import NoticeThrottle
from imgkeep.database.job_reservations import JobReservations
from tests.support.clock import FakeClock
from tests.support.database import query
from tests.support.stores import NOON

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from imgkeep.core.jobs import JobItem
    from imgkeep.database import DurableJobs

KEY = Key("0" * 64)
DEAD_AFTER_S = 15


class MemberDatabase:
    """One member: its connection, its jobs, its reservations."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.database = Database(url, FakeClock(), member=name)
        self.jobs: DurableJobs = self.database.jobs
        self.reservations = JobReservations(self.database.engine, name, dead_after_s=DEAD_AFTER_S)

    async def join(self, *, since_s: int = 60, silent_s: int = 0) -> None:
        """Write the row of this member, as if it had joined so long ago, and been silent for so long."""
        await asyncio.to_thread(
            query,
            self.database,
            "INSERT INTO cluster_members (id, node, host, advertise_url, version, applied, started_at, heartbeat_at) "
            f"VALUES ('{self.name}', '{self.name}', '', '', '', 0, now() - interval '{since_s} seconds', "
            f"now() - interval '{silent_s} seconds') "
            "ON CONFLICT (id) DO UPDATE SET heartbeat_at = excluded.heartbeat_at, started_at = excluded.started_at",
        )

    async def reserve(self, limit: int, *, per_host_max: int = 4) -> Sequence[JobItem]:
        return await self.reservations.reserve(limit, per_host_max=per_host_max)


@pytest.fixture
async def make(postgresql_url: str) -> AsyncIterator[Callable[[str], MemberDatabase]]:
    made: list[MemberDatabase] = []

    def one(name: str) -> MemberDatabase:
        made.append(MemberDatabase(postgresql_url.replace("postgresql:", "postgresql+psycopg:"), name))
        return made[-1]

    yield one
    for member in made:
        await member.database.aclose()


@pytest.fixture
async def pair(make: Callable[[str], MemberDatabase]) -> tuple[MemberDatabase, MemberDatabase]:
    """Two live members."""
    first, second = make("a/1"), make("b/1")
    await first.database.open()
    await first.join()
    await second.join()
    return first, second


def links(number: int, *, host: str = "a.example", minutes: int | None = None) -> list[NewItem]:
    expires_at = None if minutes is None else NOON + timedelta(minutes=minutes)
    return [NewItem(f"https://{host}/{n}", host, expires_at) for n in range(number)]


def names(items: Sequence[JobItem]) -> list[tuple[str, int]]:
    return [(item.job, item.number) for item in items]


async def test_nearest_expiry_comes_first_for_all_members_together(pair: tuple[MemberDatabase, MemberDatabase]) -> None:
    a, b = pair
    new = [each for m in (50, 10, 40, 20, 30) for each in links(1, host=f"{m}.example", minutes=m)]
    await a.jobs.create("j", [*new, *links(1, host="never.example")], None)
    assert names(await a.reserve(2)) == [("j", 1), ("j", 3)]
    assert names(await b.reserve(2)) == [("j", 4), ("j", 2)]
    assert names(await a.reserve(9)) == [("j", 0), ("j", 5)]
    assert names(await b.reserve(9)) == []


async def test_limit_of_a_host_holds_for_concurrent_members(make: Callable[[str], MemberDatabase]) -> None:
    members = [make(f"{name}/1") for name in "abcd"]
    await members[0].database.open()
    await members[0].jobs.create("j", [*links(60), *links(60, host="b.example", minutes=5)], None)
    taken = await asyncio.gather(*(member.reserve(3) for member in members * 2))
    hosts = Counter(item.host for items in taken for item in items)
    assert hosts == {"a.example": 4, "b.example": 4}
    assert len({name for items in taken for name in names(items)}) == 8
    item = taken[0][0]
    await members[0].jobs.mark_saved(item, KEY, created=True)
    assert [each.host for each in await members[3].reserve(9)] == [item.host]


async def test_many_links_of_a_busy_host_hide_no_other(pair: tuple[MemberDatabase, MemberDatabase]) -> None:
    a, b = pair
    await a.jobs.create("j", [*links(1000, minutes=1), *links(5, host="b.example", minutes=2)], None)
    assert [item.host for item in await a.reserve(6)] == ["a.example"] * 4 + ["b.example"] * 2
    assert [item.host for item in await b.reserve(6)] == ["b.example"] * 2


async def test_only_the_member_that_has_a_link_settles_it(pair: tuple[MemberDatabase, MemberDatabase]) -> None:
    a, b = pair
    await a.jobs.create("j", links(2), None)
    first, second = await a.reserve(2)
    assert await a.jobs.is_waiting(first)
    assert not await b.jobs.is_waiting(first)
    assert (await b.jobs.mark_failed(first, Failure("origin_error", "x"))).failed == 0
    await b.jobs.postpone(second, 60)
    for _ in range(2):
        assert (await a.jobs.mark_saved(first, KEY, created=True)).saved == 1
    await a.jobs.postpone(second, 60)
    assert await b.reserve(9) == [], "it is postponed"
    await asyncio.to_thread(query, a.database, "UPDATE items SET due_at = 0")
    (again,) = await b.reserve(9)
    assert (again.number, again.attempts) == (second.number, 1)
    assert (await b.jobs.mark_saved(again, KEY, created=True)).state == "done"


async def test_links_of_a_dead_member_are_free_without_a_new_job(pair: tuple[MemberDatabase, MemberDatabase]) -> None:
    a, b = pair
    await a.jobs.create("j", links(3), None)
    (kept,) = await a.reserve(1)
    held = await b.reserve(2)
    await b.join(silent_s=DEAD_AFTER_S - 2)
    await a.reservations.check(names([kept]))
    assert await a.reserve(9) == []
    await b.join(silent_s=DEAD_AFTER_S + 1)
    await a.reservations.check(names([kept]))
    assert names(await a.reserve(9)) == names(held)
    late = await b.jobs.mark_saved(held[0], KEY, created=True)
    assert late.saved == 0, "another member has it now"
    assert (await b.reservations.check(names(held))).held == set()


async def test_emptied_table_of_members_frees_nothing_at_first(pair: tuple[MemberDatabase, MemberDatabase]) -> None:
    a, b = pair
    await a.jobs.create("j", links(3), None)
    held = await b.reserve(2)
    await asyncio.to_thread(query, a.database, "TRUNCATE cluster_members")
    await a.join(since_s=1)
    await a.reservations.check([])
    assert len(await a.reserve(9)) == 1, "the other one may be about to join again"
    await a.join(since_s=DEAD_AFTER_S + 1)
    assert (await b.reservations.check(names(held))).held == set(names(held)), "it frees nothing of its own"
    await a.reservations.check([("j", 2)])
    assert names(await a.reserve(9)) == names(held)


async def test_reservation_that_its_member_does_not_know_of_is_free(
    pair: tuple[MemberDatabase, MemberDatabase],
) -> None:
    a, b = pair
    await a.jobs.create("j", links(3), None)
    first, lost, _ = await a.reserve(3)
    checked = await a.reservations.check(names([first]))
    assert (checked.held, checked.waiting) == ({("j", 0)}, 3)
    assert names(await b.reserve(1)) == names([lost])


async def test_cancel_and_release_end_reservations(pair: tuple[MemberDatabase, MemberDatabase]) -> None:
    a, b = pair
    await a.jobs.create("j", links(2), None)
    await a.jobs.create("k", links(2), None)
    held = await a.reserve(4)
    job = await b.jobs.cancel("j")
    assert job is not None
    assert job.cancelled == 2
    assert (await a.reservations.check(names(held))).held == {("k", 0), ("k", 1)}
    assert (await a.jobs.mark_saved(held[0], KEY, created=True)).saved == 0
    assert await b.reservations.count_waiting() == 2
    await a.reservations.release()
    assert names(await b.reserve(9)) == [("k", 0), ("k", 1)]


async def test_webhook_belongs_to_one_member(pair: tuple[MemberDatabase, MemberDatabase]) -> None:
    a, b = pair
    await a.jobs.create("j", [NewItem("", "", None, Failure("invalid_source", "x"))], "https://hook.example/")
    (webhook,) = await a.jobs.webhooks(9)
    assert webhook.due_in_s <= 0
    assert await b.jobs.webhooks(9) == []
    assert len(await a.jobs.webhooks(9)) == 1, "it was not delivered"
    await a.jobs.postpone_webhook(webhook, 60)
    for member in (a, b):
        (later,) = await member.jobs.webhooks(9)
        assert (later.attempts, 58 <= later.due_in_s <= 60) == (1, True)
    await asyncio.to_thread(query, a.database, "UPDATE jobs SET webhook_due_at = 0")
    (again,) = await b.jobs.webhooks(9)
    await a.jobs.postpone_webhook(again, 60)
    assert await a.jobs.webhooks(9) == [], "only its member postpones it"
    await b.join(silent_s=DEAD_AFTER_S + 1)
    await a.reservations.check([])
    (taken_over,) = await a.jobs.webhooks(9)
    await a.jobs.remove_webhook(taken_over)
    assert await b.jobs.webhooks(9) == []


async def test_clocks_of_nodes_do_not_count(pair: tuple[MemberDatabase, MemberDatabase]) -> None:
    a, b = pair
    job = await a.jobs.create("j", links(1), None)
    assert job.created_at > NOON + timedelta(days=1), "the fake clock of the member is years behind"
    (held,) = await a.reserve(1)
    await a.jobs.postpone(held, 0)
    assert len(await b.reserve(1)) == 1
    assert await a.jobs.delete_old(0) == 0


async def test_members_that_settle_the_same_jobs_during_a_cancel_all_end(
    pair: tuple[MemberDatabase, MemberDatabase],
) -> None:
    a, b = pair
    for name in ("j", "k"):
        await a.jobs.create(name, links(24), "https://hook.example/")
    held = [(member, item) for _ in range(12) for member in (a, b) for item in await member.reserve(2, per_host_max=99)]
    assert len(held) == 48
    saving = [member.jobs.mark_saved(item, KEY, created=True) for member, item in held]
    await asyncio.gather(*saving[:20], b.jobs.cancel("j"), *saving[20:])
    for name in ("j", "k"):
        job = await a.jobs.find(name)
        assert job is not None
        states = [result.state for result in await b.jobs.results(name, after=-1, limit=24)]
        assert job.finished_at is not None
        assert (job.saved, job.cancelled) == (states.count("saved"), states.count("cancelled"))
        assert job.saved + job.cancelled == 24
    assert (await a.reservations.check([])).waiting == 0


async def test_settled_link_of_a_deleted_job_is_an_error(pair: tuple[MemberDatabase, MemberDatabase]) -> None:
    a, _ = pair
    await a.jobs.create("j", links(1), None)
    (item,) = await a.reserve(1)
    await asyncio.to_thread(query, a.database, "DELETE FROM jobs")
    with pytest.raises(KeyError):
        await a.jobs.mark_saved(item, KEY, created=True)


def test_notices_about_one_job_are_far_apart() -> None:
    throttle = NoticeThrottle()
    assert throttle.admits("j", 0)
    assert not throttle.admits("j", 0.1)
    assert throttle.admits("k", 0.1)
    assert throttle.take_late(0.2) == []
    assert throttle.take_late(0.3) == ["j"]
    assert throttle.take_late(0.9) == []
    assert throttle.admits("j", 1)
    assert not throttle.admits("j", 1.1)
    throttle.forget("j")
    assert throttle.take_late(9) == []
