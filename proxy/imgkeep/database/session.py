"""
A session of a PostgreSQL: two connections of psycopg, for what the event loop itself waits for.

Leases, heartbeats and notices take a fraction of a millisecond each; the engine's thread (`engine.py`) may be busy with
a long page of the image index meanwhile.

Rules:
- One connection runs statements, each in a transaction of its own unless `transaction` groups several. The other one
  listens, because psycopg lets no statement run on a connection that waits for notifications.
- Both belong together: when one is lost, the session closes the other one, and connects anew, at growing intervals. So
  an advisory lock of the session, and the right to rely on notifications, end together.
- No statement waits longer than its timeout, also when the server accepts packets and never answers. After a timeout
  the connection is of unknown state, so the session replaces it. A statement that waits for its turn until then is not
  sent: a slow database gets no work that no caller waits for.
- A statement that fails has a `StorageError`; its cause is the server's own message, without values.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from imgkeep.core.backoff import backoff_s
from imgkeep.core.errors import StorageError
from imgkeep.database.postgresql import (
    CONNECT_TIMEOUT_S,
    CONNECTION_PARAMETERS,
    SERVER_SETTINGS,
    check_pooler,
    explain,
    interrupt,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    import psycopg

    Parameters = Sequence[object] | Mapping[str, object]
    Row = tuple[Any, ...]
    Rows = list[Row]
    Connection = psycopg.AsyncConnection[Row]
    Listener = Callable[[str], None]

STATEMENT_TIMEOUT_S: Final = 5
"""Timeout for one statement by default: a heartbeat that takes longer is as good as none."""
RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 2.0
"""Maximum delay between two attempts to connect: at most this long after its return a database is used again."""
LISTEN_CHECK_INTERVAL_S: Final = 5.0
"""Interval of checks of the listening connection, which otherwise would not notice a dead server."""

log = logging.getLogger(__name__)


class DatabaseSession:
    """
    The session of one process.

    Attributes:
        place: The place that a fault names, without a password.
        statements: The number of statements that were sent.
        attempted: Set once the first attempt to connect has ended, well or not.

    Args:
        url: `postgresql://...`, as libpq reads it.
        place: As above.
        draw: Returns a random number from 0 to 1, for delays.
        break_off_s: Timeout for any statement, after which its connection is replaced. A caller may wait less long.
    """

    def __init__(
        self, url: str, *, place: str, draw: Callable[[], float], break_off_s: float = STATEMENT_TIMEOUT_S
    ) -> None:
        self.place = place
        self.statements = 0
        self.attempted = asyncio.Event()
        self._url = url
        self._draw = draw
        self._break_off_s = break_off_s
        self._listeners: dict[str, list[Listener]] = {}
        self._opened: list[Callable[[], Awaitable[None]]] = []
        self._lost: list[Callable[[], None]] = []
        self._connection: Connection | None = None
        self._fault = asyncio.Event()
        """Set when the connections have to be replaced."""
        self._turn = asyncio.Lock()
        """Lets one caller at a time use the connection; each connection has its own."""
        self._calls: dict[asyncio.Future[Any], Connection] = {}
        """Calls of psycopg under way, also those whose callers have left."""
        self._connected = asyncio.Event()

    @property
    def is_connected(self) -> bool:
        """Whether statements can be sent, and notifications arrive."""
        return self._connected.is_set()

    def listen(self, channel: str, listener: Listener) -> None:
        """Call `listener` with the payload of each notification of a channel. Before `run`."""
        self._listeners.setdefault(channel, []).append(listener)

    def when_opened(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await `callback` after each connection, once notifications arrive; its `StorageError` ends the connection."""
        self._opened.append(callback)

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback` after the loss of a connection: notifications and advisory locks are gone."""
        self._lost.append(callback)

    async def wait_connected(self) -> None:
        """Wait until the session is connected."""
        await self._connected.wait()

    async def execute(
        self, statement: str, parameters: Parameters = (), *, timeout_s: float = STATEMENT_TIMEOUT_S
    ) -> Rows:
        """
        Run a statement; return its rows.

        Raises:
            StorageError: The database is away, does not answer in time, or refuses the statement.
        """

        async def work(connection: Connection) -> Rows:
            cursor = await connection.execute(statement, parameters)
            return await cursor.fetchall() if cursor.description is not None else []

        rows: Rows = await self._run(work, timeout_s)
        return rows

    async def transaction(
        self, work: Callable[[Connection], Awaitable[Any]], *, timeout_s: float = STATEMENT_TIMEOUT_S
    ) -> Any:
        """Do `work` in one transaction; return its result. Raises as `execute`."""

        async def run(connection: Connection) -> Any:
            async with connection.transaction():
                return await work(connection)

        return await self._run(run, timeout_s)

    def reset(self) -> None:
        """Have the connections replaced: what the session has locked is free then."""
        if self.is_connected:
            self._note_fault(self._fault)

    async def run(self) -> None:
        """Keep the session connected, for ever."""
        attempts = 0
        while True:
            try:
                async with self._connect():
                    attempts = 0
                    self.attempted.set()
                    await self._fault.wait()
            except StorageError as error:
                self.attempted.set()
                if attempts == 0:
                    log.warning("database session not connected", extra={"reason": error.in_full})
                attempts += 1
            except Exception:  # no error of a callback may end this loop
                self.attempted.set()
                log.exception("database session failed unexpectedly")
                attempts += 1
            await asyncio.sleep(backoff_s(attempts, first_s=RETRY_MIN_S, longest_s=RETRY_MAX_S, draw=self._draw()))

    @asynccontextmanager
    async def _connect(self) -> AsyncGenerator[None]:
        """Connect both connections until the end of the block."""
        async with AsyncExitStack() as stack:
            self._fault, self._turn = asyncio.Event(), asyncio.Lock()
            listening = await self._open_connection()
            stack.push_async_callback(self._close, listening)
            connection = await self._open_connection()
            stack.push_async_callback(self._close, connection)
            await self._call(check_pooler(listening, connection, self.place), listening, STATEMENT_TIMEOUT_S)
            for channel in self._listeners:
                await self._call(listening.execute(f'LISTEN "{channel}"'), listening, STATEMENT_TIMEOUT_S)
            task = asyncio.create_task(self._listen(listening, self._fault))
            stack.push_async_callback(_end, task)
            self._connection = connection
            stack.callback(self._forget_connection)
            for callback in self._opened:
                await callback()
            self._connected.set()
            log.info("database session connected")
            yield

    def _note_fault(self, fault: asyncio.Event) -> None:
        """Have the connections of this fault replaced."""
        fault.set()
        if fault is self._fault and self._connected.is_set():
            self._connected.clear()
            log.warning("database session lost")

    def _forget_connection(self) -> None:
        self._connection = None
        self._connected.clear()
        for callback in self._lost:
            callback()

    async def _close(self, connection: Connection) -> None:
        """
        Close a connection, after its calls have ended.

        The loop watches the descriptor for a call. If it were closed before, the next socket of this process would get
        its number, and could not be opened: uvloop believes that it has it already.
        """
        if calls := [call for call, its_connection in self._calls.items() if its_connection is connection]:
            interrupt(connection)
            await asyncio.wait(calls, timeout=STATEMENT_TIMEOUT_S)
        await connection.close()

    async def _open_connection(self) -> Connection:
        import psycopg  # noqa: PLC0415 - an extra
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

        try:
            options = {**CONNECTION_PARAMETERS, **conninfo_to_dict(self._url)}
        except psycopg.ProgrammingError:  # whose message may quote the password
            raise StorageError(
                "the database failed", cause="libpq cannot read database.url", place=self.place
            ) from None
        try:
            async with asyncio.timeout(2 * CONNECT_TIMEOUT_S):
                # Without prepared statements, which a pooler between may send to another server.
                connection = await psycopg.AsyncConnection.connect(
                    autocommit=True,
                    prepare_threshold=None,
                    **options,  # type: ignore[arg-type]  # all are texts
                )
                try:
                    await connection.execute(SERVER_SETTINGS)
                except BaseException:
                    await connection.close()
                    raise
                return connection
        except TimeoutError:
            raise StorageError("the database does not answer", place=self.place) from None
        except (psycopg.Error, OSError) as error:
            raise self._explain(error) from None

    async def _listen(self, connection: Connection, fault: asyncio.Event) -> None:
        """Pass notifications on, until the connection fails."""
        try:
            while True:
                async for notification in connection.notifies(timeout=LISTEN_CHECK_INTERVAL_S):
                    for listener in self._listeners.get(notification.channel, ()):
                        listener(notification.payload)
                await self._call(connection.execute("SELECT 1"), connection, STATEMENT_TIMEOUT_S)
        except StorageError:
            pass
        except Exception as error:  # noqa: BLE001 - psycopg's, or an error of a listener; both end the session
            log.warning("database notifications interrupted", extra={"reason": self._explain(error).in_full})
        finally:
            self._note_fault(fault)

    async def _run(self, work: Callable[[Connection], Awaitable[Any]], timeout_s: float) -> Any:
        connection, turn = self._connection, self._turn
        self._require_open(connection)
        self.statements += 1
        give_up_at = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(give_up_at):
                await turn.acquire()  # a caller that leaves meanwhile leaves no statement for the others to wait for
        except TimeoutError:
            raise StorageError("the database does not answer", place=self.place) from None
        try:
            connection = self._require_open(connection)
            call = asyncio.ensure_future(work(connection))
        except BaseException:
            turn.release()
            raise
        call.add_done_callback(lambda _: turn.release())
        return await self._call(call, connection, give_up_at - asyncio.get_running_loop().time())

    def _require_open(self, connection: Connection | None) -> Connection:
        """Return the connection, unless it is to be replaced. Raises: StorageError."""
        if connection is None or connection is not self._connection or self._fault.is_set():
            raise StorageError("the database is not reachable", place=self.place)
        return connection

    async def _call(self, call: Awaitable[Any], connection: Connection, timeout_s: float) -> Any:
        """
        Await a call of psycopg, at most so long.

        A caller that leaves, or waits no longer, leaves the call to its end, because others share the connection.
        """
        import psycopg  # noqa: PLC0415 - an extra

        task = asyncio.ensure_future(call)
        self._calls[task] = connection
        task.add_done_callback(self._note_end)
        try:
            done, _ = await asyncio.wait([task], timeout=timeout_s)
        except asyncio.CancelledError:
            self._leave(task, connection, self._break_off_s)
            raise
        if not done:
            self._leave(task, connection, self._break_off_s - timeout_s)
            raise StorageError("the database does not answer", place=self.place)
        try:
            return task.result()
        except psycopg.Error as error:
            if connection.closed or connection.broken:
                self._note_fault(self._fault)
            raise self._explain(error) from None
        except OSError as error:
            self._note_fault(self._fault)
            raise self._explain(error) from None

    def _leave(self, task: asyncio.Future[Any], connection: Connection, patience_s: float) -> None:
        """Give a call that no caller awaits so long to end."""
        if patience_s > 0:
            asyncio.get_running_loop().call_later(patience_s, self._break_off, task, connection)
        else:
            self._break_off(task, connection)

    def _break_off(self, task: asyncio.Future[Any], connection: Connection) -> None:
        """
        End a call that takes too long, with its connection.

        A cancellation would have psycopg ask the server to cancel, and wait seconds for a server that does not answer.
        The end of the socket ends the call at once, and leaves the descriptor to psycopg.
        """
        if task.done() or connection.closed:
            return
        self._note_fault(self._fault)
        interrupt(connection)

    def _note_end(self, call: asyncio.Future[Any]) -> None:
        del self._calls[call]
        if not call.cancelled():
            call.exception()  # marks it as retrieved: its caller may have left

    def _explain(self, error: BaseException) -> StorageError:
        import psycopg  # noqa: PLC0415 - an extra
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

        cause = type(error).__name__
        if isinstance(error, psycopg.Error):
            options = conninfo_to_dict(self._url)
            cause = explain(error, user=str(options.get("user", "")), name=str(options.get("dbname", "")))
        return StorageError("the database failed", cause=cause, place=self.place)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait([task])
