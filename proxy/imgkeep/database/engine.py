"""
The connection to the SQL database: SQLite by default, or PostgreSQL.

Rules:
- All SQL runs in one thread of its own, never on the event loop.
- A fault is a `StorageError`; `fault` holds the last one.
- The engine quarantines a damaged SQLite file and begins a new one, whose image index is incomplete until `reindex`
  fills it. It closes a file that an operator has removed or replaced, and opens what is there now.
- The engine changes nothing in a database of an unknown schema: that is an error at start.
- A statement may take long; a server may not. A call without an answer after `PATIENCE_S` asks whether PostgreSQL
  answers at all (`postgresql.answers`). If it does not, this call and those after it fail at once.
- A PostgreSQL that hangs holds the thread for `HANG_MAX_S`; then the engine breaks the connection, except in a
  migration, and the next call connects anew.
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
from imgkeep.database import postgresql
from imgkeep.database.schema import state
from imgkeep.database.schema_upgrade import IncompatibleDatabase, prepare_tables
from imgkeep.database.sqlite_file import find_file, quarantine, take_over

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.clock import Clock

CACHE_KIB: Final = 16_384
"""Maximum size of SQLite's page cache, for one connection."""
BUSY_TIMEOUT_S: Final = 5
"""Timeout for SQLite's write lock: another process's transaction is shorter."""
CALL_TIMEOUT_S: Final = 30
"""Timeout for one call. A migration of a large database takes seconds."""
PATIENCE_S: Final = 2
"""Time for an answer of PostgreSQL, after which the engine asks whether the server hangs. Most take milliseconds."""
HANG_MAX_S: Final = CALL_TIMEOUT_S + 5
"""Maximum time that a call holds the thread while a PostgreSQL does not answer, although it accepts packets."""

T = TypeVar("T")


class DatabaseEngine:
    """
    One connection to one database, for the repositories that keep tables in it.

    Attributes:
        location: The place that a fault names, without a password.
        fault: Why the last call failed; `None`: it did not.
        incompatible: The error of a database that another version wrote, once the engine has found that out.
        found_incompatible: The event of that discovery, which may be late if the database is unreachable at start.
        marks: The rows of the table `state`, as of the last connection.
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        read_only: bool = False,
        patience_s: float = PATIENCE_S,
        hang_max_s: float = HANG_MAX_S,
    ) -> None:
        require_driver(url)
        self.url = sa.make_url(url)
        self.location = describe_location(self.url)
        self.fault: str | None = None
        self.incompatible: IncompatibleDatabase | None = None
        self.found_incompatible = asyncio.Event()
        self.marks: dict[str, str] = {}
        self._configured = Path(self.url.database or "")
        """The SQLite file of the configuration; `url` has that which is open."""
        self._clock = clock
        self._read_only = read_only
        """Whether to make nothing: neither files nor tables, nor a new database in the place of a damaged one."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._engine: sa.Engine | None = None
        self._file: tuple[int, int] | None = None
        self._patience_s = patience_s
        self._hang_max_s = hang_max_s
        self._connection: postgresql.Connection | None = None
        """The connection to a PostgreSQL, which `_interrupt` may break."""
        self._is_migrating = False
        self._latest = 0
        self._calls: dict[asyncio.Future[Any], None] = {}
        """The calls that have not ended, in their order: the first one holds the thread."""
        self._hung_call: asyncio.Future[Any] | None = None
        """The call that holds the thread, once it or a call behind it has run into its timeout."""
        self._question: asyncio.Task[bool] | None = None
        """Whether the server answers, which one caller asks for all."""

    async def open(self) -> None:
        """
        Connect, and make the tables.

        Raises:
            IncompatibleDatabase: Another version wrote the database.
            StorageError: The database cannot be reached; every later call tries again.
        """
        await self.execute(lambda _: None)

    async def aclose(self) -> None:
        if self._hung_call is not None:
            self._interrupt(self._hung_call)  # the end of the process would wait for the thread
        if self._engine is not None:
            with suppress(StorageError):
                await self._run(CALL_TIMEOUT_S, self._disconnect)
        if self._question is not None:
            self._question.cancel()
            await asyncio.wait([self._question])
        self._thread.shutdown(wait=False)

    async def check(self) -> None:
        """
        Check that the database answers, and that its file is still the one that is open.

        Raises:
            StorageError: It does not answer.
        """
        await self._run(CALL_TIMEOUT_S, self._disconnect_from_lost_file)
        await self.execute(lambda connection: connection.scalar(sa.select(sa.func.count(state.c.name))))

    async def execute(self, work: Callable[[sa.Connection], T], *, timeout_s: float = CALL_TIMEOUT_S) -> T:
        """
        Do `work` in a transaction, in the database's own thread.

        Raises:
            StorageError: The database failed, and nothing was changed.
        """
        return await self._run(timeout_s, self._in_transaction, work)

    async def read(self, work: Callable[[sa.Connection], T], *, timeout_s: float = CALL_TIMEOUT_S) -> T:
        """Do `work`, which is one statement that changes nothing: without a transaction where that saves requests."""
        return await self._run(timeout_s, self._in_transaction, work, "AUTOCOMMIT")

    def now(self) -> int:
        """
        Return the time in whole seconds, never less than before: with a clock that is set back during a reindex the
        new rows would pass for old ones.
        """
        self._latest = max(self._latest, int(self._clock().timestamp()))
        return self._latest

    async def _run(self, timeout_s: float, work: Callable[..., T], *args: Any) -> T:
        if self._hung_call is not None and not self._hung_call.done():
            raise self._hangs()
        began = asyncio.get_running_loop().time()
        submitted = self._thread.submit(work, *args)
        call = asyncio.wrap_future(submitted)
        self._calls[call] = None
        call.add_done_callback(self._note_end)
        await self._wait(call, timeout_s)
        if not call.done():
            submitted.cancel()  # if it waits for its turn: its caller is told that nothing was changed
            self._hung_call = hung = next(iter(self._calls))
            asyncio.get_running_loop().call_at(began + max(timeout_s, self._hang_max_s), self._interrupt, hung)
            self.fault = "it does not answer"
            raise self._hangs()
        try:
            result = call.result()
        except IncompatibleDatabase as error:
            error.place = self.location
            self.incompatible = error
            self.found_incompatible.set()
            raise
        except sa.exc.SQLAlchemyError as error:
            # The driver's words describe the failure; SQLAlchemy's own would add the statement and its values.
            self.fault = self._explain(getattr(error, "orig", None) or error)
            raise StorageError("the database failed", cause=self.fault, place=self.location) from None
        except OSError as error:
            self.fault = os.strerror(error.errno or errno.EIO)
            raise StorageError("the database failed", cause=self.fault, place=self.location) from None
        self.fault = None
        return result

    def _hangs(self) -> StorageError:
        remedy = "" if self._is_sqlite else postgresql.UNREACHABLE
        return StorageError("the database does not answer", cause=remedy, place=self.location)

    def _note_end(self, call: asyncio.Future[Any]) -> None:
        del self._calls[call]
        if not call.cancelled():
            call.exception()  # marks it as retrieved: its caller may have been cancelled, or have given up

    async def _wait(self, call: asyncio.Future[Any], timeout_s: float) -> None:
        """Wait for the end of a call until its timeout, or until PostgreSQL is found to hang."""
        patience_s = timeout_s if self._is_sqlite else min(timeout_s, self._patience_s)
        give_up_at = asyncio.get_running_loop().time() + timeout_s
        await asyncio.wait([call], timeout=patience_s)
        if not call.done() and patience_s < timeout_s and await self._server_answers():
            await asyncio.wait([call], timeout=give_up_at - asyncio.get_running_loop().time())

    async def _server_answers(self) -> bool:
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(postgresql.answers(self.url))
        return await asyncio.shield(self._question)

    def _in_transaction(self, work: Callable[[sa.Connection], T], isolation: str | None = None) -> T:
        try:
            return self._attempt(work, isolation)
        except sa.exc.DatabaseError as error:
            if self._read_only or not _is_corruption(error):
                raise
        self._disconnect()
        quarantine(Path(self.url.database or ""), self.now())
        return self._attempt(work, isolation)

    def _attempt(self, work: Callable[[sa.Connection], T], isolation: str | None) -> T:
        if self._connection is not None and postgresql.is_lost(self._connection):
            self._disconnect()  # as after a restart of the server; the next statement would fail
        if self._engine is None:
            self._engine = self._connect()
        if isolation is None or self._is_sqlite:
            with self._engine.begin() as connection:
                return work(connection)
        with self._engine.connect().execution_options(isolation_level=isolation) as connection, connection.begin():
            return work(connection)

    def _connect(self) -> sa.Engine:
        options: dict[str, Any] = {}
        if self._is_sqlite:
            path = self._choose_file()
            # Another process may have renamed the file with the old name since: no new one may begin there.
            if self._read_only or path != self._configured:
                options["creator"] = self._connect_to_existing_file
        engine = sa.create_engine(self.url, **options)
        if self._is_sqlite:
            sa.event.listen(engine, "connect", _prepare_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(engine, "do_connect", self._connect_to_postgresql)
        try:
            with engine.execution_options(begin="IMMEDIATE").begin() as connection:
                prepare_tables(connection, self._note_migration, read_only=self._read_only)
                self.marks = {row.name: row.value for row in connection.execute(sa.select(state))}
        except BaseException:
            engine.dispose()
            raise
        finally:
            self._is_migrating = False
        self._file = self._identify_file()
        return engine

    def _connect_to_postgresql(self, _dialect: object, _r: object, _a: object, parameters: dict[str, Any]) -> object:
        self._connection = postgresql.connect(
            parameters, read_only=self._read_only, statement_timeout_s=CALL_TIMEOUT_S, place=self.location
        )
        return self._connection

    def _interrupt(self, call: asyncio.Future[Any]) -> None:
        """End a call that a PostgreSQL does not answer. A migration may take its time."""
        if self._connection is not None and not call.done() and not self._is_migrating:
            postgresql.interrupt(self._connection)

    def _note_migration(self) -> None:
        self._is_migrating = True

    def _explain(self, error: BaseException) -> str:
        if self._is_sqlite:
            return _single_line(str(error) or type(error).__name__)
        return postgresql.explain(error, user=self.url.username or "", name=self.url.database or "")

    def _choose_file(self) -> Path:
        """Return the file to open, which has the old name as long as another process has it open."""
        path = self._configured
        if self._read_only:
            path = find_file(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path = take_over(path)
        self.url = self.url.set(database=str(path))
        self.location = describe_location(self.url)
        return path

    @property
    def _is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def _connect_to_existing_file(self) -> sqlite3.Connection:
        """Connect to a SQLite file that is there; by its path alone the library would make one."""
        uri = f"{Path(self.url.database or '').absolute().as_uri()}?mode=rw"
        return sqlite3.connect(uri, uri=True, check_same_thread=False)

    def _disconnect(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
        self._connection = None

    def _disconnect_from_lost_file(self) -> None:
        # A process that has a removed file open can go on using it, and would lose everything at the next start.
        if self._engine is not None and self._file != self._identify_file():
            self._disconnect()

    def _identify_file(self) -> tuple[int, int] | None:
        """Return device and inode of the SQLite file; `None`: there is none."""
        if not self._is_sqlite:
            return None
        try:
            status = Path(self.url.database or "").stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino


def require_driver(url: str) -> None:
    """
    Check that the driver of a database is installed.

    Args:
        url: SQLAlchemy's.

    Raises:
        ConfigError: It is not.
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


def describe_location(url: sa.URL | str) -> str:
    """Return which database a URL of SQLAlchemy names, without the password."""
    url = sa.make_url(url)
    if url.get_backend_name() == "sqlite":
        return f"file {absolute(url.database or '')}"
    port = "" if url.port is None else f":{url.port}"
    return f"database {url.database} at {url.host}{port}"


def _single_line(text: str) -> str:
    """Join the lines of a driver's message."""
    return " ".join(text.split())


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins instead of the driver
    # WAL lets readers and the writer work at once. NORMAL is durable against a crash of the process; after a power
    # loss the last rows may be missing, and the records in the store bring them back.
    # Keys are as good as random: a cache that holds many pages spares reading them anew for each row.
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_S * 1000}", "synchronous=NORMAL", f"cache_size=-{CACHE_KIB}"):
        connection.execute(f"PRAGMA {pragma}")
    # Of processes that start at once on a new file SQLite tells all but one "locked" at once, whatever the timeout.
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
    # asks for the write lock at once; it could not wait for another process's write in between.
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")


def _is_corruption(error: sa.exc.DatabaseError) -> bool:
    name = getattr(error.orig, "sqlite_errorname", "")
    # A file that was cut to nothing is a database without tables.
    emptied = name == "SQLITE_ERROR" and "no such table" in str(error.orig)
    return emptied or name in {"SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CORRUPT_INDEX"}
