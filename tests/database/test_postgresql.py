"""PostgreSQL servers and databases that imgkeep cannot use: each message names the setting and the remedy."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa

from imgkeep.core.errors import StorageError
from imgkeep.database import Database, DatabaseEngine, IncompatibleDatabase
from imgkeep.database.postgresql import PING_TIMEOUT_S
from tests.support.database import make_records, walk
from tests.support.postgresql import PostgresqlServer
from tests.support.program import run
from tests.support.stores import record_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.clock import FakeClock

    Connect = Callable[..., Database]


def of_engine(url: str) -> str:
    return url.replace("postgresql:", "postgresql+psycopg:")


def as_user(url: str, user: str) -> str:
    return of_engine(url).replace("imgkeep@", f"{user}@")


@pytest.fixture
def role(postgresql: PostgresqlServer, postgresql_url: str) -> Iterator[str]:
    """Give the name of a role that has no rights."""
    name = f"role_of_{postgresql_url.rpartition('/')[2]}"
    postgresql.execute(f"CREATE ROLE {name} LOGIN PASSWORD 's3cret'")
    yield name
    postgresql.drop_database(postgresql_url)
    postgresql.execute(f"DROP ROLE {name}")


@pytest.fixture(scope="module")
def spare() -> Iterator[PostgresqlServer]:
    """Give a server that tests stop, start and configure."""
    server = PostgresqlServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


async def explain(connect: Connect, url: str) -> str:
    """Return what a start says of a database."""
    database = connect(url)
    with pytest.raises(StorageError) as caught:
        await database.open()
    with pytest.raises(StorageError):
        await database.check()
    assert "s3cret" not in caught.value.in_full
    assert "\n" not in caught.value.in_full
    return caught.value.in_full


# --- refused at start


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_database_in_another_encoding_is_refused(
    postgresql: PostgresqlServer, connect: Connect, encoding: str
) -> None:
    postgresql.execute(f"CREATE DATABASE other_{encoding} ENCODING '{encoding}' TEMPLATE template0")
    url = postgresql.url(f"other_{encoding}".lower())
    database = connect(of_engine(url))
    try:
        with pytest.raises(
            IncompatibleDatabase, match=f"is in {encoding}.*ENCODING 'UTF8' TEMPLATE template0.*database.url"
        ):
            await database.open()
        assert database.engine.found_incompatible.is_set()
    finally:
        await database.aclose()
        postgresql.drop_database(url)


# --- reported, and tried again


async def test_wrong_password_is_reported(
    postgresql: PostgresqlServer, connect: Connect, postgresql_url: str, role: str
) -> None:
    with postgresql.requiring_password(role):
        text = await explain(connect, as_user(postgresql_url, f"{role}:s3cret-not"))
        assert "check the user and the password in database.url" in text
        assert "add a password to database.url" in await explain(connect, as_user(postgresql_url, role))
        await connect(as_user(postgresql_url, "imgkeep")).open()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("imgkeep@", "absent@"), 'check the user in database.url, or make it: CREATE ROLE "absent" LOGIN'),
        (("/test_", "/absent_"), 'check the name in database.url, or make it: CREATE DATABASE "absent_'),
        ((r"127.0.0.1:\d+", "127.0.0.1:1"), "check host and port in database.url"),
    ],
    ids=["user", "database", "port"],
)
async def test_absent_part_of_the_url_is_named(
    connect: Connect, postgresql_url: str, change: tuple[str, str], says: str
) -> None:
    assert says in await explain(connect, of_engine(re.sub(*change, postgresql_url)))


async def test_rights_that_a_role_lacks_are_named(
    postgresql: PostgresqlServer, connect: Connect, postgresql_url: str, role: str
) -> None:
    name = postgresql_url.rpartition("/")[2]
    text = await explain(connect, as_user(postgresql_url, role))
    assert "permission denied for schema public" in text
    assert f'GRANT USAGE, CREATE ON SCHEMA public TO "{role}"' in text
    owner = connect(of_engine(postgresql_url))
    await owner.image_index.put(record_of(b"x"))
    await owner.image_index.flush()
    postgresql.execute(f"GRANT CREATE ON SCHEMA public TO {role}", name)
    text = await explain(connect, as_user(postgresql_url, role))
    assert f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{role}"' in text
    postgresql.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}", name)
    database = connect(as_user(postgresql_url, role))
    await database.check()
    assert await database.image_index.find(record_of(b"x").key) == record_of(b"x")


async def test_too_many_connections_are_reported(
    postgresql: PostgresqlServer, connect: Connect, postgresql_url: str, role: str
) -> None:
    name = postgresql_url.rpartition("/")[2]
    postgresql.execute(f"GRANT CREATE ON SCHEMA public TO {role}", name)
    postgresql.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    text = await explain(connect, as_user(postgresql_url, role))
    assert "max_connections" in text
    assert "database.url" in text
    postgresql.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 5")
    await connect(as_user(postgresql_url, role)).open()


async def test_standby_takes_no_writes(spare: PostgresqlServer, connect: Connect, tmp_path: Path) -> None:
    database = connect(of_engine(spare.url()))
    await database.image_index.rebuild(walk([record_of(b"x")]))
    spare.stop()
    spare.begin_standby()
    try:
        text = await explain(connect, of_engine(spare.url()))
        assert "database.url names a server that takes no writes" in text
        assert "target_session_attrs=read-write" in text
        with pytest.raises(StorageError, match="takes no writes"):
            await database.image_index.find(record_of(b"x").key)
        reader = Database(of_engine(spare.url()), lambda: record_of(b"x").stored_at, read_only=True)
        assert await reader.image_index.find(record_of(b"x").key) == record_of(b"x"), "a command only reads"
        await reader.aclose()
        status, out, _ = await run(tmp_path, "check", "--live", database__url=spare.url())
        assert status == 1
        assert "database: the database takes no writes" in out
        spare.promote()
        await database.check()
        assert await database.image_index.find(record_of(b"x").key) == record_of(b"x")
    finally:
        spare.promote()


async def test_restarted_server_costs_one_call(spare: PostgresqlServer, connect: Connect) -> None:
    database = connect(of_engine(spare.make_database()))
    await database.image_index.rebuild(walk([record_of(b"x")]))
    spare.stop()
    with pytest.raises(StorageError, match="the database failed") as caught:
        await database.image_index.find(record_of(b"x").key)
    assert "database.url" in caught.value.in_full
    spare.start()
    assert await database.image_index.find(record_of(b"x").key) == record_of(b"x")


async def test_full_disk_keeps_records_for_later(spare: PostgresqlServer, connect: Connect, small_disk: Path) -> None:
    spare.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    spare.execute("CREATE DATABASE full_disk TEMPLATE template0 STRATEGY file_copy TABLESPACE small")
    database = connect(of_engine(spare.url("full_disk")))
    index, records = database.image_index, make_records(2000)
    await index.put(record_of(b"x", name="before"))
    await index.flush()
    with suppress(psycopg.errors.DiskFull):
        spare.execute(
            "CREATE TABLE filler AS SELECT repeat(md5(n::text), 60) FROM generate_series(1, 99999) n", "full_disk"
        )
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    for record in records:
        await index.put(record)
    await index.flush()
    assert database.engine.fault is not None
    assert "the disk of the server in database.url is full" in database.engine.fault
    assert await index.find(records[-1].key) == records[-1], "it waits for room"
    assert await index.find(record_of(b"x", name="before").key) == record_of(b"x", name="before")
    (small_disk / "filler").unlink()
    await database.check()
    await index.flush()
    assert (await index.count()).images == 2001
    await database.aclose()
    spare.drop_database(spare.url("full_disk"))
    spare.execute("DROP TABLESPACE small")


# --- servers that do not answer


async def test_server_that_accepts_and_never_answers(connect: Connect) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        database = connect(f"postgresql+psycopg://imgkeep@127.0.0.1:{port}/imgkeep?connect_timeout=2")
        with pytest.raises(StorageError) as caught:
            await database.open()
        assert "check host and port in database.url" in caught.value.in_full


async def test_session_that_stops_is_given_up(postgresql_url: str, clock: FakeClock) -> None:
    engine = DatabaseEngine(of_engine(postgresql_url), clock, hang_max_s=0.2)
    await engine.open()
    backend = await engine.execute(
        lambda connection: connection.execute(sa.select(sa.func.pg_backend_pid())).scalar_one()
    )
    os.kill(backend, signal.SIGSTOP)
    try:
        with pytest.raises(StorageError, match="does not answer"):
            await engine.execute(lambda connection: connection.scalar(sa.select(1)), timeout_s=0.1)

        async def answers() -> bool:
            with suppress(StorageError):
                return await engine.execute(lambda connection: connection.scalar(sa.select(1))) == 1
            return False

        await until(answers)
    finally:
        with suppress(ProcessLookupError):  # the server has ended it
            os.kill(backend, signal.SIGCONT)
        await engine.aclose()


async def test_server_that_hangs_is_a_fault_within_seconds(
    postgresql: PostgresqlServer, postgresql_url: str, clock: FakeClock
) -> None:
    engine = DatabaseEngine(of_engine(postgresql_url), clock, patience_s=0.05, hang_max_s=30)

    def add(connection: sa.Connection) -> object:
        return connection.execute(sa.text("INSERT INTO state VALUES (gen_random_uuid()::text, '')"))

    await engine.open()
    loop = asyncio.get_running_loop()
    with postgresql.hanging():
        began = loop.time()
        waiting = await asyncio.gather(*(engine.execute(add) for _ in range(20)), return_exceptions=True)
        assert {str(error) for error in waiting} == {"the database does not answer"}
        with pytest.raises(StorageError) as caught:
            await engine.check()
        assert "check host and port in database.url" in caught.value.in_full
        assert loop.time() - began < 2 * PING_TIMEOUT_S, "no call waits for its timeout, nor for the calls before it"

    async def is_back() -> bool:
        with suppress(StorageError):
            return bool(await engine.execute(lambda connection: connection.scalar(sa.text("SELECT 1"))))
        return False

    await until(is_back)
    count = sa.text("SELECT count(*) FROM state WHERE value = ''")
    assert await engine.execute(lambda connection: connection.scalar(count)) <= 1, "the calls behind it were not done"
    await engine.aclose()


async def test_long_statement_of_a_server_that_answers_is_waited_for(postgresql_url: str, clock: FakeClock) -> None:
    engine = DatabaseEngine(of_engine(postgresql_url), clock, patience_s=0.01)
    assert await engine.execute(lambda connection: connection.scalar(sa.text("SELECT 1 FROM pg_sleep(0.1)"))) == 1
    await engine.aclose()
