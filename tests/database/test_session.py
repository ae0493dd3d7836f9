"""The session of a PostgreSQL: statements, notifications, and what its loss does."""

from __future__ import annotations

import asyncio
import os
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from imgkeep.core.errors import StorageError
from imgkeep.database.session import DatabaseSession
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgkeep.database.session import Connection, Rows


@asynccontextmanager
async def running(session: DatabaseSession) -> AsyncIterator[DatabaseSession]:
    task = asyncio.create_task(session.run())
    try:
        await session.attempted.wait()
        yield session
    finally:
        task.cancel()
        await asyncio.wait([task])


def make(url: str, *, break_off_s: float = 5) -> DatabaseSession:
    return DatabaseSession(url, place="the test's database", draw=lambda: 0, break_off_s=break_off_s)


async def test_notification_reaches_other_session(postgresql_url: str) -> None:
    heard: list[str] = []
    first, second = make(postgresql_url), make(postgresql_url)
    first.listen("news", heard.append)
    async with running(first), running(second):
        await second.execute("SELECT pg_notify('news', %s)", ("a removal",))
        await until(lambda: heard == ["a removal"])
        assert await second.execute("SELECT 1, 'a'") == [(1, "a")]


async def test_lost_connection_is_replaced_and_listens_again(postgresql_url: str) -> None:
    heard: list[str] = []
    lost: list[bool] = []
    session, other = make(postgresql_url), make(postgresql_url)
    session.listen("news", heard.append)
    session.when_lost(lambda: lost.append(True))
    async with running(session), running(other):
        (row,) = await session.execute("SELECT pg_backend_pid()")
        await other.execute("SELECT pg_terminate_backend(%s)", row)
        with pytest.raises(StorageError):
            await session.execute("SELECT 1")
        await until(lambda: lost == [True])
        await session.wait_connected()
        await other.execute("SELECT pg_notify('news', 'again')")
        await until(lambda: heard == ["again"])


async def test_calls_end_before_their_descriptor_is_closed(postgresql_url: str) -> None:
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    lost: list[bool] = []
    session, other = make(postgresql_url), make(postgresql_url)
    session.listen("news", lambda _: None)
    session.when_lost(lambda: lost.append(True))
    async with running(session), running(other):
        (row,) = await session.execute("SELECT pg_backend_pid()")
        hanging = asyncio.create_task(session.execute("SELECT pg_sleep(60)", timeout_s=60))
        activity = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%%' AND pid = %s"
        await until(lambda: other.execute(activity, row))
        await other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%'")
        while not (lost and session.is_connected):
            for key in selector.get_map().values():
                os.fstat(key.fd)  # raises where the descriptor is closed
            await asyncio.sleep(0)
        with pytest.raises(StorageError):
            await hanging


async def test_transaction_is_closed_to_other_callers(postgresql_url: str) -> None:
    session = make(postgresql_url)
    async with running(session):
        await session.execute("CREATE TABLE t (n int)")

        async def fail(connection: Connection) -> None:
            await connection.execute("INSERT INTO t VALUES (1)")
            other.append(asyncio.create_task(session.execute("INSERT INTO t VALUES (2)")))
            await connection.execute("SELECT 1 / 0")

        other: list[asyncio.Task[Rows]] = []
        with pytest.raises(StorageError):
            await session.transaction(fail)
        await other[0]
        assert await session.execute("SELECT n FROM t") == [(2,)]


async def test_impatient_caller_leaves_the_session_connected(postgresql_url: str) -> None:
    session = make(postgresql_url)
    async with running(session):
        with pytest.raises(StorageError, match="does not answer"):
            await session.execute("SELECT pg_sleep(0.1)", timeout_s=0.01)
        assert session.is_connected
        assert await session.execute("SELECT 1") == [(1,)]


async def test_statement_without_an_answer_ends_with_its_connection(postgresql_url: str) -> None:
    lost: list[bool] = []
    session = make(postgresql_url, break_off_s=0.05)
    session.when_lost(lambda: lost.append(True))
    async with running(session):
        with pytest.raises(StorageError, match="does not answer"):
            await session.execute("SELECT pg_sleep(60)", timeout_s=0.05)
        await until(lambda: lost)
        await session.wait_connected()
        assert await session.execute("SELECT 1") == [(1,)]


async def test_cancelled_caller_leaves_the_session_connected(postgresql_url: str) -> None:
    session = make(postgresql_url)
    async with running(session):
        caller = asyncio.create_task(session.execute("SELECT pg_sleep(0.05)"))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        assert caller.cancelled()
        assert await session.execute("SELECT 1") == [(1,)]
        assert session.is_connected


async def test_statement_is_not_sent_after_its_caller_has_left_the_queue(postgresql_url: str) -> None:
    session = make(postgresql_url, break_off_s=0.3)
    async with running(session):
        await session.execute("CREATE TABLE t (n int)")
        slow = [asyncio.create_task(session.execute("SELECT pg_sleep(0.2)")) for _ in range(2)]
        await until(lambda: session.statements == 3)
        left = asyncio.create_task(session.execute("INSERT INTO t VALUES (1)"))
        with pytest.raises(StorageError, match="does not answer"):
            await session.execute("INSERT INTO t VALUES (2)", timeout_s=0.01)
        left.cancel()
        await asyncio.gather(*slow)  # together they take longer than one statement may
        assert await session.execute("SELECT n FROM t") == []
        assert session.is_connected


async def test_refused_statement_leaves_the_session_connected(postgresql_url: str) -> None:
    session = make(postgresql_url)
    async with running(session):
        with pytest.raises(StorageError) as fault:
            await session.execute("SELECT 1 / %s", (0,))
        assert fault.value.cause == "division by zero"
        assert session.is_connected


async def test_unreachable_database_is_a_fault_at_once() -> None:
    session = make("postgresql://imgkeep@127.0.0.1:1/none")
    async with running(session):
        with pytest.raises(StorageError, match="not reachable"):
            await session.execute("SELECT 1")


async def test_url_that_libpq_refuses_is_a_fault_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    async with running(make("postgresql://imgkeep:hush%zz@127.0.0.1:1/none")) as session:
        assert not session.is_connected
    assert "hush" not in caplog.text
    assert "database session not connected" in caplog.text


# --- a pooler between


@asynccontextmanager
async def pooler(url: str, *, passes_notifications: bool) -> AsyncIterator[str]:
    """Run a relay that has numbers of its own for its connections, as a pooler does; give the URL of its address."""
    place = urlsplit(url)
    relayed: set[asyncio.StreamWriter] = set()

    async def relay_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                kind, length = struct.unpack("!ci", await reader.readexactly(5))
                body = await reader.readexactly(length - 4)
                if kind == b"K":  # the number of the connection, and a key
                    body = struct.pack("!i", struct.unpack("!i", body[:4])[0] + 1) + body[4:]
                if kind != b"A" or passes_notifications:
                    writer.write(struct.pack("!ci", kind, length) + body)
                    await writer.drain()

    async def relay_requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relayed.add(writer)
        server_reader, server_writer = await asyncio.open_connection(place.hostname, place.port)
        answers = asyncio.create_task(relay_answers(server_reader, writer))
        while data := await reader.read(65_536):
            server_writer.write(data)
        server_writer.close()
        await answers
        for end in (server_writer, writer):
            end.close()
            with suppress(ConnectionError):
                await end.wait_closed()
        relayed.remove(writer)

    async with await asyncio.start_server(relay_requests, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield url.replace(f":{place.port}", f":{port}") + "?sslmode=disable"
        await until(lambda: not relayed)


async def test_pooler_of_sessions_passes(postgresql_url: str) -> None:
    async with pooler(postgresql_url, passes_notifications=True) as url, running(make(url)) as session:
        assert session.is_connected
        assert await session.execute("SELECT 1") == [(1,)]


async def test_pooler_that_keeps_notifications_back_is_reported(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("imgkeep.database.postgresql.ECHO_TIMEOUT_S", 0.2)
    async with pooler(postgresql_url, passes_notifications=False) as url, running(make(url)) as session:
        assert not session.is_connected
    (record,) = (record for record in caplog.records if record.message == "database session not connected")
    assert "pool_mode = session" in record.__dict__["reason"]
