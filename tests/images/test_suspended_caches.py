"""A process that may have missed changes asks the store for every lookup, and serves what it has where none answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import Removed, StorageError, Unchecked
from imgkeep.core.layout import block_path, record_path
from imgkeep.core.source_url import read_source
from imgkeep.storage.bucket.errors import BucketError
from tests.support.bucket_nodes import ServingNode
from tests.support.memory_bucket import MemoryBucket
from tests.support.stores import record_of

if TYPE_CHECKING:
    from imgkeep.core.records import Record

BODY, OTHER = b"an image", b"another image"
A, B = record_of(BODY, name="a"), record_of(BODY, name="b")


@pytest.fixture
async def node() -> ServingNode:
    """A node that remembers an image."""
    node = ServingNode("one", MemoryBucket())
    assert await node.fill(BODY, name="a") is not None
    return node


async def by_permanent_url(node: ServingNode, record: Record) -> bool:
    try:
        return await node.world.image_service.deliver_object(record.object_name) is not None
    except Removed:
        return False


async def test_trusted_memory_asks_the_store_nothing(node: ServingNode) -> None:
    before = node.client.count("GET", record_path(A.key)), node.client.count("GET", block_path(A.digest))
    assert await node.shows(A.key)
    assert (node.client.count("GET", record_path(A.key)), node.client.count("GET", block_path(A.digest))) == before


async def test_removal_elsewhere_is_seen_while_suspended(node: ServingNode) -> None:
    other = ServingNode("two", node.client.bucket)
    await other.remover.remove_digest(A.digest, force=True)
    assert A.digest not in node.blocked
    node.trust.suspend()
    assert not await node.shows(A.key)
    assert A.digest in node.blocked, "its tombstone may be missing, so the block counts"


async def test_permanent_url_of_a_removed_image_shows_nothing_while_suspended(node: ServingNode) -> None:
    node.client.bucket.objects[block_path(A.digest)] = b"{}"
    assert await by_permanent_url(node, A)
    node.trust.suspend()
    assert not await by_permanent_url(node, A)


async def test_tombstone_is_seen_while_suspended(node: ServingNode) -> None:
    await ServingNode("two", node.client.bucket).remover.remove_key(A.key)
    node.trust.suspend()
    with pytest.raises(Removed):
        await node.look_up(A.key)
    assert node.records.cached(A.key) is None


async def test_replaced_record_is_adopted_while_suspended(node: ServingNode) -> None:
    other = ServingNode("two", node.client.bucket)
    new = record_of(OTHER, name="a", etag='"new"')
    draft = await node.world.disk.begin(len(OTHER))
    await draft.write(OTHER)
    await other.store.put(draft, new, A.digest)
    found = await node.look_up(A.key)
    assert found is not None
    assert found.digest == A.digest
    node.trust.suspend()
    assert await node.look_up(A.key) == new
    assert node.records.cached(A.key) == new


async def test_without_the_store_a_suspended_node_serves_what_it_has(node: ServingNode) -> None:
    known = await node.look_up(A.key)
    node.trust.suspend()
    node.client.faults["GET", ""] = BucketError("the bucket is away", general=True)
    assert await node.look_up(A.key) == known
    with pytest.raises(StorageError):
        await node.look_up(B.key)


async def test_without_memory_and_store_the_image_index_answers(node: ServingNode) -> None:
    known = await node.look_up(A.key)
    node.records.forget_all()
    node.trust.suspend()
    node.client.faults["GET", ""] = BucketError("the bucket is away", general=True)
    assert await node.look_up(A.key) == known


async def test_isolated_node_shows_and_fetches_nothing_without_the_store(node: ServingNode) -> None:
    node.trust.suspend()
    node.trust.unchecked_until = node.timer()
    assert await node.shows(A.key), "the store answers"
    node.client.faults["GET", ""] = BucketError("the bucket is away", general=True)
    for lookup in (node.look_up(A.key), node.look_up(B.key), node.records.learn_block(A.digest)):
        with pytest.raises(Unchecked):
            await lookup
    source = read_source("https://origin.test/a.png")
    with pytest.raises(Unchecked):
        await node.world.image_service.deliver(source, node.world.image_service.identify(source))


async def test_isolated_node_shows_no_record_without_its_block(node: ServingNode) -> None:
    node.trust.suspend()
    node.trust.unchecked_until = node.timer()
    node.client.faults["GET", block_path(A.digest)] = BucketError("the bucket is away", general=True)
    with pytest.raises(Unchecked):
        await node.look_up(A.key)
    with pytest.raises(Unchecked):
        await by_permanent_url(node, A)


async def test_concurrent_checks_of_a_digest_are_one_request(node: ServingNode) -> None:
    node.trust.suspend()
    gate = node.client.gates["GET", block_path(A.digest)] = asyncio.Event()
    lookups = [asyncio.create_task(node.records.learn_block(A.digest)) for _ in range(5)]
    await node.client.reached.wait()
    gate.set()
    await asyncio.gather(*lookups)
    assert node.client.count("GET", block_path(A.digest)) == 2, "the put of the fixture, and this one"


async def test_record_that_is_stored_during_a_lookup_is_found(node: ServingNode) -> None:
    node.trust.suspend()
    gate = node.client.gates["GET", record_path(B.key)] = asyncio.Event()
    looking = asyncio.create_task(node.look_up(B.key))
    await node.client.reached.wait()
    node.records.put(B)  # as a fill does
    node.client.faults["GET", record_path(B.key)] = BucketError("late", general=True)
    gate.set()
    assert await looking == B


async def test_forgotten_records_are_read_from_the_store_again(node: ServingNode) -> None:
    before = node.client.count("GET", record_path(A.key))
    node.world.image_index.records.clear()
    node.world.image_service.forget_all()
    assert await node.shows(A.key)
    assert node.client.count("GET", record_path(A.key)) == before + 1
