"""A database that nodes share belongs to one store, which only a reindex changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgkeep.cluster.nodes.upkeep import adopt_store
from imgkeep.core.errors import StorageError
from imgkeep.database import DatabaseEngine, IncompatibleDatabase
from imgkeep.database.store_mark import check_store, shorten
from tests.support.database import query
from tests.support.program import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgkeep.database import Database

    Connect = Callable[..., Database]


@pytest.fixture
async def other(connect: Connect, postgresql_url: str) -> Database:
    """Give a database of another store, which has all its records."""
    database = connect(postgresql_url.replace("postgresql:", "postgresql+psycopg:"))
    await database.open()
    query(database, "INSERT INTO state VALUES ('store', 'bucket of others'), ('complete', '1')")
    return database


async def reopened(database: Database, connect: Connect) -> DatabaseEngine:
    again = connect(database.engine.url.render_as_string(hide_password=False))
    await again.open()
    return again.engine


async def test_database_of_another_store_is_refused(other: Database, connect: Connect) -> None:
    check_store(await reopened(other, connect), "bucket of others")
    with pytest.raises(IncompatibleDatabase) as caught:
        check_store(await reopened(other, connect), "bucket of mine")
    assert "belongs to another store (bucket of others): set store.url" in str(caught.value)
    assert "database.url" in str(caught.value)


@pytest.mark.parametrize(("silent_s", "adopts"), [(0, False), (60, True)], ids=["live node", "dead node"])
async def test_reindex_adopts_a_database_that_no_node_uses(
    other: Database, connect: Connect, silent_s: int, *, adopts: bool
) -> None:
    query(
        other,
        "INSERT INTO cluster_members (id, node, host, advertise_url, version, applied, heartbeat_at) "
        f"VALUES ('a/1', 'a', 'a', '', '1', 0, now() - interval '{silent_s} s')",
    )
    if not adopts:
        with pytest.raises(StorageError, match="end them first"):
            await adopt_store(await reopened(other, connect), "bucket of mine")
    else:
        await adopt_store(other.engine, "bucket of mine")
    marks = dict(query(other, "SELECT name, value FROM state WHERE name IN ('store', 'complete')"))
    expected = {"store": "bucket of mine"} if adopts else {"store": "bucket of others", "complete": "1"}
    assert marks == expected, "the image index of an adopted database is not complete"


def test_long_description_fits_and_stays_unique() -> None:
    assert shorten("bucket b") == "bucket b"
    long = [shorten(f"bucket {'p' * 1000}{number}") for number in range(2)]
    assert len(set(long)) == 2
    assert max(map(len, long)) <= 255


async def test_commands_refuse_the_database_of_another_store(
    other: Database, postgresql_url: str, tmp_path: Path
) -> None:
    status, _, err = await run(tmp_path / "data", "stats", database__url=postgresql_url)
    assert status == 2, err
    assert "belongs to another store (bucket of others)" in err
    (tmp_path / "data" / "v1").mkdir(parents=True)
    status, _, err = await run(tmp_path / "data", "reindex", database__url=postgresql_url)
    assert status == 0, err
    assert query(other, "SELECT value FROM state WHERE name = 'store'") == [("folder",)]
