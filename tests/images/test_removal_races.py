"""Removals from a bucket while another node stores the same bytes, in every order of their requests."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.errors import Removed, StorageError
from imgkeep.core.layout import BLOCKED, OBJECTS, block_path, object_path, record_path
from imgkeep.core.records import Record
from imgkeep.images import blocked_digests
from imgkeep.images.removal import LATE_MAX
from imgkeep.maintenance.migrate import Migration
from imgkeep.maintenance.verify_reindex import Finding, verify
from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.memory import MemorySpool
from tests.support.bucket_nodes import ServingNode, draft_of
from tests.support.fakes import read_all
from tests.support.images import make_image
from tests.support.memory_bucket import MemoryBucket, Order, in_every_order
from tests.support.stores import NOON, record_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BODY, GOOD = b"an image", b"a good image"
A, B = record_of(BODY, name="a"), record_of(BODY, name="b")
OBJECT, BLOCK = object_path(A.object_name), block_path(A.digest)


async def upload(node: ServingNode) -> None:
    """Upload an image of the outbox."""
    with suppress(Removed):
        await node.changes.note_stored(await node.store.import_image(await draft_of(BODY), B))


async def fill(node: ServingNode) -> None:
    await node.fill(BODY, name="b")


async def replace(node: ServingNode) -> None:
    """Replace the image of a key by one that is being removed."""
    with suppress(Removed):
        await node.store.put(await draft_of(BODY), B, record_of(GOOD).digest)


def is_step(method: str, path: str) -> bool:
    """Tell whether the order of a request matters: its step of the removal, or of the put, is about the same bytes."""
    return path in {OBJECT, BLOCK} or (method, path) == ("PUT", record_path(B.key))


@pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "unconditional"])
@pytest.mark.parametrize("put", [fill, upload, replace])
async def test_removed_bytes_do_not_come_back(
    put: Callable[[ServingNode], Awaitable[None]], *, conditional: bool
) -> None:
    async def case(order: Order) -> None:
        bucket = MemoryBucket(conditional_put=conditional)
        one, two = ServingNode("one", bucket, order), ServingNode("two", bucket, order)
        for node in (one, two):
            node.client.is_ordered = lambda _method, _path: False
        await one.fill(BODY, name="a")
        if put is replace:
            await two.fill(GOOD, name="b")
        for node in (one, two):
            node.client.is_ordered = is_step
        await order.run(one.remover.remove_key(A.key), put(two))
        assert OBJECT not in bucket.objects, order.taken
        assert BLOCK in bucket.objects
        for node in (one, two):
            node.client.order = None
            await node.remover.refresh()
            await node.settle()
            assert not await node.shows(A.key)
            assert put is replace or not await node.shows(B.key)
        assert OBJECT not in bucket.objects

    assert await in_every_order(case) >= 20


async def test_replacement_by_removed_bytes_leaves_the_good_image() -> None:
    bucket = MemoryBucket()
    node = ServingNode("one", bucket)
    good = await node.fill(GOOD, name="b")
    assert good is not None
    await ServingNode("two", bucket).remover.remove_digest(A.digest, force=True)
    with pytest.raises(Removed):
        await node.store.put(await draft_of(BODY), B, good.digest)
    assert await node.store.find(B.key) == good
    assert await node.shows(B.key)


@pytest.fixture
async def removed() -> ServingNode:
    """A node that has removed an image."""
    node = ServingNode("one", MemoryBucket())
    await node.fill(BODY, name="a")
    assert await node.remover.remove_key(A.key)
    return node


async def test_record_of_a_late_fill_shows_nothing_and_an_undo_frees_it(removed: ServingNode) -> None:
    late = ServingNode("two", removed.client.bucket)
    assert await late.fill(BODY, name="b") is None, "its client is told so"
    await late.remover.refresh()
    assert isinstance(await late.store.find(B.key), Record)
    assert not await late.shows(B.key)
    assert not await removed.shows(B.key)
    assert await removed.remover.restore_key(B.key) is not None
    await late.remover.refresh()
    assert await late.fill(BODY, name="b") is not None
    assert await late.shows(B.key)


async def test_client_of_a_late_fill_is_told_of_the_removal() -> None:
    bucket, url, body = MemoryBucket(), "https://images.example/late.png", make_image()
    node, late = ServingNode("one", bucket), ServingNode("two", bucket)
    await node.remover.remove_digest(record_of(body).digest, force=True)
    late.world.origin.gives(url, body)
    delivery = await late.world.ask(url)  # its head is sent before the bytes are known
    with pytest.raises(Removed):
        await read_all(delivery)
    assert not any(path.startswith(OBJECTS) for path in bucket.objects)
    with pytest.raises(Removed):
        await late.world.ask(url)


async def test_object_that_a_killed_node_left_is_deleted_at_its_next_start(removed: ServingNode) -> None:
    bucket = removed.client.bucket
    killed = ServingNode("two", bucket)
    gate = killed.client.gates["GET", BLOCKED] = asyncio.Event()
    put = asyncio.create_task(killed.fill(BODY, name="b"))
    await killed.client.reached.wait()
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    gate.set()
    assert OBJECT in bucket.objects
    heir = ServingNode("two", bucket)
    await heir.blocked.load()
    await heir.remover.refresh()
    assert OBJECT not in bucket.objects


async def test_late_object_is_deleted_once_the_bucket_answers(removed: ServingNode) -> None:
    bucket = removed.client.bucket
    node = ServingNode("two", bucket)
    bucket.objects[OBJECT] = BODY  # a PUT that was given up and carried out late
    node.client.faults["DELETE", OBJECTS] = BucketError("the bucket is away")
    await node.remover.refresh()
    assert OBJECT in bucket.objects
    node.client.faults.clear()
    await node.remover.refresh()
    assert OBJECT not in bucket.objects
    asked = len(node.client.asked)
    await node.remover.refresh()
    await node.remover.refresh()
    assert not any(method == "DELETE" for method, _ in node.client.asked[asked:]), "and once"


async def test_worker_that_was_told_of_a_removal_looks_for_its_late_object(removed: ServingNode) -> None:
    bucket = removed.client.bucket
    worker = ServingNode("two", bucket)
    await worker.remover.learn([A.digest], [])
    bucket.objects[OBJECT] = BODY
    await worker.remover.refresh()
    assert OBJECT not in bucket.objects


async def test_new_node_asks_for_few_late_objects_at_a_time() -> None:
    bucket = MemoryBucket()
    digests = [record_of(b"%d" % number).digest for number in range(LATE_MAX + 20)]
    for digest in digests:
        bucket.objects[block_path(digest)] = b"{}"
    node = ServingNode("new", bucket)
    await node.blocked.load()
    await node.remover.refresh()
    assert node.client.count("LIST", OBJECTS) == LATE_MAX
    await node.remover.refresh()
    assert node.client.count("LIST", OBJECTS) == len(digests)


async def test_undo_that_crosses_a_look_loses_no_image(removed: ServingNode) -> None:
    late = ServingNode("two", removed.client.bucket)
    gate = late.client.gates["DELETE", OBJECTS] = asyncio.Event()
    put = asyncio.create_task(late.store.put(await draft_of(BODY), B))
    await late.client.reached.wait()  # it has found the block
    assert await removed.remover.restore_digest(A.digest) is not None
    gate.set()
    with pytest.raises(StorageError, match="undone"):  # so the image goes to the fallback, and is uploaded again
        await put


async def test_verify_deletes_removed_bytes_that_came_back(removed: ServingNode) -> None:
    bucket = removed.client.bucket
    await removed.fill(GOOD, name="good")
    bucket.objects[OBJECT] = BODY
    bucket.objects[record_path(B.key)] = bucket.objects[record_path(record_of(GOOD, name="good").key)]

    async def note(record: Record) -> None:
        raise AssertionError(f"{record} is whole")

    found = [finding async for finding in verify(removed.store, note)]
    assert Finding("removed", OBJECT) in found
    assert OBJECT not in bucket.objects
    assert await removed.store.fetch(record_of(GOOD).object_name, None) is not None


async def test_removal_deletes_pictures_and_verify_those_that_it_has_left() -> None:
    node = ServingNode("one", MemoryBucket())
    await node.fill(GOOD, name="good")
    objects, good = node.client.bucket.objects, record_of(GOOD)
    removed, kept = (f"v1/derived/{digest}/w320.webp" for digest in (good.digest, "f" * 64))
    objects[removed] = objects[kept] = b"picture"
    assert await node.remover.remove_digest(good.digest)
    assert removed not in objects
    objects[removed] = b"carried out by the service after its node had died"

    async def note(record: Record) -> None:
        raise AssertionError(f"{record} is whole")

    found = [finding async for finding in verify(node.store, note) if finding is not None]
    assert found == [Finding("removed", removed)]
    assert (removed in objects, kept in objects) == (False, True)


async def test_verify_leaves_bytes_whose_removal_was_undone(removed: ServingNode) -> None:
    bucket = removed.client.bucket
    listed = await removed.store.list_blocked()
    assert A.digest in listed
    bucket.objects[OBJECT] = BODY
    del bucket.objects[block_path(A.digest)]  # after the list, which the marker keeps valid

    async def note(record: Record) -> None:
        raise AssertionError(f"{record} is no image of a known format")

    assert Finding("orphan", OBJECT) in [finding async for finding in verify(removed.store, note)]


async def test_migration_copies_no_removed_bytes(removed: ServingNode) -> None:
    await removed.fill(GOOD, name="good")
    removed.client.bucket.objects[OBJECT] = BODY
    target = ServingNode("target", MemoryBucket())
    migration = Migration(removed.store, target.store, MemorySpool(1_000_000), lambda: NOON)
    await migration.count()
    outcomes = {result.path: result.outcome async for result in migration.run()}
    assert outcomes[OBJECT] == "gone"
    assert OBJECT not in target.client.bucket.objects
    assert object_path(record_of(GOOD).object_name) in target.client.bucket.objects
    assert await target.store.find_block(A.digest) is not None


async def test_start_does_not_wait_for_a_list_that_never_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blocked_digests, "LOAD_TIMEOUT_S", 0.05)
    bucket = MemoryBucket()
    digest = record_of(b"an image").digest
    await ServingNode("one", bucket).store.block(digest, NOON)
    node = ServingNode("two", bucket)
    node.client.gates["LIST", BLOCKED] = asyncio.Event()
    await node.blocked.load()
    assert [record.message for record in caplog.records] == ["list of blocked digests not read from the store in time"]
    assert digest not in node.blocked
    await node.remover.refresh()
    assert digest in node.blocked
