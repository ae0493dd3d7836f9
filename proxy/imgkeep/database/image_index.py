"""
The image index: a fast view of the records, which may be lost. The records in the store are the truth.

A fill does not wait until its row is written, and a lookup does not wait long until it is found: the store has the
record as well, only slower. After a fault callers go on with the store.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from imgkeep.core.confirmation import LINK_MARK
from imgkeep.core.errors import StorageError
from imgkeep.core.records import Digest, Key, Record, Wanted
from imgkeep.database.advisory_locks import INDEX_LOCK
from imgkeep.database.dialect_insert import insert_or_replace
from imgkeep.database.image_counts import NOT_BLOCKED, Totals, count_images, count_totals, split_keys
from imgkeep.database.image_rows import to_records, to_row
from imgkeep.database.outbox import (
    FIND_TIMEOUT_S,
    delete_entries,
    hasten_entries,
    update_entries,
    waits_at_others,
)
from imgkeep.database.picture_facts import delete_facts, delete_stale_facts, insert_facts
from imgkeep.database.schema import images, refused, select_records, state
from imgkeep.database.store_mark import COMPLETE_MARK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
    from collections.abc import Set as AbstractSet
    from datetime import datetime

    from imgkeep.database.engine import DatabaseEngine
    from imgkeep.database.record_lookup import RecordLookup

BATCH: Final = 2000
"""Maximum number of rows in one transaction: enough to be quick, few enough to let other transactions in between, a
tenth of a second."""
BATCH_DELAY_S: Final = 0.1
"""Interval of collecting new records before they are written: a transaction costs as much as fifty rows."""
LOCAL_BATCH_DELAY_S: Final = 1
"""
Interval of collecting where the store is a local disk, which lookups read instead of the index. Keys are as good as
random, so each row is on a page of its own; a transaction of many rows writes a page for several of them.
"""
UNWRITTEN_MAX: Final = 10_000
"""Maximum number of records that wait for an unreachable database; the next reindex adds the records beyond it."""
SUSPECTS_MAX: Final = 100
DELETED_MAX: Final = 1_000_000
"""Maximum number of rows that one statement of a rebuild looks at: more could take longer than a call may."""
ANY: Final = Wanted()

_LOCK_ALONE: Final = sa.select(sa.func.pg_advisory_xact_lock(INDEX_LOCK))
_LOCK_SHARED: Final = sa.select(sa.func.pg_advisory_xact_lock_shared(INDEX_LOCK))


async def _note_nothing(_digests: Collection[Digest]) -> None:
    """Without a list of blocked digests there is nothing to add to."""


class ImageIndex:
    """The rows of the images, one a key. A crash loses the last `batch_delay_s` seconds of them; the store has them."""

    def __init__(
        self,
        engine: DatabaseEngine,
        *,
        batch_delay_s: float = BATCH_DELAY_S,
        node: str = "",
        lookup: RecordLookup | None = None,
    ) -> None:
        self._engine = engine
        self._lookup = lookup
        self._node = node
        self._batch_delay_s = batch_delay_s
        self._found_blocked: Callable[[Collection[Digest]], Awaitable[None]] = _note_nothing
        self._unwritten: dict[Key, Record] = {}
        self._adopted: set[Key] = set()
        """Those of them that this process did not write, or that another one may have written since."""
        self._has_dropped = False
        """Whether records were dropped that were too many to wait."""
        self._flush_task: asyncio.Task[None] | None = None
        self._flush_now = asyncio.Event()
        """Set while a caller waits for the unwritten records."""

    @property
    def unwritten(self) -> Collection[Record]:
        """The records that the database does not have yet."""
        return self._unwritten.values()

    @property
    def complete(self) -> bool:
        """Whether the index has held every record of the store at some time."""
        return COMPLETE_MARK in self._engine.marks and not self._has_dropped

    async def find(self, key: Key) -> Record | None:
        unwritten = self._unwritten.get(key)
        if unwritten is not None and key not in self._adopted:
            return unwritten
        if self._lookup is not None and self._lookup.is_connected:
            found = to_records(await self._lookup.find(key, timeout_s=FIND_TIMEOUT_S))
            return found[0] if found else None
        records = await self._select(select_records(self._node).where(images.c.key == key), timeout_s=FIND_TIMEOUT_S)
        return records[0] if records else None

    async def find_all(self, keys: Collection[Key]) -> dict[Key, Record]:
        """Return those of the records that are known."""
        await self.flush()
        wanted, found = list(keys), {}
        for start in range(0, len(wanted), BATCH):
            query = select_records(self._node).where(images.c.key.in_(wanted[start : start + BATCH]))
            found.update({record.key: record for record in await self._select(query)})
        return found

    async def put(self, record: Record, *, is_adopted: bool = False) -> None:
        """
        Add a record, soon. `find` returns it at once; an unreachable database gets it later.

        `is_adopted`: it was read from the store. The process that wrote it there writes the row as well, and may have
        written another record since. So this one replaces no row that stands for every link, and `find` looks there.
        """
        if len(self._unwritten) >= UNWRITTEN_MAX:
            self._has_dropped = True
            return
        self._unwritten[record.key] = record
        (self._adopted.add if is_adopted else self._adopted.discard)(record.key)
        self.start_flush()

    def doubt(self, key: Key) -> None:
        """Note that another process may have written another record of a key."""
        if key in self._unwritten:
            self._adopted.add(key)

    async def drop(self, keys: Collection[Key]) -> None:
        """Remove the rows of keys, here and in the outbox; other nodes do so once they have deleted the bytes."""
        await self.flush()
        for key in keys:
            self._unwritten.pop(key, None)
            self._adopted.discard(key)

        def work(connection: sa.Connection) -> None:
            if is_shared(connection):
                connection.execute(_LOCK_ALONE)  # rows in another order than that of a write would be a deadlock
            connection.execute(sa.delete(images).where(images.c.key.in_(keys)))
            delete_entries(connection, self._node, keys)
            hasten_entries(connection, self._node, keys)

        await self._engine.execute(work)

    async def page(self, *, limit: int, after: tuple[int, str] | None = None, wanted: Wanted = ANY) -> Sequence[Record]:
        """Return up to `limit` records, newest first, after epoch seconds and key of the last one before them."""
        query = select_records(self._node).order_by(images.c.stored_at.desc(), images.c.key.desc()).limit(limit)
        query = query.where(NOT_BLOCKED)
        for column, value in (
            (images.c.host, wanted.host),
            (images.c.provider, wanted.provider),
            (images.c.digest, wanted.digest),
        ):
            if value is not None:
                query = query.where(column == value)
        if wanted.since is not None:
            query = query.where(images.c.stored_at >= math.ceil(wanted.since.timestamp()))
        if wanted.until is not None:
            query = query.where(images.c.stored_at < math.ceil(wanted.until.timestamp()))
        if after is not None:
            query = query.where(sa.tuple_(images.c.stored_at, images.c.key) < sa.tuple_(*map(sa.literal, after)))
        await self.flush()
        return await self._select(query)

    def when_blocked(self, callback: Callable[[Collection[Digest]], Awaitable[None]]) -> None:
        """Await `callback` with digests of records that other processes had blocked before their rows were written."""
        self._found_blocked = callback

    async def block(self, digest: Digest) -> Sequence[Key]:
        """
        Block a digest for the processes that share this database, and return the keys of all records that point at it.

        Both are one transaction, which is before or after every other one that writes records: this one returns the
        key of a record, or the process that writes it is told of the block (`when_blocked`). A SQLite file is one
        node's, whose processes block a digest in memory.
        """
        await self.flush()
        keys = await self._engine.execute(lambda connection: _block(connection, digest))
        return [Key(key) for key in keys]

    async def keys_of(self, digest: Digest) -> Sequence[Key]:
        """Return the keys of all records that point at an object."""
        await self.flush()
        query = sa.select(images.c.key).where(images.c.digest == digest)
        return [Key(key) for key in await self._engine.read(lambda connection: connection.scalars(query).all())]

    async def count(self) -> Totals:
        await self.flush()
        return await self._engine.execute(count_totals)

    async def count_images(self) -> tuple[int, int]:
        """Return the number of images, and the sum of their sizes in bytes."""
        return await self._engine.execute(count_images)

    async def suspects(self, *, since: datetime, identities_min: int) -> Sequence[tuple[str, Digest, int]]:
        """
        Return host, digest and number of identities of images that a host gave under so many of them since then, most
        first, a hundred at most.
        """
        await self.flush()
        number = sa.func.count().label("number")
        query = (
            sa.select(images.c.host, images.c.digest, number)
            .where(images.c.stored_at >= int(since.timestamp()), images.c.host != "")
            .where(images.c.identity.not_like(f"%{LINK_MARK}%"))
            .group_by(images.c.host, images.c.digest)
            .having(number >= identities_min)
            .order_by(number.desc(), images.c.host, images.c.digest)
            .limit(SUSPECTS_MAX)
        )
        rows = await self._engine.read(lambda connection: connection.execute(query).all())
        return [(row.host, Digest(row.digest), row.number) for row in rows]

    async def rebuild(self, records: AsyncIterator[Record]) -> int:
        """
        Bring in all `records` and drop the rows of others; return how many.

        Fills may go on meanwhile: the index drops only rows that were written before the walk began, and no rows of
        images that wait in the fallback of another node, which this one cannot walk.
        """
        await self.flush()
        self._has_dropped = False
        began = await self._engine.execute(self._now)
        total = 0
        batch: list[Record] = []
        async for record in records:
            batch.append(record)
            if len(batch) == BATCH:
                total += await self._write(batch)
                batch = []
        total += await self._write(batch)
        for keys in split_keys(total // DELETED_MAX):
            await self._engine.execute(partial(_delete_older, self._node, keys, began))
        await self._engine.execute(delete_stale_facts)
        await self._engine.execute(partial(_mark_complete, str(began)))
        self._engine.marks[COMPLETE_MARK] = str(began)
        return total

    async def flush(self) -> None:
        """Wait until other processes find the records that were put, or until the database is unreachable."""
        if self._flush_task is not None:
            self._flush_now.set()
            await asyncio.shield(self._flush_task)
            self._flush_now.clear()

    def start_flush(self) -> None:
        """Start to write the records that were put, unless there are none or another task writes them."""
        if self._unwritten and self._flush_task is None:
            self._flush_task = asyncio.create_task(self._write_unwritten())

    async def _write_unwritten(self) -> None:
        try:
            while self._unwritten:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._flush_now.wait(), self._batch_delay_s)
                records = sorted(self._unwritten.values(), key=attrgetter("key"))  # adjacent keys share pages
                for start in range(0, len(records), BATCH):
                    batch = records[start : start + BATCH]
                    await self._write(batch)
                    for record in batch:
                        if self._unwritten.get(record.key) is record:
                            del self._unwritten[record.key]
                            self._adopted.discard(record.key)
        except StorageError:
            return  # they wait for the next put or check
        finally:
            self._flush_task = None

    async def _write(self, batch: Sequence[Record]) -> int:
        if batch:
            adopted = self._adopted.intersection(record.key for record in batch)
            blocked = await self._engine.execute(
                lambda connection: _upsert(
                    connection, self._node, _leave_out_known(connection, batch, adopted), self._now(connection)
                )
            )
            if blocked:
                await self._found_blocked([*map(Digest, blocked)])
        return len(batch)

    def _now(self, connection: sa.Connection) -> int:
        """Return the time by which rows are old: that of the database, where several nodes with clocks share it."""
        if not self._node:
            return self._engine.now()
        return int(connection.scalar(sa.select(sa.func.floor(sa.extract("epoch", sa.func.now())))) or 0)

    async def _select(self, query: sa.Select[Any], **limits: float) -> list[Record]:
        return await self._engine.read(lambda connection: _read(connection, query), **limits)


def _read(connection: sa.Connection, query: sa.Select[Any]) -> list[Record]:
    return to_records(connection.execute(query).all())


def is_shared(connection: sa.Connection) -> bool:
    """Tell whether processes of other machines can write at the same time."""
    return connection.dialect.name == "postgresql"


def _block(connection: sa.Connection, digest: Digest) -> Sequence[str]:
    if is_shared(connection):
        connection.execute(_LOCK_ALONE)
        connection.execute(sa.delete(refused).where(refused.c.digest == digest))
        connection.execute(sa.insert(refused), {"digest": digest})
    delete_facts(connection, [digest])
    return connection.scalars(sa.select(images.c.key).where(images.c.digest == digest)).all()


def _leave_out_known(connection: sa.Connection, records: Sequence[Record], adopted: AbstractSet[Key]) -> list[Record]:
    """Leave out the adopted records whose row stands for every link: the process that wrote it knew better."""
    query = sa.select(images.c.key).where(images.c.key.in_(adopted), images.c.doubts.is_(None))
    known = set(connection.scalars(query)) if adopted else set()
    return [record for record in records if record.key not in known]


def _upsert(connection: sa.Connection, node: str, records: Sequence[Record], now: int) -> Sequence[str]:
    """Write rows; return which of their digests other processes have blocked."""
    # A key that waits and is in the primary, too, is read twice. In one order, so that no two nodes wait for each
    # other's rows.
    records = sorted({record.key: record for record in records}.values(), key=attrgetter("key"))
    if not records:
        return ()
    shared = is_shared(connection)
    if shared:
        connection.execute(_LOCK_SHARED)  # by itself: a later statement sees what was committed when it was granted
        statement: sa.Insert = insert_or_replace(images)
    else:  # of SQLite, whose transactions come one after the other, this is the quicker way
        statement = sa.insert(images)
        connection.execute(sa.delete(images).where(images.c.key.in_([record.key for record in records])))
    # Compiled once and handed to the driver as it is: SQLAlchemy's handling of each row costs more than the row.
    insert = statement.compile(dialect=connection.dialect)
    rows = [{**to_row(record), "indexed_at": now} for record in records]
    order = insert.positiontup
    connection.exec_driver_sql(insert.string, [tuple(map(row.__getitem__, order)) for row in rows] if order else rows)
    insert_facts(connection, {record.digest: record.picture for record in records if record.picture})
    update_entries(connection, node, records)
    if not shared:
        return ()
    digests = {record.digest for record in records}
    return connection.scalars(sa.select(refused.c.digest).where(refused.c.digest.in_(digests))).all()


def _delete_older(node: str, keys: sa.ColumnElement[bool], began: int, connection: sa.Connection) -> None:
    old = sa.and_(keys, images.c.indexed_at < began, ~waits_at_others(node))
    if node:  # in the order of `_upsert`
        locked = sa.select(images.c.key).where(old).order_by(images.c.key).with_for_update()
        old = images.c.key.in_(locked)
    connection.execute(sa.delete(images).where(old))


def _mark_complete(value: str, connection: sa.Connection) -> None:
    mark = {"name": COMPLETE_MARK, "value": value}
    if is_shared(connection):
        connection.execute(insert_or_replace(state), mark)
    elif not connection.execute(sa.update(state).where(state.c.name == COMPLETE_MARK).values(mark)).rowcount:
        connection.execute(sa.insert(state), mark)
