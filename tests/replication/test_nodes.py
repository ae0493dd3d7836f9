"""The outboxes of several nodes with one database: each node's own, known to all, and what a removal makes of them."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from imgkeep.cli.verify_reindex import verify
from imgkeep.core.errors import Conflict, Unreachable
from imgkeep.core.records import Backlog, Tombstone
from imgkeep.maintenance.verify_reindex import reindex
from tests.support.database import query
from tests.support.outbox_nodes import outbox_node
from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from imgkeep.core.records import Record
    from tests.support.outbox_nodes import OutboxNode
    from tests.support.s3.servers import S3Server


class Cluster:
    """Nodes by their names, opened as they are asked for."""

    def __init__(self, store: str, database: str, folder: Path, stack: AsyncExitStack) -> None:
        self.nodes: dict[str, OutboxNode] = {}
        self.folder = folder
        self.open = partial(outbox_node, nodes=self.nodes, store=store, database=database, folder=folder)
        self._stack = stack

    async def start(self, *names: str) -> list[OutboxNode]:
        """Open nodes that do not reach the bucket."""
        started = [await self._stack.enter_async_context(self.open(name)) for name in names]
        for node in started:
            node.lose_bucket()
        return started


@asynccontextmanager
async def _open(store: str, database: str, folder: Path) -> AsyncGenerator[Cluster]:
    async with AsyncExitStack() as stack:
        yield Cluster(store, database, folder, stack)


@pytest.fixture
async def cluster(
    bucket: Callable[[str], S3Server], postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Cluster]:
    server = bucket("moto")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret)
    store = f"s3://{server.bucket}/pre?endpoint={server.endpoint}&region=us-east-1"
    async with _open(store, postgresql_url, tmp_path) as opened:
        yield opened


async def place(node: OutboxNode, record: Record) -> str | None:
    """Return where a node knows an image to wait; the image is in the index."""
    found = await node.index.find(record.key)
    assert found is not None
    return found.waits_at


async def test_image_of_another_fallback_is_read_from_there(cluster: Cluster) -> None:
    a, b = await cluster.start("a", "b")
    record = await a.put(b"bytes" * 100_000)
    assert await place(b, record) == "a"
    assert await b.store.holds(record.object_name, record.size)
    for _ in range(2):
        assert await b.read(record) == b"bytes" * 100_000
    assert b.asked == [record.object_name], "the copy on the disk serves the second read"
    assert not await b.store.has(record.object_name), "no client is sent to the bucket"
    with pytest.raises(Conflict):
        await b.store.put_record(record)


async def test_bucket_without_the_object_yet_is_no_miss(cluster: Cluster) -> None:
    a, b = await cluster.start("a", "b")
    await b.regain_bucket()
    record = await a.put(b"x")
    assert not await b.store.has(record.object_name)
    body = await b.store.fetch(record.object_name, None)
    assert body is not None, "its permanent URL works at once on every node"
    await body.aclose()
    unknown = record_of(b"y").object_name
    for _ in range(2):
        assert await b.store.fetch(unknown, None) is None


async def test_unreachable_holder_is_a_fault_and_no_miss(cluster: Cluster) -> None:
    a, b = await cluster.start("a", "b")
    record = await a.put(b"x")
    b.cut_off.add("a")
    for _ in ("away", "back"):
        with pytest.raises(Unreachable) as caught:
            await b.read(record)
        assert caught.value.in_full.endswith("(a)")
        assert await b.store.holds(record.object_name, record.size)
        await b.regain_bucket()
    await a.regain_bucket()
    assert await a.work() == 1
    assert await b.read(record) == b"x"


async def test_each_node_uploads_what_is_its_own(cluster: Cluster) -> None:
    a, b = await cluster.start("a", "b")
    mine, theirs = await a.put(b"x", name="x"), await b.put(b"y", name="y")
    assert list(await b.outbox.backlogs()) == ["a", "b"]
    await b.regain_bucket()
    assert await b.work() == 1
    assert (await a.waiting(), await b.waiting()) == (1, 0)
    assert (await place(b, mine), await place(a, theirs)) == ("a", None)
    assert list(await b.outbox.backlogs()) == ["a"]
    assert (await a.outbox.due(10))[0].key == mine.key
    await b.outbox.note_error("the disk of b")
    assert await a.outbox.backlog() == Backlog(1, mine.stored_at, None)


@pytest.mark.parametrize("bodies", [(b"x", b"x"), (b"x", b"other")], ids=["the same image", "two images"])
async def test_nodes_that_stored_one_key_each_settle_theirs(cluster: Cluster, bodies: tuple[bytes, bytes]) -> None:
    a, b, c = await cluster.start("a", "b", "c")
    first, second = await a.put(bodies[0]), await b.put(bodies[1])
    assert await place(c, first) == ("a" if bodies[0] == bodies[1] else "b")
    for record, body in zip((first, second), bodies, strict=True):
        assert await c.read(record) == body, "the permanent URLs of both work"
    for node in (a, b):
        await node.regain_bucket()
        assert await node.work() == 1
        assert await node.waiting() == 0
    await c.regain_bucket()
    found = await c.index.find(first.key)
    assert found is not None
    assert (found.digest, found.waits_at) == (first.digest, None), "the first one stands in the bucket"


async def test_start_of_a_node_hides_no_newer_image(cluster: Cluster) -> None:
    a, b = await cluster.start("a", "b")
    older = await a.put(b"x")
    newer = replace(older, digest=record_of(b"newer").digest, size=5, waits_at=None)
    await b.index.put(newer)
    await b.index.flush()
    await a.outbox.remove(older.key)
    await a.enlist()
    found = await b.index.find(older.key)
    assert found is not None
    assert (found.digest, found.waits_at) == (newer.digest, None)
    assert await a.waiting() == 1


async def test_removal_reaches_what_waits_on_another_node(cluster: Cluster) -> None:
    a, b = await cluster.start("a", "b")
    record = await a.put(b"x")
    (entry,) = await a.outbox.due(1)
    await a.outbox.postpone(entry, 3600, "refused")
    for node in (a, b):
        await node.regain_bucket()
    await b.store.block(record.digest, NOON, [record.key])
    await b.store.delete_object(record.digest)
    await b.store.put_tombstone(Tombstone(record.key, NOON, record.digest))
    await b.index.drop([record.key])
    assert await a.waiting() == 1, "the row stays until the bytes are gone"
    assert await a.work() == 1
    assert (await a.waiting(), a.dropped) == (0, [record.key])
    assert await a.remote.fallback.find(record.key) is None  # type: ignore[union-attr]
    assert await a.remote.fallback.fetch(record.object_name, None) is None  # type: ignore[union-attr]


async def test_lost_disk_leaves_no_record_that_nothing_stands_behind(cluster: Cluster) -> None:
    (b,) = await cluster.start("b")
    async with cluster.open("a") as a:
        a.lose_bucket()
        alone, both = await a.put(b"x", name="x"), await a.put(b"y", name="y")
        await b.put(b"y", name="y")
    await asyncio.to_thread(shutil.rmtree, cluster.folder / "a")
    async with cluster.open("a") as a:
        assert await a.work() == 2
        assert await a.waiting() == 0
        assert sorted(a.dropped) == sorted([alone.key, both.key])
        assert await a.index.find(alone.key) is None
        assert await place(a, both) == "b"


async def test_operator_forgets_a_node(cluster: Cluster) -> None:
    (b,) = await cluster.start("b")
    async with cluster.open("a") as a:
        a.lose_bucket()
        alone, both = await a.put(b"x", name="x"), await a.put(b"y", name="y")
        await b.put(b"y", name="y")
    assert await b.outbox.forget("a") == 2
    assert list(await b.outbox.backlogs()) == ["b"]
    assert await b.index.find(alone.key) is None
    assert await place(b, both) == "b"
    async with cluster.open("a") as a:  # it was not gone after all
        await a.enlist()
        assert await place(b, alone) == "a"


async def test_reindex_leaves_what_waits_on_other_nodes(cluster: Cluster) -> None:
    a, b = await cluster.start("a", "b")
    await b.regain_bucket()
    waiting, stored = await a.put(b"x", name="x"), await b.put(b"y", name="y")
    lost = record_of(b"z", name="z")
    await b.index.put(lost)
    await b.index.flush()
    query(b.database, "UPDATE images SET indexed_at = indexed_at - 60")
    assert await reindex(b.storage.archives, b.index) == 1
    assert (await place(b, waiting), await place(b, stored)) == ("a", None)
    assert await b.index.find(lost.key) is None
    query(b.database, "DELETE FROM images")
    assert await reindex(b.storage.archives, b.index) == 1
    await a.enlist()
    assert (await place(b, waiting), await place(b, stored)) == ("a", None)


async def test_verify_reports_nothing_that_another_node_is_about_to_upload(cluster: Cluster) -> None:
    a, b = await cluster.start("a", "b")
    waiting = await a.put(b"x", name="x")
    for node in (a, b):
        await node.regain_bucket()
    orphan = record_of(b"y", name="y")
    for body, record in ((b"x", waiting), (b"y", orphan)):
        draft = await b.storage.spool.begin(len(body))
        await draft.write(body)
        await b.remote.bucket.put_object(draft, record.object_name)
        await draft.aclose()
    out = io.StringIO()
    assert await verify(b.storage.archives, b.database, as_json=True, out=out, err=io.StringIO()) == 0
    found, summary = map(json.loads, out.getvalue().splitlines())
    assert (found["kind"], found["path"].endswith(orphan.object_name)) == ("orphan", True)
    assert (summary["good"], summary["orphan"]) == (1, 1)


async def test_nodes_reindex_at_once(cluster: Cluster) -> None:
    a, b = await cluster.start("a", "b")
    waiting = [await node.put(node.name.encode(), name=node.name) for node in (a, b)]
    for node in (a, b):
        await node.regain_bucket()
    stored = [await a.put(f"{number}".encode(), name=str(number)) for number in range(20)]
    query(b.database, "UPDATE images SET indexed_at = indexed_at - 60")
    assert await asyncio.gather(*(reindex(node.storage.archives, node.index) for node in (a, b))) == [21, 21]
    assert [await place(b, record) for record in waiting] == ["a", "b"]
    assert [await place(b, record) for record in stored] == [None] * 20


async def test_writes_of_one_key_on_several_nodes_do_not_fail(cluster: Cluster) -> None:
    nodes = await cluster.start("a", "b", "c")
    records = [record_of(b"x", name=str(number)) for number in range(200)]

    async def write(node: OutboxNode) -> None:
        for _ in range(5):
            for record in records if node.name == "a" else reversed(records):
                await node.index.put(record)
            await node.index.flush()
            assert not node.index._unwritten

    await asyncio.gather(*map(write, nodes))


async def test_failing_database_hides_other_nodes_alone(cluster: Cluster) -> None:
    a, b = await cluster.start("a", "b")
    record = await a.put(b"x")
    query(b.database, "ALTER TABLE outbox RENAME TO away")
    with pytest.raises(Unreachable):
        await b.read(record)
    await b.regain_bucket()
    assert await b.read(record) is None
    assert await a.read(record) == b"x"
