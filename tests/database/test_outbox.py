"""What waits for the primary store, in SQL: in order, durably, and told."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from imgkeep.core.records import Backlog, OutboxEntry
from imgkeep.database import ImageIndex

from tests.support.stores import record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from imgkeep.core.records import Record

NOW = datetime(2026, 11, 22, 14, tzinfo=UTC)


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def database(tmp_path: Path, clock: Clock) -> AsyncIterator[ImageIndex]:
    database = ImageIndex(f"sqlite:///{tmp_path}/imgkeep.db", clock)
    await database.open()
    yield database
    await database.aclose()


def pending(name: str, *, minutes_ago: int = 0) -> Record:
    return replace(record_of(name.encode(), name=name), pending=True, stored_at=NOW - timedelta(minutes=minutes_ago))


async def test_what_is_pending_waits_and_what_arrived_does_not(database: ImageIndex) -> None:
    record = pending("a")
    await database.put(record)
    await database.put(record)
    assert await database.backlog() == Backlog(1, record.stored_at, None)
    assert await database.find(record.key) == record
    await database.put(replace(record, pending=False))
    assert await database.backlog() == Backlog()
    assert await database.find(record.key) == replace(record, pending=False)


async def test_those_that_wait_longest_come_first_and_those_that_failed_later(
    database: ImageIndex, clock: Clock
) -> None:
    records = [pending(name, minutes_ago=age) for name, age in (("young", 1), ("old", 60), ("middle", 30))]
    for record in records:
        await database.put(record)
    young, old, middle = (record.key for record in records)
    assert [waiting.key for waiting in await database.due(10)] == [old, middle, young]
    assert [waiting.key for waiting in await database.due(1)] == [old]
    await database.postpone(OutboxEntry(old, 0), 30, "the bucket answers 500")
    assert [waiting.key for waiting in await database.due(10)] == [middle, young]
    assert await database.backlog() == Backlog(3, NOW - timedelta(minutes=60), "the bucket answers 500")
    clock.now += timedelta(seconds=31)
    assert (await database.due(10))[0] == OutboxEntry(old, 1)
    await database.remove(old)
    await database.note("the bucket cannot be reached")
    assert await database.backlog() == Backlog(2, NOW - timedelta(minutes=30), "the bucket cannot be reached")


async def test_it_survives_the_process_and_a_reindex(tmp_path: Path, database: ImageIndex, clock: Clock) -> None:
    record = pending("a")
    await database.put(record)
    assert (await database.backlog()).images == 1
    other = ImageIndex(f"sqlite:///{tmp_path}/imgkeep.db", clock)
    await other.open()

    async def everything() -> AsyncIterator[Record]:
        yield record

    assert await other.rebuild(everything()) == 1
    assert [waiting.key for waiting in await other.due(10)] == [record.key]
    await other.aclose()
