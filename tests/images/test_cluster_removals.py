"""Removals and undos on nodes that share a PostgreSQL and a bucket, while other nodes store, remove and are cut off."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from imgkeep.cluster.nodes import change_writer
from imgkeep.cluster.nodes.change_reader import Receiver
from imgkeep.core.errors import Removed
from imgkeep.core.layout import block_path, object_path
from imgkeep.core.records import Key
from imgkeep.database import Database
from tests.support.bucket_nodes import ServingNode
from tests.support.change_nodes import STALE_MAX_S, ChangeNode, make_tables
from tests.support.clock import FakeClock
from tests.support.memory_bucket import MemoryBucket
from tests.support.stores import record_of
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from imgkeep.core.records import Digest

BODY = b"an image"
A, B = record_of(BODY, name="a"), record_of(BODY, name="b")


class ClusterNode(ServingNode):
    """A node with its part of the cluster. `is_member`: whether it learns what others change."""

    def __init__(self, url: str, name: str, bucket: MemoryBucket, *, is_member: bool = True) -> None:
        self.is_member = is_member
        self.database = Database(url.replace("postgresql:", "postgresql+psycopg:"), FakeClock(), node=name)
        settle = self.database.image_index.flush
        self.member = ChangeNode(url, name, Receiver(self.learn, self.learn_everything, settle))
        super().__init__(name, bucket, notifier=self.member.writer, database=self.database)
        self.database.image_index.when_blocked(self.blocked.learn_found)
        self.trust.until = self.member.trust.until

    async def learn(
        self,
        blocked: Collection[Digest],
        changed: Collection[Key],
        _copies: Mapping[str, int],
        unblocked: Collection[Digest],
    ) -> None:
        await self.member.learner.gate.wait()
        await self.remover.learn(blocked, unblocked)
        for key in changed:
            self.world.image_service.learn(key)

    async def learn_everything(self) -> None:
        self.world.image_service.forget_all()
        await self.remover.reload()

    def look_at_trust(self) -> None:
        """Take over until when the member trusts its caches; both have timers of their own."""
        self.trust.until = float("inf") if self.member.trust.holds else -1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ClusterNode]:
        await self.database.open()
        async with self.member.running(reads=self.is_member):
            if not self.is_member:
                await self.member.membership.leave()
            self.look_at_trust()
            yield self
        await self.database.aclose()


@pytest.fixture
async def url(postgresql_url: str) -> str:
    return await make_tables(postgresql_url)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_writer, "CONFIRM_TIMEOUT_S", 0.2)
    monkeypatch.setattr(change_writer, "LIST_INTERVAL_S", 0.02)


async def shown(*nodes: ClusterNode, key: Key = A.key) -> list[bool]:
    return [await node.shows(key) for node in nodes]


async def test_removal_and_undo_are_everywhere_when_they_end(url: str) -> None:
    bucket = MemoryBucket()
    a, b = ClusterNode(url, "a", bucket), ClusterNode(url, "b", bucket)
    async with a.running(), b.running():
        await a.fill(BODY, name="a")
        await b.fill(BODY, name="b")
        assert await shown(a, b) == [True, True]
        await a.remover.remove_key(A.key)
        assert await shown(a, b) == [False, False]
        assert await shown(a, b, key=B.key) == [False, False], "by its digest"
        assert await b.remover.restore_key(A.key) is not None
        assert A.digest not in a.blocked
        await a.fill(BODY, name="a")
        assert await shown(a, b) == [True, True]


async def test_record_that_is_written_before_a_removal_gets_its_tombstone(url: str) -> None:
    """B has stored, and its row is there: A finds the key in the database."""
    bucket = MemoryBucket()
    a, b = ClusterNode(url, "a", bucket), ClusterNode(url, "b", bucket)
    async with a.running(), b.running():
        await a.fill(BODY, name="a")
        await b.fill(BODY, name="b")
        await b.database.image_index.flush()
        await a.remover.remove_key(A.key)
        with pytest.raises(Removed):
            await a.store.find(B.key)


async def test_record_that_is_written_after_a_removal_is_removed_at_once(url: str) -> None:
    """
    1. B, a command that learns of no change, has put object and record, and found no block.
    2. A removes the digest, in the store and in the database.
    3. B writes its row, and is told of the block.
    """
    bucket = MemoryBucket()
    a, b = ClusterNode(url, "a", bucket), ClusterNode(url, "b", bucket, is_member=False)
    b.database.image_index._batch_delay_s = 60
    async with a.running(), b.running():
        await b.fill(BODY, name="b")
        await a.remover.remove_digest(A.digest, force=True)
        assert A.digest not in b.blocked
        await b.database.image_index.flush()
        assert A.digest in b.blocked
        assert not await b.shows(B.key)
        await b.remover.delete_late_objects()
        assert object_path(A.object_name) not in bucket.objects


async def test_fill_that_puts_while_another_node_removes_ends_removed(url: str) -> None:
    """B's put waits at its look for the block until A's removal is everywhere."""
    bucket = MemoryBucket()
    a, b = ClusterNode(url, "a", bucket), ClusterNode(url, "b", bucket)
    async with a.running(), b.running():
        gate = b.client.gates["GET", block_path(A.digest)] = asyncio.Event()
        filling = asyncio.create_task(b.fill(BODY, name="b"))
        await b.client.reached.wait()
        await a.remover.remove_digest(A.digest, force=True)
        gate.set()
        assert await filling is None
        assert await shown(a, b, key=B.key) == [False, False]
        assert object_path(A.object_name) not in bucket.objects


async def test_node_that_is_cut_off_during_a_removal_shows_nothing_once_it_is_back(url: str, hurried: None) -> None:
    del hurried
    bucket = MemoryBucket()
    a, b = ClusterNode(url, "a", bucket), ClusterNode(url, "b", bucket)
    async with a.running(), b.running():
        await b.fill(BODY, name="a")
        await b.database.image_index.flush()
        b.member.learner.gate.clear()  # B is stopped
        await a.remover.remove_key(A.key)
        assert A.digest not in b.blocked
        b.member.offset_s += STALE_MAX_S
        b.look_at_trust()
        assert not await b.shows(A.key), "it asks the store"
        b.member.learner.gate.set()
        await until(lambda: A.digest in b.blocked)  # late, and its row is gone
        await b.member.membership.beat()
        await b.member.membership.join()
        b.look_at_trust()
        assert b.trust.holds
        assert not await b.shows(A.key)


async def test_two_removals_at_once_on_two_nodes(url: str) -> None:
    bucket = MemoryBucket()
    a, b = ClusterNode(url, "a", bucket), ClusterNode(url, "b", bucket)
    async with a.running(), b.running():
        await a.fill(BODY, name="a")
        await b.fill(BODY, name="b")
        assert all(await asyncio.gather(a.remover.remove_key(A.key), b.remover.remove_key(B.key)))
        assert await shown(a, b) + await shown(a, b, key=B.key) == [False] * 4


async def test_undo_that_begins_during_a_removal_comes_after_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    1. A has blocked the digest in the store, and has not told B yet.
    2. B is asked to undo that, and finds the block. Without turns it would delete it, and A's notice and tombstones
       would come later.
    """
    monkeypatch.setattr(change_writer, "EXCLUSIVE_INTERVAL_S", 0.01)
    bucket = MemoryBucket()
    a, b = ClusterNode(url, "a", bucket), ClusterNode(url, "b", bucket)
    async with a.running(), b.running():
        await a.fill(BODY, name="a")
        gate = a.client.gates["DELETE", object_path(A.object_name)] = asyncio.Event()
        removing = asyncio.create_task(a.remover.remove_key(A.key))
        await a.client.reached.wait()
        undoing = asyncio.create_task(b.remover.restore_digest(A.digest))
        done, _ = await asyncio.wait([undoing], timeout=0.05)
        assert not done
        gate.set()
        await removing
        restored = await undoing
        assert restored is not None
        assert restored.keys == (A.key,)
        assert not any(A.digest in node.blocked for node in (a, b))
        assert block_path(A.digest) not in bucket.objects
        await b.fill(BODY, name="a")
        assert await shown(a, b) == [True, True]


async def test_replaced_record_is_adopted_at_once(url: str) -> None:
    """A's row in the database is written before B is told to look there."""
    bucket = MemoryBucket()
    a, b = ClusterNode(url, "a", bucket), ClusterNode(url, "b", bucket)
    async with a.running(), b.running():
        await a.fill(BODY, name="a")
        found = await b.look_up(A.key)
        assert found is not None
        new = record_of(b"another image", name="a", etag='"new"')
        draft = await a.world.disk.begin(None)
        await draft.write(b"another image")
        await a.changes.note_stored(await a.store.put(draft, new, A.digest))
        assert await b.look_up(A.key) == new
        assert Key(A.key) in b.changed, "its cached responses are gone"
