"""What commands tell of a cluster and change in it: its nodes, a node that is gone, a database for another store."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from imgkeep.cli.list_stats import stats
from imgkeep.cluster.nodes.secret_mark import make_mark
from imgkeep.cluster.nodes.upkeep import adopt_store, compare_secret, forget_node, list_members
from imgkeep.core.errors import StorageError
from imgkeep.database import Database
from tests.support.clock import FakeClock
from tests.support.database import query
from tests.support.program import run, run_here
from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MEMBER = (
    "INSERT INTO cluster_members (id, node, host, advertise_url, version, applied, heartbeat_at) "
    "VALUES ('{0}/1', '{0}', 'h', '', '1.2.3', 0, now() - interval '{1} seconds')"
)


@pytest.fixture
async def database(postgresql_url: str) -> AsyncIterator[Database]:
    """The database as node `a` sees it."""
    opened = Database(postgresql_url.replace("postgresql:", "postgresql+psycopg:"), FakeClock(), node="a")
    await opened.open()
    yield opened
    await opened.aclose()


async def test_live_node_is_not_forgotten(database: Database) -> None:
    waiting = replace(record_of(b"x"), waits_at="")
    await database.image_index.put(waiting)
    await database.image_index.flush()
    query(database, MEMBER.format("a", 1))
    with pytest.raises(StorageError, match="the node 'a' is live"):
        await forget_node(database, "a")
    query(database, "UPDATE cluster_members SET heartbeat_at = now() - interval '16 seconds'")
    assert await forget_node(database, "a") == 1
    assert await forget_node(database, "a") == 0
    assert await database.image_index.find(waiting.key) is None


async def test_reindex_makes_the_database_that_of_another_store(database: Database, tmp_path: Path) -> None:
    def mark() -> list[tuple[str]]:
        return [tuple(row) for row in query(database, "SELECT value FROM state WHERE name = 'store'")]

    engine = database.engine
    await adopt_store(engine, "bucket one")
    query(database, MEMBER.format("a", 1))
    await adopt_store(engine, "bucket one")
    with pytest.raises(StorageError, match=r"live nodes use the database for another store \(bucket one\)"):
        await adopt_store(engine, "bucket two")
    assert mark() == [("bucket one",)]
    query(database, "UPDATE cluster_members SET heartbeat_at = now() - interval '16 seconds'")
    await adopt_store(engine, "bucket two")
    assert mark() == [("bucket two",)]
    alone = Database(f"sqlite:///{tmp_path}/imgkeep.db", FakeClock())
    await alone.open()
    await adopt_store(alone.engine, "folder")
    assert await list_members(alone.engine) == []
    await alone.aclose()


async def test_stats_tell_what_waits_on_each_node(database: Database) -> None:
    await database.image_index.put(replace(record_of(b"x"), waits_at=""))
    await database.image_index.flush()
    query(database, "UPDATE outbox SET error = 'refused'")
    query(database, "INSERT INTO outbox SELECT 'gone', key, since - 60, 0, 0, NULL, digest FROM outbox")
    query(database, MEMBER.format("a", 2))
    query(database, MEMBER.format("b", 60))
    out = io.StringIO()
    assert await stats(database, now=NOON, picture_bytes=0, as_json=True, out=out) == 0
    told = json.loads(out.getvalue())
    assert (told["waiting"], told["waiting_since"], told["last_error"]) == (2, "2026-11-22T11:59:00Z", "refused")
    nodes = {each["node"]: each for each in told["nodes"]}
    assert list(nodes) == ["a", "b", "gone"]
    assert [nodes[name]["waiting"] for name in nodes] == [1, 0, 1]
    assert nodes["gone"]["members"] == []
    (member,) = nodes["a"]["members"]
    assert (member["id"], member["version"], member["live"]) == ("a/1", "1.2.3", True)
    assert not nodes["b"]["members"][0]["live"]
    out = io.StringIO()
    await stats(database, now=NOON, picture_bytes=0, as_json=False, out=out)
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("nodes")]
    assert "a (1 live of 1.2.3, " in line
    assert "b (not live)" in line
    assert "gone (not live, 1 waiting since 2026-11-22T11:59:00Z)" in line


async def test_forget_is_for_a_cluster_alone(tmp_path: Path, database: Database, postgresql_url: str) -> None:
    query(database, "INSERT INTO outbox VALUES ('node3', 'k', 0, 0, 0, NULL, 'd')")
    alone, shared = await asyncio.gather(
        run_here(tmp_path / "a", "forget", "node3"),
        run_here(tmp_path / "b", "forget", "node3", "--json", database__url=postgresql_url),
    )
    assert (alone[0], alone[1]) == (2, "")
    assert "there is no other node to forget" in alone[2]
    assert shared[:2] == (0, '{"node":"node3","images":1}\n')


async def test_check_compares_the_secret_with_that_of_live_nodes(database: Database) -> None:
    engine = database.engine
    assert "no node has used" in await compare_secret(engine, "s" * 32, "here")
    query(database, f"INSERT INTO state (name, value) VALUES ('secret', '{make_mark('s' * 32)}')")
    assert "has not changed" in await compare_secret(engine, "s" * 32, "here")
    assert "the next start changes it" in await compare_secret(engine, "t" * 32, "here")
    query(database, MEMBER.format("a", 1))
    assert "the same cluster.secret" in await compare_secret(engine, "s" * 32, "here")
    assert "the next start changes it" in await compare_secret(engine, "t" * 32, "h"), "its own processes alone live"
    with pytest.raises(StorageError, match=r"another cluster\.secret: set it as on the other nodes"):
        await compare_secret(engine, "t" * 32, "here")
    with pytest.raises(StorageError, match=r"other nodes use the database: set cluster\.secret"):
        await compare_secret(engine, "", "here")


async def test_check_live_reports_another_secret(tmp_path: Path, database: Database, postgresql_url: str) -> None:
    query(database, f"INSERT INTO state (name, value) VALUES ('secret', '{make_mark('s' * 32)}')")
    query(database, MEMBER.format("a", -60))
    status, out, errors = await run(
        tmp_path,
        "check",
        "--live",
        "--json",
        database__url=postgresql_url,
        cluster__name="b",
        cluster__secret="t" * 32,
        cluster__advertise_url="http://127.0.0.1:8081",
        store__url="s3://bucket?region=eu-central-1&endpoint=http://127.0.0.1:1",
    )
    parts = {part["part"]: part for part in map(json.loads, out.splitlines())}
    assert (status, parts["database"]["works"], parts["cluster"]["works"]) == (1, True, False), (out, errors)
    assert "have another cluster.secret" in parts["cluster"]["error"]
    assert "t" * 32 not in out + errors
