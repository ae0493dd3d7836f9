"""
The catalog on any database that SQLAlchemy speaks to; SQLite by default, PostgreSQL where several tools look in.

Rules:
- All SQL runs in one thread of its own, never on the event loop.
- Nobody waits for a row to be written, nor for long until one is found: the store knows as well, only slower.
- A fault is a `StorageError`; callers go on with the store. `fault` tells the last one.
- A SQLite file that is damaged is set aside, begun anew and marked incomplete, for `reindex` to fill again; one that
  was removed or replaced while we had it open is left behind.
- A catalog of a newer version is left alone: that is an error at start.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.util import CommandError

from proxy.catalog.tables import images, outbox, state
from proxy.core.errors import StorageError
from proxy.core.model import Backlog, Digest, Format, Key, PixelSize, Record, Totals, Waiting
from proxy.core.stored import read_validator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from proxy.ports import Clock

BUSY_TIMEOUT_S: Final = 5
"""SQLite has one writer at a time; another process's transaction is shorter than this."""
BATCH: Final = 500
"""Rows in one transaction while reindexing: long enough to be quick, short enough to let fills in between."""

PENDING_MAX: Final = 10_000
"""Records that wait for a database that is away; beyond, they are left to the next reindex."""
FIND_TIMEOUT_S: Final = 1
"""The store answers sooner than a database that takes longer."""
CALL_TIMEOUT_S: Final = 30
"""For all other calls. A migration of a large catalog takes seconds."""

_FORMATS: Final = {format_.extension: format_ for format_ in Format}

T = TypeVar("T")


class CatalogTooNew(StorageError):
    """Left alone: a newer version may be about to come back."""


class SqlCatalog:
    """Implements `ports.Catalog`, `ports.Outbox` and `ports.Ledger`."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._url = sa.make_url(url)
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalog")
        self._engine: sa.Engine | None = None
        self._file: tuple[int, int] | None = None
        self._latest = 0
        self._pending: dict[Key, Record] = {}
        self._flush: asyncio.Task[None] | None = None
        self._late: asyncio.Future[Any] | None = None
        """A call that did not come back in time, and still holds the thread."""
        self.fault: str | None = None
        self.complete = False
        """Whether every record of the store was brought in at some time."""

    async def open(self) -> None:
        """
        Connect and migrate.

        Raises:
            CatalogTooNew: A newer version wrote it.
            StorageError: The database cannot be reached; every later call tries again.
        """
        await self._run(self._in_transaction, lambda _: None)

    async def aclose(self) -> None:
        await self._settle()
        if self._engine is not None:
            with suppress(StorageError):
                await self._run(self._disconnect)
        self._thread.shutdown(wait=False)

    async def check(self) -> int:
        """
        Look whether the database answers; 0, because it does not tell how much room it has.

        Raises:
            StorageError: It does not.
        """
        await self._run(self._leave_lost_file)
        await self._run(
            self._in_transaction, lambda connection: connection.scalar(sa.select(sa.func.count(state.c.name)))
        )
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

    async def page(self, *, limit: int, after: tuple[int, str] | None = None) -> Sequence[Record]:
        """Return up to `limit` records, newest first, from behind `after` (epoch seconds and key of the last one)."""
        query = _records().order_by(images.c.stored_at.desc(), images.c.key.desc()).limit(limit)
        if after is not None:
            query = query.where(sa.tuple_(images.c.stored_at, images.c.key) < sa.tuple_(*map(sa.literal, after)))
        await self._settle()
        return await self._run(self._select, query)

    async def count(self) -> Totals:
        await self._settle()
        return await self._run(self._in_transaction, _count)

    async def rebuild(self, records: AsyncIterator[Record]) -> int:
        """
        Bring in all `records` and drop the rows of others; return how many.

        Fills may go on meanwhile: only rows that were written before the walk began are dropped.
        """
        await self._settle()
        began = self._now()
        total = 0
        batch: list[Record] = []
        async for record in records:
            batch.append(record)
            if len(batch) == BATCH:
                total += await self._bring_in(batch)
                batch = []
        total += await self._bring_in(batch)
        await self._run(self._in_transaction, lambda connection: _finish(connection, began))
        self.complete = True
        return total

    async def due(self, limit: int) -> Sequence[Waiting]:
        await self._settle()
        query = (
            sa.select(outbox.c.key, outbox.c.attempts)
            .where(outbox.c.due_at <= self._now())
            .order_by(outbox.c.since, outbox.c.key)
            .limit(limit)
        )
        rows = await self._run(self._in_transaction, lambda connection: connection.execute(query).all())
        return [Waiting(Key(row.key), row.attempts) for row in rows]

    async def postpone(self, waiting: Waiting, delay_s: float, error: str) -> None:
        change = (
            sa.update(outbox)
            .where(outbox.c.key == waiting.key)
            .values(attempts=waiting.attempts + 1, due_at=self._now() + round(delay_s), error=error[:255])
        )
        await self._run(self._in_transaction, lambda connection: connection.execute(change))

    async def note(self, error: str) -> None:
        change = sa.update(outbox).values(error=error[:255])
        await self._run(self._in_transaction, lambda connection: connection.execute(change))

    async def strike(self, key: Key) -> None:
        change = sa.delete(outbox).where(outbox.c.key == key)
        await self._run(self._in_transaction, lambda connection: connection.execute(change))

    async def backlog(self) -> Backlog:
        await self._settle()
        return await self._run(self._in_transaction, _backlog)

    async def _bring_in(self, batch: Sequence[Record]) -> int:
        if batch:
            await self._run(self._in_transaction, lambda connection: self._upsert(connection, batch))
        return len(batch)

    def _begin_flush(self) -> None:
        if self._pending and self._flush is None:
            self._flush = asyncio.create_task(self._write_pending())

    async def _write_pending(self) -> None:
        try:
            while self._pending:
                batch = list(self._pending.values())[:BATCH]
                await self._run(self._in_transaction, lambda connection, batch=batch: self._upsert(connection, batch))
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
            await asyncio.shield(self._flush)

    async def _run(self, work: Callable[..., T], *args: Any, timeout_s: float = CALL_TIMEOUT_S) -> T:
        if self._late is not None and not self._late.done():
            raise StorageError("the catalog does not answer")
        future = asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        try:
            async with asyncio.timeout(timeout_s):
                result = await asyncio.shield(future)
        except TimeoutError:
            self._late = future
            future.add_done_callback(lambda late: late.cancelled() or late.exception())
            self.fault = "it does not answer"
            raise StorageError("the catalog does not answer") from None
        except sa.exc.SQLAlchemyError as error:
            # The driver's words tell the trouble; SQLAlchemy's own would add the statement and its values.
            self.fault = str(getattr(error, "orig", None) or type(error).__name__)
            raise StorageError(f"the catalog failed: {self.fault}") from None
        except OSError as error:
            self.fault = os.strerror(error.errno or errno.EIO)
            raise StorageError(f"the catalog failed: {self.fault}") from None
        except CommandError:
            raise CatalogTooNew("the catalog was written by a newer version of imgkeep, or is no catalog") from None
        self.fault = None
        return result

    def _connect(self) -> sa.Engine:
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(self._url, pool_pre_ping=True)
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _prepare_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
        try:
            with engine.execution_options(begin="IMMEDIATE").begin() as connection:
                self._migrate(connection)
        except BaseException:
            engine.dispose()
            raise
        self._file = self._find_file()
        return engine

    def _migrate(self, connection: sa.Connection) -> None:
        config = AlembicConfig()
        config.set_main_option("script_location", "proxy.catalog:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        found = connection.scalar(sa.select(state.c.value).where(state.c.name == "complete"))
        self.complete = found is not None

    def _in_transaction(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            return self._attempt(work)
        except sa.exc.DatabaseError as error:
            if not _is_damage(error):
                raise
        self._disconnect()
        self._set_aside()
        return self._attempt(work)

    def _attempt(self, work: Callable[[sa.Connection], T]) -> T:
        if self._engine is None:
            self._engine = self._connect()
        with self._engine.begin() as connection:
            return work(connection)

    def _disconnect(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def _find_file(self) -> tuple[int, int] | None:
        """Tell the SQLite file apart from any other; `None` where there is none."""
        if self._url.get_backend_name() != "sqlite":
            return None
        try:
            status = Path(self._url.database or "").stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _leave_lost_file(self) -> None:
        # Whoever has a removed file open can go on using it, and would lose everything at the next start.
        if self._engine is not None and self._file != self._find_file():
            self._disconnect()

    def _set_aside(self) -> None:
        path = Path(self._url.database or "")
        stamp = f"damaged-{self._now()}"
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(path.with_name(f"{path.name}.{stamp}{suffix}"))

    def _select(self, query: sa.Select[Any]) -> list[Record]:
        rows = self._in_transaction(lambda connection: connection.execute(query).all())
        try:
            return [_to_record(row) for row in rows]
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            # Nothing in a SQLite file guards against flipped bits.
            raise StorageError("the catalog holds a damaged row; `imgkeep reindex` mends it") from None

    def _upsert(self, connection: sa.Connection, records: Sequence[Record]) -> None:
        # Delete and insert: the one way of upserting that every dialect has.
        keys = [record.key for record in records]
        connection.execute(sa.delete(images).where(images.c.key.in_(keys)))
        now = self._now()
        connection.execute(sa.insert(images), [{**_to_row(record), "indexed_at": now} for record in records])
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

    def _now(self) -> int:
        """Never less than before: when the clock is set back during a reindex, its rows must not pass for old ones."""
        self._latest = max(self._latest, int(self._clock().timestamp()))
        return self._latest


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins instead of the driver
    # WAL lets readers and the writer work at once. NORMAL is durable against a crash of the process; after a power
    # loss the last rows may be missing, and the records in the store bring them back.
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_S * 1000}", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")
    # Of processes that start at once on a new file all but one are told "locked" at once, whatever the timeout.
    for attempt in range(BUSY_TIMEOUT_S * 20, -1, -1):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:
            if attempt == 0:
                raise
        time.sleep(0.05)


def _begin_sqlite(connection: sa.Connection) -> None:
    # Left to itself the driver begins before the first changed row and not before CREATE TABLE, so a first start that
    # is cut short would leave tables that no later start could create again. A migration reads before it writes, so it
    # asks for the right to write at once; otherwise another process's write in between could not be waited for.
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")


def _is_damage(error: sa.exc.DatabaseError) -> bool:
    name = getattr(error.orig, "sqlite_errorname", "")
    # A file that was cut to nothing is a database without tables.
    emptied = name == "SQLITE_ERROR" and "no such table" in str(error.orig)
    return emptied or name in {"SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CORRUPT_INDEX"}


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


def _count(connection: sa.Connection) -> Totals:
    objects = sa.select(images.c.digest, sa.func.max(images.c.size).label("size")).group_by(images.c.digest).subquery()
    total, oldest, newest = connection.execute(
        sa.select(sa.func.count(), sa.func.min(images.c.stored_at), sa.func.max(images.c.stored_at)).select_from(images)
    ).one()
    count, size = connection.execute(sa.select(sa.func.count(), sa.func.sum(objects.c.size))).one()
    number = sa.func.count().label("number")
    hosts = connection.execute(
        sa.select(images.c.host, number).group_by(images.c.host).order_by(number.desc(), images.c.host).limit(10)
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
        pending=row.since is not None,
    )
