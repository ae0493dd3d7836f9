"""Nodes of two versions on one database: starts at once, upgrades, and the way back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from imgkeep.core.jobs import NewItem
from imgkeep.core.records import Digest, Failure, Wanted
from imgkeep.database import Database, IncompatibleDatabase
from imgkeep.database.schema_upgrade import COMPATIBLE_FROM, NEWEST, migrate
from imgkeep.database.sqlite_file import find_fault
from tests.support.database import LATER, make_records, query, upgrade_to_later, walk
from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.postgresql import PostgresqlServer

    Connect = Callable[..., Database]

FIRST = "0006"
"""The schema of the first release."""


def make_first_schema(url: str) -> None:
    """Make the tables of the first release. Blocks."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        migrate(connection, FIRST)
    engine.dispose()


# --- starts at once


@pytest.fixture(params=["empty", "first release"])
def begun_url(request: pytest.FixtureRequest, url: str) -> str:
    """Give the URL of a database that has no tables, or those of the first release."""
    if request.param != "empty":
        make_first_schema(url)
    return url


async def test_three_nodes_start_at_once(connect: Connect, begun_url: str) -> None:
    databases = [connect(begun_url) for _ in range(3)]
    await asyncio.gather(*(database.open() for database in databases))
    assert query(databases[0], "SELECT version_num FROM alembic_version") == [(NEWEST,)]
    assert query(databases[0], "SELECT value FROM state WHERE name = 'compatible_from'") == [(COMPATIBLE_FROM,)]
    for database in databases:
        await database.check()


@pytest.fixture
def several_of_postgresql(postgresql: PostgresqlServer) -> Iterator[list[str]]:
    """Give the URLs of four empty databases of a server."""
    urls = [postgresql.make_database() for _ in range(4)]
    yield [url.replace("postgresql:", "postgresql+psycopg:") for url in urls]
    for url in urls:
        postgresql.drop_database(url)


@pytest.fixture
def several_of_sqlite(tmp_path: Path) -> list[str]:
    """Give the URLs of four files that are not there."""
    return [f"sqlite:///{tmp_path}/{number}.db" for number in range(4)]


@pytest.fixture(params=["sqlite", "postgresql"])
def old_urls(request: pytest.FixtureRequest) -> list[str]:
    """Give the URLs of several databases of the first release."""
    urls: list[str] = request.getfixturevalue(f"several_of_{request.param}")
    for url in urls:
        make_first_schema(url)
    return urls


async def test_databases_of_one_process_are_migrated_at_once(connect: Connect, old_urls: list[str]) -> None:
    # Alembic keeps the current migration in globals of the process: without a lock this hangs, or it fails.
    databases = [connect(url) for url in old_urls]
    async with asyncio.timeout(20):
        await asyncio.gather(*(database.open() for database in databases))
    for database in databases:
        assert query(database, "SELECT version_num FROM alembic_version") == [(NEWEST,)]
        assert query(database, "SELECT node FROM outbox") == []


# --- the node of an older version


async def use_all_repositories(database: Database) -> None:
    """Call what the repositories do."""
    await _use_index(database)
    await _use_outbox(database)
    await _use_jobs(database)
    digest = Digest("d" * 64)
    await database.removals.block([digest])
    assert digest in await database.removals.list_blocked()
    await database.removals.unblock([digest])


async def _use_index(database: Database) -> None:
    index, records = database.image_index, make_records(30)
    await index.rebuild(walk(records))
    await index.put(records[3])
    await index.flush()
    assert await index.find(records[0].key) == records[0]
    assert len(await index.find_all([record.key for record in records])) == 30
    assert await index.page(limit=1, wanted=Wanted(host=records[0].host)) != []
    assert records[0].key in await index.keys_of(records[0].digest)
    assert (await index.count()).images == 30
    assert (await index.count_images())[0] == 30
    assert await index.suspects(since=NOON - timedelta(days=1), identities_min=2) != []
    await index.drop([records[0].key])
    assert await index.find(records[0].key) is None


async def _use_outbox(database: Database) -> None:
    outbox, waiting = database.outbox, replace(record_of(b"w", name="waiting"), waits_at="")
    await database.image_index.put(waiting)
    (entry,) = await outbox.due(10)
    assert entry.key == waiting.key
    await outbox.postpone(entry, 0, "refused")
    await outbox.note_error("away")
    assert (await outbox.backlog()).images == 1
    await outbox.remove(waiting.key)
    assert (await outbox.backlog()).images == 0
    await database.image_index.drop([waiting.key])


async def _use_jobs(database: Database) -> None:
    jobs = database.jobs
    links = [NewItem(f"https://images.example/{number}.png", "images.example", None) for number in range(3)]
    await jobs.create("job", links, "https://hooks.example/")
    assert await jobs.count_waiting() == 3
    first, second, third = await jobs.due(10, without=(), busy=())
    await jobs.postpone(third, 0)
    await jobs.mark_saved(first, make_records(2)[1].key, created=True)
    await jobs.mark_failed(second, Failure("origin_error", "it failed"))
    assert await jobs.is_waiting(third)
    assert len(await jobs.page(limit=5)) == 1
    assert len(await jobs.results("job", after=-1, limit=5)) == 3
    ended = await jobs.cancel("job")
    assert ended is not None
    (webhook,) = await jobs.webhooks(5)
    await jobs.postpone_webhook(webhook, 0)
    await jobs.remove_webhook(webhook)
    await jobs.delete_old(-1)
    assert await jobs.find("job") is None


async def test_running_node_outlives_the_upgrade_of_another_one(connect: Connect, url: str) -> None:
    database = connect(url)
    await use_all_repositories(database)
    upgrade_to_later(url, COMPATIBLE_FROM)
    await use_all_repositories(database)


async def test_node_starts_on_a_newer_schema_that_allows_it(connect: Connect, url: str) -> None:
    first = connect(url)
    await first.open()
    upgrade_to_later(url, COMPATIBLE_FROM)
    await first.aclose()
    database = connect(url)
    await use_all_repositories(database)
    assert query(database, "SELECT version_num FROM alembic_version") == [(LATER,)], "it stays the newer one's"
    assert query(database, "SELECT value FROM state WHERE name = 'compatible_from'") == [(COMPATIBLE_FROM,)]
    if url.startswith("sqlite"):
        assert await asyncio.to_thread(find_fault, Path(first.engine.url.database or "")) is None


async def test_newer_schema_that_forbids_it_is_refused(connect: Connect, url: str) -> None:
    first = connect(url)
    await first.open()
    upgrade_to_later(url, LATER)
    await first.aclose()
    with pytest.raises(IncompatibleDatabase) as caught:
        await connect(url).open()
    for words in (f"newer version of imgkeep (schema {LATER})", "database.url", "run that version"):
        assert words in str(caught.value)
