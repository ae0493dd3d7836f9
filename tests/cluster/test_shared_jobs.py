"""Runners of several members with one PostgreSQL: each link once, limits of hosts, notices, deaths, webhooks."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from imgkeep.clock import read_clock
from imgkeep.core.errors import Busy, StorageError
from imgkeep.core.jobs import NewItem
from imgkeep.database.job_reservations import JobReservations
from tests.support.counted_origin import counted_origin
from tests.support.job_members import job_members
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.counted_origin import CountedOrigin
    from tests.support.job_members import JobMember
    from tests.support.postgresql import PostgresqlServer


@pytest.fixture
async def counted() -> AsyncIterator[CountedOrigin]:
    async with counted_origin([f"127.0.0.{number}" for number in range(2, 8)]) as origin:
        yield origin


@pytest.fixture
async def three(postgresql_url: str, tmp_path: Path) -> AsyncIterator[list[JobMember]]:
    async with job_members(3, postgresql_url, tmp_path) as members:
        yield members


@pytest.fixture
async def two(postgresql_url: str, tmp_path: Path) -> AsyncIterator[list[JobMember]]:
    async with job_members(2, postgresql_url, tmp_path) as members:
        yield members


DEAD_AFTER_S = 15


def new_links(origin: CountedOrigin, number: int) -> list[NewItem]:
    return [NewItem(url, "127.0.0.2", None) for url in links(origin, number)]


def links(origin: CountedOrigin, number: int, *, hosts: int = 1) -> list[str]:
    """Make links at so many hosts, each with bytes of its own."""
    made = []
    for n in range(number):
        path = f"/{len(origin.bodies)}.png"
        origin.bodies[path] = path.encode()
        made.append(origin.url(path, n % hosts))
    return made


async def test_each_link_is_fetched_once_within_the_limit_of_its_host(
    three: list[JobMember], counted: CountedOrigin
) -> None:
    a, b, c = three
    counted.gate = asyncio.Event()
    jobs = [await member.runner.submit(links(counted, 60, hosts=6)) for member in (a, b)]
    await until(lambda: counted.running.total() == 6 * 4)
    counted.gate.set()
    for job in jobs:
        done = await c.wait_for_end(job)
        assert (done.state, done.saved, done.failed) == ("done", 60, 0)
    assert (len(counted.asked), counted.fetched_twice()) == (120, 0)
    assert set(counted.running_max.values()) == {4}
    assert sum("saved" in member.outcomes for member in three) >= 2, "one member cannot run so many"


async def test_nearest_expiry_comes_first_across_members(two: list[JobMember], counted: CountedOrigin) -> None:
    a, _ = two
    now = read_clock()
    urls = links(counted, 24)
    new = [NewItem(url, "127.0.0.2", now + timedelta(minutes=60 - n)) for n, url in enumerate(urls)]
    job = await a.database.jobs.create("0" * 32, new, None)
    await a.wait_for_end(job)
    order = [int(path[1:-4]) for path in counted.asked]
    assert all(abs(place - (23 - number)) < 4 for place, number in enumerate(order)), order


async def test_links_of_a_dead_member_are_taken_over_without_a_new_job(
    two: list[JobMember], counted: CountedOrigin
) -> None:
    a, b = two
    dead = JobReservations(a.database.engine, "dead/1", dead_after_s=DEAD_AFTER_S)
    await b.stop_running()
    await a.stop_running()
    job = await a.database.jobs.create("0" * 32, new_links(counted, 3), None)
    assert len(await dead.reserve(2, per_host_max=4)) == 2
    a.run()
    await until(lambda: counted.asked.total() == 1)
    await a.session.execute("UPDATE cluster_members SET started_at = now() - interval '1 hour'")
    a.runner.poll_now()
    assert (await a.wait_for_end(job)).saved == 3
    assert counted.fetched_twice() == 0


async def test_silent_member_gives_up_its_fetches(two: list[JobMember], counted: CountedOrigin) -> None:
    a, b = two
    await b.stop_running()
    counted.gate = asyncio.Event()
    job = await a.runner.submit(links(counted, 3))
    await until(lambda: counted.running["127.0.0.2"] == 3)
    a.offset_s += 60
    a.runner.poll_now()
    await until(lambda: a.fetcher.running == 0)
    assert (await b.find(job)).state == "queued"
    counted.gate.set()
    await a.membership.beat()
    a.runner.poll_now()
    assert (await b.wait_for_end(job)).saved == 3


async def test_member_that_ends_frees_its_links_at_once(two: list[JobMember], counted: CountedOrigin) -> None:
    a, b = two
    await b.stop_running()
    counted.gate = asyncio.Event()
    job = await a.runner.submit(links(counted, 3))
    await until(lambda: counted.running["127.0.0.2"] == 3)
    await a.stop_running()
    assert a.fetcher.running == 0
    b.run()
    counted.gate.set()
    assert (await b.wait_for_end(job)).saved == 3


async def test_cancel_ends_the_fetches_of_other_members(two: list[JobMember], counted: CountedOrigin) -> None:
    a, b = two
    await b.stop_running()
    counted.gate = asyncio.Event()
    job = await a.runner.submit(links(counted, 9))
    await until(lambda: counted.running["127.0.0.2"] == 4)
    cancelled = await b.runner.cancel(job.id)
    assert cancelled is not None
    assert cancelled.cancelled == 9
    await until(lambda: a.fetcher.running == 0)
    counted.gate.set()
    other = await b.runner.submit(links(counted, 2))
    assert (await b.wait_for_end(other)).saved == 2
    assert counted.asked.total() == 6


async def test_lost_notice_of_a_cancel_ends_fetches_all_the_same(two: list[JobMember], counted: CountedOrigin) -> None:
    a, b = two
    await b.stop_running()
    counted.gate = asyncio.Event()
    job = await a.runner.submit(links(counted, 2))
    await until(lambda: counted.running["127.0.0.2"] == 2)
    await a.session.execute("UPDATE items SET state = 'stopped', member = NULL WHERE job = %s", (job.id,))
    a.runner.poll_now()
    await until(lambda: a.fetcher.running == 0)


async def test_progress_is_told_to_other_members_and_not_for_each_link(
    two: list[JobMember], counted: CountedOrigin
) -> None:
    a, b = two
    await b.stop_running()
    job = await a.runner.submit(links(counted, 40, hosts=6))
    assert (await b.wait_for_end(job)).saved == 40
    assert b.notices[0] == f"created {job.id}"
    assert b.notices[-1] == f"settled {job.id}"
    assert 2 <= len(b.notices) <= 20


async def test_webhook_is_delivered_once(three: list[JobMember], counted: CountedOrigin) -> None:
    a, b, c = three
    jobs = [
        await member.runner.submit(links(counted, 5, hosts=5), webhook=counted.url("/hook"))
        for member in (a, b, c)
        for _ in range(2)
    ]
    await until(lambda: len(counted.messages) == len(jobs))
    for job in jobs:
        await a.wait_for_end(job)
    await until(lambda: a.session.execute("SELECT 1 WHERE NOT EXISTS (SELECT FROM jobs WHERE webhook IS NOT NULL)"))
    ids = [json.loads(message)["data"]["id"] for message in counted.messages]
    assert sorted(ids) == sorted(job.id for job in jobs)


async def test_restarted_database_loses_and_repeats_nothing(
    postgresql: PostgresqlServer, two: list[JobMember], counted: CountedOrigin
) -> None:
    a, b = two
    counted.gate = asyncio.Event()
    job = await a.runner.submit(links(counted, 12, hosts=6), webhook=counted.url("/hook"))
    await until(lambda: sum(counted.running.values()) == 12)
    postgresql.stop()
    counted.gate.set()
    with pytest.raises(StorageError):
        await a.find(job)
    postgresql.start()
    for member in two:
        await member.session.wait_connected()
    assert (await b.wait_for_end(job)).saved == 12
    await until(lambda: len(counted.messages) == 1)


async def test_limit_of_waiting_links_holds_for_the_cluster(
    two: list[JobMember], counted: CountedOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two
    monkeypatch.setattr("imgkeep.jobs.runner.WAITING_MAX", 5)
    counted.gate = asyncio.Event()
    await a.runner.submit(links(counted, 3))
    with pytest.raises(Busy):
        await b.runner.submit(links(counted, 3))
    await b.runner.submit(links(counted, 2))
