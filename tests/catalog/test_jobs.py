"""What the catalog promises of jobs, on every database."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from proxy.catalog import SqlJobs
from proxy.core.model import Failure, Key, NewItem
from tests.storage.stores import NOON, record_of

if TYPE_CHECKING:
    from proxy.catalog import SqlCatalog
    from tests.catalog.conftest import Time

KEY = Key("0" * 64)


def item(name: str, *, host: str = "a.example", minutes: int | None = None) -> NewItem:
    expires_at = None if minutes is None else NOON + timedelta(minutes=minutes)
    return NewItem(f"https://{host}/{name}", host, expires_at)


@pytest.fixture
def jobs(catalog: SqlCatalog) -> SqlJobs:
    return SqlJobs(catalog)


async def due(
    jobs: SqlJobs, *, limit: int = 10, but: set[tuple[str, int]] | None = None, busy: list[str] | None = None
) -> list[str]:
    return [found.link.rpartition("/")[2] for found in await jobs.due(limit, but=but or set(), busy=busy or [])]


async def test_what_expires_first_comes_first_in_all_jobs(jobs: SqlJobs) -> None:
    await jobs.create("j1", [item("never"), item("late", minutes=60), item("soon", minutes=5)], None)
    await jobs.create("j2", [item("sooner", minutes=1), item("other", host="b.example", minutes=9)], None)
    assert await due(jobs) == ["sooner", "soon", "other", "late", "never"]
    assert await due(jobs, limit=2) == ["sooner", "soon"]
    assert await due(jobs, limit=2, but={("j2", 0)}) == ["soon", "other"]
    assert await due(jobs, busy=["a.example"]) == ["other"]
    assert await jobs.count_waiting() == 5


async def test_a_job_is_done_when_all_its_links_are_settled_and_counts_each_once(jobs: SqlJobs) -> None:
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


async def test_a_job_of_nothing_but_failures_is_done_at_once(jobs: SqlJobs) -> None:
    job = await jobs.create("j", [NewItem("", "", None, Failure("invalid_source", "no link"))], "https://hook.example/")
    assert job.state == "done"
    (webhook,) = await jobs.webhooks(10)
    assert (webhook.job, webhook.url, webhook.attempts) == (job, "https://hook.example/", 0)


async def test_results_tell_the_images(jobs: SqlJobs, catalog: SqlCatalog) -> None:
    record = record_of(b"body")
    await jobs.create("j", [item("a"), item("b")], None)
    first, _ = await jobs.due(10, but=set(), busy=[])
    await catalog.put(record)
    await jobs.saved(first, record.key, created=False)
    saved, waiting = await jobs.results("j", after=-1, limit=10)
    assert (saved.record, saved.created) == (record, False)
    assert (waiting.state, waiting.record, waiting.key) == ("waiting", None, None)
    assert [result.number for result in await jobs.results("j", after=0, limit=1)] == [1]


async def test_what_failed_waits_for_its_time(jobs: SqlJobs, clock: Time) -> None:
    await jobs.create("j", [item("a")], None)
    (found,) = await jobs.due(10, but=set(), busy=[])
    await jobs.postpone(found, 30)
    assert await due(jobs) == []
    clock.turn(31)
    (again,) = await jobs.due(10, but=set(), busy=[])
    assert (again.attempts, again.link) == (1, found.link)


async def test_whoever_is_to_be_told_waits_for_its_time_and_is_told_once(jobs: SqlJobs) -> None:
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


async def test_old_jobs_are_forgotten_and_unfinished_ones_are_not(jobs: SqlJobs, clock: Time) -> None:
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
