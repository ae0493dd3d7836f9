"""
The connection to the database's database, whichever SQLAlchemy speaks to: SQLite by default, or PostgreSQL.

Rules:
- All SQL runs in one thread of its own, never on the event loop.
- A fault is a `StorageError`; `fault` tells the last one.
- A SQLite file that is damaged is set aside, begun anew and marked incomplete, for `reindex` to fill again; one that
  was removed or replaced while we had it open is left behind.
- A database of a newer version is left alone: that is an error at start.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sa

from imgkeep.config import ConfigError, absolute
from imgkeep.core.errors import StorageError
from imgkeep.database.schema import IncompatibleDatabase, bring_up
from imgkeep.database.tables import state

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.clock import Clock

CACHE_KIB: Final = 16_384
"""Of pages of SQLite's, at most, for a connection."""
BUSY_TIMEOUT_S: Final = 5
"""SQLite has one writer at a time; another process's transaction is shorter than this."""
CALL_TIMEOUT_S: Final = 30
"""For all other calls. A migration of a large database takes seconds."""


T = TypeVar("T")


class Database:
    """One database, for all who keep tables in it."""

    def __init__(self, url: str, clock: Clock, *, reading: bool = False) -> None:
        require_driver(url)
        self._url = sa.make_url(url)
        self.place = _name_place(self._url)
        """What faults say of where they were met."""
        self._clock = clock
        self._reading = reading
        """Whether nothing is made: neither files nor tables, nor a new database in the place of a damaged one."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._engine: sa.Engine | None = None
        self._file: tuple[int, int] | None = None
        self._latest = 0
        self._late: asyncio.Future[Any] | None = None
        """A call that did not come back in time, and still holds the thread."""
        self.newer: IncompatibleDatabase | None = None
        """That a newer version wrote the database, once that is known."""
        self.too_new: Callable[[IncompatibleDatabase], None] = lambda _: None
        """Is told when a newer version wrote the database, which may be found out late."""
        self.fault: str | None = None
        self.complete = False
        """Whether every record of the store was brought in at some time."""

    async def open(self) -> None:
        """
        Connect and migrate.

        Raises:
            IncompatibleDatabase: A newer version wrote it.
            StorageError: The database cannot be reached; every later call tries again.
        """
        await self.execute(lambda _: None)

    async def aclose(self) -> None:
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
        await self.execute(lambda connection: connection.scalar(sa.select(sa.func.count(state.c.name))))
        return 0

    async def execute(self, work: Callable[[sa.Connection], T]) -> T:
        """
        Do `work` in a transaction, in the database's own thread.

        Raises:
            StorageError: The database failed, and nothing was changed.
        """
        return await self._run(self._in_transaction, work)

    def now(self) -> int:
        """Never less than before: when the clock is set back during a reindex, its rows must not pass for old ones."""
        self._latest = max(self._latest, int(self._clock().timestamp()))
        return self._latest

    async def _run(self, work: Callable[..., T], *args: Any, timeout_s: float = CALL_TIMEOUT_S) -> T:
        if self._late is not None and not self._late.done():
            raise StorageError("the database does not answer", place=self.place)
        future = asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        try:
            async with asyncio.timeout(timeout_s):
                result = await asyncio.shield(future)
        except TimeoutError:
            self._late = future
            future.add_done_callback(lambda late: late.cancelled() or late.exception())
            self.fault = "it does not answer"
            raise StorageError("the database does not answer", place=self.place) from None
        except IncompatibleDatabase as error:
            error.place = self.place
            self.newer = error
            self.too_new(error)
            raise
        except sa.exc.SQLAlchemyError as error:
            # The driver's words tell the trouble; SQLAlchemy's own would add the statement and its values.
            self.fault = str(getattr(error, "orig", None) or type(error).__name__)
            raise StorageError("the database failed", cause=_in_one_line(self.fault), place=self.place) from None
        except OSError as error:
            self.fault = os.strerror(error.errno or errno.EIO)
            raise StorageError("the database failed", cause=self.fault, place=self.place) from None
        self.fault = None
        return result

    def _connect(self) -> sa.Engine:
        if self._url.get_backend_name() == "sqlite" and self._url.database and not self._reading:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {}
        if self._reading and self._url.get_backend_name() == "sqlite":
            options["creator"] = self._connect_to_file
        engine = sa.create_engine(self._url, pool_pre_ping=True, **options)
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _prepare_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
        try:
            with engine.execution_options(begin="IMMEDIATE").begin() as connection:
                bring_up(connection, reading=self._reading)
                found = connection.scalar(sa.select(state.c.value).where(state.c.name == "complete"))
                self.complete = found is not None
        except BaseException:
            engine.dispose()
            raise
        self._file = self._find_file()
        return engine

    def _connect_to_file(self) -> sqlite3.Connection:
        """Connect to a file of SQLite's that is there; by its path alone the library would make one."""
        uri = f"{Path(self._url.database or '').absolute().as_uri()}?mode=rw"
        return sqlite3.connect(uri, uri=True, check_same_thread=False)

    def _in_transaction(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            return self._attempt(work)
        except sa.exc.DatabaseError as error:
            if self._reading or not _is_damage(error):
                raise
        self._disconnect()
        self._quarantine()
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

    def _quarantine(self) -> None:
        path = Path(self._url.database or "")
        stamp = f"damaged-{self.now()}"
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(path.with_name(f"{path.name}.{stamp}{suffix}"))


def require_driver(url: str) -> None:
    """
    Raise a `ConfigError` where the program lacks what speaks to the database.

    Args:
        url: SQLAlchemy's.
    """
    if not url.startswith("postgresql"):
        return
    try:
        import psycopg  # noqa: F401, PLC0415 - an extra; where the C library is missing it is there, and fails
    except ImportError as error:
        cause = "it is not installed" if isinstance(error, ModuleNotFoundError) else str(error).splitlines()[0]
        raise ConfigError(
            f"database.url: postgresql: needs psycopg ({cause}): pip install 'imgkeep[postgresql]'"
        ) from None


def _name_place(url: sa.URL) -> str:
    """Return which database a URL names, without what lets in."""
    if url.get_backend_name() == "sqlite":
        return f"file {absolute(url.database or '')}"
    port = "" if url.port is None else f":{url.port}"
    return f"database {url.database} at {url.host}{port}"


def _in_one_line(text: str) -> str:
    """Return a driver's words, which may take several lines."""
    return " ".join(text.split())


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins instead of the driver
    # WAL lets readers and the writer work at once. NORMAL is durable against a crash of the process; after a power
    # loss the last rows may be missing, and the records in the store bring them back.
    # Rows have keys that are as good as random: a cache that holds the pages of many spares reading them anew for each.
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_S * 1000}", "synchronous=NORMAL", f"cache_size=-{CACHE_KIB}"):
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
