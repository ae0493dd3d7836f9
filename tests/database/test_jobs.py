"""What the database promises of jobs, on every database."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, get_args

import pytest
from imgkeep.core.jobs import JobState, NewItem
from imgkeep.core.records import Failure, Key
from imgkeep.database import DurableJobs

from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from imgkeep.database import ImageIndex

    from tests.database.conftest import Time

KEY = Key("0" * 64)


def item(name: str, *, host: str = "a.example", minutes: int | None = None) -> NewItem:
    expires_at = None if minutes is None else NOON + timedelta(minutes=minutes)
    return NewItem(f"https://{host}/{name}", host, expires_at)


@pytest.fixture
def jobs(database: ImageIndex) -> DurableJobs:
    return DurableJobs(database)


async def due(
    jobs: DurableJobs, *, limit: int = 10, but: set[tuple[str, int]] | None = None, busy: list[str] | None = None
) -> list[str]:
    return [found.link.rpartition("/")[2] for found in await jobs.due(limit, but=but or set(), busy=busy or [])]


async def test_what_expires_first_comes_first_in_all_jobs(jobs: DurableJobs) -> None:
    await jobs.create("j1", [item("never"), item("late", minutes=60), item("soon", minutes=5)], None)
    await jobs.create("j2", [item("sooner", minutes=1), item("other", host="b.example", minutes=9)], None)
    assert await due(jobs) == ["sooner", "soon", "other", "late", "never"]
    assert await due(jobs, limit=2) == ["sooner", "soon"]
    assert await due(jobs, limit=2, but={("j2", 0)}) == ["soon", "other"]
    assert await due(jobs, busy=["a.example"]) == ["other"]
    assert await jobs.count_waiting() == 5


async def test_a_job_is_done_when_all_its_links_are_settled_and_counts_each_once(jobs: DurableJobs) -> None:
    refused = NewItem("", "", None, Failure("invalid_source", "no link"))
    job = await jobs.create("j", [item("a"), refused, item("b")], None)
    assert (job.state, job.total, job.failed) == ("running", 3, 1)
    first, second = await jobs.due(10, but=set(), busy=[])
    for _ in range(2):
        job = await jobs.saved(first, KEY, created=True)
        assert (job.state, job.saved, job.finished_at) == ("running", 1, None)
    job = await jobs.failed(second, Failure("source_expired", "d" * 1000))
    assert (job.state, job.saved, job.failed) == ("done", 1, 2)
    assert await jobs.find("j") == job
    assert await jobs.find("k") is None
    assert await due(jobs) == []
    results = await jobs.results("j", after=-1, limit=10)
    assert [(result.number, result.state) for result in results] == [(0, "saved"), (1, "failed"), (2, "failed")]
    assert results[0].key == KEY
    assert results[0].record is None
    assert results[2].failure == Failure("source_expired", "d" * 255)


async def test_a_job_of_nothing_but_failures_is_done_at_once(jobs: DurableJobs) -> None:
    job = await jobs.create("j", [NewItem("", "", None, Failure("invalid_source", "no link"))], "https://hook.example/")
    assert job.state == "done"
    (webhook,) = await jobs.webhooks(10)
    assert (webhook.job, webhook.url, webhook.attempts) == (job, "https://hook.example/", 0)


async def test_results_tell_the_images(jobs: DurableJobs, database: ImageIndex) -> None:
    record = record_of(b"body")
    await jobs.create("j", [item("a"), item("b")], None)
    first, _ = await jobs.due(10, but=set(), busy=[])
    await database.put(record)
    await jobs.saved(first, record.key, created=False)
    saved, waiting = await jobs.results("j", after=-1, limit=10)
    assert (saved.record, saved.created) == (record, False)
    assert (waiting.state, waiting.record, waiting.key) == ("waiting", None, None)
    assert [result.number for result in await jobs.results("j", after=0, limit=1)] == [1]


async def test_what_failed_waits_for_its_time(jobs: DurableJobs, clock: Time) -> None:
    await jobs.create("j", [item("a")], None)
    (found,) = await jobs.due(10, but=set(), busy=[])
    await jobs.postpone(found, 30)
    assert await due(jobs) == []
    clock.turn(31)
    (again,) = await jobs.due(10, but=set(), busy=[])
    assert (again.attempts, again.link) == (1, found.link)


async def test_whoever_is_to_be_told_waits_for_its_time_and_is_told_once(jobs: DurableJobs) -> None:
    await jobs.create("j", [item("a")], "https://hook.example/")
    assert await jobs.webhooks(10) == []
    (found,) = await jobs.due(10, but=set(), busy=[])
    await jobs.saved(found, KEY, created=True)
    (webhook,) = await jobs.webhooks(10)
    assert webhook.due_in_s <= 0
    await jobs.postpone_webhook(webhook, 30)
    (webhook,) = await jobs.webhooks(10)
    assert (webhook.attempts, webhook.due_in_s) == (1, 30)
    await jobs.told(webhook)
    assert await jobs.webhooks(10) == []


async def test_old_jobs_are_forgotten_and_unfinished_ones_are_not(jobs: DurableJobs, clock: Time) -> None:
    await jobs.create("done", [item("a")], None)
    (found,) = await jobs.due(10, but=set(), busy=[])
    await jobs.saved(found, KEY, created=True)
    await jobs.create("waiting", [item("b")], None)
    clock.turn(30 * 86_400)
    assert await jobs.forget(3600) == 1
    assert await jobs.find("done") is None
    assert await jobs.results("done", after=-1, limit=10) == []
    assert await jobs.find("waiting") is not None
    assert await due(jobs) == ["b"]


async def test_cancelled_job_ends_at_once_and_its_links_wait_no_more(jobs: DurableJobs) -> None:
    await jobs.create("j", [item("a"), item("b"), item("c")], "https://hook.example/")
    await jobs.create("k", [item("d")], None)
    first, second, third = [found for found in await jobs.due(10, but=set(), busy=[]) if found.job == "j"]
    await jobs.saved(first, KEY, created=True)
    assert await jobs.waits(second)
    assert not await jobs.waits(first)
    job = await jobs.cancel("j")
    assert job is not None
    assert (job.state, job.saved, job.failed, job.cancelled) == ("cancelled", 1, 0, 2)
    assert job.finished_at is not None
    assert not await jobs.waits(second)
    assert await due(jobs) == ["d"]
    assert await jobs.count_waiting() == 1
    # What was under way changes nothing any more, and the end stays an end.
    for late in (await jobs.saved(second, KEY, created=True), await jobs.failed(third, Failure("x", "y"))):
        assert late == job
    assert await jobs.cancel("j") == job
    assert [result.state for result in await jobs.results("j", after=-1, limit=9)] == [
        "saved",
        "cancelled",
        "cancelled",
    ]
    assert [webhook.job for webhook in await jobs.webhooks(10)] == [job]
    assert await jobs.cancel("nothing") is None


async def test_job_that_is_done_stays_done(jobs: DurableJobs) -> None:
    await jobs.create("j", [item("a")], None)
    (found,) = await jobs.due(10, but=set(), busy=[])
    done = await jobs.saved(found, KEY, created=True)
    assert await jobs.cancel("j") == done
    assert (done.state, done.cancelled) == ("done", 0)


async def test_links_that_settle_while_a_job_is_cancelled_leave_it_ended(jobs: DurableJobs) -> None:
    for turn in range(5):
        name = f"j{turn}"
        await jobs.create(name, [item(str(number)) for number in range(20)], None)
        found = [each for each in await jobs.due(100, but=set(), busy=[]) if each.job == name]
        saving = [jobs.saved(each, KEY, created=True) for each in found]
        await asyncio.gather(*saving[:10], jobs.cancel(name), *saving[10:])
        job = await jobs.find(name)
        assert job is not None
        states = [result.state for result in await jobs.results(name, after=-1, limit=20)]
        assert job.finished_at is not None
        assert (job.saved, job.cancelled) == (states.count("saved"), states.count("cancelled"))
        assert job.saved + job.cancelled == 20


async def test_jobs_are_listed_newest_first_by_their_state(jobs: DurableJobs, clock: Time) -> None:
    for number in range(6):
        await jobs.create(f"j{number}", [item("a"), item("b")], None)
        if number % 2:
            clock.now += timedelta(seconds=1)
    by_job = {found.job: found for found in await jobs.due(100, but=set(), busy=[]) if found.number == 0}
    await jobs.saved(by_job["j0"], KEY, created=True)
    await jobs.cancel("j1")
    for found in [each for each in await jobs.due(100, but=set(), busy=[]) if each.job == "j2"]:
        await jobs.saved(found, KEY, created=True)
    everything = await jobs.page(limit=10)
    assert [job.id for job in everything] == ["j5", "j4", "j3", "j2", "j1", "j0"]
    first = await jobs.page(limit=3)
    last = (int(first[-1].created_at.timestamp()), first[-1].id)
    assert [job.id for job in await jobs.page(limit=9, after=last)] == ["j2", "j1", "j0"]
    for job in everything:
        assert job.id in [each.id for each in await jobs.page(limit=9, state=job.state)]
    states = {state: [job.id for job in await jobs.page(limit=9, state=state)] for state in get_args(JobState)}
    assert states == {"queued": ["j5", "j4", "j3"], "running": ["j0"], "done": ["j2"], "cancelled": ["j1"]}


async def test_links_of_jobs_have_a_host_and_a_key_whatever_became_of_them(jobs: DurableJobs) -> None:
    failure = Failure("loop_detected", "the source is this server")
    new = [
        NewItem("https://a.example/a", "a.example", None, key=KEY),
        NewItem("", "b.example", None, failure, KEY),
        NewItem("", "", None, Failure("invalid_source", "no link")),
    ]
    await jobs.create("j", new, None)
    results = await jobs.results("j", after=-1, limit=9)
    assert [(result.host, result.key, result.state) for result in results] == [
        ("a.example", KEY, "waiting"),
        ("b.example", KEY, "failed"),
        ("", None, "failed"),
    ]
