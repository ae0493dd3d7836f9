"""The jobs in the database: order, states, results, webhooks."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, get_args

import pytest

from imgkeep.core.jobs import JobState, NewItem
from imgkeep.core.records import Failure, Key
from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from imgkeep.database import Database, DurableJobs, ImageIndex
    from tests.support.clock import FakeClock

KEY = Key("0" * 64)


def item(name: str, *, host: str = "a.example", minutes: int | None = None) -> NewItem:
    expires_at = None if minutes is None else NOON + timedelta(minutes=minutes)
    return NewItem(f"https://{host}/{name}", host, expires_at)


@pytest.fixture
def jobs(database: Database) -> DurableJobs:
    return database.jobs


async def due(
    jobs: DurableJobs, *, limit: int = 10, without: set[tuple[str, int]] | None = None, busy: list[str] | None = None
) -> list[str]:
    return [found.link.rpartition("/")[2] for found in await jobs.due(limit, without=without or set(), busy=busy or [])]


async def test_due_links_come_by_expiry(jobs: DurableJobs) -> None:
    await jobs.create("j1", [item("never"), item("late", minutes=60), item("soon", minutes=5)], None)
    await jobs.create("j2", [item("sooner", minutes=1), item("other", host="b.example", minutes=9)], None)
    assert await due(jobs) == ["sooner", "soon", "other", "late", "never"]
    assert await due(jobs, limit=2) == ["sooner", "soon"]
    assert await due(jobs, limit=2, without={("j2", 0)}) == ["soon", "other"]
    assert await due(jobs, busy=["a.example"]) == ["other"]
    assert await jobs.count_waiting() == 5


async def test_job_is_done_when_all_links_are_settled(jobs: DurableJobs) -> None:
    refused = NewItem("", "", None, Failure("invalid_source", "no link"))
    job = await jobs.create("j", [item("a"), refused, item("b")], None)
    assert (job.state, job.total, job.failed) == ("running", 3, 1)
    first, second = await jobs.due(10, without=set(), busy=[])
    for _ in range(2):
        job = await jobs.mark_saved(first, KEY, created=True)
        assert (job.state, job.saved, job.finished_at) == ("running", 1, None)
    job = await jobs.mark_failed(second, Failure("source_expired", "d" * 1000))
    assert (job.state, job.saved, job.failed) == ("done", 1, 2)
    assert await jobs.find("j") == job
    assert await jobs.find("k") is None
    assert await due(jobs) == []
    results = await jobs.results("j", after=-1, limit=10)
    assert [(result.number, result.state) for result in results] == [(0, "saved"), (1, "failed"), (2, "failed")]
    assert results[0].key == KEY
    assert results[0].record is None
    assert results[2].failure == Failure("source_expired", "d" * 255)


async def test_job_without_usable_links_is_done_at_once(jobs: DurableJobs) -> None:
    job = await jobs.create("j", [NewItem("", "", None, Failure("invalid_source", "no link"))], "https://hook.example/")
    assert job.state == "done"
    (webhook,) = await jobs.webhooks(10)
    assert (webhook.job, webhook.url, webhook.attempts) == (job, "https://hook.example/", 0)


async def test_results_have_the_records(jobs: DurableJobs, index: ImageIndex) -> None:
    record = record_of(b"body")
    await jobs.create("j", [item("a"), item("b")], None)
    first, _ = await jobs.due(10, without=set(), busy=[])
    await index.put(record)
    await jobs.mark_saved(first, record.key, created=False)
    saved, waiting = await jobs.results("j", after=-1, limit=10)
    assert (saved.record, saved.created) == (record, False)
    assert (waiting.state, waiting.record, waiting.key) == ("waiting", None, None)
    assert [result.number for result in await jobs.results("j", after=0, limit=1)] == [1]


async def test_postponed_link_waits(jobs: DurableJobs, clock: FakeClock) -> None:
    await jobs.create("j", [item("a")], None)
    (found,) = await jobs.due(10, without=set(), busy=[])
    await jobs.postpone(found, 30)
    assert await due(jobs) == []
    clock.advance(31)
    (again,) = await jobs.due(10, without=set(), busy=[])
    assert (again.attempts, again.link) == (1, found.link)


async def test_webhook_is_due_once_until_removed(jobs: DurableJobs) -> None:
    await jobs.create("j", [item("a")], "https://hook.example/")
    assert await jobs.webhooks(10) == []
    (found,) = await jobs.due(10, without=set(), busy=[])
    await jobs.mark_saved(found, KEY, created=True)
    (webhook,) = await jobs.webhooks(10)
    assert webhook.due_in_s <= 0
    await jobs.postpone_webhook(webhook, 30)
    (webhook,) = await jobs.webhooks(10)
    assert (webhook.attempts, webhook.due_in_s) == (1, 30)
    await jobs.remove_webhook(webhook)
    assert await jobs.webhooks(10) == []


async def test_old_jobs_are_deleted_and_unfinished_ones_stay(jobs: DurableJobs, clock: FakeClock) -> None:
    await jobs.create("done", [item("a")], None)
    (found,) = await jobs.due(10, without=set(), busy=[])
    await jobs.mark_saved(found, KEY, created=True)
    await jobs.create("waiting", [item("b")], None)
    clock.advance(30 * 86_400)
    assert await jobs.delete_old(3600) == 1
    assert await jobs.find("done") is None
    assert await jobs.results("done", after=-1, limit=10) == []
    assert await jobs.find("waiting") is not None
    assert await due(jobs) == ["b"]


async def test_cancelled_job_ends_at_once(jobs: DurableJobs) -> None:
    await jobs.create("j", [item("a"), item("b"), item("c")], "https://hook.example/")
    await jobs.create("k", [item("d")], None)
    first, second, third = [found for found in await jobs.due(10, without=set(), busy=[]) if found.job == "j"]
    await jobs.mark_saved(first, KEY, created=True)
    assert await jobs.is_waiting(second)
    assert not await jobs.is_waiting(first)
    job = await jobs.cancel("j")
    assert job is not None
    assert (job.state, job.saved, job.failed, job.cancelled) == ("cancelled", 1, 0, 2)
    assert job.finished_at is not None
    assert not await jobs.is_waiting(second)
    assert await due(jobs) == ["d"]
    assert await jobs.count_waiting() == 1
    # Links that were being saved change nothing any more, and the job stays ended.
    for late in (await jobs.mark_saved(second, KEY, created=True), await jobs.mark_failed(third, Failure("x", "y"))):
        assert late == job
    assert await jobs.cancel("j") == job
    assert [result.state for result in await jobs.results("j", after=-1, limit=9)] == [
        "saved",
        "cancelled",
        "cancelled",
    ]
    assert [webhook.job for webhook in await jobs.webhooks(10)] == [job]
    assert await jobs.cancel("nothing") is None


async def test_cancel_leaves_a_done_job(jobs: DurableJobs) -> None:
    await jobs.create("j", [item("a")], None)
    (found,) = await jobs.due(10, without=set(), busy=[])
    done = await jobs.mark_saved(found, KEY, created=True)
    assert await jobs.cancel("j") == done
    assert (done.state, done.cancelled) == ("done", 0)


async def test_links_that_settle_during_a_cancel_leave_the_job_ended(jobs: DurableJobs) -> None:
    for attempt in range(5):
        name = f"j{attempt}"
        await jobs.create(name, [item(str(number)) for number in range(20)], None)
        found = [each for each in await jobs.due(100, without=set(), busy=[]) if each.job == name]
        saving = [jobs.mark_saved(each, KEY, created=True) for each in found]
        await asyncio.gather(*saving[:10], jobs.cancel(name), *saving[10:])
        job = await jobs.find(name)
        assert job is not None
        states = [result.state for result in await jobs.results(name, after=-1, limit=20)]
        assert job.finished_at is not None
        assert (job.saved, job.cancelled) == (states.count("saved"), states.count("cancelled"))
        assert job.saved + job.cancelled == 20


async def test_page_is_newest_first_and_by_state(jobs: DurableJobs, clock: FakeClock) -> None:
    for number in range(6):
        await jobs.create(f"j{number}", [item("a"), item("b")], None)
        if number % 2:
            clock.advance(1)
    by_job = {found.job: found for found in await jobs.due(100, without=set(), busy=[]) if found.number == 0}
    await jobs.mark_saved(by_job["j0"], KEY, created=True)
    await jobs.cancel("j1")
    for found in [each for each in await jobs.due(100, without=set(), busy=[]) if each.job == "j2"]:
        await jobs.mark_saved(found, KEY, created=True)
    everything = await jobs.page(limit=10)
    assert [job.id for job in everything] == ["j5", "j4", "j3", "j2", "j1", "j0"]
    first = await jobs.page(limit=3)
    last = (int(first[-1].created_at.timestamp()), first[-1].id)
    assert [job.id for job in await jobs.page(limit=9, after=last)] == ["j2", "j1", "j0"]
    for job in everything:
        assert job.id in [each.id for each in await jobs.page(limit=9, state=job.state)]
    states = {state: [job.id for job in await jobs.page(limit=9, state=state)] for state in get_args(JobState)}
    assert states == {"queued": ["j5", "j4", "j3"], "running": ["j0"], "done": ["j2"], "cancelled": ["j1"]}


async def test_every_result_has_host_and_key(jobs: DurableJobs) -> None:
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
