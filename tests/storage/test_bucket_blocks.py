"""The blocked digests of a bucket, and the marker that says whether they have changed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import StorageError
from imgkeep.core.layout import BLOCKED, BLOCKS_CHANGED, block_path, read_block_path
from imgkeep.storage.bucket import blocked_digests
from imgkeep.storage.bucket.blocked_digests import LISTS_PER_CHANGE, TOKEN_ATTEMPTS_MAX
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.store import BucketStore
from tests.support.memory_bucket import MemoryBucket, MemoryClient, Order, in_every_order
from tests.support.stores import NOON, local_store, record_of

if TYPE_CHECKING:
    from pathlib import Path

ONE, TWO = record_of(b"one").digest, record_of(b"two").digest


class Node(BucketStore):
    """A store that counts its lists."""

    def __init__(self, bucket: MemoryBucket) -> None:
        self.memory = MemoryClient(bucket)
        super().__init__(self.memory)

    @property
    def lists(self) -> int:
        return self.memory.count("LIST", BLOCKED)

    def let_an_hour_pass(self) -> None:
        listed = self._blocks._listed
        assert listed is not None
        self._blocks._listed = replace(listed, at=float("-inf"))


async def settled(bucket: MemoryBucket) -> Node:
    """Return a node that lists no more."""
    node = Node(bucket)
    for _ in range(LISTS_PER_CHANGE):
        await node.list_blocked()
    return node


async def test_unchanged_blocks_are_listed_once_an_hour() -> None:
    bucket = MemoryBucket()
    await Node(bucket).block(ONE, NOON)
    node = await settled(bucket)
    assert node.lists == LISTS_PER_CHANGE
    for _ in range(60):
        assert await node.list_blocked() == {ONE}
    assert node.lists == LISTS_PER_CHANGE
    assert node.memory.count("GET", BLOCKS_CHANGED) == LISTS_PER_CHANGE + 60
    node.let_an_hour_pass()
    assert await node.list_blocked() == {ONE}
    assert node.lists == LISTS_PER_CHANGE + 1


async def test_bucket_without_a_marker_is_listed_once_an_hour() -> None:
    bucket = MemoryBucket()
    node = await settled(bucket)
    assert await node.list_blocked() == frozenset()
    assert node.lists == LISTS_PER_CHANGE
    assert bucket.objects == {}


async def test_block_and_undo_of_another_node_are_seen_at_once() -> None:
    bucket = MemoryBucket()
    node, other = await settled(bucket), Node(bucket)
    await other.block(ONE, NOON)
    assert await node.list_blocked() == {ONE}
    await other.block(TWO, NOON)
    assert await node.list_blocked() == {ONE, TWO}
    await other.unblock(ONE)
    assert await node.list_blocked() == {TWO}
    assert await other.list_blocked() == {TWO}


async def test_late_list_is_made_up_for_by_the_next_one() -> None:
    bucket = MemoryBucket()
    node, other = await settled(bucket), Node(bucket)
    await other.block(ONE, NOON)
    late = bucket.objects.pop(block_path(ONE))
    assert await node.list_blocked() == frozenset()
    bucket.objects[block_path(ONE)] = late
    assert await node.list_blocked() == {ONE}


async def test_no_order_of_requests_hides_a_block() -> None:
    async def case(order: Order) -> None:
        bucket = MemoryBucket()
        nodes = [Node(bucket) for _ in range(3)]
        reader = await settled(bucket)
        for each in (*nodes, reader):
            each.memory.order = order
        await order.run(nodes[0].block(ONE, NOON), nodes[1].block(TWO, NOON), reader.list_blocked())
        reader.memory.order = None
        assert await reader.list_blocked() == {ONE, TWO}, order.taken
        asked = reader.lists
        await reader.list_blocked()
        await reader.list_blocked()
        assert reader.lists <= asked + LISTS_PER_CHANGE

    assert await in_every_order(case) >= 30


async def test_node_announces_what_no_token_did() -> None:
    """A process was killed after its block, or an older version wrote it."""
    bucket = MemoryBucket()
    node, other = await settled(bucket), await settled(bucket)
    bucket.objects[block_path(ONE)] = b"{}"
    assert await node.list_blocked() == frozenset()
    node.let_an_hour_pass()
    assert await node.list_blocked() == {ONE}
    assert BLOCKS_CHANGED in bucket.objects
    assert await other.list_blocked() == {ONE}
    for _ in range(LISTS_PER_CHANGE):
        await node.list_blocked()
        await other.list_blocked()
    asked = node.lists + other.lists
    await node.list_blocked()
    await other.list_blocked()
    assert node.lists + other.lists == asked, "and they list no more"


async def test_changes_at_once_share_a_token() -> None:
    bucket = MemoryBucket()
    node = Node(bucket)
    digests = [record_of(b"%d" % number).digest for number in range(20)]
    gate = node.memory.gates["PUT", BLOCKS_CHANGED] = asyncio.Event()
    blocking = [asyncio.create_task(node.block(digest, NOON)) for digest in digests]
    await node.memory.reached.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*blocking)
    assert node.memory.count("PUT", BLOCKS_CHANGED) == 2, "the first one, and one for all that came meanwhile"
    assert await Node(bucket).list_blocked() == set(digests)


async def test_failed_token_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_digests, "TOKEN_RETRY_DELAY_S", 0)
    bucket = MemoryBucket()
    node = Node(bucket)
    node.memory.faults["PUT", BLOCKS_CHANGED] = BucketError("the bucket is away")
    for change in (node.block(ONE, NOON), node.unblock(ONE)):
        with pytest.raises(StorageError):
            await change
    assert node.memory.count("PUT", BLOCKS_CHANGED) == 2 * TOKEN_ATTEMPTS_MAX
    node.memory.faults.clear()
    await node.unblock(ONE)
    assert BLOCKS_CHANGED in bucket.objects, "a repeat tells the other nodes"


async def test_marker_of_any_content_is_only_compared() -> None:
    bucket = MemoryBucket()
    node = await settled(bucket)
    for content in (b"", b"\xff" * 5_000_000, b'{"version": 2}'):
        bucket.objects[BLOCKS_CHANGED] = content
        assert await node.list_blocked() == frozenset()


async def test_marker_that_cannot_be_read_hides_no_block() -> None:
    bucket = MemoryBucket()
    node, other = await settled(bucket), Node(bucket)
    node.memory.faults["GET", BLOCKS_CHANGED] = BucketError("the bucket answers InvalidObjectState", general=False)
    for digests in ({ONE}, {ONE, TWO}):
        await other.block(max(digests.difference(await other.list_blocked())), NOON)
        assert await node.list_blocked() == digests
    node.memory.faults["GET", BLOCKS_CHANGED] = BucketError("the bucket is away")
    with pytest.raises(BucketError):
        await node.list_blocked()


async def test_list_of_blocks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_digests, "PATHS_MAX", 1)
    node = Node(MemoryBucket({block_path(digest): b"" for digest in (ONE, TWO)}))
    with pytest.raises(BucketError, match="too many"):
        await node.list_blocked()


async def test_marker_is_no_block(tmp_path: Path) -> None:
    assert read_block_path(BLOCKS_CHANGED) is None
    store = local_store(tmp_path)
    await store.open()
    await store.block(ONE, NOON)
    (tmp_path / BLOCKS_CHANGED).write_text("copied from a bucket", "ascii")
    assert await store.list_blocked() == {ONE}
    assert not (tmp_path / BLOCKED / "other").exists()
    await store.aclose()
