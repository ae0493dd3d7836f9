"""
The view of the records, and what waits for the primary.

Nobody waits for a row to be written, nor for long until one is found: the store knows as well, only slower. After a
fault callers go on with the store.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sa

from imgkeep.core.confirmation import OWN_MARK
from imgkeep.core.errors import StorageError
from imgkeep.core.layout import read_doubts, read_validator, write_doubts
from imgkeep.core.records import Backlog, Digest, Format, Key, OutboxEntry, PixelSize, Record, Totals, Wanted
from imgkeep.database.engine import Database
from imgkeep.database.tables import images, outbox, refused, state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence

    from imgkeep.clock import Clock

BATCH: Final = 2000
"""Rows in one transaction: enough to be quick, few enough to let others in between, a tenth of a second."""

BATCH_DELAY_S: Final = 0.1
"""So long new records are collected: a transaction costs as much as fifty rows."""
LOCAL_BATCH_DELAY_S: Final = 1
"""
So long where nobody looks for records here, because the store is as near. Keys are as good as random, so each row is on
pages of its own; with many rows in one transaction pages are written for several of them.
"""
PENDING_MAX: Final = 10_000
"""Records that wait for a database that is away; beyond, they are left to the next reindex."""
FIND_TIMEOUT_S: Final = 1
"""The store answers sooner than a database that takes longer."""
SUSPECTS_MAX: Final = 100
ANY: Final = Wanted()
_FORMATS: Final = {format_.extension: format_ for format_ in Format}

T = TypeVar("T")


class ImageIndex(Database):
    """
    Implements `interfaces.ImageIndex`, `Outbox`, `Ledger` and `images.removal.Register`.

    What was put in the last `batch_delay_s` seconds is lost in a crash, and brought back by the store.
    """

    def __init__(self, url: str, clock: Clock, *, batch_delay_s: float = BATCH_DELAY_S, reading: bool = False) -> None:
        super().__init__(url, clock, reading=reading)
        self._batch_delay_s = batch_delay_s
        self._pending: dict[Key, Record] = {}
        self._flush: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        """Somebody waits for what is pending."""

    async def aclose(self) -> None:
        await self._settle()
        await super().aclose()

    async def check(self) -> int:
        await super().check()
        self._begin_flush()
        return 0

    async def find(self, key: Key) -> Record | None:
        pending = self._pending.get(key)
        if pending is not None:
            return pending
        query = _records().where(images.c.key == key)
        rows = await self._run(self._select, query, timeout_s=FIND_TIMEOUT_S)
        return rows[0] if rows else None

    async def put(self, record: Record) -> None:
        """Bring a record in, soon. `find` knows it at once; a database that is away gets it when it is back."""
        if len(self._pending) >= PENDING_MAX:
            self.complete = False
            return
        self._pending[record.key] = record
        self._begin_flush()

    async def page(self, *, limit: int, after: tuple[int, str] | None = None, wanted: Wanted = ANY) -> Sequence[Record]:
        """Return up to `limit` records, newest first, from behind `after` (epoch seconds and key of the last one)."""
        query = _records().order_by(images.c.stored_at.desc(), images.c.key.desc()).limit(limit)
        query = query.where(_SHOWN)
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
        await self._settle()
        return await self._run(self._select, query)

    async def find_all(self, keys: Collection[Key]) -> dict[Key, Record]:
        """Return those of the records that are known."""
        await self._settle()
        wanted, found = list(keys), {}
        for start in range(0, len(wanted), BATCH):
            query = _records().where(images.c.key.in_(wanted[start : start + BATCH]))
            found.update({record.key: record for record in await self._run(self._select, query)})
        return found

    async def keys_of(self, digest: Digest) -> Sequence[Key]:
        await self._settle()
        query = sa.select(images.c.key).where(images.c.digest == digest)
        return [Key(key) for key in await self.execute(lambda connection: connection.scalars(query).all())]

    async def drop(self, keys: Collection[Key]) -> None:
        await self._settle()
        for key in keys:
            self._pending.pop(key, None)

        def work(connection: sa.Connection) -> None:
            for table in (images, outbox):
                connection.execute(sa.delete(table).where(table.c.key.in_(keys)))

        await self.execute(work)

    async def refused(self) -> Collection[Digest]:
        query = sa.select(refused.c.digest)
        return [Digest(digest) for digest in await self.execute(lambda connection: connection.scalars(query).all())]

    async def refuse(self, digests: Collection[Digest]) -> None:
        def work(connection: sa.Connection) -> None:
            connection.execute(sa.delete(refused).where(refused.c.digest.in_(digests)))
            connection.execute(sa.insert(refused), [{"digest": digest} for digest in digests])

        await self.execute(work)

    async def allow(self, digests: Collection[Digest]) -> None:
        change = sa.delete(refused).where(refused.c.digest.in_(digests))
        await self.execute(lambda connection: connection.execute(change))

    async def settle(self) -> None:
        """Wait until other processes find what was put, or a database that is away keeps it from them."""
        await self._settle()

    async def count(self) -> Totals:
        await self._settle()
        return await self.execute(_count)

    async def count_images(self) -> tuple[int, int]:
        query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(images.c.size), 0)).where(_SHOWN)
        number, size = await self.execute(lambda connection: connection.execute(query).one())
        return int(number), int(size)

    async def suspects(self, *, since: datetime, identities_min: int) -> Sequence[tuple[str, Digest, int]]:
        await self._settle()
        number = sa.func.count().label("number")
        query = (
            sa.select(images.c.host, images.c.digest, number)
            .where(images.c.stored_at >= int(since.timestamp()), images.c.host != "")
            .where(images.c.identity.not_like(f"%{OWN_MARK}%"))
            .group_by(images.c.host, images.c.digest)
            .having(number >= identities_min)
            .order_by(number.desc(), images.c.host, images.c.digest)
            .limit(SUSPECTS_MAX)
        )
        rows = await self.execute(lambda connection: connection.execute(query).all())
        return [(row.host, Digest(row.digest), row.number) for row in rows]

    async def rebuild(self, records: AsyncIterator[Record]) -> int:
        """
        Bring in all `records` and drop the rows of others; return how many.

        Fills may go on meanwhile: only rows that were written before the walk began are dropped.
        """
        await self._settle()
        began = self.now()
        total = 0
        batch: list[Record] = []
        async for record in records:
            batch.append(record)
            if len(batch) == BATCH:
                total += await self._bring_in(batch)
                batch = []
        total += await self._bring_in(batch)
        await self.execute(lambda connection: _finish(connection, began))
        self.complete = True
        return total

    async def due(self, limit: int) -> Sequence[OutboxEntry]:
        await self._settle()
        query = (
            sa.select(outbox.c.key, outbox.c.attempts)
            .where(outbox.c.due_at <= self.now())
            .order_by(outbox.c.since, outbox.c.key)
            .limit(limit)
        )
        rows = await self.execute(lambda connection: connection.execute(query).all())
        return [OutboxEntry(Key(row.key), row.attempts) for row in rows]

    async def postpone(self, waiting: OutboxEntry, delay_s: float, error: str) -> None:
        change = (
            sa.update(outbox)
            .where(outbox.c.key == waiting.key)
            .values(attempts=waiting.attempts + 1, due_at=self.now() + round(delay_s), error=error[:255])
        )
        await self.execute(lambda connection: connection.execute(change))

    async def note(self, error: str) -> None:
        change = sa.update(outbox).values(error=error[:255])
        await self.execute(lambda connection: connection.execute(change))

    async def remove(self, key: Key) -> None:
        change = sa.delete(outbox).where(outbox.c.key == key)
        await self.execute(lambda connection: connection.execute(change))

    async def backlog(self) -> Backlog:
        await self._settle()
        return await self.execute(_backlog)

    async def _bring_in(self, batch: Sequence[Record]) -> int:
        if batch:
            await self.execute(partial(self._upsert, records=batch))
        return len(batch)

    def _begin_flush(self) -> None:
        if self._pending and self._flush is None:
            self._flush = asyncio.create_task(self._write_pending())

    async def _write_pending(self) -> None:
        try:
            while self._pending:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), self._batch_delay_s)
                waiting = sorted(self._pending.values(), key=attrgetter("key"))  # neighbours share pages
                for start in range(0, len(waiting), BATCH):
                    batch = waiting[start : start + BATCH]
                    await self.execute(partial(self._upsert, records=batch))
                    for record in batch:
                        if self._pending.get(record.key) is record:
                            del self._pending[record.key]
        except StorageError:
            return  # they wait for the next put or check
        finally:
            self._flush = None

    async def _settle(self) -> None:
        """Wait until what was put is written, or cannot be."""
        if self._flush is not None:
            self._hurry.set()
            await asyncio.shield(self._flush)
            self._hurry.clear()

    def _select(self, query: sa.Select[Any]) -> list[Record]:
        rows = self._in_transaction(lambda connection: connection.execute(query).all())
        try:
            return [_to_record(row) for row in rows]
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            # Nothing in a SQLite file guards against flipped bits.
            raise StorageError("the database holds a damaged row; `imgkeep reindex` mends it") from None

    def _upsert(self, connection: sa.Connection, records: Sequence[Record]) -> None:
        # Delete and insert: the one way of upserting that every dialect has.
        keys = [record.key for record in records]
        connection.execute(sa.delete(images).where(images.c.key.in_(keys)))
        now = self.now()
        # Compiled once and handed to the driver as it is: SQLAlchemy's handling of each row costs more than the row.
        insert = sa.insert(images).compile(dialect=connection.dialect)
        rows = [{**_to_row(record), "indexed_at": now} for record in records]
        order = insert.positiontup
        connection.exec_driver_sql(
            insert.string, [tuple(map(row.__getitem__, order)) for row in rows] if order else rows
        )
        waiting = [record for record in records if record.pending]
        known = set(connection.scalars(sa.select(outbox.c.key).where(outbox.c.key.in_(keys)))) if keys else set()
        arrived = [record.key for record in records if not record.pending and record.key in known]
        if arrived:
            connection.execute(sa.delete(outbox).where(outbox.c.key.in_(arrived)))
        new = [
            {"key": record.key, "since": int(record.stored_at.timestamp()), "attempts": 0, "due_at": 0}
            for record in waiting
            if record.key not in known
        ]
        if new:
            connection.execute(sa.insert(outbox), new)


def _records() -> sa.Select[Any]:
    """Select records, each with whether it waits for the primary."""
    return sa.select(images, outbox.c.since).outerjoin(outbox, images.c.key == outbox.c.key)


def _backlog(connection: sa.Connection) -> Backlog:
    count, oldest = connection.execute(sa.select(sa.func.count(), sa.func.min(outbox.c.since))).one()
    last = sa.select(outbox.c.error).where(outbox.c.error.is_not(None)).order_by(outbox.c.due_at.desc()).limit(1)
    return Backlog(count, _time(oldest), connection.scalar(last) if count else None)


def _finish(connection: sa.Connection, began: int) -> None:
    connection.execute(sa.delete(images).where(images.c.indexed_at < began))
    connection.execute(sa.delete(state).where(state.c.name == "complete"))
    connection.execute(sa.insert(state), {"name": "complete", "value": str(began)})


_SHOWN: Final = images.c.digest.not_in(sa.select(refused.c.digest))
"""A record in doubt stays when its bytes are removed, because another link of its key may bring others."""


def _count(connection: sa.Connection) -> Totals:
    sizes = sa.select(images.c.digest, sa.func.max(images.c.size).label("size")).where(_SHOWN)
    objects = sizes.group_by(images.c.digest).subquery()
    times = sa.select(sa.func.count(), sa.func.min(images.c.stored_at), sa.func.max(images.c.stored_at))
    total, oldest, newest = connection.execute(times.select_from(images).where(_SHOWN)).one()
    count, size = connection.execute(sa.select(sa.func.count(), sa.func.sum(objects.c.size))).one()
    number = sa.func.count().label("number")
    hosts = connection.execute(
        sa.select(images.c.host, number)
        .where(_SHOWN)
        .group_by(images.c.host)
        .order_by(number.desc(), images.c.host)
        .limit(10)
    ).all()
    return Totals(total, count, int(size or 0), _time(oldest), _time(newest), tuple((host, n) for host, n in hosts))


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _to_row(record: Record) -> dict[str, object]:
    return {
        "key": record.key,
        "identity": record.identity,
        "host": record.host,
        "digest": record.digest,
        "extension": record.format.extension,
        "size": record.size,
        "width": record.pixel_size.width if record.pixel_size else None,
        "height": record.pixel_size.height if record.pixel_size else None,
        "etag": record.etag,
        "stored_at": int(record.stored_at.timestamp()),
        "provider": record.provider,
        "temporary": record.temporary,
        "expires_at": int(record.expires_at.timestamp()) if record.expires_at else None,
        "origin_etag": record.validator.etag if record.validator else None,
        "origin_modified": record.validator.modified if record.validator else None,
        "doubts": ",".join(write_doubts(record.doubts)) or None,
        "brought_by": record.brought_by or None,
    }


def _to_record(row: sa.Row[Any]) -> Record:
    return Record(
        key=Key(row.key),
        identity=row.identity,
        host=row.host,
        digest=Digest(row.digest),
        format=_FORMATS[row.extension],
        size=row.size,
        pixel_size=PixelSize(row.width, row.height) if row.width and row.height else None,
        etag=row.etag,
        stored_at=datetime.fromtimestamp(row.stored_at, UTC),
        provider=row.provider,
        temporary=row.temporary,
        expires_at=_time(row.expires_at),
        validator=read_validator(row.origin_etag, row.origin_modified),
        doubts=read_doubts(row.doubts.split(",")) if row.doubts else frozenset(),
        brought_by=row.brought_by or "",
        pending=row.since is not None,
    )
