"""The outbox's table and the index of removals: in order, durably, and counted."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import StorageError
from imgkeep.core.records import Backlog, OutboxEntry
from tests.support.database import walk
from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgkeep.core.records import Record
    from imgkeep.database import Database
    from tests.support.clock import FakeClock


def pending(name: str, *, minutes_ago: int = 0) -> Record:
    return replace(record_of(name.encode(), name=name), waits_at="", stored_at=NOON - timedelta(minutes=minutes_ago))


async def test_pending_record_waits_until_it_is_uploaded(database: Database) -> None:
    index, outbox, record = database.image_index, database.outbox, pending("a")
    assert outbox.last_backlog is None
    await index.put(record)
    await index.put(record)
    assert await outbox.backlog() == outbox.last_backlog == Backlog(1, record.stored_at, None)
    assert await index.find(record.key) == record
    await index.put(replace(record, waits_at=None))
    assert await outbox.backlog() == outbox.last_backlog == Backlog()
    assert await index.find(record.key) == replace(record, waits_at=None)


async def test_backlog_without_the_database_has_what_came_since(
    connect: Callable[..., Database], tmp_path: Path
) -> None:
    (tmp_path / "place").write_bytes(b"a file where a folder should be")
    database = connect(f"sqlite:///{tmp_path}/place/imgkeep.db")
    index, outbox = database.image_index, database.outbox
    await index.put(pending("b", minutes_ago=5))
    await index.put(replace(pending("c"), waits_at=None))
    with pytest.raises(StorageError):
        await outbox.backlog()
    assert outbox.last_backlog == Backlog(1, NOON - timedelta(minutes=5), None)
    (tmp_path / "place").unlink()
    index.start_flush()
    assert await outbox.backlog() == outbox.last_backlog == Backlog(1, NOON - timedelta(minutes=5), None)


async def test_due_entries_come_by_age_and_postponed_ones_later(database: Database, clock: FakeClock) -> None:
    outbox = database.outbox
    records = [pending(name, minutes_ago=age) for name, age in (("young", 1), ("old", 60), ("middle", 30))]
    for record in records:
        await database.image_index.put(record)
    young, old, middle = (record.key for record in records)
    assert [entry.key for entry in await outbox.due(10)] == [old, middle, young]
    assert [entry.key for entry in await outbox.due(1)] == [old]
    await outbox.postpone(OutboxEntry(old, 0), 30, "the bucket answers 500")
    assert [entry.key for entry in await outbox.due(10)] == [middle, young]
    assert await outbox.backlog() == Backlog(3, NOON - timedelta(minutes=60), "the bucket answers 500")
    clock.advance(31)
    assert (await outbox.due(10))[0] == OutboxEntry(old, 1)
    await outbox.remove(old)
    await outbox.note_error("the bucket cannot be reached")
    assert await outbox.backlog() == Backlog(2, NOON - timedelta(minutes=30), "the bucket cannot be reached")


async def test_outbox_survives_the_process_and_a_reindex(
    database: Database, connect: Callable[..., Database], url: str
) -> None:
    record = pending("a")
    await database.image_index.put(record)
    assert (await database.outbox.backlog()).images == 1
    other = connect(url)
    assert await other.image_index.rebuild(walk([record])) == 1
    assert [entry.key for entry in await other.outbox.due(10)] == [record.key]


async def test_image_in_both_stores_waits_after_a_reindex(database: Database) -> None:
    """As after a kill between its upload and the end of its entry."""
    record = pending("a")
    assert await database.image_index.rebuild(walk([replace(record, waits_at=None), record])) == 2
    assert await database.image_index.find(record.key) == record
    assert (await database.outbox.backlog()).images == 1


async def test_dropped_record_leaves_the_outbox(database: Database) -> None:
    record = pending("a")
    await database.image_index.put(record)
    await database.image_index.drop([record.key])
    assert await database.outbox.backlog() == Backlog()


async def test_blocked_digests_survive_the_process(
    database: Database, connect: Callable[..., Database], url: str
) -> None:
    record, other = record_of(b"x"), record_of(b"y", name="b")
    await database.removals.block([record.digest, other.digest])
    await database.removals.block([record.digest])
    await database.removals.unblock([other.digest])
    assert list(await connect(url).removals.list_blocked()) == [record.digest]
    await database.image_index.put(record)
    assert await database.image_index.page(limit=9) == [], "a listing hides blocked images"
